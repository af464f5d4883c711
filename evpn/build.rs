//! Makes the messages of both generations of the speaker's API out of `proto/`, with a compiler in Rust.

use std::{error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    for file in ["v3.proto", "v4.proto"] {
        let parsed = protox::compile([file], [&proto])?;
        tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(parsed)?;
    }
    Ok(())
}

//! Builds the built-in guest, a freestanding program with flags of its own, so that it can be made part of this crate.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The host's own target: named, so that the flags below reach the guest and not what runs while it is built.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// A program without an operating system: no start files, no libraries, at a fixed address.
const FLAGS: [&str; 6] = [
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none,-z,noexecstack",
    "-Crelocation-model=static",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../guest");
    for part in ["src", "Cargo.toml", "bare/src", "bare/Cargo.toml", "bare/Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(part).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(fs::write(out.join("guest.elf"), [])?);
    }
    let built = build(&root.join("bare"), &out.join("guest"))?;
    fs::copy(built, out.join("guest.elf"))?;
    Ok(())
}

fn build(package: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.args(["build", "--release", "--locked", "--quiet", "--target", TARGET]).current_dir(package);
    // What cargo has set for this crate's own build is not for that of the guest; neither is a lint pass.
    for (name, _) in env::vars() {
        let is_ours = name.starts_with("CARGO_") && !name.starts_with("CARGO_HOME") && !name.starts_with("CARGO_HTTP");
        if is_ours || ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CLIPPY_ARGS"].contains(&name.as_str())
        {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_TARGET_DIR", target_dir).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    let status = cargo.status().map_err(|error| format!("cargo cannot be run to build the guest: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the guest in {} does not build ({status}); what is wrong is told above",
            package.display()
        )
        .into());
    }
    Ok(target_dir.join(TARGET).join("release/trunkline-guest-bare"))
}

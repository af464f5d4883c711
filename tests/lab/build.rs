//! Compiles the laboratory's C programs (assets/*.c) into the cache.
//!
//! Invariant: what is in the cache under a name was built from exactly the sources, flags and compiler that the name's
//! hash covers; a build is put in place by a rename, so a killed run leaves no half program.

use super::{Unable, cache_dir, need_program};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the laboratory's own sources.
pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/assets")
}

/// A hash of texts and of the contents of files, for names in the cache.
pub fn content_hash(texts: &[&str], files: &[&Path]) -> String {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    for file in files {
        fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// The directory with the statically linked programs `frames` and `agent`, for guests and namespaces alike.
pub fn guest_programs() -> Result<PathBuf, Unable> {
    let (agent, frames) = (assets().join("agent.c"), assets().join("frames.c"));
    let sources = [&*agent, &*frames, &*assets().join("pattern.h")];
    cached_dir(&format!("programs-{}", content_hash(&["static"], &sources)), |dir| {
        compile(&agent, &dir.join("agent"), &["-static"])?;
        compile(&frames, &dir.join("frames"), &["-static"])
    })
}

/// The library that User-mode Linux needs preloaded on processors with AMX.
pub fn ptrace_library() -> Result<PathBuf, Unable> {
    let source = assets().join("ptrace_xstate.c");
    let dir = cached_dir(&format!("ptrace-{}", content_hash(&[], &[&source])), |dir| {
        compile(&source, &dir.join("ptrace_xstate.so"), &["-shared", "-fPIC"])
    })?;
    Ok(dir.join("ptrace_xstate.so"))
}

/// The DPDK program with two virtio-user ports.
pub fn dpdk_frames() -> Result<PathBuf, Unable> {
    need_program("pkg-config", "pkg-config")?;
    let flags = Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"]).output();
    let flags = match flags {
        Ok(done) if done.status.success() => String::from_utf8_lossy(&done.stdout).into_owned(),
        _ => {
            return Err(Unable("DPDK's headers are not installed (Debian package libdpdk-dev)".into()));
        }
    };
    let source = assets().join("dpdk_frames.c");
    let hash = content_hash(&[&flags], &[&source, &assets().join("pattern.h")]);
    let dir = cached_dir(&format!("dpdk-{hash}"), |dir| {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        compile(&source, &dir.join("dpdk_frames"), &flags)
    })?;
    Ok(dir.join("dpdk_frames"))
}

/// A directory of the cache that `fill` makes once; who needs it meanwhile waits.
pub fn cached_dir(name: &str, fill: impl FnOnce(&Path) -> Result<(), Unable>) -> Result<PathBuf, Unable> {
    let dir = cache_dir().join(name);
    let filling = File::create(cache_dir().join("filling")).expect("the cache's lock");
    filling.lock().expect("the cache's lock");
    if !dir.is_dir() {
        let unfinished = cache_dir().join(format!("{name}.tmp"));
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished).expect("a directory in the cache");
        fill(&unfinished)?;
        fs::rename(&unfinished, &dir).expect("a directory in the cache");
    }
    Ok(dir)
}

/// Compiles one C file. A missing compiler is an [`Unable`], an error in the source a panic.
fn compile(source: &Path, target: &Path, flags: &[&str]) -> Result<(), Unable> {
    need_program("gcc", "gcc")?;
    if !Path::new("/usr/include/stdio.h").exists() {
        return Err(Unable("the C library's headers are not installed (Debian package libc6-dev)".into()));
    }
    let mut command = Command::new("gcc");
    command.args(["-O2", "-Wall", "-Wextra", "-o"]).arg(target).arg(source).args(flags);
    let done = command.output().expect("gcc");
    let messages = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{} does not compile:\n{messages}", source.display());
    Ok(())
}

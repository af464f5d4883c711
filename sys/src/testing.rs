//! What the tests of this crate share: skipping aloud, network namespaces of their own, bytes of a mapping.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::memory::Mapping;

/// Says on the real standard error, past the test harness's capture, that a test could not run. The line begins with
/// `SKIPPED`, so that whoever runs the tests can count it.
pub(crate) fn skip(test: &str, reason: &str) {
    // One write, so that lines of parallel tests do not mix.
    let line = format!("\nSKIPPED {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Waits, for a bounded time, until `condition` holds. A descriptor that a test closes may live on for a moment in a child
/// process that a test on another thread has forked and that has not called exec yet.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}

/// The byte at `offset` of a mapping.
pub(crate) fn read(mapping: &Mapping, offset: usize) -> u8 {
    assert!(offset < mapping.len());
    // SAFETY: the offset lies inside the mapping.
    unsafe { mapping.ptr().as_ptr().add(offset).read_volatile() }
}

/// Stores the byte at `offset` of a mapping.
pub(crate) fn write(mapping: &Mapping, offset: usize, value: u8) {
    assert!(offset < mapping.len());
    // SAFETY: the offset lies inside the mapping.
    unsafe { mapping.ptr().as_ptr().add(offset).write_volatile(value) }
}

/// A named network namespace that is removed when dropped, also when the test fails.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// Makes one, or says aloud why `test` is skipped.
    pub(crate) fn new(test: &str) -> Option<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tl-sys-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match Command::new("ip").args(["netns", "add", &name]).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => Some(Namespace { name }),
            Ok(output) => {
                skip(test, &format!("ip netns add: {}", String::from_utf8_lossy(&output.stderr).trim()));
                None
            }
            Err(error) => {
                skip(test, &format!("the program ip (package iproute2) cannot be run: {error}"));
                None
            }
        }
    }

    /// Runs a program inside and returns what it printed.
    pub(crate) fn run(&self, command: &[&str]) -> String {
        let output = Command::new("ip").args(["netns", "exec", &self.name]).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

//! The test laboratory: real guests, real drivers and real network namespaces, on any Debian 12 machine with root.
//!
//! | module | what it gives |
//! | --- | --- |
//! | this one | [`Lab`], [`skip!`], [`require!`], [`wait_for`] |
//! | [`process`] | child processes and their logs; [`Place`](process::Place): where a command can run |
//! | [`netns`] | network namespaces, veth pairs, a Linux bridge to compare with |
//! | [`daemon`] | the program under test |
//! | [`qemu`], [`qmp`] | Linux guests in QEMU |
//! | [`uml`] | Linux guests as processes (User-mode Linux) |
//! | [`dpdk`] | DPDK virtio-user ports, and testpmd as a vhost-user back end to compare with |
//! | [`frames`], [`iperf`], [`pings`] | verified raw frames; TCP and UDP throughput; pings of which none may be lost |
//! | [`agent`], [`kernel`], [`initramfs`], [`build`] | what the guests are made of |
//!
//! A test begins with `let lab = require!(Lab::new());` and gives `&lab` to what it starts. Whatever it starts ends with
//! its handle, also when the test panics, and dies with the test's thread if the runner itself is killed. Two things are
//! kept apart: what *cannot run here* is an [`Unable`], said aloud on standard error as `SKIPPED <test>: <why>` by
//! [`require!`]; what *fails* panics, with the logs of those involved.
//!
//! Only one laboratory is open on a machine at a time (a lock in the cache directory): guests under emulation need the
//! processors, and a test that waits for another does not yet count its own time. Never open two in one test. Who runs
//! several lanes of tests at once names each in TRUNKLINE_LAB_LANE; then one is open in each.

#![allow(dead_code, unused_imports, unused_macros, reason = "every test file uses its own part of the laboratory")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

pub mod agent;
pub mod build;
pub mod daemon;
pub mod dpdk;
pub mod frames;
pub mod initramfs;
pub mod iperf;
pub mod kernel;
pub mod netns;
pub mod pings;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod site;
pub mod uml;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why something cannot run on this machine. Not a failure: the test that needs it is skipped, aloud.
#[derive(Debug, Clone)]
pub struct Unable(pub String);

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ends the test as skipped: prints `SKIPPED <test>: <why>` past the capture of the test runner and returns.
macro_rules! skip {
    ($($why:tt)+) => {{
        fn here() {}
        $crate::lab::announce_skip(std::any::type_name_of_val(&here), &format!($($why)+));
        return;
    }};
}

/// The value of a `Result<T, Unable>`; the test is skipped with the reason if there is none.
macro_rules! require {
    ($made:expr) => {
        match $made {
            Ok(made) => made,
            Err(unable) => $crate::lab::skip!("{unable}"),
        }
    };
}

pub(crate) use {require, skip};

/// Prints the line that counts as one skipped test. `place` is the path of a function inside the test.
pub fn announce_skip(place: &str, why: &str) {
    let test = place.strip_suffix("::here").unwrap_or(place);
    // Written whole and directly: the print macros would be captured, and other tests' lines must not run into it.
    let line = format!("\nSKIPPED {test}: {}\n", why.replace('\n', " "));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Waits until `condition` holds, looking every 5 ms; panics with `what` after `timeout`.
pub fn wait_for(what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(timeout, condition), "gave up after {timeout:?} waiting for {what}");
}

/// Whether `condition` comes to hold within `timeout`.
pub fn holds_within(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number that no other call in this process gets.
pub fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where built and downloaded things are kept between runs: `lab` in Cargo's target directory.
pub fn cache_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory").join("lab");
    fs::create_dir_all(&dir).expect("the laboratory's cache directory");
    dir
}

/// Whether this process is root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Says why not, unless this process is root.
pub fn need_root(what: &str) -> Result<(), Unable> {
    if is_root() { Ok(()) } else { Err(Unable(format!("{what} need root"))) }
}

/// The full path of a program of the system, or which Debian package would bring it.
pub fn need_program(name: &str, package: &str) -> Result<PathBuf, Unable> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Unable(format!("{name} is not installed (Debian package {package})")))
}

/// One test's laboratory: a directory for its sockets, files and logs, and the machine for itself while it is open.
pub struct Lab {
    dir: PathBuf,
    _alone: File,
}

impl Lab {
    /// Waits until no other laboratory is open on this machine, removes what a killed run left, and opens one.
    pub fn new() -> Result<Self, Unable> {
        let lane = std::env::var("TRUNKLINE_LAB_LANE").unwrap_or_default();
        let alone = File::create(cache_dir().join(format!("lock{lane}"))).expect("the laboratory's lock");
        alone.lock().expect("the laboratory's lock");
        netns::remove_stale();
        // A short path: a unix socket's name has room for 107 bytes.
        let dir = std::env::temp_dir().join(format!("tlab-{}-{}", std::process::id(), unique()));
        // Who had this number before is no more.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("the laboratory's directory");
        Ok(Self { dir, _alone: alone })
    }

    /// The directory of this laboratory, removed with it (kept if TRUNKLINE_LAB_KEEP is set).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in this laboratory's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("TRUNKLINE_LAB_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

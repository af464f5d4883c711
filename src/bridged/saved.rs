//! [`Saved`]: what a NIC had before it was joined to a bridge, in a file, so that whoever survives can put it back.
//!
//! Invariant: the file is there from before the first change until the last one is undone; whoever changes the NIC or the file holds its
//! lock. Addresses and routes are kept as the kernel told them, byte for byte, beside a text for people. The file says for which boot and
//! which network namespace it holds: after a reboot the kernel has nothing of ours, and there is nothing to undo.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::{address::AddressMessage, route::RouteMessage};
use serde::{Deserialize, Serialize};

use super::address;
use crate::state;

/// What a NIC had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The boot it holds for, as /proc/sys/kernel/random/boot_id has it.
    pub boot: String,
    /// The network namespace, as /proc/self/ns/net names it.
    pub netns: String,
    /// The network of ours.
    pub network: String,
    /// The NIC's name.
    pub nic: String,
    /// Its number.
    pub index: u32,
    /// Whether it was up.
    pub up: bool,
    /// The bridge, which we make.
    pub bridge: String,
    /// Our TAP.
    pub tap: String,
    /// Its addresses.
    pub addresses: Vec<Item>,
    /// The routes over it.
    pub routes: Vec<Item>,
    /// Seconds since boot when this was so.
    pub uptime_s: u32,
    /// The bridge has taken over.
    pub switched: bool,
}

/// An address or a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// For people.
    pub what: String,
    /// The kernel's message without its netlink header, in hexadecimal.
    pub bytes: String,
}

impl Item {
    /// An address.
    pub fn of_address(message: &AddressMessage) -> Item {
        Item { what: address::address_text(message), bytes: hex(message) }
    }

    /// A route.
    pub fn of_route(message: &RouteMessage) -> Item {
        Item { what: address::route_text(message), bytes: hex(message) }
    }
}

impl Saved {
    /// The addresses.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn addresses(&self) -> io::Result<Vec<AddressMessage>> {
        self.addresses.iter().map(read).collect()
    }

    /// The routes.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn routes(&self) -> io::Result<Vec<RouteMessage>> {
        self.routes.iter().map(read).collect()
    }

    /// By which the bridge is known as ours.
    pub fn alias(&self) -> String {
        format!("trunkline network {}", self.network)
    }
}

fn hex(message: &impl Emitable) -> String {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read<T: Parseable<[u8]>>(item: &Item) -> io::Result<T> {
    let digits = item.bytes.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    // Every message has a header of eight bytes at least.
    let bytes = bytes.filter(|bytes| bytes.len() >= 8);
    let damaged = || io::Error::other(format!("what was saved of {} is damaged", item.what));
    T::parse(bytes.ok_or_else(damaged)?.as_slice()).map_err(|_| damaged())
}

/// The file of a network.
pub fn file(state_dir: &Path, network: &str) -> PathBuf {
    state_dir.join("bridged").join(format!("{network}.json"))
}

/// All files.
pub fn files(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir.join("bridged")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    files.sort();
    files
}

/// What a file says; nothing when it is not there.
///
/// # Errors
/// It cannot be read, or is not ours.
pub fn load(file: &Path) -> io::Result<Option<Saved>> {
    match fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file, to the disk.
///
/// # Errors
/// What the system reports.
pub fn store(file: &Path, saved: &Saved) -> io::Result<()> {
    state::write(file, saved)?;
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Removes a file; one that is gone is fine.
///
/// # Errors
/// What the system reports.
pub fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The right to change a NIC and its file. The lock goes with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// How long somebody may look who has it ([`holder`]).
pub const INSTANT: Duration = Duration::from_secs(1);

/// Takes the lock of a file, waiting for it so long.
///
/// # Errors
/// `WouldBlock`, with who holds it; else what the system reports.
pub fn lock(file: &Path, patience: Duration) -> io::Result<Lock> {
    let path = file.with_extension("lock");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    let end = Instant::now() + patience;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, looks_after(&mut lock)));
            }
        }
    }
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", process::id())?;
    Ok(Lock { _file: lock })
}

fn looks_after(lock: &mut File) -> String {
    let mut holder = String::new();
    let _ = Read::by_ref(lock).take(16).read_to_string(&mut holder);
    format!("process {} looks after it", holder.trim())
}

/// Who holds the lock of a file, in words; nothing when nobody does. The lock is not taken: it is shared for an instant, which those who want it for
/// themselves wait out ([`INSTANT`]).
///
/// # Errors
/// What the system reports.
pub fn holder(file: &Path) -> io::Result<Option<String>> {
    let mut lock = match File::open(file.with_extension("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(looks_after(&mut lock))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Which boot this is.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Which network namespace this is.
pub fn netns() -> String {
    fs::read_link("/proc/self/ns/net").map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Seconds since boot.
pub fn uptime_s() -> u32 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_looks_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), "lan");
        assert_eq!(holder(&file).unwrap(), None);
        assert!(!dir.path().join("bridged").exists(), "looking makes nothing");
        let held = lock(&file, Duration::ZERO).unwrap();
        assert_eq!(holder(&file).unwrap(), Some(format!("process {} looks after it", process::id())));
        assert_eq!(lock(&file, Duration::ZERO).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert_eq!(holder(&file).unwrap(), None);
        let after = fs::read_to_string(file.with_extension("lock")).unwrap();
        assert_eq!(after.trim(), process::id().to_string(), "nor does it write");
        assert!(lock(&file, Duration::ZERO).is_ok());
    }
}

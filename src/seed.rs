//! Numbers that guests cannot know.

use std::{
    fs::File,
    io::{self, Read},
};

/// One of them.
///
/// # Errors
/// The system's source of random numbers cannot be read.
pub fn random() -> io::Result<u64> {
    bytes().map(u64::from_ne_bytes)
}

/// So many bytes of them.
///
/// # Errors
/// As of [`random`].
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

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
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

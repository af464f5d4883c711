//! Fields of headers, as [`wire::bytes`] has them, and words that a checksum covers.

pub(super) use wire::bytes::{array, put, sum, word};
use wire::checksum;

/// Writes a word that the checksum field at `sum` covers.
#[inline]
pub(super) fn put_summed(bytes: &mut [u8], at: usize, new: u16, sum: usize) {
    if let (Some(old), Some(field)) = (word(bytes, at), word(bytes, sum)) {
        put(bytes, at, &new.to_be_bytes());
        put(bytes, sum, &checksum::update(field, old, new).to_be_bytes());
    }
}

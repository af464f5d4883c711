//! Fields of headers: reading, writing, and the sums they count in.

use wire::checksum::{self, Checksum};

/// The bytes at `at`.
#[inline]
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The two bytes at `at` as a number.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Writes bytes at `at`; what does not fit is left out.
#[inline]
pub(super) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
}

/// Writes a word that the checksum field at `sum` covers.
#[inline]
pub(super) fn put_summed(bytes: &mut [u8], at: usize, new: u16, sum: usize) {
    if let (Some(old), Some(field)) = (word(bytes, at), word(bytes, sum)) {
        put(bytes, at, &new.to_be_bytes());
        put(bytes, sum, &checksum::update(field, old, new).to_be_bytes());
    }
}

/// The checksum of `bytes`, whose field is zero.
pub(super) fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = Checksum::new();
    sum.add_bytes(bytes);
    sum.finish().to_be_bytes()
}

//! Fields of headers by their place: reading and writing.
//!
//! Invariant: a field that does not lie within the bytes is neither read nor written, and is told as nothing.

use crate::checksum::Checksum;

/// The bytes at `at`.
#[inline]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The two bytes at `at` as a number.
#[inline]
pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Writes bytes at `at`, all of them or none.
#[inline]
pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(new.len())?)?.copy_from_slice(new);
    Some(())
}

/// The checksum of bytes whose field is zero.
pub fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = Checksum::new();
    sum.add_bytes(bytes);
    sum.finish().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_lie_within_is_left_alone() {
        let mut bytes = [1, 2, 3, 4];
        assert_eq!((word(&bytes, 2), word(&bytes, 3), array::<4>(&bytes, 0)), (Some(0x0304), None, Some([1, 2, 3, 4])));
        assert_eq!((put(&mut bytes, 3, &[8, 9]), put(&mut bytes, usize::MAX, &[8])), (None, None));
        assert_eq!((put(&mut bytes, 2, &[8, 9]), bytes), (Some(()), [1, 2, 8, 9]));
        assert_eq!(sum(&[0x12, 0x34]), [!0x12, !0x34]);
    }
}

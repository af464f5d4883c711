//! The Internet checksum: over bytes that come in pieces of any length, with pseudo headers, and updated in place.
//!
//! Invariant: a [`Checksum`] depends on the bytes added and not on how they were cut into pieces. Every `u16` that goes in
//! or comes out is the number that the header field holds in network byte order (`u16::from_be_bytes`).
//!
//! Inside, words are added as this CPU loads them, four bytes at a time into lanes of eight, and turned round once at the
//! end: the sum's bytes may be swapped before or after adding (RFC 1071 section 2(B)). The same property settles a piece
//! that begins at an odd offset.
//!
//! Read first: RFC 1071, RFC 1624; for pseudo headers RFC 768, RFC 9293 section 3.1 and RFC 8200 section 8.1.

use sys::{Lent, arena::Arena};

/// Lent bytes read at a time.
const CHUNK: usize = 2048;

/// A running one's complement sum of 16-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    /// Sum of folded pieces, in this CPU's byte order. At most 0xffff is added at a time, so it does not overflow.
    sum: u64,
    /// An odd number of bytes has been added.
    odd: bool,
}

impl Checksum {
    /// The sum of nothing.
    pub const fn new() -> Checksum {
        Checksum { sum: 0, odd: false }
    }

    /// The sum of an IPv4 pseudo header. `len` is the length of the transport header and its payload, in bytes.
    pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, len: u16) -> Checksum {
        let mut sum = Checksum::new();
        sum.add_bytes(&source);
        sum.add_bytes(&destination);
        sum.add_u16(u16::from(protocol));
        sum.add_u16(len);
        sum
    }

    /// The sum of an IPv6 pseudo header. `len` is the length of the upper-layer header and its payload, in bytes, and
    /// `next_header` the upper layer's own protocol number, whatever extension headers come before.
    pub fn pseudo_v6(source: [u8; 16], destination: [u8; 16], next_header: u8, len: u32) -> Checksum {
        let mut sum = Checksum::new();
        sum.add_bytes(&source);
        sum.add_bytes(&destination);
        sum.add_bytes(&len.to_be_bytes());
        sum.add_u16(u16::from(next_header));
        sum
    }

    /// Adds the next bytes. Between pieces, an odd byte is completed by the next piece's first; at the end, by zero.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        let piece = fold(sum_words(bytes));
        self.sum += u64::from(if self.odd { piece.swap_bytes() } else { piece });
        self.odd ^= !bytes.len().is_multiple_of(2);
    }

    /// Adds bytes that are lent, as many at a time as fit a buffer here; false when some of them are not lent any more.
    pub fn add_lent(&mut self, arena: &Arena, pieces: impl Iterator<Item = Lent>) -> bool {
        let mut chunk = [0; CHUNK];
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() {
                let len = CHUNK.min(piece.len() - at);
                if piece.part(at, len).map_or(0, |part| arena.read(part, &mut chunk)) != len {
                    return false;
                }
                self.add_bytes(chunk.get(..len).unwrap_or_default());
                at += len;
            }
        }
        true
    }

    /// Adds the two bytes of a field.
    #[inline]
    pub fn add_u16(&mut self, value: u16) {
        self.add_bytes(&value.to_be_bytes());
    }

    /// The sum itself, not complemented: what a field holds whose checksum is still owed, if only the pseudo header has
    /// been added (virtio 1.2 section 5.1.6.2).
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.sum))
    }

    /// The value of the checksum field (IPv4, TCP, ICMP), if the bytes added had zero in its place.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// The value of a UDP checksum field: as [`Checksum::finish`], but 0xffff where that is 0, which would mean that there
    /// is no checksum (RFC 768).
    #[inline]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            value => value,
        }
    }

    /// Whether bytes that were added together with their checksum field are intact.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The checksum field after one of the words that it covers has changed from `old` to `new` (RFC 1624 equation 3).
///
/// Right for everything that cannot be all zeros, as no IP header or pseudo header can. A UDP checksum of 0 means that
/// there is none and must stay; a result of 0 is sent as 0xffff there.
#[inline]
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    !u16::from_be(fold(u64::from((!field).to_be()) + u64::from((!old).to_be()) + u64::from(new.to_be())))
}

/// As [`update`], for a longer part of what the checksum covers. Both parts begin at an even offset; a part of odd length
/// counts as if a zero byte followed.
pub fn update_bytes(field: u16, old: &[u8], new: &[u8]) -> u16 {
    let removed = !fold(sum_words(old));
    let added = fold(sum_words(new));
    !u16::from_be(fold(u64::from((!field).to_be()) + u64::from(removed) + u64::from(added)))
}

/// Whether an IPv4 header without options is intact (RFC 1812 section 5.2.2).
#[inline]
pub fn is_valid_header(header: &[u8; 20]) -> bool {
    let words = header.as_chunks::<4>().0.iter();
    fold(words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum()) == 0xffff
}

/// Adds the 32-bit words of `bytes`, padded with zeros, in this CPU's byte order. Exact for less than 16 GiB.
#[inline]
fn sum_words(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let mut sum = lanes.into_iter().fold(0, u64::wrapping_add);
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    let last = match *tail {
        [a] => [a, 0, 0, 0],
        [a, b] => [a, b, 0, 0],
        [a, b, c] => [a, b, c, 0],
        _ => [0; 4],
    };
    sum.wrapping_add(u64::from(u32::from_ne_bytes(last)))
}

/// Adds the four 16-bit words of `sum` with end-around carry.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn whole(bytes: &[u8]) -> Checksum {
        let mut sum = Checksum::new();
        sum.add_bytes(bytes);
        sum
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = whole(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!((sum.fold(), sum.finish()), (0xddf2, 0x220d));
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn nothing_and_zeros_sum_to_zero_and_are_not_valid() {
        assert_eq!((Checksum::new().fold(), Checksum::new().finish()), (0, 0xffff));
        assert!(!whole(&[0; 40]).is_valid());
    }

    #[test]
    fn the_largest_words_do_not_overflow() {
        let ones = vec![0xff; 1 << 20 | 1];
        assert_eq!(whole(&ones).fold(), naive(&ones));
    }

    #[test]
    fn an_ipv4_header_as_sent() {
        let header = [69, 0, 0, 115, 0, 0, 64, 0, 64, 17, 0xb8, 0x61, 192, 168, 0, 1, 192, 168, 0, 199];
        assert!(whole(&header).is_valid());
        let mut empty = header;
        empty[10..12].fill(0);
        assert_eq!(whole(&empty).finish(), 0xb861);
    }

    #[test]
    fn pseudo_headers_are_the_bytes_of_the_rfcs() {
        let v4 = Checksum::pseudo_v4([192, 0, 2, 1], [198, 51, 100, 2], 6, 0x1234);
        assert_eq!(v4.fold(), naive(&[192, 0, 2, 1, 198, 51, 100, 2, 0, 6, 0x12, 0x34]));
        let (source, destination) = ([0x20; 16], [0xfd; 16]);
        let v6 = Checksum::pseudo_v6(source, destination, 17, 0x0001_0002);
        let bytes = [&source[..], &destination[..], &[0, 1, 0, 2, 0, 0, 0, 17]].concat();
        assert_eq!(v6.fold(), naive(&bytes));
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!((whole(&[0xff, 0xff]).finish(), whole(&[0xff, 0xff]).finish_udp()), (0, 0xffff));
        assert_eq!(whole(&[1, 2]).finish_udp(), 0xfefd);
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_the_naive_way(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(whole(&bytes).fold(), naive(&bytes));
        }

        #[test]
        fn the_cuts_do_not_matter(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20)) {
            let mut sum = Checksum::new();
            for piece in &pieces {
                sum.add_bytes(piece);
            }
            prop_assert_eq!(sum.fold(), naive(&pieces.concat()));
        }

        #[test]
        fn a_finished_checksum_is_valid(mut bytes in proptest::collection::vec(any::<u8>(), 2..200)) {
            bytes[..2].fill(0);
            let field = whole(&bytes).finish();
            bytes[..2].copy_from_slice(&field.to_be_bytes());
            prop_assert!(whole(&bytes).is_valid());
        }

        #[test]
        fn an_update_is_the_checksum_of_the_changed_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..100),
            new in proptest::collection::vec(any::<u8>(), 1..16),
        ) {
            // As in a header, something that does not change is not zero.
            bytes[0] = 0x45;
            let before = whole(&bytes).finish();
            let mut changed = bytes.clone();
            changed[4..4 + new.len()].copy_from_slice(&new);
            let after = whole(&changed).finish();
            prop_assert_eq!(update_bytes(before, &bytes[4..4 + new.len()], &new), after);
            let word = |at: &[u8]| u16::from_be_bytes([at[4], at[5]]);
            let mut one = bytes.clone();
            one[4..6].copy_from_slice(&changed[4..6]);
            prop_assert_eq!(update(before, word(&bytes), word(&one)), whole(&one).finish());
        }
    }
}

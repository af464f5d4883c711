//! [`Offload`]: what checksum or segmentation a frame still owes, as the virtio-net header says it.
//!
//! Invariant: the two words are the raw little-endian header (virtio 1.2 section 5.1.6, 12 bytes with `num_buffers`), moved as words and
//! decoded by accessors, so that passing a frame on never takes it apart. `num_buffers` is a ring's business and always zero here.
//! A header from outside is trusted only after [`Offload::checked`].

/// The virtio-net header of a frame. Zero means: nothing owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    low: u64,
    high: u32,
}

/// What is to be cut: the `gso_type` of the header without its ECN bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// Nothing: the frame is one segment.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams over IPv4 or IPv6 (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// The offloads that the receiver of a frame can take over, as a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts(u8);

impl Accepts {
    /// Nothing: checksums complete, one segment a frame.
    pub const NONE: Accepts = Accepts(0);
    /// Partial checksums (`VIRTIO_NET_F_GUEST_CSUM`, `TUN_F_CSUM`).
    pub const CSUM: Accepts = Accepts(1);
    /// TCP over IPv4 super-frames.
    pub const TSO4: Accepts = Accepts(2);
    /// TCP over IPv6 super-frames.
    pub const TSO6: Accepts = Accepts(4);
    /// UDP super-frames.
    pub const USO: Accepts = Accepts(8);
    /// TCP super-frames with the ECN bit.
    pub const ECN: Accepts = Accepts(16);
    /// Everything.
    pub const ALL: Accepts = Accepts(31);

    /// Both sets together.
    pub const fn with(self, other: Accepts) -> Accepts {
        Accepts(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    #[inline]
    pub const fn has(self, other: Accepts) -> bool {
        self.0 & other.0 == other.0
    }
}

const NEEDS_CSUM: u64 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

impl Offload {
    /// Nothing owed.
    pub const NONE: Offload = Offload { low: 0, high: 0 };
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` alone in the low word.
    const CSUM_OR_GSO: u64 = 0xff00 | NEEDS_CSUM;

    /// The header whose first eight and last four bytes, read as little-endian words, are these. `num_buffers` is set to zero.
    #[inline]
    pub const fn from_words(low: u64, high: u32) -> Self {
        Offload { low, high: high & 0xffff }
    }

    /// The header's words with this `num_buffers`, as [`Offload::from_words`] reads them.
    #[inline]
    pub const fn words(self, num_buffers: u16) -> (u64, u32) {
        (self.low, self.high | (num_buffers as u32) << 16)
    }

    /// The header of these 12 bytes.
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, _, _] = bytes;
        Offload { low: u64::from_le_bytes([a, b, c, d, e, f, g, h]), high: u32::from(u16::from_le_bytes([i, j])) }
    }

    /// The header as 12 bytes, `num_buffers` as given.
    pub fn to_bytes(self, num_buffers: u16) -> [u8; 12] {
        let (low, high) = self.words(num_buffers);
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    /// A TCP or UDP frame whose checksum at `start + offset` covers everything from `start` (both from the first byte of the frame)
    /// and holds the pseudo-header's sum; to be cut into segments of `size` payload bytes unless `gso` is `None`.
    pub fn new(gso: Gso, headers: u16, size: u16, start: u16, offset: u16) -> Self {
        let gso_type = match gso {
            Gso::None => 0,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP_L4,
        };
        let low = NEEDS_CSUM
            | u64::from(gso_type) << 8
            | u64::from(headers) << 16
            | u64::from(size) << 32
            | u64::from(start) << 48;
        Offload { low, high: u32::from(offset) }
    }

    /// Owes neither a checksum nor segmentation: the common case, one test.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.low & Self::CSUM_OR_GSO == 0
    }

    /// The checksum at [`Offload::checksum_at`] is partial.
    #[inline]
    pub const fn needs_checksum(self) -> bool {
        self.low & NEEDS_CSUM != 0
    }

    /// What is to be cut. An unknown type reads as `None`; [`Offload::checked`] refuses it.
    #[inline]
    pub const fn gso(self) -> Gso {
        match (self.low >> 8) as u8 & !GSO_ECN {
            GSO_TCP4 => Gso::Tcp4,
            GSO_TCP6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => Gso::None,
        }
    }

    /// `hdr_len`: a hint, bytes of headers before the payload.
    #[inline]
    pub const fn header_len(self) -> u16 {
        (self.low >> 16) as u16
    }

    /// `gso_size`: payload bytes of a segment.
    #[inline]
    pub const fn segment_size(self) -> u16 {
        (self.low >> 32) as u16
    }

    /// `csum_start`: the first byte that the checksum covers.
    #[inline]
    pub const fn checksum_start(self) -> u16 {
        (self.low >> 48) as u16
    }

    /// `csum_offset`: where the checksum lies, from [`Offload::checksum_start`].
    #[inline]
    pub const fn checksum_offset(self) -> u16 {
        self.high as u16
    }

    /// Where the checksum lies, from the first byte of the frame.
    #[inline]
    pub const fn checksum_at(self) -> usize {
        self.checksum_start() as usize + self.checksum_offset() as usize
    }

    /// What a receiver must accept to be given this frame as it is.
    #[inline]
    pub const fn needs(self) -> Accepts {
        let sum = if self.needs_checksum() { Accepts::CSUM } else { Accepts::NONE };
        let cut = match self.gso() {
            Gso::None => return sum,
            Gso::Tcp4 => Accepts::TSO4,
            Gso::Tcp6 => Accepts::TSO6,
            Gso::Udp => Accepts::USO,
        };
        let ecn = if self.low >> 8 & GSO_ECN as u64 != 0 { Accepts::ECN } else { Accepts::NONE };
        sum.with(cut).with(ecn)
    }

    /// The header of a frame of `len` bytes with everything that is not a promise about it removed, or nothing when it contradicts the
    /// frame: checksum outside of it, segmentation without a size or without a checksum, an unknown type.
    #[inline]
    pub fn checked(self, len: usize) -> Option<Offload> {
        if self.is_none() {
            return Some(Offload::NONE);
        }
        self.checked_slow(len)
    }

    fn checked_slow(self, len: usize) -> Option<Offload> {
        let gso_type = (self.low >> 8) as u8;
        if gso_type & !GSO_ECN == 0 && gso_type != 0 {
            return None;
        }
        let known = gso_type == 0 || self.gso() != Gso::None;
        let sum_fits = !self.needs_checksum() || (self.checksum_start() >= 14 && self.checksum_at() + 2 <= len);
        let cut_fits = gso_type == 0 || (self.needs_checksum() && self.segment_size() > 0);
        if !(known && sum_fits && cut_fits) {
            return None;
        }
        Some(Offload { low: self.low & !(0xff & !NEEDS_CSUM), high: self.high })
    }

    /// The same debt after `by` bytes were put into (or, negative, taken out of) the headers before the checksum's start. A header length
    /// of zero, which drivers give without segmentation, means that it is not told and stays.
    #[inline]
    #[must_use]
    pub const fn shifted(self, by: i16) -> Offload {
        if self.is_none() {
            return self;
        }
        let header = if self.header_len() == 0 { 0 } else { self.header_len().saturating_add_signed(by) as u64 };
        let start = self.checksum_start().saturating_add_signed(by) as u64;
        let kept = self.low & 0x0000_ffff_0000_ffff;
        Offload { low: kept | header << 16 | start << 48, high: self.high }
    }

    /// No segmentation owed any more; the checksum still is.
    #[must_use]
    pub const fn whole(self) -> Offload {
        Offload { low: self.low & 0xffff_0000_0000_00ff, high: self.high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_agree_with_the_layout() {
        let offload = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
        let bytes = offload.to_bytes(3);
        assert_eq!(bytes, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
        assert_eq!(Offload::from_bytes(bytes), offload);
        assert_eq!(offload.shifted(4).checksum_start(), 38);
        assert_eq!(offload.shifted(4).shifted(-4), offload);
        assert_eq!(Offload::new(Gso::None, 0, 0, 38, 16).shifted(-4), Offload::new(Gso::None, 0, 0, 34, 16));
        assert_eq!(offload.needs(), Accepts::CSUM.with(Accepts::TSO4));
        assert_eq!(offload.whole().needs(), Accepts::CSUM);
    }

    #[test]
    fn contradictions_are_refused() {
        let good = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
        assert_eq!(good.checked(60), Some(good));
        assert_eq!(good.checked(51), None, "checksum past the end");
        assert_eq!(Offload::new(Gso::Tcp6, 54, 0, 34, 16).checked(60), None, "no segment size");
        assert_eq!(Offload::from_words(0x0100, 0).checked(60), None, "segmentation without checksum");
        assert_eq!(Offload::from_words(0x0301, 0).checked(60), None, "unknown type");
        assert_eq!(Offload::from_words(0x8000, 0).checked(60), None, "ECN of nothing");
        let hint = Offload::from_words(2, 0);
        assert_eq!(hint.checked(60), Some(Offload::NONE), "DATA_VALID is a hint for receivers, not a debt");
    }
}

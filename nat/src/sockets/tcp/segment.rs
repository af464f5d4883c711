//! [`Segment`]: what a guest's TCP segment says; [`seq`]: arithmetic of sequence numbers.
//!
//! Invariant: the data of a segment that was read lies within its frame. Read first: RFC 9293 sections 3.1 and 3.4, RFC 7323 section 2.

use wire::{Context, DropReason, Frame};

use crate::sockets::packet::Packet;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// Bytes of a header without options.
pub(super) const HEADER: usize = 20;
/// The greatest window scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// The MSS of who names none (RFC 9293 section 3.7.1), by IPv4 and IPv6.
const DEFAULT_MSS: [u16; 2] = [536, 1220];
/// The least that is believed: less would be a way to have headers sent.
const LEAST_MSS: u16 = 88;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) ports: (u16, u16),
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Where its data begins in the frame, and where it ends.
    pub(super) data: usize,
    pub(super) end: usize,
    /// Of a SYN: the segments that it takes, and how its windows are scaled.
    pub(super) mss: u16,
    pub(super) scale: Option<u8>,
}

impl Segment {
    /// Reads the segment in a packet.
    pub(super) fn read(cx: &Context, frame: &Frame, packet: &Packet) -> Result<Segment, DropReason> {
        let bad = DropReason::BadPacket;
        let head = cx.heads.get(frame);
        let bytes = head.bytes();
        let header: &[u8; HEADER] = bytes.get(packet.l4..).and_then(|at| at.first_chunk()).ok_or(bad)?;
        let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1, ..] = *header;
        let data = packet.l4 + usize::from(offset >> 4) * 4;
        if data < packet.l4 + HEADER || data > packet.end || data > bytes.len() {
            return Err(bad);
        }
        if !packet.intact(cx, frame) {
            return Err(bad);
        }
        let mut segment = Segment {
            ports: (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])),
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            flags,
            window: u16::from_be_bytes([w0, w1]),
            data,
            end: packet.end,
            mss: if packet.source.is_ipv6() { DEFAULT_MSS[1] } else { DEFAULT_MSS[0] },
            scale: None,
        };
        if segment.has(SYN) {
            segment.options(bytes.get(packet.l4 + HEADER..data).unwrap_or_default());
        }
        Ok(segment)
    }

    fn options(&mut self, mut bytes: &[u8]) {
        while let Some((kind, rest)) = bytes.split_first() {
            bytes = match (*kind, rest) {
                (0, _) => return,
                (1, rest) => rest,
                (2, [4, a, b, rest @ ..]) => {
                    self.mss = u16::from_be_bytes([*a, *b]).max(LEAST_MSS);
                    rest
                }
                (3, [3, scale, rest @ ..]) => {
                    self.scale = Some((*scale).min(MAX_SCALE));
                    rest
                }
                (_, [length, ..]) if *length >= 2 => bytes.get(usize::from(*length)..).unwrap_or_default(),
                _ => return,
            };
        }
    }

    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of data.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        (self.end - self.data) as u32
    }

    /// Numbers that it takes up.
    pub(super) fn space(&self) -> u32 {
        self.len() + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// Sequence numbers, which wrap around (RFC 9293 section 3.4).
pub(super) mod seq {
    /// Whether `a` comes before `b`.
    #[inline]
    pub(crate) fn before(a: u32, b: u32) -> bool {
        (a.wrapping_sub(b) as i32) < 0
    }

    /// The later of two.
    #[inline]
    pub(crate) fn max(a: u32, b: u32) -> u32 {
        if before(a, b) { b } else { a }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_around() {
        assert!(seq::before(u32::MAX, 3) && !seq::before(3, u32::MAX) && !seq::before(5, 5));
        assert_eq!((seq::max(u32::MAX, 3), seq::max(7, 6)), (3, 7));
    }

    #[test]
    fn options_are_read_as_far_as_they_make_sense() {
        let read = |bytes: &[u8]| {
            let mut segment = Segment {
                ports: (1, 2),
                seq: 0,
                ack: 0,
                flags: SYN,
                window: 0,
                data: 0,
                end: 0,
                mss: 536,
                scale: None,
            };
            segment.options(bytes);
            (segment.mss, segment.scale)
        };
        assert_eq!(read(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7]), (1460, Some(7)));
        assert_eq!(read(&[3, 3, 99]), (536, Some(14)), "no more than there can be");
        assert_eq!(read(&[2, 4, 0, 1]), (LEAST_MSS, None));
        for odd in [&[][..], &[2], &[2, 4, 5], &[8, 0, 0], &[8, 1], &[8, 99, 1], &[0, 2, 4, 5, 0xb4], &[1, 1, 1]] {
            assert_eq!(read(odd), (536, None), "{odd:?}");
        }
    }
}

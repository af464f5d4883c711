//! [`Reassembly`]: fragments put together, for who needs packets whole: NAT by sockets, and tunnel endpoints.
//!
//! Invariant: memory is bounded, by [`PLACES`] packets in all and [`PER_SENDER`] of one sender (a guest's NIC, a tunnel's remote endpoint); who has too many
//! loses the oldest of its own, and a full house that of whoever holds most. Buffers are kept and used again: memory is taken while the first come. Bytes that come twice with other fragments' bounds end the packet (RFC 5722, RFC 8900 section 3.7).
//!
//! Read first: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 4787 REQ-14.

use std::{net::IpAddr, time::Duration};

use crate::{
    Context, DropReason, Frame, Instant, L3, Layers,
    checksum::Checksum,
    span::{body, front},
};

/// Packets that are put together at a time.
const PLACES: usize = 64;
/// Of these, of one sender.
const PER_SENDER: usize = 8;
/// How long the rest of a packet is waited for.
const LIFETIME: Duration = Duration::from_secs(30);
/// Fragments of one packet, in pieces of eight bytes.
const UNITS: usize = 8192;
/// The longest packet without its IP header.
const LONGEST: usize = 65_535;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Which {
    sender: u16,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

struct Place {
    which: Which,
    since: Instant,
    /// Ethernet and IP header of the first fragment, without the fragment header.
    header: [u8; 14 + 60],
    header_len: usize,
    bytes: Vec<u8>,
    have: [u64; UNITS / 64],
    /// Bytes there are, and bytes there will be.
    count: usize,
    total: Option<usize>,
    /// Overlapped: what still comes of it is dropped.
    spoilt: bool,
}

/// One fragment.
struct Piece {
    which: Which,
    offset: usize,
    /// Its bytes in the frame.
    from: usize,
    to: usize,
    more: bool,
    /// The IP header in the frame, without extension headers behind a fragment header.
    header: (usize, usize),
}

/// See the module's documentation.
#[derive(Default)]
pub struct Reassembly {
    places: Vec<Place>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    whole: Vec<u8>,
}

impl Reassembly {
    /// Takes a fragment of a sender, which ends here, and gives the whole packet when it was the last to come: a frame of the same origin.
    pub fn take(&mut self, cx: &mut Context, frame: Frame, layers: &Layers, sender: u16) -> Option<Frame> {
        self.expire(cx.now);
        let Some(piece) = read(cx, &frame, layers, sender) else {
            cx.drop(frame, DropReason::BadPacket);
            return None;
        };
        let at = self.place(&piece.which, cx.now);
        let Some(place) = self.places.get_mut(at) else {
            cx.drop(frame, DropReason::NoBuffers);
            return None;
        };
        if !place.add(cx, &frame, &piece) {
            place.spoilt = true;
            cx.drop(frame, DropReason::BadPacket);
            return None;
        }
        let (origin, len) = (cx.heads.get(&frame).origin, cx.heads.get(&frame).len());
        cx.transmitted(1, len as u64);
        if place.total != Some(place.count) {
            return None;
        }
        let place = self.places.swap_remove(at);
        let made = self.join(&place).then(|| cx.originate(origin, &self.whole)).flatten();
        self.spare.push(place.bytes);
        made
    }

    /// When the oldest is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.places.iter().map(|place| place.since + LIFETIME).min()
    }

    /// Gives up what was waited for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(at) = self.places.iter().position(|place| now.since(place.since) >= LIFETIME) {
            self.give_up(at);
        }
    }

    fn give_up(&mut self, at: usize) {
        let place = self.places.swap_remove(at);
        self.spare.push(place.bytes);
    }

    /// The place of a packet, made if there is none.
    fn place(&mut self, which: &Which, now: Instant) -> usize {
        if let Some(at) = self.places.iter().position(|place| place.which == *which) {
            return at;
        }
        let held = |sender: u16| self.places.iter().filter(|place| place.which.sender == sender).count();
        let from = if held(which.sender) >= PER_SENDER {
            Some(which.sender)
        } else if self.places.len() >= PLACES {
            self.places.iter().map(|place| place.which.sender).max_by_key(|sender| held(*sender))
        } else {
            None
        };
        if let Some(sender) = from {
            let places = self.places.iter().enumerate().filter(|(_, place)| place.which.sender == sender);
            if let Some((at, _)) = places.min_by_key(|(_, place)| place.since) {
                self.give_up(at);
            }
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        self.places.push(Place {
            which: *which,
            since: now,
            header: [0; 14 + 60],
            header_len: 0,
            bytes,
            have: [0; UNITS / 64],
            count: 0,
            total: None,
            spoilt: false,
        });
        self.places.len() - 1
    }

    /// Writes the whole packet; false when its parts contradict each other.
    fn join(&mut self, place: &Place) -> bool {
        let Some(header) = place.header.get(..place.header_len).filter(|header| header.len() >= 34) else {
            return false;
        };
        let Some(bytes) = place.total.and_then(|total| place.bytes.get(..total)) else { return false };
        self.whole.clear();
        self.whole.extend_from_slice(header);
        self.whole.extend_from_slice(bytes);
        let (_, ip) = self.whole.split_at_mut(14);
        match place.which.source {
            IpAddr::V4(_) => {
                let Ok(total) = u16::try_from(header.len() - 14 + bytes.len()) else { return false };
                let set = |ip: &mut [u8], at: usize, value: u16| {
                    if let Some(field) = ip.get_mut(at..at + 2) {
                        field.copy_from_slice(&value.to_be_bytes());
                    }
                };
                set(ip, 2, total);
                set(ip, 6, 0);
                set(ip, 10, 0);
                let mut sum = Checksum::new();
                sum.add_bytes(ip.get(..header.len() - 14).unwrap_or_default());
                set(ip, 10, sum.finish());
            }
            IpAddr::V6(_) => {
                let Ok(length) = u16::try_from(header.len() - 14 - 40 + bytes.len()) else { return false };
                if let Some(field) = ip.get_mut(4..6) {
                    field.copy_from_slice(&length.to_be_bytes());
                }
                if let Some(next) = ip.get_mut(6) {
                    *next = place.which.protocol;
                }
            }
        }
        true
    }
}

impl Place {
    /// Puts the bytes of a fragment in; false when that contradicts what is there.
    fn add(&mut self, cx: &Context, frame: &Frame, piece: &Piece) -> bool {
        let (start, end) = (piece.offset, piece.offset + (piece.to - piece.from));
        let len = end - start;
        if self.spoilt || end > LONGEST || (piece.more && !len.is_multiple_of(8)) || len == 0 {
            return false;
        }
        if self.total.is_some_and(|total| end > total || (!piece.more && end != total)) {
            return false;
        }
        if !piece.more && self.bytes.len() > end {
            return false;
        }
        let units = start / 8..end.div_ceil(8);
        let had = units.clone().filter(|unit| self.has(*unit)).count();
        if had == units.len() {
            // Once more the same, as far as can be told.
            return true;
        }
        if had > 0 {
            return false;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let Some(place) = self.bytes.get_mut(start..end) else { return false };
        let head = front(cx.heads.get(frame), piece.from, piece.to);
        let Some((into, mut rest)) = place.split_at_mut_checked(head.len()) else { return false };
        into.copy_from_slice(head);
        for part in body(cx, frame, piece.from, piece.to) {
            let Some((into, behind)) = rest.split_at_mut_checked(part.len()) else { return false };
            if cx.arena.read(part, into) != part.len() {
                return false;
            }
            rest = behind;
        }
        for unit in units {
            if let Some(word) = self.have.get_mut(unit / 64) {
                *word |= 1 << (unit % 64);
            }
        }
        self.count += len;
        if !piece.more {
            self.total = Some(end);
        }
        if start == 0 {
            let (from, to) = piece.header;
            let header = front(cx.heads.get(frame), from, to);
            if let Some(ethernet) = cx.heads.get(frame).bytes().get(..14)
                && let Some(place) = self.header.get_mut(..14 + header.len())
            {
                let (first, second) = place.split_at_mut(14);
                first.copy_from_slice(ethernet);
                second.copy_from_slice(header);
                self.header_len = 14 + header.len();
            }
        }
        true
    }

    fn has(&self, unit: usize) -> bool {
        self.have.get(unit / 64).is_some_and(|word| word >> (unit % 64) & 1 == 1)
    }
}

/// What a frame says of itself as a fragment. Of IPv6, only where the fragment header is the first after the fixed one.
fn read(cx: &Context, frame: &Frame, layers: &Layers, sender: u16) -> Option<Piece> {
    let head = cx.heads.get(frame);
    let (bytes, l3) = (head.bytes(), layers.l2_len);
    if l3 != 14 || !head.offload.is_none() {
        return None;
    }
    let (piece, end) = match layers.l3 {
        L3::V4 => {
            let header: &[u8; 20] = bytes.get(l3..)?.first_chunk()?;
            let [first, _, a, b, i, d, flags, offset, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
            let len = usize::from(first & 0x0f) * 4;
            let mut sum = Checksum::new();
            sum.add_bytes(bytes.get(l3..l3 + len)?);
            if !sum.is_valid() {
                return None;
            }
            let which = Which {
                sender,
                source: IpAddr::from([s0, s1, s2, s3]),
                destination: IpAddr::from([d0, d1, d2, d3]),
                protocol,
                id: u32::from(u16::from_be_bytes([i, d])),
            };
            let end = l3 + usize::from(u16::from_be_bytes([a, b]));
            let offset = usize::from(u16::from_be_bytes([flags & 0x1f, offset])) * 8;
            let more = flags & 0x20 != 0;
            (Piece { which, offset, from: l3 + len, to: end, more, header: (l3, l3 + len) }, end)
        }
        L3::V6 => {
            let header: &[u8; 40] = bytes.get(l3..)?.first_chunk()?;
            let [_, _, _, _, a, b, next, _, addresses @ ..] = *header;
            let (source, rest) = addresses.split_first_chunk::<16>()?;
            let destination: &[u8; 16] = rest.first_chunk()?;
            let [protocol, _, offset, more, i, j, k, l] = *bytes.get(l3 + 40..)?.first_chunk::<8>()?;
            if next != 44 {
                return None;
            }
            let which = Which {
                sender,
                source: IpAddr::from(*source),
                destination: IpAddr::from(*destination),
                protocol,
                id: u32::from_be_bytes([i, j, k, l]),
            };
            let end = l3 + 40 + usize::from(u16::from_be_bytes([a, b]));
            let offset = usize::from(u16::from_be_bytes([offset, more & 0xf8]));
            (Piece { which, offset, from: l3 + 48, to: end, more: more & 1 != 0, header: (l3, l3 + 40) }, end)
        }
        L3::Other => return None,
    };
    (end <= head.len() && piece.from <= piece.to).then_some(piece)
}

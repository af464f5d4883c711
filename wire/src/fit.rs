//! What does not fit: how an untagged packet gets through a smaller MTU ([`fit`], [`fit6`]), cutting it into fragments ([`Cutter`]), and the MSS of TCP
//! ([`clamp`]).
//!
//! Invariant: what is sent fits. A packet that may not be cut is answered with the MTU (RFC 4787 REQ-13, RFC 1191); a TCP super-frame is
//! cut smaller by whoever cuts it; the MSS is a backstop for networks that lose ICMP.
//! Read first: RFC 791 section 3.2, RFC 6864.

use crate::{
    Gso, Head, Offload,
    bytes::{array, put, sum, word},
    checksum,
};

const L3: usize = 14;

/// How a packet gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As it is.
    Whole,
    /// With segments of so many bytes.
    Lower(u16),
    /// In fragments.
    Cut,
    /// Not at all.
    TooBig,
}

/// How an IPv4 packet gets through an MTU.
#[inline]
pub fn fit(head: &Head, mtu: u16) -> Fit {
    let len = word(head.bytes(), L3 + 2).unwrap_or(u16::MAX);
    if len <= mtu { Fit::Whole } else { longer(head, mtu) }
}

#[cold]
fn longer(head: &Head, mtu: u16) -> Fit {
    let bytes = head.bytes();
    let Some([first]) = array::<1>(bytes, L3) else { return Fit::TooBig };
    let ip = usize::from(first & 0x0f) * 4;
    let cut = match bytes.get(L3 + 6) {
        Some(flags) if flags & 0x40 == 0 => Fit::Cut,
        _ => Fit::TooBig,
    };
    let size = usize::from(head.offload.segment_size());
    let mtu = usize::from(mtu);
    match head.offload.gso() {
        Gso::None => cut,
        Gso::Udp if ip + 8 + size <= mtu => Fit::Whole,
        Gso::Udp => cut,
        _ => {
            let tcp = bytes.get(L3 + ip + 12).map_or(20, |offset| usize::from(offset >> 4) * 4);
            lower(ip + tcp, size, mtu)
        }
    }
}

/// How a super-frame of TCP gets through, of `headers` bytes and segments of `size` bytes.
fn lower(headers: usize, size: usize, mtu: usize) -> Fit {
    match mtu.checked_sub(headers) {
        Some(room) if size <= room => Fit::Whole,
        Some(room) if room >= 8 => Fit::Lower(room as u16),
        _ => Fit::TooBig,
    }
}

/// How an IPv6 packet gets through an MTU; it is never cut on the way.
pub fn fit6(head: &Head, mtu: u16) -> Fit {
    let bytes = head.bytes();
    let len = 40 + usize::from(word(bytes, L3 + 4).unwrap_or(u16::MAX));
    let (size, mtu) = (usize::from(head.offload.segment_size()), usize::from(mtu));
    if len <= mtu {
        return Fit::Whole;
    }
    let start = usize::from(head.offload.checksum_start()).saturating_sub(L3);
    match head.offload.gso() {
        Gso::None => Fit::TooBig,
        Gso::Udp if start + 8 + size <= mtu => Fit::Whole,
        Gso::Udp => Fit::TooBig,
        _ => {
            let tcp = bytes.get(L3 + start + 12).map_or(20, |offset| usize::from(offset >> 4) * 4);
            lower(start + tcp, size, mtu)
        }
    }
}

/// The same debt with segments of `size` bytes.
pub fn lowered(offload: Offload, size: u16) -> Offload {
    let (low, high) = offload.words(0);
    Offload::from_words(low & !(0xffff << 32) | u64::from(size) << 32, high)
}

/// Lowers the MSS that a SYN announces to what a packet of `mtu` bytes can hold. `l4` is where the TCP header begins, `headers` the bytes
/// of the IP and TCP headers without options. Other segments are left alone.
#[inline]
pub fn clamp(head: &mut Head, l4: usize, mtu: u16, headers: u16) {
    if head.bytes().get(l4 + 13).is_some_and(|flags| flags & 0x02 != 0) {
        clamp_syn(head, l4, mtu.saturating_sub(headers));
    }
}

#[cold]
fn clamp_syn(head: &mut Head, l4: usize, most: u16) {
    let owed = head.offload.needs_checksum();
    let bytes = head.bytes_mut();
    let Some(end) = bytes.get(l4 + 12).map(|offset| l4 + usize::from(offset >> 4) * 4) else { return };
    let mut at = l4 + 20;
    while at + 1 < end.min(bytes.len()) {
        let len = match array::<2>(bytes, at) {
            Some([0, _]) | None => return,
            Some([1, _]) => 1,
            Some([2, 4]) => {
                lower_mss(bytes, l4, at + 2, most, owed);
                return;
            }
            Some([_, len]) if len >= 2 => usize::from(len),
            Some(_) => return,
        };
        at += len;
    }
}

fn lower_mss(bytes: &mut [u8], l4: usize, at: usize, most: u16, owed: bool) {
    if word(bytes, at).is_none_or(|mss| mss <= most) {
        return;
    }
    let field = word(bytes, l4 + 16).unwrap_or(0);
    // The checksum counts words from the header's start; the option may lie across two of them.
    let (words, count) = if (at - l4).is_multiple_of(2) { ([at, at], 1) } else { ([at - 1, at + 1], 2) };
    let old = words.map(|at| word(bytes, at).unwrap_or(0));
    put(bytes, at, &most.to_be_bytes());
    let new = words.map(|at| word(bytes, at).unwrap_or(0));
    if owed {
        // What is there is the sum of the pseudo header only.
        return;
    }
    let changes = old.into_iter().zip(new).take(count);
    let field = changes.fold(field, |field, (old, new)| checksum::update(field, old, new));
    put(bytes, l4 + 16, &field.to_be_bytes());
}

/// Cuts a frame into fragments (RFC 791 section 3.2): an iterator over their frames, by lengths in a buffer.
pub struct Cutter<'f> {
    frame: &'f [u8],
    header: usize,
    /// Payload bytes of a fragment; a multiple of eight.
    size: usize,
    done: usize,
    total: usize,
}

impl<'f> Cutter<'f> {
    /// For a whole Ethernet frame that carries an IPv4 packet. Nothing when it cannot be cut.
    pub fn new(frame: &'f [u8], mtu: u16) -> Option<Cutter<'f>> {
        let header = usize::from(frame.get(L3)? & 0x0f) * 4;
        let len = usize::from(word(frame, L3 + 2)?);
        let size = usize::from(mtu).checked_sub(header)? & !7;
        let total = len.checked_sub(header)?;
        (size > 0 && L3 + len <= frame.len()).then_some(Cutter { frame, header, size, done: 0, total })
    }

    /// Whether all fragments are made.
    pub fn is_done(&self) -> bool {
        self.done >= self.total
    }

    /// Makes the next fragment in `into`; its length, or nothing when all are made, or there is no room for it.
    pub fn next(&mut self, into: &mut [u8]) -> Option<usize> {
        let Cutter { frame, header, size, done, total } = *self;
        if self.is_done() {
            return None;
        }
        let payload = size.min(total - done);
        let start = L3 + header;
        let len = start + payload;
        let fragment = into.get_mut(..len)?;
        fragment.get_mut(..start)?.copy_from_slice(frame.get(..start)?);
        fragment.get_mut(start..)?.copy_from_slice(frame.get(start + done..start + done + payload)?);
        let field = word(frame, L3 + 6)?;
        let more = done + payload < total || field & 0x2000 != 0;
        let offset = (field & 0x1fff) + (done / 8) as u16;
        put(fragment, L3 + 2, &((header + payload) as u16).to_be_bytes());
        put(fragment, L3 + 6, &(field & 0xc000 | if more { 0x2000 } else { 0 } | offset & 0x1fff).to_be_bytes());
        if done > 0 {
            only_copied(fragment.get_mut(L3 + 20..start)?);
        }
        put(fragment, L3 + 10, &[0; 2]);
        let of_header = sum(fragment.get(L3..start)?);
        put(fragment, L3 + 10, &of_header);
        self.done += payload;
        Some(len)
    }
}

/// Takes out of the options of a later fragment what only the first one carries.
fn only_copied(options: &mut [u8]) {
    let mut at = 0;
    while let Some(kind) = options.get(at).copied() {
        let len = match kind {
            0 => return,
            1 => 1,
            _ => usize::from(options.get(at + 1).copied().unwrap_or(0)).max(2),
        };
        if kind & 0x80 == 0
            && let Some(option) = options.get_mut(at..at + len)
        {
            option.fill(1);
        }
        at += len;
    }
}

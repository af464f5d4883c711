//! [`Coalesce`]: TCP segments that follow one another become one super-frame again, at a port whose far side sends them one by one.
//!
//! Invariant: what comes out is what went in, in the same order, and a receiver that cuts the super-frames again gets the same segments but for the
//! identification of IPv4. A segment is joined only when its checksum is right, so that what was damaged stays damaged and is found out by
//! whoever it is for. Payload is read for checksums and not copied.
//!
//! Theory of operation: the frame made last is kept back while the next segment may still join it: same addresses, ports, acknowledgement, window
//! and options, the next sequence number, nothing but ACK and PSH among its flags, and no longer than the first; one that is shorter, or has PSH,
//! is the last. Then the head's lengths are set and the frame owes the checksum and the segmentation that its sender has done.
//! Read first: [`crate::segmentation`], its inverse; RFC 9293 section 3.1.

use sys::Lent;

use crate::{
    Context, DropReason, Frame, Gso, Offload, Origin,
    bytes::{array, put},
    checksum::Checksum,
    frame::HEAD_BYTES,
    inferred::inferred,
    layers::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

/// The most bytes of an IP packet.
const LONGEST: usize = 65_535;
/// Segments in a super-frame, at most: as many pieces as any port passes on in one go.
const MOST: u16 = 64;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What a segment's head says.
#[derive(Clone, Copy)]
struct Segment {
    v6: bool,
    l4: usize,
    /// Bytes before the payload.
    headers: usize,
    payload: usize,
    seq: u32,
    flags: u8,
}

impl Segment {
    /// Of an untagged frame of `len` bytes that begins with these; nothing if it is not a segment with payload that could be joined.
    fn read(bytes: &[u8], len: usize) -> Option<Segment> {
        let ethertype = u16::from_be_bytes(array(bytes, 12)?);
        let l3 = ETHERNET_LEN;
        let (v6, l4, ip_len, plain) = match ethertype {
            ETHERTYPE_IPV4 => {
                let [first, _, high, low, _, _, flags, offset, _, protocol] = array(bytes, l3)?;
                let plain = first == 0x45 && flags & 0x3f == 0 && offset == 0 && protocol == 6;
                (false, l3 + 20, usize::from(u16::from_be_bytes([high, low])), plain)
            }
            ETHERTYPE_IPV6 => {
                let [first, _, _, _, high, low, protocol] = array(bytes, l3)?;
                let plain = first >> 4 == 6 && protocol == 6;
                (true, l3 + 40, 40 + usize::from(u16::from_be_bytes([high, low])), plain)
            }
            _ => return None,
        };
        let [offset, flags] = array(bytes, l4 + 12)?;
        let headers = l4 + usize::from(offset >> 4) * 4;
        let whole = plain && headers >= l4 + 20 && headers <= bytes.len() && l3 + ip_len == len;
        let payload = len.checked_sub(headers).filter(|payload| whole && *payload > 0)?;
        let seq = u32::from_be_bytes(array(bytes, l4 + 4)?);
        (flags & !PSH == ACK).then_some(Segment { v6, l4, headers, payload, seq, flags })
    }

    /// Whether everything that all segments of a super-frame have in common is the same.
    fn goes_with(&self, bytes: &[u8], other: &Segment, others: &[u8]) -> bool {
        // IPv4's length, identification and checksum differ, IPv6's length does; of TCP sequence number, PSH and checksum.
        let l3 = ETHERNET_LEN;
        let same = |from: usize, to: usize| bytes.get(from..to).is_some_and(|part| others.get(from..to) == Some(part));
        let ip = if self.v6 {
            same(0, l3 + 4) && same(l3 + 6, self.l4)
        } else {
            same(0, l3 + 2) && same(l3 + 6, l3 + 10) && same(l3 + 12, self.l4)
        };
        let l4 = self.l4;
        (self.v6, self.headers) == (other.v6, other.headers)
            && ip
            && same(l4, l4 + 4)
            && same(l4 + 8, l4 + 13)
            && same(l4 + 14, l4 + 16)
            && same(l4 + 18, self.headers)
    }

    fn pseudo(&self, bytes: &[u8], l4_len: usize) -> Option<Checksum> {
        let l3 = ETHERNET_LEN;
        Some(if self.v6 {
            Checksum::pseudo_v6(array(bytes, l3 + 8)?, array(bytes, l3 + 24)?, 6, l4_len as u32)
        } else {
            Checksum::pseudo_v4(array(bytes, l3 + 12)?, array(bytes, l3 + 16)?, 6, l4_len as u16)
        })
    }
}

/// The frame made last, while something may still join it.
struct Last {
    frame: Frame,
    /// Its first segment.
    first: Segment,
    segments: u16,
    next: u32,
    payload: usize,
    /// Whether the checksum of the first segment was looked at.
    intact: bool,
    /// Nothing comes behind a segment that is shorter or has PSH.
    ended: bool,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Coalesce {
    last: Option<Last>,
    /// A frame that nothing can join.
    plain: Option<Frame>,
}

impl Coalesce {
    /// Takes a frame that lies in `bytes` and came in at `origin`; the one before it, if this one did not join it. What it may owe without saying so
    /// is inferred; IP packets of its network are of `mtu` bytes at most.
    ///
    /// # Errors
    /// `NoHeads` and `NoBuffers` when the turn has no more, `Stale` when the bytes are not there: the frame is lost, those before it are kept.
    pub fn push(
        &mut self,
        cx: &mut Context,
        origin: Origin,
        bytes: Lent,
        mtu: u16,
    ) -> Result<Option<Frame>, DropReason> {
        let mut front = [0; HEAD_BYTES];
        let near = cx.arena.read(bytes, &mut front);
        let head = front.get(..near.min(bytes.len())).ok_or(DropReason::Stale)?;
        let owed = inferred(head, bytes.len(), mtu);
        let segment = Segment::read(head, bytes.len()).filter(|_| owed.is_none());
        if let (Some(segment), Some(last)) = (&segment, &mut self.last)
            && cx.heads.get(&last.frame).origin == origin
            && last.joins(cx, segment, head, bytes)
        {
            return Ok(None);
        }
        let (frame, place) = cx.heads.begin(origin, bytes.len()).ok_or(DropReason::NoHeads)?;
        let fill = place.fill();
        fill.copy_from_slice(head.get(..fill.len()).ok_or(DropReason::Stale)?);
        place.offload = owed;
        if let Some(rest) =
            bytes.part(HEAD_BYTES, bytes.len().saturating_sub(HEAD_BYTES)).filter(|rest| !rest.is_empty())
            && !cx.heads.add_piece(&frame, rest)
        {
            return Err(DropReason::NoBuffers);
        }
        let before = self.finish(cx);
        match segment {
            Some(first) => {
                let ended = first.flags & PSH != 0;
                let next = first.seq.wrapping_add(first.payload as u32);
                self.last =
                    Some(Last { frame, first, segments: 1, next, payload: first.payload, intact: false, ended });
            }
            None => self.plain = Some(frame),
        }
        Ok(before)
    }

    /// The frame that was kept back.
    pub fn finish(&mut self, cx: &mut Context) -> Option<Frame> {
        let Some(last) = self.last.take() else { return self.plain.take() };
        let set = if last.segments > 1 { last.set_headers(cx) } else { Some(()) };
        debug_assert!(set.is_some(), "the headers were read");
        Some(last.frame)
    }
}

impl Last {
    /// Takes a segment up, if it is the next.
    fn joins(&mut self, cx: &mut Context, segment: &Segment, head: &[u8], bytes: Lent) -> bool {
        let first = self.first;
        let len = first.headers + self.payload + segment.payload;
        let next = !self.ended
            && segment.seq == self.next
            && segment.payload <= first.payload
            && self.segments < MOST
            && len - ETHERNET_LEN <= LONGEST
            && first.goes_with(cx.heads.get(&self.frame).bytes(), segment, head);
        if !next {
            return false;
        }
        if !self.intact {
            let own = cx.heads.get(&self.frame);
            self.intact = is_intact(cx, &first, own.bytes(), cx.heads.body(&self.frame));
            self.ended = !self.intact;
        }
        let rest = bytes.part(head.len(), bytes.len() - head.len());
        let body: &[Lent] = rest.as_slice();
        if !self.intact || !is_intact(cx, segment, head, body) {
            return false;
        }
        let payload = bytes.part(segment.headers, segment.payload);
        if !payload.is_some_and(|payload| cx.heads.add_piece(&self.frame, payload)) {
            self.ended = true;
            return false;
        }
        self.segments += 1;
        self.payload += segment.payload;
        self.next = segment.seq.wrapping_add(segment.payload as u32);
        self.ended = segment.payload < first.payload || segment.flags & PSH != 0;
        let frame = cx.heads.get_mut(&self.frame);
        frame.set_lengths(frame.bytes().len(), len);
        if segment.flags & PSH != 0
            && let Some(flags) = frame.bytes_mut().get_mut(first.l4 + 13)
        {
            *flags |= PSH;
        }
        true
    }

    /// Sets the lengths of the whole, and what it owes. All of it lies in the head: a segment that was read had it there.
    fn set_headers(&self, cx: &mut Context) -> Option<()> {
        let Segment { v6, l4, headers, payload: size, .. } = self.first;
        let head = cx.heads.get_mut(&self.frame);
        let (l3, ip_len) = (ETHERNET_LEN, headers + self.payload - ETHERNET_LEN);
        let pseudo = self.first.pseudo(head.bytes(), headers + self.payload - l4)?;
        let bytes = head.bytes_mut();
        if v6 {
            put(bytes, l3 + 4, &((ip_len - 40) as u16).to_be_bytes())?;
        } else {
            put(bytes, l3 + 2, &(ip_len as u16).to_be_bytes())?;
            put(bytes, l3 + 10, &[0; 2])?;
            let mut sum = Checksum::new();
            sum.add_bytes(bytes.get(l3..l4)?);
            put(bytes, l3 + 10, &sum.finish().to_be_bytes())?;
        }
        put(bytes, l4 + 16, &pseudo.fold().to_be_bytes())?;
        let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
        head.offload = Offload::new(gso, headers as u16, size as u16, l4 as u16, 16);
        Some(())
    }
}

/// Whether the checksums of a segment are right.
fn is_intact(cx: &Context, segment: &Segment, head: &[u8], body: &[Lent]) -> bool {
    let l4 = segment.l4;
    if !segment.v6 {
        let mut sum = Checksum::new();
        sum.add_bytes(head.get(ETHERNET_LEN..l4).unwrap_or_default());
        if !sum.is_valid() {
            return false;
        }
    }
    let Some(mut sum) = segment.pseudo(head, segment.headers + segment.payload - l4) else { return false };
    sum.add_bytes(head.get(l4..).unwrap_or_default());
    sum.add_lent(&cx.arena, body.iter().copied()) && sum.is_valid()
}

#[cfg(test)]
mod tests;

//! [`Settle`]: checksums and TCP/UDP segmentation in software, at a port whose far side cannot take over what a frame owes.
//!
//! Invariant: whatever the headers say, every frame that goes in ends as frames that come out or as one counted drop, and the
//! [`Ledger`](crate::Ledger) balances; a frame that comes out owes nothing that the receiver does not accept, and its body is made of parts
//! of the original's pieces: payload is read for checksums but not copied.
//!
//! Theory of operation: a frame goes one of three ways. It passes as it is; or its checksum is completed in its own head; or it is cut: each
//! segment is a new head, a copy of the original's whose lengths, identification, sequence number and flags are set for its share of the
//! payload and whose checksum field holds the pseudo header's sum, so that it is an ordinary frame that owes a checksum, and completed like
//! one where need be. Of what the sender announced only segment size and checksum position are used, the latter only where the headers
//! agree: where headers end is read from the headers.
//!
//! Read first: virtio 1.2 section 5.1.6.2; RFC 9293 section 3.1, RFC 768, RFC 3168 section 6.1.2 (CWR), RFC 6864 (identification).

use crate::{
    bytes::{array, put},
    checksum::Checksum,
    context::Context,
    frame::{Frame, Head},
    layers::{L3, Layers},
    offload::{Accepts, Gso},
    verdict::DropReason,
};

const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
const TCP_MIN_LEN: usize = 20;
/// Where the checksum lies in a TCP and in a UDP header.
const TCP_SUM: u16 = 16;
const UDP_SUM: u16 = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// One frame on its way to a receiver: an iterator over the frames that it becomes.
pub struct Settle {
    left: Left,
}

/// What is still to come out.
enum Left {
    Nothing,
    Whole(Frame),
    Cut(Cut),
}

impl Settle {
    /// Turns `frame` into frames that a receiver which takes over `accepts` can be given. All of it happens within the turn.
    pub fn new(cx: &mut Context, frame: Frame, accepts: Accepts) -> Settle {
        let owed = cx.heads.get(&frame).offload;
        if accepts.has(owed.needs()) {
            return Settle { left: Left::Whole(frame) };
        }
        let left = match owed.gso() {
            Gso::None => complete(cx, &frame).map(|()| None),
            _ => Headers::of(cx.heads.get(&frame)).map(Some),
        };
        let left = match left {
            Ok(None) => Left::Whole(frame),
            Ok(Some(headers)) => Left::Cut(Cut::new(cx, frame, headers, accepts)),
            Err(reason) => {
                cx.drop(frame, reason);
                Left::Nothing
            }
        };
        Settle { left }
    }

    /// The next frame. What cannot be made is dropped at the NIC being called with its reason, and ends the iteration: owed segmentation
    /// that contradicts the headers (`CannotSegment`), no heads or pieces left in this turn, or payload that is no longer lent (`Stale`).
    pub fn next(&mut self, cx: &mut Context) -> Option<Frame> {
        let mut cut = match std::mem::replace(&mut self.left, Left::Nothing) {
            Left::Nothing => return None,
            Left::Whole(frame) => return Some(frame),
            Left::Cut(cut) => cut,
        };
        if cut.is_done() {
            return None;
        }
        // The first segment stands for the original in the ledger; every further one, or the drop of the rest, is one more.
        cx.ledger.copied += u64::from(cut.made > 0);
        match cut.segment(cx) {
            Ok(segment) => {
                self.left = Left::Cut(cut);
                Some(segment)
            }
            Err(reason) => {
                cx.drop(cut.frame, reason);
                None
            }
        }
    }
}

/// Completes the checksum that `frame` owes, in its head (virtio 1.2 section 5.1.6.4.1).
fn complete(cx: &mut Context, frame: &Frame) -> Result<(), DropReason> {
    let head = cx.heads.get(frame);
    let owed = head.offload;
    let covered = head.bytes().get(usize::from(owed.checksum_start())..).ok_or(DropReason::CannotSegment)?;
    let mut sum = Checksum::new();
    sum.add_bytes(covered);
    if !sum.add_lent(&cx.arena, cx.heads.body(frame).iter().copied()) {
        return Err(DropReason::Stale);
    }
    let value = if owed.checksum_offset() == UDP_SUM { sum.finish_udp() } else { sum.finish() };
    let head = cx.heads.get_mut(frame);
    put(head.bytes_mut(), owed.checksum_at(), &value.to_be_bytes()).ok_or(DropReason::CannotSegment)?;
    head.offload = crate::Offload::NONE;
    Ok(())
}

/// The headers of a frame that is to be cut, all of them in its head.
#[derive(Clone, Copy)]
struct Headers {
    l3: usize,
    v6: bool,
    l4: usize,
    tcp: bool,
    /// Bytes before the payload.
    len: usize,
    /// The pseudo header's sum without the length.
    pseudo: Checksum,
    /// IPv4 identification.
    id: u16,
    /// TCP sequence number.
    seq: u32,
    /// TCP flags.
    flags: u8,
}

impl Headers {
    /// Reads them; `CannotSegment` when they are not what the offload announces or not all in the head.
    fn of(head: &Head) -> Result<Headers, DropReason> {
        Self::read(head).ok_or(DropReason::CannotSegment)
    }

    fn read(head: &Head) -> Option<Headers> {
        let owed = head.offload;
        let bytes = head.bytes();
        let layers = Layers::parse(bytes)?;
        let l3 = layers.l2_len;
        let l4 = layers.l4?;
        let (v6, tcp, sum_at) = match (owed.gso(), layers.l3, layers.protocol?) {
            (Gso::Tcp4, L3::V4, 6) => (false, true, TCP_SUM),
            (Gso::Tcp6, L3::V6, 6) => (true, true, TCP_SUM),
            (Gso::Udp, L3::V4, 17) => (false, false, UDP_SUM),
            (Gso::Udp, L3::V6, 17) => (true, false, UDP_SUM),
            _ => return None,
        };
        let agree = usize::from(owed.checksum_start()) == l4 && owed.checksum_offset() == sum_at;
        if layers.fragment || !agree || owed.segment_size() == 0 {
            return None;
        }
        let mut headers =
            Headers { l3, v6, l4, tcp, len: l4 + UDP_LEN, pseudo: Checksum::new(), id: 0, seq: 0, flags: 0 };
        if tcp {
            let [offset, flags] = array(bytes, l4 + 12)?;
            let tcp_len = usize::from(offset >> 4) * 4;
            if tcp_len < TCP_MIN_LEN {
                return None;
            }
            headers = Headers { len: l4 + tcp_len, seq: u32::from_be_bytes(array(bytes, l4 + 4)?), flags, ..headers };
        }
        let protocol = layers.protocol?;
        headers.pseudo = if !v6 {
            headers.id = u16::from_be_bytes(array(bytes, l3 + 4)?);
            Checksum::pseudo_v4(array(bytes, l3 + 12)?, array(bytes, l3 + 16)?, protocol, 0)
        } else if l4 == l3 + IPV6_LEN {
            Checksum::pseudo_v6(array(bytes, l3 + 8)?, array(bytes, l3 + 24)?, protocol, 0)
        } else {
            // A routing header may hold the destination that counts (RFC 8200 section 8.1): the sum that the sender put knows it. The
            // length in it, which is that of the whole, is taken out again.
            let mut pseudo = Checksum::new();
            pseudo.add_bytes(&array::<2>(bytes, l4 + usize::from(sum_at))?);
            let length = u32::try_from(head.len().checked_sub(l4)?).ok()?;
            pseudo.add_bytes(&(!length).to_be_bytes());
            pseudo
        };
        (headers.len <= bytes.len() && bytes.len() <= head.len()).then_some(headers)
    }
}

/// A frame that is being cut.
struct Cut {
    frame: Frame,
    headers: Headers,
    /// The receiver completes plain checksums.
    sums: bool,
    /// Payload bytes of a segment, of the whole, and of the segments made so far.
    size: usize,
    total: usize,
    done: usize,
    /// Segments made so far.
    made: u32,
    /// The piece that the next payload byte is in, and how far.
    piece: usize,
    inside: usize,
}

impl Cut {
    fn new(cx: &Context, frame: Frame, headers: Headers, accepts: Accepts) -> Cut {
        let head = cx.heads.get(&frame);
        let size = usize::from(head.offload.segment_size());
        let total = head.len().saturating_sub(headers.len);
        let sums = accepts.has(Accepts::CSUM);
        Cut { frame, headers, sums, size, total, done: 0, made: 0, piece: 0, inside: 0 }
    }

    /// All payload is out. A frame without any is one segment.
    fn is_done(&self) -> bool {
        self.made > 0 && self.done >= self.total
    }

    fn segment(&mut self, cx: &mut Context) -> Result<Frame, DropReason> {
        let payload = self.size.min(self.total - self.done);
        let segment = cx.heads.begin_as(&self.frame).ok_or(DropReason::NoHeads)?;
        self.take_payload(cx, &segment, payload)?;
        let last = self.done + payload >= self.total;
        let head = cx.heads.get_mut(&segment);
        head.offload = head.offload.whole();
        let len = head.len();
        self.set_headers(head.bytes_mut(), len, last).ok_or(DropReason::CannotSegment)?;
        if !self.sums {
            complete(cx, &segment)?;
        }
        self.done += payload;
        self.made += 1;
        Ok(segment)
    }

    /// Gives `segment`, whose head is still that of the original, its share of the payload: what lies in the head is moved to behind the
    /// headers, the rest is lent.
    fn take_payload(&mut self, cx: &mut Context, segment: &Frame, payload: usize) -> Result<(), DropReason> {
        let end = self.headers.len;
        let head = cx.heads.get_mut(segment);
        let from = end + self.done;
        let in_head = head.bytes().len().saturating_sub(from).min(payload);
        if in_head > 0 && self.done > 0 {
            head.bytes_mut().copy_within(from..from + in_head, end);
        }
        head.set_lengths(end + in_head, end + payload);
        let mut left = payload - in_head;
        while left > 0 {
            let piece = cx.heads.body(&self.frame).get(self.piece).copied().ok_or(DropReason::CannotSegment)?;
            let len = left.min(piece.len().saturating_sub(self.inside));
            let part = piece.part(self.inside, len).ok_or(DropReason::CannotSegment)?;
            if len > 0 && !cx.heads.add_piece(segment, part) {
                return Err(DropReason::NoBuffers);
            }
            left -= len;
            self.inside += len;
            if self.inside >= piece.len() {
                (self.piece, self.inside) = (self.piece + 1, 0);
            }
        }
        Ok(())
    }

    /// Sets what differs between segments in the headers of one of `len` bytes.
    fn set_headers(&self, bytes: &mut [u8], len: usize, last: bool) -> Option<()> {
        let Headers { l3, v6, l4, tcp, pseudo, id, seq, flags, .. } = self.headers;
        let l4_len = u16::try_from(len - l4).ok()?;
        if v6 {
            put(bytes, l3 + 4, &u16::try_from(len - l3 - IPV6_LEN).ok()?.to_be_bytes())?;
        } else {
            put(bytes, l3 + 2, &u16::try_from(len - l3).ok()?.to_be_bytes())?;
            put(bytes, l3 + 4, &id.wrapping_add(self.made as u16).to_be_bytes())?;
            put(bytes, l3 + 10, &[0; 2])?;
            let mut sum = Checksum::new();
            sum.add_bytes(bytes.get(l3..l4)?);
            put(bytes, l3 + 10, &sum.finish().to_be_bytes())?;
        }
        if tcp {
            let only_last = if last { 0 } else { FIN | PSH };
            let only_first = if self.made == 0 { 0 } else { CWR };
            put(bytes, l4 + 4, &seq.wrapping_add(self.done as u32).to_be_bytes())?;
            put(bytes, l4 + 13, &[flags & !only_last & !only_first])?;
        } else {
            put(bytes, l4 + 4, &l4_len.to_be_bytes())?;
        }
        let mut partial = pseudo;
        partial.add_u16(l4_len);
        let sum_at = if tcp { TCP_SUM } else { UDP_SUM };
        put(bytes, l4 + usize::from(sum_at), &partial.fold().to_be_bytes())
    }
}

#[cfg(test)]
pub(crate) mod tests;

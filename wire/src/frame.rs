//! [`Frame`], the handle; [`Head`], what it stands for; [`Burst`], a few of them.
//!
//! Invariant: a frame lives in one turn. Its handle names a head in the worker's arena and the turn it was made in; a handle of an
//! earlier turn reads as an empty frame. The head holds the first `min(length, 128)` bytes, copied once and ours: what was checked there
//! cannot change afterwards. The rest, the body, is a list of lent pieces that are never parsed.
//!
//! Theory of operation: heads are handed out from the arena's start in every turn and given back all at once; there is nothing to free, and
//! the same few cache lines serve turn after turn. A head is 256 bytes: 48 of metadata, 80 of headroom for tags and outer headers, 128 of
//! frame, which begins on a cache line. What must outlive the turn is copied into memory of whoever holds it.
//! Read first: `docs/design.md`, "The story of a frame".

use crate::{addr::Vid, offload::Offload};

/// Bytes of a frame that lie in its head, at most.
pub const HEAD_BYTES: usize = 128;
/// Bytes that may be put before a frame's first byte.
pub const HEADROOM: usize = 80;
/// Longest frame: the longest Ethernet payload a virtio-net header can describe, with Ethernet header and one tag.
pub const MAX_FRAME: usize = 65_550;
/// Frames in a burst, at most.
pub const BURST: usize = 64;
/// Answers of a round, at most: a burst of a router or NAT, each frame of which may have become several, or a burst of super-frames that a tunnel has cut.
pub const ANSWERS: usize = 3072;

/// Which NIC of a worker, by its place in the worker's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicId(pub u16);

impl NicId {
    /// As an index.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a frame came in. Set at `receive` and never changed; isolation, guards and budgets rest on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The NIC.
    pub nic: NicId,
    /// The lane (queue pair) of it.
    pub lane: u16,
}

/// How a port labels the frames of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// No label.
    Untagged,
    /// An IEEE 802.1Q tag.
    Vlan(Vid),
    /// A VXLAN or Geneve network identifier.
    Vni(crate::addr::Vni),
}

/// A broadcast domain of one bridge, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Segment(pub u16);

/// The handle of a frame. It moves by value; a copy is a new frame ([`crate::Context::copy`]).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "every frame ends as transmitted, answered, held or dropped with a counted reason"]
pub struct Frame {
    pub(crate) slot: u32,
    pub(crate) turn: u32,
}

impl Frame {
    /// A handle that no turn made: it reads as an empty frame.
    pub(crate) const NONE: Frame = Frame { slot: u32::MAX, turn: 0 };
}

/// The metadata and first bytes of a frame.
#[repr(C, align(64))]
pub struct Head {
    /// What it still owes.
    pub offload: Offload,
    len: u32,
    pub(crate) pieces_at: u32,
    pub(crate) pieces: u16,
    start: u16,
    head_len: u16,
    /// Where it came in.
    pub origin: Origin,
    /// The segment it belongs to, once the bridge has classified it.
    pub segment: Segment,
    /// Whether its first EtherType is an 802.1Q tag that labels its segment.
    pub tagged: bool,
    bytes: Bytes,
}

/// Headroom and first bytes; the alignment puts the frame's first byte on a cache line.
#[repr(C, align(16))]
struct Bytes([u8; HEADROOM + HEAD_BYTES]);

const _: () = assert!(size_of::<Head>() == 256 && std::mem::offset_of!(Head, bytes) + HEADROOM == 128);

impl Head {
    pub(crate) const EMPTY: Head = Head {
        offload: Offload::NONE,
        len: 0,
        pieces_at: 0,
        pieces: 0,
        start: HEADROOM as u16,
        head_len: 0,
        origin: Origin { nic: NicId(0), lane: 0 },
        segment: Segment(0),
        tagged: false,
        bytes: Bytes([0; HEADROOM + HEAD_BYTES]),
    };

    /// Begins anew: a frame of `len` bytes from `origin`, whose head is to be filled through [`Head::fill`].
    #[inline]
    pub(crate) fn start(&mut self, origin: Origin, len: usize, pieces_at: u32) {
        self.offload = Offload::NONE;
        self.len = len as u32;
        self.pieces_at = pieces_at;
        self.pieces = 0;
        self.start = HEADROOM as u16;
        self.head_len = len.min(HEAD_BYTES) as u16;
        self.origin = origin;
        self.segment = Segment(0);
        self.tagged = false;
    }

    /// Copies everything but the pieces' place from `other`, and only as many bytes as there are.
    pub(crate) fn copy_from(&mut self, other: &Head) {
        self.offload = other.offload;
        self.len = other.len;
        self.pieces_at = other.pieces_at;
        self.pieces = other.pieces;
        self.start = other.start;
        self.head_len = other.head_len;
        self.origin = other.origin;
        self.segment = other.segment;
        self.tagged = other.tagged;
        let range = usize::from(other.start)..usize::from(other.start) + usize::from(other.head_len);
        if let (Some(to), Some(from)) = (self.bytes.0.get_mut(range.clone()), other.bytes.0.get(range)) {
            to.copy_from_slice(from);
        }
    }

    /// Bytes of the whole frame.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The first bytes of the frame, up to [`HEAD_BYTES`] and what was pushed before them.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let start = usize::from(self.start);
        self.bytes.0.get(start..start + usize::from(self.head_len)).unwrap_or_default()
    }

    /// The first bytes, to change.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = usize::from(self.start);
        self.bytes.0.get_mut(start..start + usize::from(self.head_len)).unwrap_or_default()
    }

    /// The place for the first `min(len, 128)` bytes of a frame just begun.
    #[inline]
    pub fn fill(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }

    /// The whole room for a head, for a frame whose length is known only after reading; [`Head::set_len`] follows.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.0.get_mut(HEADROOM..).unwrap_or_default()
    }

    /// Sets the length of a frame that was read into [`Head::room`].
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        self.len = len as u32;
        self.start = HEADROOM as u16;
        self.head_len = len.min(HEAD_BYTES) as u16;
    }

    /// The lengths after body bytes were cut off or put on: `len` bytes in all, of which `head` in the head.
    pub(crate) fn set_lengths(&mut self, head: usize, len: usize) {
        self.head_len = head.min(usize::from(self.head_len)) as u16;
        self.len = len as u32;
    }

    /// The six bytes of the destination as [`crate::Mac::to_bits`] has them, and those of the source; zero when there are none.
    #[inline]
    pub fn macs(&self) -> (u64, u64) {
        let bytes = self.bytes();
        let (Some(to), Some(from)) = (bytes.first_chunk::<8>(), bytes.get(6..14)) else { return (0, 0) };
        let from = from.first_chunk::<8>().copied().unwrap_or_default();
        (u64::from_le_bytes(*to) & 0xffff_ffff_ffff, u64::from_le_bytes(from) & 0xffff_ffff_ffff)
    }

    /// The first EtherType (host byte order); zero when there is none.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        self.bytes().get(12..14).and_then(|b| b.first_chunk::<2>()).map_or(0, |b| u16::from_be_bytes(*b))
    }

    /// Puts `n` bytes before the frame's first and returns all of the head; false when there is no headroom.
    #[must_use]
    pub fn push(&mut self, n: usize) -> bool {
        let Some(start) = usize::from(self.start).checked_sub(n) else { return false };
        self.start = start as u16;
        self.head_len += n as u16;
        self.len += n as u32;
        true
    }

    /// Takes the frame's first `n` bytes away; false when the head has fewer.
    #[must_use]
    pub fn pull(&mut self, n: usize) -> bool {
        if n > usize::from(self.head_len) {
            return false;
        }
        self.start += n as u16;
        self.head_len -= n as u16;
        self.len -= n as u32;
        true
    }
}

/// Up to `N` frames, [`BURST`] if not said.
pub struct Burst<const N: usize = BURST> {
    frames: [Frame; N],
    len: usize,
}

impl<const N: usize> Default for Burst<N> {
    fn default() -> Self {
        Burst { frames: [const { Frame::NONE }; N], len: 0 }
    }
}

impl<const N: usize> Burst<N> {
    /// Frames in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// None in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more fit.
    #[inline]
    pub fn room(&self) -> usize {
        N - self.len
    }

    /// Puts `frame` at the end; gives it back when there is no room.
    #[inline]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        match self.frames.get_mut(self.len) {
            Some(place) => {
                *place = frame;
                self.len += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// Takes the last frame out.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        self.len = self.len.checked_sub(1)?;
        self.frames.get_mut(self.len).map(|place| std::mem::replace(place, Frame::NONE))
    }

    /// The frames, in their order, to look at.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().take(self.len)
    }

    /// Takes all frames out, in their order. What the iterator is not asked for is gone: callers account for each.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_> {
        let len = std::mem::take(&mut self.len);
        // The places are free now, so what is left in them is no second handle.
        Drain(self.frames.get(..len).unwrap_or_default().iter())
    }
}

/// The frames taken out of a burst, one by one.
pub struct Drain<'b>(std::slice::Iter<'b, Frame>);

impl Iterator for Drain<'_> {
    type Item = Frame;

    #[inline]
    fn next(&mut self) -> Option<Frame> {
        self.0.next().map(|place| Frame { slot: place.slot, turn: place.turn })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Drain<'_> {}

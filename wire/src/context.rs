//! [`Context`]: everything a turn works with.
//!
//! Invariant: all of it belongs to one worker, nothing in it is shared, and nothing is allocated after [`Context::new`]. At the end of a
//! turn, received + copied + originated = transmitted + dropped + held ([`Ledger::balances`]).
//! Read first: [`crate::frame`].

use std::io;

use sys::{Lent, arena::Arena};

use crate::{
    clock::Instant,
    frame::{ANSWERS, Burst, Frame, HEAD_BYTES, Head, NicId, Origin},
    verdict::{Counters, DropReason},
};

/// The heads of a turn. See [`crate::frame`].
pub struct Heads {
    slots: Box<[Head]>,
    used: usize,
    turn: u32,
    void: Box<Head>,
    pieces: Vec<Lent>,
}

impl Heads {
    fn new(heads: usize, pieces: usize) -> Self {
        Heads {
            slots: (0..heads).map(|_| Head::EMPTY).collect(),
            used: 0,
            turn: 1,
            void: Box::new(Head::EMPTY),
            pieces: Vec::with_capacity(pieces),
        }
    }

    #[inline]
    fn next_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1).max(1);
        self.used = 0;
        self.pieces.clear();
    }

    /// A new frame of `len` bytes from `origin`, its bytes not yet filled in; nothing when the heads are used up.
    #[inline]
    pub fn begin(&mut self, origin: Origin, len: usize) -> Option<(Frame, &mut Head)> {
        let slot = self.used;
        let pieces_at = self.pieces.len() as u32;
        let head = self.slots.get_mut(slot)?;
        self.used = slot + 1;
        head.start(origin, len, pieces_at);
        Some((Frame { slot: slot as u32, turn: self.turn }, head))
    }

    /// Heads left in this turn.
    #[inline]
    pub fn left(&self) -> usize {
        self.slots.len() - self.used
    }

    /// The head of a frame; that of an empty frame when the handle is from another turn.
    #[inline]
    pub fn get(&self, frame: &Frame) -> &Head {
        debug_assert_eq!(frame.turn, self.turn, "a frame was kept past its turn");
        match self.slots.get(frame.slot as usize) {
            Some(head) if frame.turn == self.turn => head,
            _ => &self.void,
        }
    }

    /// The head of a frame, to change.
    #[inline]
    pub fn get_mut(&mut self, frame: &Frame) -> &mut Head {
        debug_assert_eq!(frame.turn, self.turn, "a frame was kept past its turn");
        match self.slots.get_mut(frame.slot as usize) {
            Some(head) if frame.turn == self.turn => head,
            _ => {
                *self.void = Head::EMPTY;
                &mut self.void
            }
        }
    }

    /// Adds a piece to the end of a frame's body. Only the frame begun last may grow; false when it is not, or no pieces are left.
    #[inline]
    #[must_use]
    pub fn add_piece(&mut self, frame: &Frame, piece: Lent) -> bool {
        if self.pieces.len() == self.pieces.capacity() {
            return false;
        }
        let at = self.pieces.len();
        let head = self.get_mut(frame);
        if head.pieces_at as usize + usize::from(head.pieces) != at {
            return false;
        }
        head.pieces += 1;
        self.pieces.push(piece);
        true
    }

    /// The body of a frame: what follows the bytes of its head.
    #[inline]
    pub fn body(&self, frame: &Frame) -> &[Lent] {
        self.body_of(self.get(frame))
    }

    /// The body of the frame that has this head.
    #[inline]
    pub fn body_of(&self, head: &Head) -> &[Lent] {
        if head.pieces == 0 {
            return &[];
        }
        let at = head.pieces_at as usize;
        self.pieces.get(at..at + usize::from(head.pieces)).unwrap_or_default()
    }

    /// Whether the handle is of this turn.
    #[inline]
    pub fn is_current(&self, frame: &Frame) -> bool {
        frame.turn == self.turn
    }
}

/// The sums of a worker's frames since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Came in from ports.
    pub received: u64,
    /// Made by flooding and segmentation.
    pub copied: u64,
    /// Made by the worker itself.
    pub originated: u64,
    /// Left through ports.
    pub transmitted: u64,
    /// Dropped with a reason.
    pub dropped: u64,
    /// Held by a port at this moment.
    pub held: u64,
}

impl Ledger {
    /// Every frame is accounted for.
    pub fn balances(&self) -> bool {
        self.received + self.copied + self.originated == self.transmitted + self.dropped + self.held
    }
}

/// What a worker carries through its turns.
pub struct Context {
    /// The heads of the frames of this turn.
    pub heads: Heads,
    /// The memory that may be read and written in this turn.
    pub arena: Arena,
    /// The time this turn began.
    pub now: Instant,
    /// The NIC whose port is being called.
    pub nic: NicId,
    /// Frames that ports sent back, to be forwarded in this turn as if received from where they say.
    pub answers: Box<Burst<ANSWERS>>,
    /// The sums over all NICs.
    pub ledger: Ledger,
    counters: Vec<Counters>,
}

/// How much of everything a worker has for one turn.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Frames, copies included.
    pub heads: usize,
    /// Pieces of bodies.
    pub pieces: usize,
    /// Pooled bytes.
    pub pool: usize,
}

impl Default for Sizes {
    /// A flood of a whole burst to 63 ports, frames of 64 pieces, 64 super-frames from a TAP.
    fn default() -> Self {
        Sizes { heads: 4096, pieces: 8192, pool: 5 << 20 }
    }
}

impl Context {
    /// An empty context.
    pub fn new(sizes: Sizes) -> io::Result<Self> {
        Ok(Context {
            heads: Heads::new(sizes.heads, sizes.pieces),
            arena: Arena::new(sizes.pool)?,
            now: Instant::START,
            nic: NicId::default(),
            answers: Box::default(),
            ledger: Ledger::default(),
            counters: Vec::new(),
        })
    }

    /// Begins a turn: every frame of the one before is stale.
    #[inline]
    pub fn begin_turn(&mut self, now: Instant) {
        self.now = now;
        self.heads.next_turn();
        self.arena.reset_pool();
    }

    /// Counters for NICs up to `nic` exist from here on. Allocates; called between turns.
    pub fn add_nic(&mut self, nic: NicId) {
        if self.counters.len() <= nic.index() {
            self.counters.resize_with(nic.index() + 1, Counters::default);
        }
        if let Some(counters) = self.counters.get_mut(nic.index()) {
            *counters = Counters::default();
        }
    }

    /// What NIC `nic` received, was sent and lost.
    pub fn counters(&self, nic: NicId) -> Option<&Counters> {
        self.counters.get(nic.index())
    }

    /// Counts what the NIC being called received: `frames` with `bytes` in all.
    #[inline]
    pub fn received(&mut self, frames: u64, bytes: u64) {
        self.ledger.received += frames;
        if let Some(counters) = self.counters.get_mut(self.nic.index()) {
            counters.rx_frames += frames;
            counters.rx_bytes += bytes;
        }
    }

    /// Counts what the NIC being called was sent.
    #[inline]
    pub fn transmitted(&mut self, frames: u64, bytes: u64) {
        self.ledger.transmitted += frames;
        if let Some(counters) = self.counters.get_mut(self.nic.index()) {
            counters.tx_frames += frames;
            counters.tx_bytes += bytes;
        }
    }

    /// Ends a frame at NIC `nic`, for a counted reason.
    #[inline]
    pub fn drop_at(&mut self, nic: NicId, frame: Frame, reason: DropReason) {
        let _ = frame;
        self.ledger.dropped += 1;
        if let Some(counters) = self.counters.get_mut(nic.index()) {
            counters.dropped(reason, 1);
        }
    }

    /// Ends a frame at the NIC being called, for a counted reason.
    #[inline]
    pub fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.drop_at(self.nic, frame, reason);
    }

    /// Counts a frame that ended at the NIC being called, where its handle was given up before the reason could be counted.
    #[inline]
    pub fn drop_one(&mut self, reason: DropReason) {
        self.drop_at(self.nic, Frame::NONE, reason);
    }

    /// Counts a frame that the NIC being called received but for which there is not even a head.
    #[inline]
    pub fn lost(&mut self, reason: DropReason) {
        self.received(1, 0);
        self.drop_at(self.nic, Frame::NONE, reason);
    }

    /// A second frame with the same bytes: the head copied, the body shared. Nothing when the heads are used up.
    #[inline]
    pub fn copy(&mut self, frame: &Frame) -> Option<Frame> {
        let copy = self.heads.duplicate(frame)?;
        self.ledger.copied += 1;
        Some(copy)
    }

    /// A frame of our own with these bytes (an Ethernet frame without FCS), as if received at `origin`; nothing when memory is used up.
    pub fn originate(&mut self, origin: Origin, bytes: &[u8]) -> Option<Frame> {
        let body = match bytes.get(HEAD_BYTES..) {
            Some(rest) if !rest.is_empty() => Some(self.arena.pool(rest)?),
            _ => None,
        };
        let (frame, head) = self.heads.begin(origin, bytes.len())?;
        let fill = head.fill();
        let n = fill.len();
        fill.copy_from_slice(bytes.get(..n)?);
        if let Some(body) = body
            && !self.heads.add_piece(&frame, body)
        {
            return None;
        }
        self.ledger.originated += 1;
        Some(frame)
    }

    /// Fills a head up again that headers were taken from: it holds as many of the frame's first bytes as that of any frame.
    ///
    /// # Errors
    /// The frame is lost, with this reason and not yet counted: `NoHeads`, `NoBuffers`, `Stale`.
    #[inline]
    pub fn fill_head(&mut self, frame: Frame) -> Result<Frame, DropReason> {
        if self.heads.body(&frame).is_empty() { Ok(frame) } else { self.filled(&frame) }
    }

    fn filled(&mut self, frame: &Frame) -> Result<Frame, DropReason> {
        let head = self.heads.get(frame);
        let (origin, offload, len) = (head.origin, head.offload, head.len());
        let (mut bytes, mut have) = ([0; HEAD_BYTES], head.bytes().len().min(HEAD_BYTES));
        if have == HEAD_BYTES {
            return Ok(Frame { slot: frame.slot, turn: frame.turn });
        }
        bytes.iter_mut().zip(head.bytes()).for_each(|(to, from)| *to = *from);
        let (new, _) = self.heads.begin(origin, len).ok_or(DropReason::NoHeads)?;
        let mut at = 0;
        while let Some(piece) = self.heads.body(frame).get(at).copied() {
            at += 1;
            let near = piece.len().min(bytes.len() - have);
            let rest = match near {
                0 => Some(piece),
                _ => {
                    let part = piece.part(0, near).ok_or(DropReason::Stale)?;
                    let place = bytes.get_mut(have..have + near).ok_or(DropReason::Stale)?;
                    if self.arena.read(part, place) != near {
                        return Err(DropReason::Stale);
                    }
                    have += near;
                    piece.part(near, piece.len() - near)
                }
            };
            if let Some(rest) = rest.filter(|rest| !rest.is_empty())
                && !self.heads.add_piece(&new, rest)
            {
                return Err(DropReason::NoBuffers);
            }
        }
        let head = self.heads.get_mut(&new);
        head.offload = offload;
        let fill = head.fill();
        let n = fill.len();
        fill.copy_from_slice(bytes.get(..n).ok_or(DropReason::Stale)?);
        Ok(new)
    }

    /// Copies the whole frame into `into` and returns its length, or nothing when it is longer or its memory is gone.
    /// For the few places that must see all bytes.
    pub fn read_all(&self, frame: &Frame, into: &mut [u8]) -> Option<usize> {
        let head = self.heads.get(frame);
        let bytes = head.bytes();
        into.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let mut at = bytes.len();
        for piece in self.heads.body(frame) {
            let place = into.get_mut(at..at + piece.len())?;
            if self.arena.read(*piece, place) != piece.len() {
                return None;
            }
            at += piece.len();
        }
        (at == head.len()).then_some(at)
    }
}

impl Heads {
    fn duplicate(&mut self, frame: &Frame) -> Option<Frame> {
        let slot = self.used;
        if frame.turn != self.turn || frame.slot as usize >= slot {
            return None;
        }
        let (old, new) = self.slots.split_at_mut_checked(slot)?;
        new.first_mut()?.copy_from(old.get(frame.slot as usize)?);
        self.used = slot + 1;
        Some(Frame { slot: slot as u32, turn: self.turn })
    }

    /// A new frame with the head of `frame` and without its body, which the caller makes up with the lengths.
    pub(crate) fn begin_as(&mut self, frame: &Frame) -> Option<Frame> {
        let pieces_at = self.pieces.len() as u32;
        let new = self.duplicate(frame)?;
        let head = self.get_mut(&new);
        head.pieces_at = pieces_at;
        head.pieces = 0;
        Some(new)
    }
}

//! [`LinkPort`]: a port whose other end is on another thread: a second [`LinkPort`] of another worker, or the [`LinkEnd`] of a plain thread.
//!
//! Invariant: a frame crosses as a [`Parcel`], a copy that owns its bytes, so nothing lent ever leaves its turn. Parcels are made once, at
//! [`link`], and go round: filled over one ring, empty back over another. A sender without an empty one drops (`ring_full`); nothing waits,
//! and nothing is allocated per frame. A sleeper is rung once, a peer that polls never.
//!
//! Theory of operation, one direction of the two:
//!
//! ```text
//!   transmit: empty parcel -> bytes copied in -> [ full ring ] -> receive: bytes copied into the turn's heads and pool
//!                  ^------------------------- [ empty ring ] <-----------------/
//! ```
//!
//! Who wants to sleep says so in `asleep`, then looks once more; who has put something in looks at `asleep` afterwards. Each does its
//! write before its read, with a full fence between, so one of the two sees the other. Read first: [`sys::spsc`], [`wire::port`].

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use sys::{
    eventfd::EventFd,
    spsc::{self, Consumer, Producer},
};
use wire::{
    Accepts, BURST, Burst, Context, DropReason, Frame, HEAD_BYTES, NicId, Offload, Origin, Port, Wake,
    segmentation::Settle,
};

/// A frame on its way to another thread.
struct Parcel {
    offload: Offload,
    origin: Origin,
    len: usize,
    bytes: Box<[u8]>,
}

/// Where one side sleeps.
struct Bell {
    asleep: AtomicBool,
    /// Nobody rings any more.
    quiet: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// Wakes the other side, if it sleeps. Called after something was put into its ring.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // A full counter wakes as well.
            let _ = self.event.notify();
        }
    }
}

/// One side of a link, whatever kind of thread it is on.
struct Side {
    full: Producer<Box<Parcel>>,
    empties: Consumer<Box<Parcel>>,
    incoming: Consumer<Box<Parcel>>,
    back: Producer<Box<Parcel>>,
    /// An empty one that was taken and not used.
    spare: Option<Box<Parcel>>,
    ours: Arc<Bell>,
    theirs: Arc<Bell>,
}

impl Side {
    /// An empty parcel for `len` bytes, or why there is none.
    fn empty(&mut self, len: usize) -> Result<Box<Parcel>, DropReason> {
        if self.ours.quiet.load(Ordering::Relaxed) {
            return Err(DropReason::NotReady);
        }
        let parcel = self.spare.take().or_else(|| self.empties.pop()).ok_or(DropReason::RingFull)?;
        if len > parcel.bytes.len() {
            self.spare = Some(parcel);
            return Err(DropReason::TooBig);
        }
        Ok(parcel)
    }

    /// Announces the wish to sleep; false when something is there already.
    fn arm(&mut self) -> bool {
        self.ours.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.incoming.is_empty()
    }

    fn disarm(&self) {
        self.ours.asleep.store(false, Ordering::Relaxed);
        // A doorbell of our own: draining fails in no way that matters.
        let _ = self.ours.event.drain();
    }
}

/// How much a link holds in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Frames on their way, rounded up to a power of two.
    pub depth: usize,
    /// Bytes of the longest frame; longer ones are dropped (`too_big`). The memory is touched only as far as frames reach.
    pub frame: usize,
}

fn sides(spec: LinkSpec) -> io::Result<(Side, Side)> {
    let depth = spec.depth.clamp(1, 1 << 16).next_power_of_two();
    let bell = || {
        io::Result::Ok(Arc::new(Bell {
            asleep: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            event: EventFd::new()?,
        }))
    };
    let (a, b) = (bell()?, bell()?);
    let direction = || {
        let (full, incoming) = spsc::ring(depth);
        let (mut back, empties) = spsc::ring(depth);
        for _ in 0..depth {
            let bytes = vec![0; spec.frame].into_boxed_slice();
            let _ = back.push(Box::new(Parcel { offload: Offload::NONE, origin: Origin::default(), len: 0, bytes }));
        }
        (full, empties, incoming, back)
    };
    let (full_a, empties_a, incoming_b, back_b) = direction();
    let (full_b, empties_b, incoming_a, back_a) = direction();
    let one = Side {
        full: full_a,
        empties: empties_a,
        incoming: incoming_a,
        back: back_a,
        spare: None,
        ours: Arc::clone(&a),
        theirs: Arc::clone(&b),
    };
    let other =
        Side { full: full_b, empties: empties_b, incoming: incoming_b, back: back_b, spare: None, ours: b, theirs: a };
    Ok((one, other))
}

/// A link between two workers. What a frame owes goes with it.
///
/// # Errors
/// What eventfd(2) reported: too many open files.
pub fn link(spec: LinkSpec) -> io::Result<(LinkPort, LinkPort)> {
    let (one, other) = sides(spec)?;
    Ok((LinkPort::new(one, Accepts::ALL), LinkPort::new(other, Accepts::ALL)))
}

/// A link between a worker and a plain thread, which gets frames that owe nothing: checksums complete, super-frames cut.
///
/// # Errors
/// What eventfd(2) reported: too many open files.
pub fn link_to_thread(spec: LinkSpec) -> io::Result<(LinkPort, LinkEnd)> {
    let (one, other) = sides(spec)?;
    Ok((LinkPort::new(one, Accepts::NONE), LinkEnd { side: other }))
}

/// A worker's end. See the module's documentation.
pub struct LinkPort {
    side: Side,
    /// What may cross still owed.
    accepts: Accepts,
    keeps_origin: bool,
}

impl LinkPort {
    fn new(side: Side, accepts: Accepts) -> Self {
        LinkPort { side, accepts, keeps_origin: false }
    }

    /// Frames that come in keep the origin that they had on the other side, instead of the NIC that this port is a lane of. Only where both
    /// sides number their NICs alike.
    #[must_use]
    pub fn keeping_origin(mut self) -> Self {
        self.keeps_origin = true;
        self
    }

    /// Copies one frame over.
    fn send(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let (len, offload, origin) = (head.len(), head.offload, head.origin);
        let mut parcel = match self.side.empty(len) {
            Ok(parcel) => parcel,
            Err(reason) => return cx.drop(frame, reason),
        };
        if cx.read_all(&frame, &mut parcel.bytes) != Some(len) {
            self.side.spare = Some(parcel);
            return cx.drop(frame, DropReason::Stale);
        }
        (parcel.offload, parcel.origin, parcel.len) = (offload, origin, len);
        // The ring has room for all parcels there are.
        match self.side.full.push(parcel) {
            Ok(()) => cx.transmitted(1, len as u64),
            Err(_) => cx.drop(frame, DropReason::RingFull),
        }
    }

    /// Makes a frame of what came; nothing when the turn has no room for it.
    fn frame(cx: &mut Context, origin: Origin, parcel: &Parcel) -> Option<Frame> {
        let bytes = parcel.bytes.get(..parcel.len)?;
        let body = match bytes.get(HEAD_BYTES..) {
            Some(rest) if !rest.is_empty() => Some(cx.arena.pool(rest)?),
            _ => None,
        };
        let (frame, head) = cx.heads.begin(origin, bytes.len())?;
        head.offload = parcel.offload;
        let fill = head.fill();
        let n = fill.len();
        fill.copy_from_slice(bytes.get(..n)?);
        match body {
            Some(body) if !cx.heads.add_piece(&frame, body) => None,
            _ => Some(frame),
        }
    }
}

impl Port for LinkPort {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let own = Origin { nic: cx.nic, lane: 0 };
        // A bound that does not depend on how fast the other side is.
        for _ in 0..BURST {
            if burst.room() == 0 {
                break;
            }
            let Some(parcel) = self.side.incoming.pop() else { break };
            let origin = if self.keeps_origin { parcel.origin } else { own };
            match Self::frame(cx, origin, &parcel) {
                Some(frame) => {
                    cx.received(1, parcel.len as u64);
                    if let Err(frame) = burst.push(frame) {
                        cx.drop(frame, DropReason::NoBuffers);
                    }
                }
                None => cx.lost(DropReason::NoBuffers),
            }
            // The ring has room for all parcels there are.
            let _ = self.side.back.push(parcel);
        }
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            let mut settle = Settle::new(cx, frame, self.accepts);
            while let Some(frame) = settle.next(cx) {
                self.send(cx, frame);
            }
        }
        self.side.theirs.ring();
        Ok(())
    }

    fn release(&mut self, _cx: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        wake.readable.push(self.side.ours.event.as_raw_fd());
        self.side.arm()
    }

    fn awake(&mut self) {
        self.side.disarm();
    }
}

/// A plain thread's end: frames as bytes, and a descriptor to sleep on.
pub struct LinkEnd {
    side: Side,
}

impl LinkEnd {
    /// Gives the next frame to `take`, with the NIC it came from on the other side; nothing when there is none at this moment.
    pub fn receive<R>(&mut self, take: impl FnOnce(NicId, &[u8]) -> R) -> Option<R> {
        let parcel = self.side.incoming.pop()?;
        let taken = take(parcel.origin.nic, parcel.bytes.get(..parcel.len).unwrap_or_default());
        let _ = self.side.back.push(parcel);
        Some(taken)
    }

    /// Sends a frame that owes nothing; false when the link is full, the frame too long, or the other side gone. [`LinkEnd::flush`] follows.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let Ok(mut parcel) = self.side.empty(bytes.len()) else { return false };
        if let Some(place) = parcel.bytes.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        (parcel.offload, parcel.origin, parcel.len) = (Offload::NONE, Origin::default(), bytes.len());
        self.side.full.push(parcel).is_ok()
    }

    /// Wakes the worker, if it sleeps. Once after several [`LinkEnd::send`].
    pub fn flush(&self) {
        self.side.theirs.ring();
    }

    /// Before sleeping on the descriptor; false when there is something to receive already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.side.arm()
    }

    /// After sleeping, or the wish to.
    pub fn disarm(&mut self) {
        self.side.disarm();
    }

    /// Whether the other side is still there.
    pub fn is_open(&self) -> bool {
        !self.side.ours.quiet.load(Ordering::Relaxed)
    }
}

impl AsRawFd for LinkEnd {
    /// Readable after [`LinkEnd::arm`] when there is something to receive.
    fn as_raw_fd(&self) -> RawFd {
        self.side.ours.event.as_raw_fd()
    }
}

/// The other side does not sleep on for ever when this one goes.
impl Drop for Side {
    fn drop(&mut self) {
        self.theirs.quiet.store(true, Ordering::Relaxed);
        let _ = self.theirs.event.notify();
    }
}

#[cfg(test)]
mod tests;

//! [`RingPort`]: a port of the switch that is a pair of virtqueues in a guest's memory.
//!
//! Invariant: a frame's body is copied once, from the lender straight into the receiver's ring; what was taken from the transmit queue is
//! completed in order when the turn ends; memory is in the worker's arena exactly while the port is attached. The rings go home
//! when the port is dropped, by whatever way: a ring is stopped when it has come home, and not before.
//! Read first: [`wire::port`], [`crate::virtqueue`]; virtio 1.2 sections 5.1.6.2 and 5.1.6.3.
//!
//! Theory of operation: `receive` takes a burst of chains (which asks for their first cache lines), then copies each virtio-net header and
//! the first 128 bytes into a head and lends the rest. `transmit` takes as many chains as there are frames, writes header, head and body
//! into them and gives the others back; what finds no room waits in `pending` for one more look in `release`, which then publishes both rings.

mod scatter;

use std::{io, sync::Arc};

use sys::{GuestMemory, Lent, MapRef, Room, arena::MapId};
use wire::{
    Accepts, BURST, Burst, Context, Drain, DropReason, Frame, HEAD_BYTES, Heads, MAX_FRAME, Offload, Origin, Port,
    Wake, segmentation,
};

use crate::{
    features::Features,
    virtqueue::{
        DeviceQueue, Ring,
        chain::{Batch, RingError},
    },
    with_ring,
};
use scatter::{many_pieces, put_scattered};

/// Bytes of the virtio-net header (virtio 1.2 section 5.1.6: always with `num_buffers`).
pub const HEADER_BYTES: usize = 12;
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// One queue pair of a guest's NIC, as a session sets it up and gets it back.
pub struct Lane {
    /// Which pair of the NIC.
    pub index: u16,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// What driver and device agreed on.
    pub features: Features,
    /// Frames to the guest (`receiveq`): the device writes.
    pub rx: Option<DeviceQueue>,
    /// Frames from the guest (`transmitq`).
    pub tx: Option<DeviceQueue>,
}

/// Where a lane goes when its port ends, with the reason if the port had failed.
pub type Home = Box<dyn FnOnce(Lane, Option<String>) + Send>;

/// A port made of a lane. See the module's documentation.
pub struct RingPort {
    lane: Option<Lane>,
    home: Option<Home>,
    failed: Option<String>,
    map: Option<MapId>,
    accepts: Accepts,
    mergeable: bool,
    rx_batch: Batch<Room>,
    tx_batch: Batch<Lent>,
    pending: Burst,
    settled: Burst,
    lost: Vec<DropReason>,
    /// Truncated mappings of the process when the lane's memory was last found alive.
    deaths: u64,
}

impl RingPort {
    /// The port of `lane`, which goes to `home` in the end.
    pub fn new(lane: Lane, home: Home) -> Self {
        RingPort {
            accepts: lane.features.accepts(),
            mergeable: lane.features.has(Features::MRG_RXBUF),
            lane: Some(lane),
            home: Some(home),
            failed: None,
            map: None,
            rx_batch: Batch::default(),
            tx_batch: Batch::default(),
            pending: Burst::default(),
            settled: Burst::default(),
            lost: Vec::with_capacity(BURST),
            deaths: 0,
        }
    }

    fn fail<T>(&mut self, cx: &mut Context, result: Result<T, RingError>) -> io::Result<T> {
        result.map_err(|error| {
            // Truncated memory reads as zeros, in which rings look broken in many ways; this is the one that explains them.
            let is_dead = self.lane.as_ref().is_some_and(|lane| lane.memory.is_dead());
            let error = if is_dead { RingError::Truncated } else { error };
            self.pending.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            self.failed = Some(error.to_string());
            error.into()
        })
    }

    fn take_burst(&mut self, cx: &mut Context, burst: &mut Burst) -> Result<(), RingError> {
        let (Some(lane), Some(map)) = (&mut self.lane, self.map) else { return Ok(()) };
        let Some(tx) = &mut lane.tx else { return Ok(()) };
        let map = cx.arena.map(map).ok_or(RingError::NoMemory)?;
        let origin = Origin { nic: cx.nic, lane: lane.index };
        self.tx_batch.clear();
        with_ring!(&mut tx.ring, ring => ring.take(&map, &mut self.tx_batch, BURST))?;
        let mut bytes = 0;
        for chain in &self.tx_batch.chains {
            let pieces = self.tx_batch.pieces(*chain);
            let frame = match pieces {
                _ if !tx.enabled => Err(DropReason::NotReady),
                [piece] => one_piece(&map, *piece, &mut cx.heads, origin),
                _ => many_pieces(&map, pieces, &mut cx.heads, origin),
            };
            match frame {
                Ok(frame) => {
                    bytes += cx.heads.get(&frame).len() as u64;
                    // A burst takes as many frames as were taken from the ring.
                    let _ = burst.push(frame);
                }
                Err(reason) => self.lost.push(reason),
            }
        }
        cx.received(burst.len() as u64, bytes);
        for reason in self.lost.drain(..) {
            cx.lost(reason);
        }
        Ok(())
    }

    /// Writes `frames` into the receive ring, until one owes what the guest does not take: that one is returned. What finds no room goes to
    /// `pending`, and all that follow with it, so that none overtakes another; in the `last` look it is dropped. On an error what is left of
    /// `frames` is the caller's.
    fn put_run(&mut self, cx: &mut Context, frames: &mut Drain<'_>, last: bool) -> Result<Option<Frame>, RingError> {
        let (Some(lane), Some(map_id)) = (&mut self.lane, self.map) else { return Ok(None) };
        let Some(rx) = &mut lane.rx else { return Ok(None) };
        with_ring!(&mut rx.ring, ring => {
            let map = cx.arena.map(map_id).ok_or(RingError::NoMemory)?;
            self.rx_batch.clear();
            ring.take(&map, &mut self.rx_batch, frames.len())?;
            let mut next = 0;
            let (mut sent, mut bytes) = (0u64, 0u64);
            let (mut owing, mut broken) = (None, None);
            for frame in &mut *frames {
                let head = cx.heads.get(&frame);
                let len = head.len();
                if !head.offload.is_none() && !self.accepts.has(head.offload.needs()) {
                    owing = Some(frame);
                    break;
                }
                let outcome = match self.rx_batch.one_piece(next) {
                    Some((chain, room)) if room.len() >= HEADER_BYTES + len => {
                        let header = head.offload.words(1);
                        if map.write_frame(room, header, head.bytes(), cx.heads.body_of(head)) {
                            ring.complete(chain, (HEADER_BYTES + len) as u32);
                            next += 1;
                            Put::Done
                        } else {
                            Put::Drop(DropReason::Stale)
                        }
                    }
                    _ => {
                        let batch = &mut self.rx_batch;
                        let put = put_scattered(&map, ring, batch, &mut next, self.mergeable, &cx.heads, &frame);
                        put.unwrap_or_else(|error| {
                            broken = Some(error);
                            Put::Drop(DropReason::NotReady)
                        })
                    }
                };
                match outcome {
                    Put::Done => {
                        sent += 1;
                        bytes += len as u64;
                    }
                    Put::NoRoom if last => self.lost.push(DropReason::RingFull),
                    Put::NoRoom => {
                        wait(&mut self.pending, &mut self.lost, std::iter::once(frame).chain(&mut *frames));
                        break;
                    }
                    Put::Drop(reason) => self.lost.push(reason),
                }
                if broken.is_some() {
                    break;
                }
            }
            ring.give_back(self.rx_batch.chains.get(next..).unwrap_or_default());
            cx.transmitted(sent, bytes);
            for reason in self.lost.drain(..) {
                cx.drop_one(reason);
            }
            broken.map_or(Ok(owing), Err)
        })
    }

    /// Writes all of `frames`, whatever they owe.
    fn put_all(&mut self, cx: &mut Context, frames: &mut Drain<'_>, last: bool) -> Result<(), RingError> {
        let result = loop {
            match self.put_run(cx, frames, last) {
                Ok(Some(owing)) => match self.put_settled(cx, owing, last) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                Ok(None) => return Ok(()),
                Err(error) => break Err(error),
            }
        };
        frames.for_each(|frame| cx.drop(frame, DropReason::NotReady));
        result
    }

    /// A frame that owes what the guest does not take: cut or summed up here.
    #[cold]
    fn put_settled(&mut self, cx: &mut Context, frame: Frame, last: bool) -> Result<(), RingError> {
        let mut settle = segmentation::Settle::new(cx, frame, self.accepts);
        let mut out = std::mem::take(&mut self.settled);
        let mut result = Ok(());
        loop {
            let next = settle.next(cx);
            let ended = next.is_none();
            if let Some(frame) = next {
                // There is room: it is made below as soon as there is none.
                let _ = out.push(frame);
            }
            if ended || out.room() == 0 {
                let mut frames = out.drain();
                while result.is_ok()
                    && let Some(frame) = self.put_run(cx, &mut frames, last).unwrap_or_else(|error| {
                        result = Err(error);
                        None
                    })
                {
                    cx.drop(frame, DropReason::CannotSegment);
                }
                frames.for_each(|frame| cx.drop(frame, DropReason::NotReady));
            }
            if ended {
                break;
            }
        }
        self.settled = out;
        result
    }

    fn put(&mut self, cx: &mut Context, burst: &mut Burst) -> Result<(), RingError> {
        let ready = self.lane.as_ref().and_then(|lane| lane.rx.as_ref()).is_some_and(|rx| rx.enabled);
        let mut frames = burst.drain();
        if !ready {
            frames.for_each(|frame| cx.drop(frame, DropReason::NotReady));
            return Ok(());
        }
        if !self.pending.is_empty() {
            wait(&mut self.pending, &mut self.lost, frames);
            self.lost.drain(..).for_each(|reason| cx.drop_one(reason));
            return Ok(());
        }
        self.put_all(cx, &mut frames, false)
    }

    /// The last look for room, then both rings are published.
    fn end_turn(&mut self, cx: &mut Context) -> Result<(), RingError> {
        if !self.pending.is_empty() {
            let mut waiting = std::mem::take(&mut self.pending);
            self.put_all(cx, &mut waiting.drain(), true)?;
        }
        let Some(lane) = &mut self.lane else { return Ok(()) };
        if let Some(rx) = &mut lane.rx {
            rx.publish();
        }
        if let Some(tx) = &mut lane.tx
            && !self.tx_batch.chains.is_empty()
        {
            with_ring!(&mut tx.ring, ring => ring.complete_all(&self.tx_batch.chains));
            self.tx_batch.clear();
            tx.publish();
        }
        let deaths = sys::sigbus::deaths();
        if deaths != self.deaths {
            if lane.memory.is_dead() {
                return Err(RingError::Truncated);
            }
            self.deaths = deaths;
        }
        Ok(())
    }
}

/// What became of a frame at a ring.
enum Put {
    Done,
    NoRoom,
    Drop(DropReason),
}

/// Keeps frames for the last look; those for which there is no place are lost.
#[cold]
fn wait(pending: &mut Burst, lost: &mut Vec<DropReason>, frames: impl Iterator<Item = Frame>) {
    lost.extend(frames.filter_map(|frame| pending.push(frame).err()).map(|_| DropReason::RingFull));
}

/// A frame in one buffer: header, head and what is left.
#[inline(always)]
fn one_piece(map: &MapRef<'_>, piece: Lent, heads: &mut Heads, origin: Origin) -> Result<Frame, DropReason> {
    let len = piece.len().checked_sub(HEADER_BYTES).filter(|len| *len >= MIN_FRAME).ok_or(DropReason::Runt)?;
    if len > MAX_FRAME {
        return Err(DropReason::Oversize);
    }
    let (frame, head) = heads.begin(origin, len).ok_or(DropReason::NoHeads)?;
    let (low, high) = map.read_frame(piece, head.fill()).ok_or(DropReason::Stale)?;
    head.offload = Offload::from_words(low, high).checked(len).ok_or(DropReason::BadOffload)?;
    if len > HEAD_BYTES {
        let rest = piece.part(HEADER_BYTES + HEAD_BYTES, len - HEAD_BYTES).ok_or(DropReason::Runt)?;
        if !heads.add_piece(&frame, rest) {
            return Err(DropReason::NoBuffers);
        }
    }
    Ok(frame)
}

impl Port for RingPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        if let Some(lane) = &self.lane {
            self.map = Some(cx.arena.insert(Arc::clone(&lane.memory)));
            for queue in [&lane.rx, &lane.tx].into_iter().flatten() {
                // Whoever served the ring before us may have died between publishing and calling.
                if queue.call_at_attach {
                    queue.call_driver();
                }
            }
        }
        self.awake();
        Ok(())
    }

    fn detach(&mut self, cx: &mut Context) {
        if let Some(map) = self.map.take() {
            cx.arena.remove(map);
        }
    }

    #[inline]
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let result = self.take_burst(cx, burst);
        self.fail(cx, result)
    }

    #[inline]
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let result = self.put(cx, burst);
        self.fail(cx, result)
    }

    #[inline]
    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        let result = self.end_turn(cx);
        self.fail(cx, result)
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        use std::os::fd::{AsFd, AsRawFd};
        let Some(tx) = self.lane.as_mut().and_then(|lane| lane.tx.as_mut()) else { return true };
        if with_ring!(&mut tx.ring, ring => ring.want_kicks(true)) {
            return false;
        }
        match &tx.kick {
            Some(kick) => {
                wake.readable.push(kick.as_fd().as_raw_fd());
                true
            }
            None => false,
        }
    }

    fn awake(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        for queue in [&mut lane.rx, &mut lane.tx].into_iter().flatten() {
            with_ring!(&mut queue.ring, ring => ring.want_kicks(false));
        }
        if let Some(kick) = lane.tx.as_ref().and_then(|tx| tx.kick.as_ref()) {
            // What a broken kick descriptor has to say is nothing we need: the ring is looked at in any case.
            let _ = kick.drain();
        }
    }
}

impl Drop for RingPort {
    fn drop(&mut self) {
        if let (Some(lane), Some(home)) = (self.lane.take(), self.home.take()) {
            home(lane, self.failed.take());
        }
    }
}

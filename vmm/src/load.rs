//! [`Guest`]: the driver's side of a ring port that sends frames laid out beforehand and counts the frames it gets. Load for the switch.
//!
//! Invariant: it keeps every rule of virtio, and it believes no more of the device than [`crate::virtqueue::driver`] does. Nothing is
//! allocated after [`Guest::new`] and [`Guest::lay_out`]; a frame's bytes are written once, then only what the caller stamps into them.
//! Read first: [`crate::virtqueue::driver`].
//!
//! Theory of operation: one anonymous mapping holds both rings, the frames to send and the receive buffers. Frames are sent in turn, each in
//! one buffer with its virtio-net header before it; there are at least as many as the ring has entries, so none is written while the
//! device may read it. Receive buffers go back to the device in the burst in which they came, as a guest under load does it. Of a frame
//! that arrives, only the header is read, unless the caller looks at more.

use std::{io, sync::Arc};

use sys::{
    GuestMemory, Lent, MapRef, Region, Room,
    arena::{Arena, MapId},
    memory::Mapping,
};
use wire::{BURST, Offload};

use crate::{
    features::Features,
    ring_port::{HEADER_BYTES, Lane, RingPort},
    virtqueue::{
        DeviceQueue, QueueSetup,
        driver::{Buffer, DriverQueue, DriverSetup, Used, UsedError},
        packed::Position,
    },
};

const PAGE: u64 = 4096;
const LINE: u64 = 64;
/// Where a header begins in its first cache line: the frame behind it begins on the next one, as drivers with a headroom before the frame
/// (DPDK's, Linux's) have it.
const HEADER_AT: u64 = LINE - HEADER_BYTES as u64;

/// What a guest of [`Guest`] is like.
#[derive(Clone, Copy, Debug)]
pub struct GuestSpec {
    /// What driver and device agreed on.
    pub features: Features,
    /// Entries of each ring.
    pub ring: u16,
    /// Frames laid out to be sent in turn; never fewer than `ring`.
    pub frames: usize,
    /// Longest frame to send, in bytes.
    pub longest: u32,
    /// Bytes of a receive buffer, virtio-net header included.
    pub buffer: u32,
}

impl GuestSpec {
    /// What a Linux guest has with default settings, but for in-order use: split rings of 256 entries and mergeable buffers, for frames of up to
    /// 1518 bytes; four times as many frames as a ring holds, so that no cache keeps them all.
    pub fn new() -> Self {
        let features = Features::VERSION_1.with(Features::MRG_RXBUF).with(Features::IN_ORDER);
        GuestSpec { features, ring: 256, frames: 1024, longest: 1518, buffer: 2048 }
    }

    /// Bytes between two things of `len` bytes: an odd number of cache lines, so that they do not meet in the same few sets of a cache.
    fn stride(len: u64) -> u64 {
        (len.div_ceil(LINE) | 1) * LINE
    }

    fn frame_stride(&self) -> u64 {
        // A frame of a real guest is alone in some page or half of one, however short it is.
        Self::stride((LINE + u64::from(self.longest)).max(2048))
    }
}

impl Default for GuestSpec {
    fn default() -> Self {
        Self::new()
    }
}

/// What a device did that none may.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// On a ring.
    #[error(transparent)]
    Ring(#[from] UsedError),
    /// A frame over zero buffers, or shorter than its header.
    #[error("a received frame of {bytes} bytes in {buffers} buffers")]
    Header {
        /// `num_buffers` of its header.
        buffers: u16,
        /// Bytes of its first buffer.
        bytes: u32,
    },
}

/// Frames and their bytes, virtio-net headers not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// Bytes of Ethernet, without FCS.
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// The areas of one ring.
#[derive(Clone, Copy)]
struct Areas {
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// Hands out guest addresses one after another.
struct Layout(u64);

impl Layout {
    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.0;
        self.0 = (at + bytes).next_multiple_of(LINE);
        at
    }

    fn ring(&mut self, size: u16) -> Areas {
        let size = u64::from(size);
        let mut page = |bytes: u64| {
            self.0 = self.0.next_multiple_of(PAGE);
            self.take(bytes)
        };
        Areas { descriptors: page(size * 16), driver: page(size * 2 + 6), device: page(size * 8 + 6) }
    }
}

/// A frame to send.
#[derive(Clone, Copy)]
struct Slot {
    buffer: Buffer,
    /// Where its bytes are, behind the virtio-net header.
    room: Room,
}

/// See the module's documentation.
pub struct Guest {
    spec: GuestSpec,
    memory: Arc<GuestMemory>,
    arena: Arena,
    map: MapId,
    tx_areas: Areas,
    rx_areas: Areas,
    tx: DriverQueue,
    rx: DriverQueue,
    slots: Box<[Slot]>,
    /// Next frame to send.
    next: usize,
    buffers: Box<[(Buffer, Lent)]>,
    /// The receive buffer of each chain.
    holds: Box<[u16]>,
    /// Buffers of the frame that is arriving which are still to come.
    to_come: u16,
}

impl Guest {
    /// A guest with its rings empty but for all its receive buffers.
    ///
    /// # Errors
    /// There is no memory, or the spec makes no rings.
    pub fn new(spec: GuestSpec) -> io::Result<Guest> {
        let spec = GuestSpec { frames: spec.frames.max(usize::from(spec.ring)), ..spec };
        let start = 0x10_0000;
        let mut layout = Layout(start);
        let (tx_areas, rx_areas) = (layout.ring(spec.ring), layout.ring(spec.ring));
        let slot_at: Vec<u64> = (0..spec.frames).map(|_| layout.take(spec.frame_stride()) + HEADER_AT).collect();
        let stride = GuestSpec::stride(HEADER_AT + u64::from(spec.buffer));
        let buffer_at: Vec<u64> = (0..spec.ring).map(|_| layout.take(stride) + HEADER_AT).collect();
        let bytes = (layout.0 - start).next_multiple_of(PAGE);
        let mapping = Arc::new(Mapping::anonymous(bytes as usize)?);
        let region = Region::new(start, bytes, 0, mapping, 0).map_err(io::Error::other)?;
        let memory = Arc::new(GuestMemory::new(vec![region], None).map_err(io::Error::other)?);
        let mut arena = Arena::new(PAGE as usize)?;
        let map = arena.insert(Arc::clone(&memory));
        let queue = |areas: Areas| {
            DriverQueue::new(&DriverSetup {
                memory: Arc::clone(&memory),
                features: spec.features,
                size: spec.ring,
                descriptors: areas.descriptors,
                driver: areas.driver,
                device: areas.device,
                tables: None,
            })
        };
        let (tx, rx) = (queue(tx_areas).map_err(io::Error::other)?, queue(rx_areas).map_err(io::Error::other)?);
        let outside = || io::Error::other("the layout of a guest's memory goes past its end");
        let view = arena.map(map).ok_or_else(outside)?;
        let slot = |guest: u64| {
            let room = view.room(guest, HEADER_BYTES as u32 + spec.longest)?.after(HEADER_BYTES);
            Some(Slot { buffer: Buffer { guest, len: HEADER_BYTES as u32 }, room })
        };
        let slots: Option<Box<[Slot]>> = slot_at.into_iter().map(slot).collect();
        let buffer = |guest: u64| Some((Buffer { guest, len: spec.buffer }, view.lend(guest, spec.buffer)?));
        let buffers: Option<Box<[(Buffer, Lent)]>> = buffer_at.into_iter().map(buffer).collect();
        let (slots, buffers) = (slots.ok_or_else(outside)?, buffers.ok_or_else(outside)?);
        let holds = vec![0; usize::from(spec.ring)].into();
        let mut guest =
            Guest { spec, memory, arena, map, tx_areas, rx_areas, tx, rx, slots, next: 0, buffers, holds, to_come: 0 };
        guest.post(0..spec.ring);
        // Whoever drives rings by looking at them all the time needs no calls, and gives no kicks.
        let _ = (guest.rx.want_interrupts(false), guest.tx.want_interrupts(false));
        let _ = guest.rx.publish();
        Ok(guest)
    }

    /// What it is like.
    pub fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// The port of the switch for it, which must be polled.
    ///
    /// # Errors
    /// The rings are not allowed.
    pub fn port(&self) -> io::Result<RingPort> {
        let queue = |areas: Areas| {
            let packed = self.spec.features.has(Features::RING_PACKED);
            DeviceQueue::new(QueueSetup {
                memory: Arc::clone(&self.memory),
                features: self.spec.features,
                size: self.spec.ring,
                descriptors: areas.descriptors,
                driver: areas.driver,
                device: areas.device,
                base: if packed { u32::from(Position::START.bits()) * 0x1_0001 } else { 0 },
                journal: None,
                kick: None,
                call: None,
                enabled: true,
            })
            .map_err(io::Error::other)
        };
        let (rx, tx) = (Some(queue(self.rx_areas)?), Some(queue(self.tx_areas)?));
        let lane = Lane { index: 0, memory: Arc::clone(&self.memory), features: self.spec.features, rx, tx };
        // Where the lane goes is of no interest: the memory stays here.
        Ok(RingPort::new(lane, Box::new(|_, _| {})))
    }

    /// Lays out the frames to send in turn, each with what it owes, over and over until every place has one. Frames longer than the spec allows
    /// are cut. While nothing is on its way only.
    pub fn lay_out(&mut self, frames: &[(Vec<u8>, Offload)]) {
        let Some(map) = self.arena.map(self.map) else { return };
        for (slot, (bytes, offload)) in self.slots.iter_mut().zip(frames.iter().cycle()) {
            let len = map.write(slot.room, bytes);
            slot.buffer.len = (HEADER_BYTES + len) as u32;
            if let Some(header) = map.room(slot.buffer.guest, HEADER_BYTES as u32) {
                let (low, high) = offload.words(0);
                map.write_header(header, low, high);
            }
        }
        self.next = 0;
    }

    /// Sends up to `max` of the frames laid out, as far as there is room for them. Returns how many.
    ///
    /// # Errors
    /// The device broke a rule of the transmit ring.
    pub fn send(&mut self, max: usize) -> Result<usize, Fault> {
        self.send_with(max, |_, _| {})
    }

    /// The same, and `stamp` writes into each frame's bytes before the device sees it.
    ///
    /// # Errors
    /// As for [`Guest::send`].
    #[inline]
    pub fn send_with(&mut self, max: usize, mut stamp: impl FnMut(&MapRef<'_>, Room)) -> Result<usize, Fault> {
        self.tx.reclaim()?;
        let Guest { arena, map, tx, slots, next, .. } = self;
        let Some(map) = arena.map(*map) else { return Ok(0) };
        let mut sent = 0;
        let due = std::iter::from_fn(|| {
            let slot = slots.get(*next)?;
            stamp(&map, slot.room);
            *next = if *next + 1 == slots.len() { 0 } else { *next + 1 };
            Some(slot.buffer)
        });
        tx.add_each(due.take(max), false, |_| sent += 1);
        let _ = tx.publish();
        Ok(sent)
    }

    /// Takes up to a burst of received buffers, gives them back, and counts the frames that are complete with them.
    ///
    /// # Errors
    /// The device broke a rule of the receive ring.
    pub fn receive(&mut self) -> Result<Count, Fault> {
        self.receive_with(|_, _| {})
    }

    /// The same, and `look` sees the bytes of each frame as far as they lie in its first buffer.
    ///
    /// # Errors
    /// As for [`Guest::receive`].
    #[inline]
    pub fn receive_with(&mut self, mut look: impl FnMut(&MapRef<'_>, Lent)) -> Result<Count, Fault> {
        let mut burst = [Used::default(); BURST];
        let n = self.rx.take_many(&mut burst)?;
        let used = burst.get_mut(..n).unwrap_or_default();
        if used.is_empty() {
            return Ok(Count::default());
        }
        for chain in &mut *used {
            // From here on it is the buffer that counts, not the chain that brought it.
            chain.id = self.holds.get(usize::from(chain.id)).copied().unwrap_or(0);
            if let Some((_, lent)) = self.buffers.get(usize::from(chain.id)) {
                lent.prefetch();
            }
        }
        let count = self.count(used, &mut look)?;
        self.post(used.iter().map(|chain| chain.id));
        let _ = self.rx.publish();
        Ok(count)
    }

    /// Counts the frames of used buffers.
    #[inline]
    fn count(&mut self, used: &[Used], look: &mut impl FnMut(&MapRef<'_>, Lent)) -> Result<Count, Fault> {
        let mut count = Count::default();
        let Some(map) = self.arena.map(self.map) else { return Ok(count) };
        for Used { id: number, written } in used {
            count.bytes += u64::from(*written);
            if self.to_come == 0 {
                let Some((_, lent)) = self.buffers.get(usize::from(*number)) else { continue };
                let mut word = [0; 4];
                if let Some(last) = lent.part(HEADER_BYTES - 4, 4) {
                    map.read(last, &mut word);
                }
                let buffers = u16::from_le_bytes([word[2], word[3]]);
                let bytes = written.checked_sub(HEADER_BYTES as u32);
                let (Some(bytes), 1..) = (bytes, buffers) else {
                    return Err(Fault::Header { buffers, bytes: *written });
                };
                count.bytes -= HEADER_BYTES as u64;
                self.to_come = buffers;
                if let Some(frame) = lent.part(HEADER_BYTES, bytes as usize) {
                    look(&map, frame);
                }
            }
            self.to_come -= 1;
            count.frames += u64::from(self.to_come == 0);
        }
        Ok(count)
    }

    /// Gives receive buffers to the device. There are as many as entries, so there is room for those that are not in the ring.
    #[inline]
    fn post(&mut self, numbers: impl Iterator<Item = u16> + Clone) {
        let Guest { rx, buffers, holds, .. } = self;
        let mut posted = numbers.clone();
        let buffers = numbers.filter_map(|number| buffers.get(usize::from(number))).map(|(buffer, _)| *buffer);
        rx.add_each(buffers, true, |id| {
            if let (Some(holds), Some(number)) = (holds.get_mut(usize::from(id)), posted.next()) {
                *holds = number;
            }
        });
    }

    /// Frames that were sent and that the switch has not taken yet.
    ///
    /// # Errors
    /// The device broke a rule of the transmit ring.
    pub fn unsent(&mut self) -> Result<u16, Fault> {
        self.tx.reclaim()?;
        Ok(self.tx.outstanding())
    }
}

#[cfg(test)]
mod tests;

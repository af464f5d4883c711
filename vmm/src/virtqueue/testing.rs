//! [`Rig`]: guest memory with a lane's two virtqueues in it and their driver halves, for tests and for generating load.
//!
//! Invariant: the driver keeps every rule of virtio, whatever the device does; rules are broken only by going around it through
//! [`Rig::write`] and the memory of its queues. Read first: [`super::driver`].
//!
//! Theory of operation: every chain has a slot of guest memory of its own, spread over all regions. A chain's buffers are cut out of its slot
//! one after another with gaps between, so that a device that writes past a buffer's end is seen.

use std::{
    io,
    sync::{Arc, Mutex},
};

use sys::{
    GuestMemory, MapRef, Region,
    arena::{Arena, MapId},
    eventfd::EventFd,
    guest::DirtyLog,
    memory::Mapping,
    split::PlaceError,
};
use wire::{Burst, Context, Instant, NicId, Offload, Port};

use super::{
    DeviceQueue, QueueSetup,
    driver::{AddError, Buffer, DriverQueue, DriverSetup, Tables, UsedError},
    packed::Position,
};
use crate::{
    features::Features,
    ring_port::{HEADER_BYTES, Lane, RingPort},
};

/// Bytes between two buffers of a chain; odd, so that hardly any is aligned.
const GAP: u64 = 13;
/// What gaps hold.
const FILLING: u8 = 0xa5;
/// Longest indirect table.
const TABLE: u16 = 128;

/// What to set up.
#[derive(Clone, Copy, Debug)]
pub struct RigSpec {
    /// What driver and device agreed on.
    pub features: Features,
    /// Entries of each ring.
    pub size: u16,
    /// Memory regions, one or more. Rings lie in the first.
    pub regions: usize,
    /// Chains of each queue that may be outstanding at a time, at most the ring's size.
    pub slots: u16,
    /// Bytes of guest memory for each chain.
    pub slot: u32,
}

impl RigSpec {
    /// Rings of 256 entries in two regions, 64 chains of up to 2 KiB outstanding.
    pub fn new(features: Features) -> Self {
        RigSpec { features: features.with(Features::VERSION_1), size: 256, regions: 2, slots: 64, slot: 4096 }
    }

    /// Bytes that each region's memory must have at least.
    pub fn region_bytes(&self) -> usize {
        let chains = 2 * usize::from(self.slots).div_ceil(self.regions);
        (2 * self.ring_bytes() as usize + chains * self.slot as usize + 4096).next_multiple_of(4096)
    }

    fn ring_bytes(&self) -> u64 {
        let size = u64::from(self.size);
        3 * 4096 + (size * 16 + 4096) + (size * 2 + 4096) + (size * 8 + 4096) + size * u64::from(TABLE) * 16
    }
}

/// Guest physical addresses of one ring's areas.
#[derive(Clone, Copy, Debug)]
pub struct Areas {
    /// Descriptor area.
    pub descriptors: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
    /// Indirect tables.
    pub tables: u64,
}

impl Areas {
    fn new(start: u64, size: u16) -> Areas {
        let size = u64::from(size);
        let driver = (start + size * 16).next_multiple_of(4096);
        let device = (driver + size * 2 + 8).next_multiple_of(4096);
        let tables = (device + size * 8 + 8).next_multiple_of(4096);
        Areas { descriptors: start, driver, device, tables }
    }
}

struct Slot {
    guest: u64,
    buffers: Vec<Buffer>,
}

/// One queue from the driver's side.
pub struct Side {
    /// The driver half.
    pub queue: DriverQueue,
    /// Where it lies.
    pub areas: Areas,
    /// Rung by the driver.
    pub kick: EventFd,
    /// Rung by the device.
    pub call: EventFd,
    slots: Vec<Slot>,
    /// Bytes of each slot.
    room: u64,
    free: Vec<u16>,
    /// The slot of each chain id.
    of: Vec<u16>,
}

impl Side {
    fn new(spec: &RigSpec, memory: &Arc<GuestMemory>, start: u64, slots: Vec<Slot>) -> io::Result<Side> {
        let areas = Areas::new(start, spec.size);
        let setup = DriverSetup {
            memory: Arc::clone(memory),
            features: spec.features,
            size: spec.size,
            descriptors: areas.descriptors,
            driver: areas.driver,
            device: areas.device,
            tables: Some(Tables { guest: areas.tables, entries: TABLE }),
        };
        Ok(Side {
            queue: DriverQueue::new(&setup).map_err(io::Error::other)?,
            areas,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            free: (0..slots.len() as u16).rev().collect(),
            slots,
            room: u64::from(spec.slot),
            of: vec![0; usize::from(spec.size)],
        })
    }

    /// Cuts buffers of these lengths out of a free slot and hands them to `add`. Nothing when there is no room.
    fn offer(
        &mut self,
        cuts: &[u32],
        add: impl FnOnce(&mut DriverQueue, &[Buffer]) -> Result<u16, AddError>,
    ) -> Option<&[Buffer]> {
        let number = *self.free.last()?;
        let slot = self.slots.get_mut(usize::from(number))?;
        slot.buffers.clear();
        if cuts.iter().map(|len| u64::from(*len) + GAP).sum::<u64>() > self.room {
            return None;
        }
        let mut guest = slot.guest;
        for len in cuts {
            slot.buffers.push(Buffer { guest, len: *len });
            guest += u64::from(*len) + GAP;
        }
        let id = add(&mut self.queue, &slot.buffers).ok()?;
        self.free.pop();
        *self.of.get_mut(usize::from(id))? = number;
        Some(&slot.buffers)
    }

    /// Takes all used chains back, whatever is in them; returns how many there were.
    pub fn reap(&mut self) -> Result<usize, UsedError> {
        let mut count = 0;
        while let Some(used) = self.queue.take_used()? {
            self.free.extend(self.of.get(usize::from(used.id)));
            count += 1;
        }
        Ok(count)
    }

    /// Publishes and kicks the device if it wants to be. Returns whether it was kicked.
    pub fn publish(&mut self) -> io::Result<bool> {
        let kick = self.queue.publish();
        if kick {
            self.kick.notify()?;
        }
        Ok(kick)
    }
}

/// A frame as the driver found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its virtio-net header.
    pub header: [u8; HEADER_BYTES],
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What the device did that no device may.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// On the ring.
    #[error(transparent)]
    Ring(#[from] UsedError),
    /// `num_buffers` of a received frame is not what was used.
    #[error("a received frame claims {0} buffers, {1} of which were used")]
    NumBuffers(u16, u16),
    /// Bytes written between the buffers.
    #[error("the device wrote past a buffer at guest address {0:#x}")]
    Overrun(u64),
}

/// Where the port's lane went and why.
pub type HomeCell = Arc<Mutex<Option<(Lane, Option<String>)>>>;

/// See the module's documentation.
pub struct Rig {
    spec: RigSpec,
    memory: Arc<GuestMemory>,
    arena: Arena,
    map: MapId,
    /// Frames to the guest.
    pub rx: Side,
    /// Frames from the guest.
    pub tx: Side,
    /// Where the port's lane is after the port's end.
    pub home: HomeCell,
    scratch: Vec<u8>,
}

impl Rig {
    /// Guest addresses of two regions lie this far apart.
    pub const REGION_STEP: u64 = 1 << 28;

    /// A rig in anonymous memory.
    pub fn new(spec: RigSpec) -> io::Result<Rig> {
        let mappings = (0..spec.regions).map(|_| Ok(Arc::new(Mapping::anonymous(spec.region_bytes())?)));
        Rig::in_memory(spec, &mappings.collect::<io::Result<Vec<_>>>()?, None)
    }

    /// A rig in zeroed memory that the caller has mapped, a mapping of [`RigSpec::region_bytes`] for each region; the device's writes are
    /// marked in `log`.
    pub fn in_memory(spec: RigSpec, mappings: &[Arc<Mapping>], log: Option<Arc<DirtyLog>>) -> io::Result<Rig> {
        let table = |log: Option<Arc<DirtyLog>>| {
            let regions = mappings.iter().enumerate().map(|(n, mapping)| {
                let user = 0x7000_0000_0000 + Self::region(n);
                Region::new(Self::region(n), mapping.len() as u64, user, Arc::clone(mapping), 0)
            });
            let regions = regions.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
            GuestMemory::new(regions, log).map(Arc::new).map_err(io::Error::other)
        };
        // A guest's own writes are logged by its hypervisor, not by us.
        let (memory, own) = (table(log)?, table(None)?);
        let mut slots = (0..2).map(|side| {
            let slot = |n: u16| {
                let at = usize::from(n) * 2 + side;
                let place = 2 * spec.ring_bytes() + (at / spec.regions) as u64 * u64::from(spec.slot);
                Slot { guest: Self::region(at % spec.regions) + place, buffers: Vec::with_capacity(16) }
            };
            (0..spec.slots.min(spec.size)).map(slot).collect::<Vec<_>>()
        });
        let start = Self::region(0);
        let rx = Side::new(&spec, &own, start, slots.next().unwrap_or_default())?;
        let tx =
            Side::new(&spec, &own, start + spec.ring_bytes().next_multiple_of(4096), slots.next().unwrap_or_default())?;
        let mut arena = Arena::new(4096)?;
        let map = arena.insert(own);
        Ok(Rig { spec, memory, arena, map, rx, tx, home: HomeCell::default(), scratch: Vec::new() })
    }

    /// Guest physical address of region `n`.
    pub fn region(n: usize) -> u64 {
        0x10_0000 + n as u64 * Self::REGION_STEP
    }

    /// What was set up.
    pub fn spec(&self) -> &RigSpec {
        &self.spec
    }

    /// The memory as the device sees it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// How a front end sets up the device half of one side, at the start of the ring.
    pub fn setup(&self, side: &Side) -> io::Result<QueueSetup> {
        let Areas { descriptors, driver, device, .. } = side.areas;
        let packed = self.spec.features.has(Features::RING_PACKED);
        let base = if packed { u32::from(Position::START.bits()) * 0x1_0001 } else { 0 };
        Ok(QueueSetup {
            memory: Arc::clone(&self.memory),
            features: self.spec.features,
            size: self.spec.size,
            descriptors,
            driver,
            device,
            base,
            journal: None,
            kick: Some(side.kick.try_clone()?),
            call: Some(side.call.try_clone()?),
            enabled: true,
        })
    }

    /// The port of these device halves, as lane 0.
    pub fn port_of(&self, rx: QueueSetup, tx: QueueSetup) -> Result<RingPort, PlaceError> {
        let lane = Lane {
            index: 0,
            memory: Arc::clone(&self.memory),
            features: self.spec.features,
            rx: Some(DeviceQueue::new(rx)?),
            tx: Some(DeviceQueue::new(tx)?),
        };
        let home = Arc::clone(&self.home);
        Ok(RingPort::new(
            lane,
            Box::new(move |lane, reason| {
                if let Ok(mut home) = home.lock() {
                    *home = Some((lane, reason));
                }
            }),
        ))
    }

    /// The port of both device halves, at the start of their rings.
    pub fn port(&self) -> io::Result<RingPort> {
        self.port_of(self.setup(&self.rx)?, self.setup(&self.tx)?).map_err(io::Error::other)
    }

    /// Reads guest memory; nothing when it is not inside one region.
    pub fn read(&self, guest: u64, len: u32) -> Option<Vec<u8>> {
        let map = self.arena.map(self.map)?;
        let mut bytes = vec![0; len as usize];
        (map.read(map.lend(guest, len)?, &mut bytes) == bytes.len()).then_some(bytes)
    }

    /// Writes guest memory; false when it is not inside one region.
    pub fn write(&self, guest: u64, bytes: &[u8]) -> bool {
        let Some(map) = self.arena.map(self.map) else { return false };
        map.room(guest, bytes.len() as u32).is_some_and(|room| map.write(room, bytes) == bytes.len())
    }

    /// Adds a frame to the transmit queue, its header and bytes laid into buffers of the lengths `cuts` in turn (the last one takes what is
    /// left; without cuts there is one). False when there is no room. The device sees it after [`Side::publish`].
    pub fn send(&mut self, offload: Offload, bytes: &[u8], cuts: &[u32], indirect: bool) -> bool {
        self.scratch.clear();
        self.scratch.extend_from_slice(&offload.to_bytes(0));
        self.scratch.extend_from_slice(bytes);
        let mut lens = [0; TABLE as usize];
        let (mut count, mut left) = (0, self.scratch.len() as u32);
        for (place, cut) in lens.iter_mut().zip(cuts.iter().chain(&[u32::MAX])) {
            *place = left.min(*cut);
            left -= *place;
            count += 1;
            if left == 0 {
                break;
            }
        }
        let Some(map) = self.arena.map(self.map) else { return false };
        let buffers = self.tx.offer(lens.get(..count).unwrap_or_default(), |queue, buffers| {
            if indirect { queue.add_indirect(&map, buffers, &[]) } else { queue.add(buffers, &[]) }
        });
        let mut rest = self.scratch.as_slice();
        buffers.is_some_and(|buffers| {
            buffers.iter().all(|buffer| {
                let (part, after) = rest.split_at(rest.len().min(buffer.len as usize));
                rest = after;
                map.room(buffer.guest, buffer.len).is_some_and(|room| map.write(room, part) == part.len())
            })
        })
    }

    /// Takes all used chains of the transmit queue back; returns how many there were.
    pub fn reap(&mut self) -> Result<usize, UsedError> {
        self.tx.reap()
    }

    /// Adds a chain of writable buffers of these lengths to the receive queue. False when there is no room.
    pub fn offer(&mut self, cuts: &[u32], indirect: bool) -> bool {
        let Some(map) = self.arena.map(self.map) else { return false };
        let total = cuts.iter().map(|len| u64::from(*len) + GAP).sum::<u64>();
        let bytes = [FILLING; 256];
        let buffers = self.rx.offer(cuts, |queue, buffers| {
            if indirect { queue.add_indirect(&map, &[], buffers) } else { queue.add(&[], buffers) }
        });
        let Some(first) = buffers.and_then(|buffers| buffers.first()) else { return false };
        (0..total).step_by(bytes.len()).all(|at| {
            let n = (total - at).min(bytes.len() as u64);
            let part = bytes.get(..n as usize).unwrap_or_default();
            map.room(first.guest + at, n as u32).is_some_and(|room| map.write(room, part) == part.len())
        })
    }

    /// Takes all received frames.
    pub fn receive(&mut self) -> Result<Vec<Received>, DeviceFault> {
        let mut frames = Vec::new();
        let mut wanted = 0u16;
        while let Some(used) = self.rx.queue.take_used()? {
            let number = self.rx.of.get(usize::from(used.id)).copied().unwrap_or(0);
            self.rx.free.push(number);
            let Some(map) = self.arena.map(self.map) else { break };
            let mut bytes = Vec::new();
            if let Some(slot) = self.rx.slots.get(usize::from(number)) {
                read_chain(&map, &slot.buffers, used.written as usize, &mut bytes)?;
            }
            if wanted == 0 {
                let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(DeviceFault::NumBuffers(0, 1))?;
                wanted = u16::from_le_bytes([header[10], header[11]]);
                frames.push(Received { header: *header, bytes: rest.to_vec() });
            } else if let Some(frame) = frames.last_mut() {
                frame.bytes.extend_from_slice(&bytes);
            }
            wanted = wanted.checked_sub(1).ok_or(DeviceFault::NumBuffers(0, 1))?;
        }
        if wanted > 0 { Err(DeviceFault::NumBuffers(wanted, 0)) } else { Ok(frames) }
    }
}

/// Appends the first `written` bytes of a chain to `bytes`, and looks at the gaps behind its buffers.
fn read_chain(map: &MapRef<'_>, buffers: &[Buffer], written: usize, bytes: &mut Vec<u8>) -> Result<(), DeviceFault> {
    let mut left = written;
    for buffer in buffers {
        let overrun = DeviceFault::Overrun(buffer.guest);
        let mut gap = [0; GAP as usize];
        let Some(lent) = map.lend(buffer.guest + u64::from(buffer.len), GAP as u32) else { return Err(overrun) };
        if map.read(lent, &mut gap) != gap.len() || gap != [FILLING; GAP as usize] {
            return Err(overrun);
        }
        let n = left.min(buffer.len as usize);
        left -= n;
        let at = bytes.len();
        bytes.resize(at + n, 0);
        let Some(lent) = map.lend(buffer.guest, n as u32) else { return Err(overrun) };
        map.read(lent, bytes.get_mut(at..).unwrap_or_default());
    }
    Ok(())
}

/// One turn by hand: what `from` receives is given to `to`. Errors name the port: 0 is `from`, 1 is `to`. Returns the frames received.
pub fn turn(
    cx: &mut Context,
    burst: &mut Burst,
    from: &mut dyn Port,
    to: &mut dyn Port,
) -> Result<usize, (usize, io::Error)> {
    let (ingress, egress) = (NicId(0), NicId(1));
    cx.begin_turn(Instant::START);
    cx.nic = ingress;
    from.receive(cx, burst).map_err(|error| (0, error))?;
    let received = burst.len();
    cx.nic = egress;
    let passed = to.transmit(cx, burst).and_then(|()| to.release(cx)).map_err(|error| (1, error));
    cx.nic = ingress;
    from.release(cx).map_err(|error| (0, error))?;
    passed.map(|()| received)
}

//! Two ports on rings whose every byte a hostile driver chooses, while turns go on between them.
//!
//! Invariant: nothing panics, the ledger balances after every turn, and a port that ends gives its lane back.
//! Read first: `vmm::ring_port`, `vmm::virtqueue`.
//!
//! An input is a list of steps: chains as a driver that keeps the rules offers them, so that frames do flow; between them descriptors and
//! indices that make sense only sometimes, and raw bytes over all rings; and turns in either direction.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use sys::{
    GuestMemory, Region,
    arena::{Arena, MapId},
    memory::Mapping,
    packed::{PACKED_AVAIL, PACKED_USED},
    split::{DESC_NEXT, DESC_WRITE},
};
use vmm::{
    Features, Lane, RingPort,
    virtqueue::{DeviceQueue, QueueSetup},
};
use wire::{Burst, Context, DropReason, Gso, Instant, NicId, Offload, Port, Sizes, Wake};

/// Bytes of guest memory, in two regions with a hole of as many between them.
const REGION: u64 = 1 << 16;
const SECOND: u64 = 2 * REGION;
/// Each ring's areas begin at multiples of this: descriptors, driver and device area.
const RING: u64 = 0x1000;
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x800;
/// Where indirect tables of plausible descriptors lie.
const TABLES: u64 = 0x4000;
/// Entries of them.
const TABLE_ENTRIES: u8 = 64;

/// Where buffers of well-formed chains lie.
const BUFFERS: u64 = 0x8000;
/// Ethernet, IPv4 and TCP headers, for super-frames that can be cut.
const HEADERS: [u8; 54] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0,
    80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
];

/// Where a driver that keeps the rules would go on.
#[derive(Clone, Copy, Default)]
struct Driver {
    /// Split: next descriptor. Packed: next entry.
    entry: u16,
    /// Split: chains offered so far. Packed: laps.
    count: u16,
}

struct Guest {
    drivers: [Driver; 4],
    arena: Arena,
    map: MapId,
    packed: bool,
    size: u16,
}

impl Guest {
    fn write(&self, guest: u64, bytes: &[u8]) {
        let Some(map) = self.arena.map(self.map) else { return };
        if let Some(room) = map.room(guest, bytes.len() as u32) {
            map.write(room, bytes);
        }
    }

    /// A descriptor of random place and length, near the middle of the road.
    fn descriptor(&self, u: &mut Unstructured<'_>, at: u64) -> Result<()> {
        let guest = match u.int_in_range(0..=7)? {
            0 => u.arbitrary::<u64>()?,
            1 => SECOND + u64::from(u.arbitrary::<u16>()?),
            2 => TABLES + 16 * u64::from(u.arbitrary::<u8>()?),
            _ => u64::from(u.arbitrary::<u16>()?),
        };
        let len = match u.int_in_range(0..=7)? {
            0 => u.arbitrary::<u32>()?,
            1 => 16 * u32::from(u.arbitrary::<u8>()?),
            2 => u32::from(u.arbitrary::<u16>()?),
            _ => u32::from(u.arbitrary::<u8>()?) * 8,
        };
        let (mut flags, mut next) =
            (u16::from(u.arbitrary::<u8>()? & 7), u16::from(u.arbitrary::<u8>()?) % (self.size + 1));
        if self.packed {
            // A packed descriptor has its buffer id where a split one has its flags, and the flags last.
            flags |= [0x80, 0x8000, 0x8080, 0][usize::from(u.arbitrary::<u8>()? & 3)];
            std::mem::swap(&mut flags, &mut next);
        }
        let bytes = [&guest.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.write(at, &bytes);
        Ok(())
    }

    /// A chain of a driver that keeps the rules: to be written in the even rings, to be read in the odd ones.
    fn offer(&mut self, u: &mut Unstructured<'_>, number: usize) -> Result<()> {
        let (ring, size) = (number as u64 * RING, self.size);
        let mut driver = self.drivers.get(number).copied().unwrap_or_default();
        let head = driver.entry;
        let pieces = u.int_in_range(1..=size.min(4))?;
        let direction = if number & 1 == 0 { DESC_WRITE } else { 0 };
        for piece in 0..pieces {
            let guest = BUFFERS + u64::from(u.arbitrary::<u8>()?) * 64;
            let len = if u.arbitrary()? { 2048 } else { u32::from(u.arbitrary::<u16>()?) % 3000 };
            if direction == 0 && piece == 0 {
                self.frame(u, guest)?;
            }
            let next = (driver.entry + 1) % size;
            let more = if piece + 1 < pieces { DESC_NEXT } else { 0 };
            let mut words = [direction | more, next];
            if self.packed {
                let lap = if driver.count & 1 == 0 { PACKED_AVAIL } else { PACKED_USED };
                words = [head, direction | more | lap];
            }
            let words = words.map(u16::to_le_bytes).concat();
            let bytes = [&guest.to_le_bytes()[..], &len.to_le_bytes(), &words].concat();
            self.write(ring + 16 * u64::from(driver.entry), &bytes);
            driver.entry = next;
            driver.count += u16::from(self.packed && next == 0);
        }
        if !self.packed {
            self.write(ring + DRIVER + 4 + 2 * u64::from(driver.count % size), &head.to_le_bytes());
            driver.count = driver.count.wrapping_add(1);
            self.write(ring + DRIVER + 2, &driver.count.to_le_bytes());
        }
        if let Some(place) = self.drivers.get_mut(number) {
            *place = driver;
        }
        Ok(())
    }

    /// A header and the beginning of a frame, in a buffer to be read.
    fn frame(&self, u: &mut Unstructured<'_>, guest: u64) -> Result<()> {
        let header = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => Offload::new(Gso::Tcp4, 54, u.arbitrary::<u16>()? % 2000, 34, 16).to_bytes(0),
            2 => Offload::new(Gso::None, 0, 0, 34, 16).to_bytes(0),
            _ => Offload::NONE.to_bytes(0),
        };
        self.write(guest, &header);
        self.write(guest + 12, &HEADERS);
        Ok(())
    }
}

fn region(guest: u64) -> Option<Region> {
    let mapping = Mapping::anonymous(REGION as usize).ok()?;
    Region::new(guest, REGION, guest, Arc::new(mapping), 0).ok()
}

fn queue(
    memory: &Arc<GuestMemory>,
    features: Features,
    size: u16,
    ring: u64,
    base: u32,
    enabled: bool,
) -> Option<DeviceQueue> {
    let at = ring * RING;
    DeviceQueue::new(QueueSetup {
        memory: Arc::clone(memory),
        features,
        size,
        descriptors: at,
        driver: at + DRIVER,
        device: at + DEVICE,
        base,
        journal: None,
        kick: None,
        call: None,
        enabled,
    })
    .ok()
}

/// One turn as a worker does it. False when a port failed.
fn turn(cx: &mut Context, burst: &mut Burst, ports: &mut [RingPort; 2], from: usize) -> bool {
    let (nics, to) = ([NicId(0), NicId(1)], 1 - from);
    cx.begin_turn(Instant::START);
    cx.nic = nics[from];
    let mut went = ports[from].receive(cx, burst).is_ok();
    cx.nic = nics[to];
    went &= ports[to].transmit(cx, burst).is_ok();
    went &= ports[to].release(cx).is_ok();
    cx.nic = nics[from];
    went &= ports[from].release(cx).is_ok();
    burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
    went
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let packed = u.arbitrary::<bool>()?;
    let optional = [
        Features::EVENT_IDX,
        Features::IN_ORDER,
        Features::MRG_RXBUF,
        Features::INDIRECT_DESC,
        Features::GUEST_CSUM,
        Features::GUEST_TSO4,
        Features::GUEST_TSO6,
    ];
    let mut features = if packed { Features::VERSION_1.with(Features::RING_PACKED) } else { Features::VERSION_1 };
    let chosen = u.arbitrary::<u8>()?;
    for (bit, feature) in optional.into_iter().enumerate() {
        if chosen >> bit & 1 != 0 {
            features = features.with(feature);
        }
    }
    let size = if packed { u.int_in_range(1..=48)? } else { 1 << u.int_in_range(0..=5)? };
    // Most rings start at their beginning, where a random driver meets them.
    let base = if u.ratio(1, 8)? {
        u.arbitrary()?
    } else if packed {
        0x8000_8000
    } else {
        0
    };
    let disabled = u.arbitrary::<u8>()?;

    let (Some(low), Some(high)) = (region(0), region(SECOND)) else { return Ok(()) };
    let Ok(memory) = GuestMemory::new(vec![low, high], None).map(Arc::new) else { return Ok(()) };
    let Ok(mut arena) = Arena::new(4096) else { return Ok(()) };
    let map = arena.insert(Arc::clone(&memory));
    let drivers = [Driver::default(); 4];
    let mut guest = Guest { drivers, arena, map, packed, size };
    let home = Arc::new(AtomicUsize::new(0));
    let lane = |index: u16| {
        let at = u64::from(index) * 2;
        let enabled = |ring: u64| disabled != 1 << ring;
        let rx = queue(&memory, features, size, at, base, enabled(at));
        let tx = queue(&memory, features, size, at + 1, base, enabled(at + 1));
        let home = Arc::clone(&home);
        let back = move |_, _| {
            home.fetch_add(1, Ordering::Relaxed);
        };
        RingPort::new(Lane { index, memory: Arc::clone(&memory), features, rx, tx }, Box::new(back))
    };
    let mut ports = [lane(0), lane(1)];
    let Ok(mut cx) = Context::new(Sizes { heads: 512, pieces: 1024, pool: 4096 }) else { return Ok(()) };
    for (nic, port) in (0..).map(NicId).zip(&mut ports) {
        cx.add_nic(nic);
        let _ = port.attach(&mut cx);
    }
    let mut burst = Burst::default();
    let mut going = true;
    while going && !u.is_empty() {
        let number = usize::from(u.arbitrary::<u8>()? & 3);
        let ring = number as u64 * RING;
        match u.int_in_range(0..=19)? {
            0 => {
                let at = u64::from(u.arbitrary::<u16>()?) % (4 * RING);
                let n = usize::from(u.arbitrary::<u8>()?).min(u.len());
                guest.write(at, u.bytes(n)?);
            }
            1..=3 => {
                let entry = u64::from(u.arbitrary::<u8>()? % 48);
                guest.descriptor(u, ring + 16 * entry)?;
            }
            4 => {
                let entry = u64::from(u.arbitrary::<u8>()? % TABLE_ENTRIES);
                guest.descriptor(u, TABLES + 16 * entry)?;
            }
            5 => {
                // The available ring of a split queue: a few heads and the index that shows them.
                let heads = u.arbitrary::<[u8; 4]>()?;
                for (n, head) in heads.into_iter().enumerate() {
                    guest.write(ring + DRIVER + 4 + 2 * n as u64, &u16::from(head % 32).to_le_bytes());
                }
                guest.write(ring + DRIVER + 2, &u16::from(u.arbitrary::<u8>()? % 40).to_le_bytes());
            }
            6 => guest.write(ring + DRIVER, &u.arbitrary::<[u8; 4]>()?),
            7 => {
                let port = &mut ports[usize::from(u.arbitrary::<bool>()?)];
                port.wake(&mut Wake::default());
                port.awake();
            }
            8..=15 => guest.offer(u, number)?,
            _ => going = turn(&mut cx, &mut burst, &mut ports, usize::from(u.arbitrary::<bool>()?)),
        }
    }
    for from in [0, 1] {
        if going {
            going = turn(&mut cx, &mut burst, &mut ports, from);
        }
    }
    ports.iter_mut().for_each(|port| port.detach(&mut cx));
    drop(ports);
    assert_eq!(home.load(Ordering::Relaxed), 2, "both lanes came home");
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that ends early is as good as one that does not.
    let _ = run(&mut Unstructured::new(data));
});

//! [`Nic`]: a network card for a guest that is a thread: the driver halves of two rings, and a front end that gives them away.
//!
//! Invariant: every buffer belongs either to us or to the device, by what the driver halves remember outside of shared memory; a frame is
//! whole, of a possible length and its header checked before anybody sees it; nothing is allocated for a frame.
//! Read first: [`super::link`]; virtio 1.2 sections 5.1.6.3 (receive buffers) and 5.1.6.4 (incoming packets).
//!
//! Theory of operation: the guest's whole memory is one memfd with two rings, 256 receive buffers of 2 KiB and 256 transmit buffers of 4 KiB.
//! Receive buffers are given to the device when the card is made and again as soon as they were copied out of. A frame to send is copied
//! into as many transmit buffers as it needs, which make one chain. The card exists before its device does: [`Nic::maintain`] finds the
//! back end, chooses features once, and after a back end that has gone does it again with the same.
//!
//! The guest's loop: `maintain`, `receive`, `send`, `flush`; with nothing to do, [`Nic::want_interrupts`], and if that is false a sleep on
//! [`Nic::wait_fds`] until the deadline that `maintain` gave.

mod receiver;
mod sender;

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use sys::{
    GuestMemory, MapRef,
    arena::{Arena, MapId},
    eventfd::EventFd,
    memory::memfd,
    split::PlaceError,
};
use wire::{Accepts, Instant, Mac, Offload};

use super::{
    link::{FrontEnd, State},
    offer::Offer,
    peer::Peer,
    setup::{DeviceMemory, DeviceSetup, MemoryRegion, RingSetup},
};
use crate::{
    features::Features,
    vhost_user::message::RegionSpec,
    virtqueue::driver::{DriverQueue, DriverSetup, UsedError},
};
use receiver::Receiver;
use sender::Sender;

/// Entries of each ring, and buffers of each direction.
const ENTRIES: u16 = 256;
/// Bytes of a receive buffer.
const RX_BYTES: u32 = 2048;
/// Bytes of a transmit buffer.
const TX_BYTES: u32 = 4096;
/// Bytes set aside for each of a ring's three areas.
const AREA: u64 = 4096;
/// Guest physical address of the memory.
const START: u64 = 1 << 20;
/// The front end's address of it: a number, nothing is there.
const USER: u64 = 1 << 40;
const RX_START: u64 = START + 6 * AREA;
const TX_START: u64 = RX_START + ENTRIES as u64 * RX_BYTES as u64;
const MEMORY: u64 = TX_START + ENTRIES as u64 * TX_BYTES as u64 - START;

/// A device must offer this: the header has 12 bytes from virtio 1 on.
const REQUIRED: Features = Features::VERSION_1;
/// Agreed on where it is offered, the latter only with the former: (feature, what it needs).
const WANTED: [(Features, Features); 9] = [
    (Features::MRG_RXBUF, REQUIRED),
    (Features::MAC, REQUIRED),
    (Features::MTU, REQUIRED),
    (Features::CSUM, REQUIRED),
    (Features::GUEST_CSUM, REQUIRED),
    (Features::HOST_TSO4, Features::CSUM),
    (Features::HOST_TSO6, Features::CSUM),
    // A super-frame fits several buffers, not one.
    (Features::GUEST_TSO4, Features::GUEST_CSUM.with(Features::MRG_RXBUF)),
    (Features::GUEST_TSO6, Features::GUEST_CSUM.with(Features::MRG_RXBUF)),
];
/// The MTU of a device that names none.
const DEFAULT_MTU: u16 = 1500;

/// Why a card is of no use any more. It is dropped, and a new one made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// The device broke a rule of a ring.
    #[error("the device broke the {ring}: {error}")]
    Ring {
        /// Which ring, in the words of the virtio specification.
        ring: &'static str,
        /// The rule.
        error: UsedError,
    },
    /// A frame that cannot be one.
    #[error("the device gave a frame of {bytes} bytes in {buffers} buffers, which is {what}")]
    Frame {
        /// Bytes with the header, as far as they were read.
        bytes: usize,
        /// Buffers of it, as its header says.
        buffers: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The device cannot go on with the rings; the text says why.
    #[error("the card cannot be given to its back end: {0}")]
    Position(String),
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames received.
    pub received: u64,
    /// Frames given to the device.
    pub sent: u64,
    /// Frames received with a length or header that no frame has.
    pub bad_received: u64,
    /// Frames to send that were too short, too long, or owed what the device does not take.
    pub bad_sent: u64,
}

/// Guest memory as both directions see it.
struct Memory {
    arena: Arena,
    map: MapId,
}

impl Memory {
    fn map(&self) -> Option<MapRef<'_>> {
        self.arena.map(self.map)
    }
}

/// A virtio network card, driven. See the module's documentation.
pub struct Nic {
    front: FrontEnd,
    /// Given to the front end when there is an offer.
    setup: Option<DeviceSetup>,
    features: Features,
    own_mac: Mac,
    memory: Memory,
    rx: Receiver,
    tx: Sender,
    counters: NicCounters,
    broken: Option<NicError>,
}

impl Nic {
    /// A card that looks for its back end at `peer`. Where the device has no address, it is `mac`.
    ///
    /// # Errors
    /// What the system reported: no memory, no descriptors.
    pub fn new(peer: Peer, mac: Mac) -> io::Result<Nic> {
        let file = memfd("trunkline-nic", MEMORY)?;
        let spec = RegionSpec { guest: START, size: MEMORY, user: USER, offset: 0 };
        let shared = DeviceMemory::new(vec![MemoryRegion { spec, file }]).map_err(io::Error::other)?;
        let map = shared.map();
        let mut arena = Arena::new(AREA as usize)?;
        let memory = Memory { map: arena.insert(Arc::clone(map)), arena };
        let (rx_bells, tx_bells) = (Bells::new()?, Bells::new()?);
        let rings = vec![rx_bells.setup(0)?, tx_bells.setup(1)?];
        let mut rx = Receiver::new(queue(map, 0).map_err(io::Error::other)?, rx_bells);
        let tx = Sender::new(queue(map, 1).map_err(io::Error::other)?, tx_bells);
        rx.offer_all();
        Ok(Nic {
            front: FrontEnd::new(peer, REQUIRED),
            setup: Some(DeviceSetup { features: Features::default(), memory: shared, rings }),
            features: Features::default(),
            own_mac: mac,
            memory,
            rx,
            tx,
            counters: NicCounters::default(),
            broken: None,
        })
    }

    /// The card's address: the device's, if it has one.
    pub fn mac(&self) -> Mac {
        self.front.offer().and_then(|offer| offer.mac).unwrap_or(self.own_mac)
    }

    /// Largest payload of an Ethernet frame in bytes.
    pub fn mtu(&self) -> u16 {
        self.front.offer().and_then(|offer| offer.mtu).unwrap_or(DEFAULT_MTU)
    }

    /// Whether a back end has the rings.
    pub fn is_up(&self) -> bool {
        self.front.state() == State::Running
    }

    /// The front end: its state, and why there is no back end.
    pub fn front_end(&self) -> &FrontEnd {
        &self.front
    }

    /// What driver and device agreed on; nothing before the first back end.
    pub fn features(&self) -> Features {
        self.features
    }

    /// What frames to send may owe. Nothing before the first back end.
    pub fn accepts(&self) -> Accepts {
        let pairs = [
            (Features::CSUM, Accepts::CSUM),
            (Features::HOST_TSO4, Accepts::TSO4),
            (Features::HOST_TSO6, Accepts::TSO6),
        ];
        let agreed = pairs.into_iter().filter(|(bit, _)| self.features.has(*bit));
        agreed.fold(Accepts::NONE, |set, (_, accepts)| set.with(accepts))
    }

    /// What became of frames so far.
    pub fn counters(&self) -> NicCounters {
        self.counters
    }

    /// Looks after the back end: finds one, gives it the device, notices when it has gone. Returns when to call again at the latest. One
    /// system call when all is quiet: to be called after each sleep, and every few milliseconds while there is too much to do to sleep.
    pub fn maintain(&mut self, now: Instant) -> Option<Instant> {
        let deadline = self.front.poll(now);
        match self.front.state() {
            State::Ready => {}
            State::NeedsReset => {
                let why = self.front.failure().map(ToString::to_string).unwrap_or_default();
                self.broken.get_or_insert(NicError::Position(why));
                return deadline;
            }
            _ => return deadline,
        }
        let Some(features) = self.front.offer().map(choose) else { return deadline };
        let Some(setup) = self.setup.take() else { return deadline };
        self.features = features;
        match self.front.start(DeviceSetup { features, ..setup }) {
            Ok(()) => self.front.poll(now),
            Err(error) => {
                self.broken.get_or_insert(NicError::Position(error.to_string()));
                deadline
            }
        }
    }

    /// Takes up to `max` frames, whole, one after the other, and gives their buffers back to the device. Returns how many there were.
    ///
    /// # Errors
    /// The device broke a rule; the card is of no use any more, and says so from now on.
    pub fn receive(&mut self, max: usize, each: &mut dyn FnMut(Offload, &[u8])) -> Result<usize, NicError> {
        self.check()?;
        let accepts = self.features.accepts();
        let mergeable = self.features.has(Features::MRG_RXBUF);
        let Some(map) = self.memory.map() else { return Ok(0) };
        let taken = self.rx.receive(&map, max, mergeable, &mut |offload, frame| match offload
            .checked(frame.len())
            .filter(|offload| frame.len() >= MIN_FRAME && accepts.has(offload.needs()))
        {
            Some(offload) => {
                self.counters.received += 1;
                each(offload, frame);
            }
            None => self.counters.bad_received += 1,
        });
        self.keep(taken)
    }

    /// Copies a frame, given in parts, to where the device finds it after [`Nic::flush`]. False: there is no room now, or no device yet. A
    /// frame that nobody could send (shorter than an Ethernet header, longer than [`wire::MAX_FRAME`], or owing more than
    /// [`Nic::accepts`]) is counted and forgotten.
    pub fn send(&mut self, offload: Offload, parts: &[&[u8]]) -> bool {
        if self.features == Features::default() || self.broken.is_some() {
            return false;
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if !(MIN_FRAME..=wire::MAX_FRAME).contains(&len) || !self.accepts().has(offload.needs()) {
            self.counters.bad_sent += 1;
            return true;
        }
        let Some(map) = self.memory.map() else { return false };
        let sent = self.tx.send(&map, offload, parts, len);
        let sent = self.keep(sent).unwrap_or(false);
        self.counters.sent += u64::from(sent);
        sent
    }

    /// Whether a frame of one buffer could be sent now.
    pub fn has_room(&self) -> bool {
        self.features != Features::default() && self.broken.is_none() && self.tx.has_room()
    }

    /// Shows the device everything sent so far, kicks it if it wants to be, and takes buffers back that it is done with.
    ///
    /// # Errors
    /// As for [`Nic::receive`].
    pub fn flush(&mut self) -> Result<(), NicError> {
        self.check()?;
        let flushed = self.tx.flush();
        self.keep(flushed)
    }

    /// Asks the device for a call when a frame comes in (or, after a [`Nic::send`] without room, when there is room), or for none. When asked
    /// to, says whether there is something already, so that there is nothing to wait for.
    pub fn want_interrupts(&mut self, want: bool) -> bool {
        let came = self.rx.want_interrupts(want);
        self.tx.want_interrupts(want) || came
    }

    /// What to sleep on: the calls of both rings, and the front end's socket.
    pub fn wait_fds(&self) -> impl Iterator<Item = RawFd> + use<> {
        let socket = self.front.socket().map(|socket| socket.as_raw_fd());
        [self.rx.call(), self.tx.call()].into_iter().chain(socket)
    }

    fn check(&self) -> Result<(), NicError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn keep<T>(&mut self, result: Result<T, NicError>) -> Result<T, NicError> {
        if let Err(error) = &result {
            self.broken = Some(error.clone());
        }
        result
    }
}

/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// What is agreed on of an offer.
fn choose(offer: &Offer) -> Features {
    WANTED.into_iter().fold(REQUIRED, |agreed, (bit, needs)| {
        if offer.features.has(bit) && agreed.has(needs) { agreed.with(bit) } else { agreed }
    })
}

/// Guest addresses of a ring's descriptor, driver and device areas.
fn areas(ring: u64) -> [u64; 3] {
    [0, 1, 2].map(|area| START + (3 * ring + area) * AREA)
}

fn queue(memory: &Arc<GuestMemory>, ring: u64) -> Result<DriverQueue, PlaceError> {
    let [descriptors, driver, device] = areas(ring);
    // What else is agreed on later makes no difference to a ring.
    let (memory, features) = (Arc::clone(memory), REQUIRED);
    DriverQueue::new(&DriverSetup { memory, features, size: ENTRIES, descriptors, driver, device, tables: None })
}

/// The doorbells of a ring.
struct Bells {
    kick: EventFd,
    call: EventFd,
}

impl Bells {
    fn new() -> io::Result<Bells> {
        Ok(Bells { kick: EventFd::new()?, call: EventFd::new()? })
    }

    fn setup(&self, ring: u64) -> io::Result<RingSetup> {
        let [descriptors, driver, device] = areas(ring);
        let (kick, call) = (self.kick.try_clone()?, self.call.try_clone()?);
        Ok(RingSetup { size: ENTRIES, descriptors, driver, device, kick, call, base: 0 })
    }

    /// Kicks the device if `wanted`. An eventfd of ours can be full, which kicks too, and not broken.
    fn kick(&self, wanted: bool) {
        if wanted {
            let _ = self.kick.notify();
        }
    }

    /// Forgets calls that came: what they say is in the ring.
    fn forget_calls(&self) {
        let _ = self.call.drain();
    }
}

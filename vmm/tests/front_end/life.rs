//! A device's life at the front end itself: started, stopped, started again, and what is refused.

use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    sync::Arc,
};

use sys::{GuestMemory, eventfd::EventFd, split::SplitMemory};
use vmm::{
    Features,
    front_end::{DeviceMemory, DeviceSetup, FrontEnd, FrontEndError, MemoryRegion, Peer, RingSetup, State},
    vhost_user::{NicKey, PortOptions, Role, device::Device, message::RegionSpec},
    virtqueue::driver::{Buffer, DriverQueue, DriverSetup},
};
use wire::{Clock, SystemClock};

use crate::switch::{BackEnd, LONG, server};

const MEMORY: u64 = 1 << 20;
const ENTRIES: u16 = 64;

fn areas(ring: u64) -> [u64; 3] {
    [0, 1, 2].map(|area| 0x1_0000 * ring + 0x4000 * area)
}

fn file() -> OwnedFd {
    sys::memory::memfd("guest", MEMORY).unwrap()
}

fn region(guest: u64, file: OwnedFd) -> MemoryRegion {
    MemoryRegion { spec: RegionSpec { guest, size: MEMORY, user: guest + (1 << 40), offset: 0 }, file }
}

/// A guest with two rings in memory of its own.
struct Guest {
    file: OwnedFd,
    memory: Arc<GuestMemory>,
    features: Features,
    tx: DriverQueue,
    bells: [EventFd; 4],
}

impl Guest {
    fn new(features: Features) -> Guest {
        let (file, features) = (file(), features.with(Features::VERSION_1));
        let memory = DeviceMemory::new(vec![region(0, file.try_clone().unwrap())]).unwrap().map().clone();
        let [descriptors, driver, device] = areas(1);
        let setup =
            DriverSetup { memory: memory.clone(), features, size: ENTRIES, descriptors, driver, device, tables: None };
        let tx = DriverQueue::new(&setup).unwrap();
        Guest { file, memory, features, tx, bells: [(); 4].map(|()| EventFd::new().unwrap()) }
    }

    fn setup(&self, bases: [u32; 2]) -> DeviceSetup {
        let ring = |index: usize| {
            let [descriptors, driver, device] = areas(index as u64);
            let bell = |n: usize| self.bells[2 * index + n].try_clone().unwrap();
            RingSetup { size: ENTRIES, descriptors, driver, device, kick: bell(0), call: bell(1), base: bases[index] }
        };
        let memory = DeviceMemory::new(vec![region(0, self.file.try_clone().unwrap())]).unwrap();
        DeviceSetup { features: self.features, memory, rings: vec![ring(0), ring(1)] }
    }

    fn send(&mut self, frames: usize) {
        for _ in 0..frames {
            self.tx.add(&[Buffer { guest: 0x8_0000, len: 100 }], &[]).unwrap();
        }
        let _ = self.tx.publish();
    }

    /// How many chains came back. A ring that was broken gives none.
    fn take_back(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.take_used().ok().flatten()).count()
    }
}

/// A front end, its guest and its back end.
struct Setting {
    dir: tempfile::TempDir,
    clock: SystemClock,
    back: Option<BackEnd>,
    front: FrontEnd,
    guest: Guest,
    done: usize,
}

impl Setting {
    fn new(features: Features) -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let front = FrontEnd::new(Peer::Connect(dir.path().join("0.sock")), Features::VERSION_1);
        let mut setting =
            Setting { dir, clock: SystemClock::new(), back: None, front, guest: Guest::new(features), done: 0 };
        setting.start_back_end();
        setting.until(State::Ready);
        setting
    }

    fn start_back_end(&mut self) {
        self.back = Some(BackEnd::start(vec![server(0, self.dir.path().join("0.sock"))]));
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&Setting) -> bool) {
        let start = self.clock.now();
        while !done(self) {
            self.front.poll(self.clock.now());
            if let Some(back) = &mut self.back {
                back.swallow(0);
            }
            self.done += self.guest.take_back();
            assert!(
                self.clock.now().since(start) < LONG,
                "{what}: {:?} {:?}",
                self.front.state(),
                self.front.failure()
            );
            std::thread::yield_now();
        }
    }

    fn until(&mut self, state: State) {
        self.wait(&format!("{state:?}"), |setting| setting.front.state() == state);
    }

    fn send(&mut self, frames: usize) {
        let done = self.done + frames;
        self.guest.send(frames);
        self.wait("all are used", |setting| setting.done == done);
    }

    fn stop(&mut self) -> Vec<u32> {
        self.front.stop();
        self.until(State::Ready);
        self.front.bases().to_vec()
    }
}

#[test]
fn a_stopped_device_goes_on_where_it_was() {
    let mut setting = Setting::new(Features::MRG_RXBUF);
    assert_eq!(setting.front.offer().map(|offer| (offer.pairs, offer.mtu)), Some((1, Some(9000))));
    setting.front.start(setting.guest.setup([0, 0])).unwrap();
    setting.until(State::Running);
    setting.send(3);
    assert_eq!(setting.stop(), [0, 3]);
    setting.guest.send(2);
    setting.front.start(setting.guest.setup([0, 3])).unwrap();
    setting.until(State::Running);
    setting.wait("what was sent meanwhile", |setting| setting.done == 5);
    assert_eq!(setting.stop(), [0, 5]);
    assert_eq!(setting.front.starts(), 2);
}

#[test]
fn a_device_that_starts_rings_and_calls_once() {
    let mut setting = Setting::new(Features::MRG_RXBUF);
    for _ in 0..2 {
        setting.front.start(setting.guest.setup([0, 0])).unwrap();
        setting.until(State::Running);
        for bell in &setting.guest.bells {
            assert!(bell.drain().unwrap());
        }
        setting.stop();
        setting.guest.bells.iter().for_each(|bell| _ = bell.drain().unwrap());
    }
}

#[test]
fn packed_rings_stop_and_start_but_do_not_outlive_a_back_end_alone() {
    let mut setting = Setting::new(Features::RING_PACKED);
    let start = RingSetup::PACKED_START;
    setting.front.start(setting.guest.setup([start; 2])).unwrap();
    setting.until(State::Running);
    setting.send(50);
    setting.send(20);
    // Six entries into the second lap, where the wrap counter is 0.
    assert_eq!(setting.stop(), [start, 0x6_0006]);
    setting.front.start(setting.guest.setup([start, 0x6_0006])).unwrap();
    setting.until(State::Running);
    setting.send(4);
    drop(setting.back.take());
    setting.until(State::Absent);
    setting.start_back_end();
    setting.until(State::NeedsReset);
    assert!(matches!(setting.front.failure(), Some(FrontEndError::PositionUnknown)));
    assert!(matches!(setting.front.restart(&[start]), Err(FrontEndError::Positions { given: 1, rings: 2 })));
    // The driver has taken everything back, so it knows.
    setting.front.restart(&[start, 0xa_000a]).unwrap();
    setting.until(State::Running);
    setting.send(10);
    assert_eq!(setting.stop(), [start, 0x14_0014]);
}

#[test]
fn rings_that_contradict_themselves_are_not_given_away_again() {
    let mut setting = Setting::new(Features::MRG_RXBUF);
    setting.front.start(setting.guest.setup([0, 0])).unwrap();
    setting.until(State::Running);
    setting.send(3);
    drop(setting.back.take());
    setting.until(State::Absent);
    let [descriptors, driver, device] = areas(1);
    SplitMemory::new(setting.guest.memory.clone(), ENTRIES, descriptors, driver, device).unwrap().set_used_index(4);
    setting.start_back_end();
    setting.until(State::NeedsReset);
    let why = setting.front.failure().unwrap().to_string();
    assert_eq!(why, "ring 1 cannot go on: its used index is 4 and its available index 3, in a ring of 64");
    setting.front.stop();
    assert_eq!(setting.front.state(), State::Ready);
    setting.front.start(Guest::new(Features::MRG_RXBUF).setup([0, 0])).unwrap();
    setting.until(State::Running);
}

#[test]
fn the_guest_s_side_may_listen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut front = FrontEnd::new(Peer::Listen(listener), Features::VERSION_1);
    let mut guest = Guest::new(Features::MRG_RXBUF);
    front.start(guest.setup([0, 0])).unwrap();
    let (clock, mut sleep) = (SystemClock::new(), sys::poll::Sleep::default());
    for round in 1..=3 {
        let device = Device::default();
        let options =
            PortOptions { nic: NicKey(0), name: "p".to_owned(), role: Role::Client { path: path.clone() }, device };
        let mut back = BackEnd::start(vec![options]);
        guest.send(2);
        let mut done = 0;
        while done < 2 || front.state() != State::Running {
            use std::os::fd::AsRawFd;
            let deadline = front.poll(clock.now());
            // Short where the worker is turned by hand, here.
            let limit = deadline.map_or(LONG, |at| at.since(clock.now())).min(std::time::Duration::from_millis(1));
            sleep.wait(front.socket().iter().map(|socket| socket.as_raw_fd()), Some(limit)).unwrap();
            back.swallow(0);
            done += guest.take_back();
            assert!(
                clock.now().since(wire::Instant::START) < LONG,
                "{round}: {:?} {:?}",
                front.state(),
                front.failure()
            );
        }
        assert_eq!((front.state(), front.starts()), (State::Running, round));
        drop(back);
        while front.state() == State::Running {
            front.poll(clock.now());
        }
    }
}

#[test]
fn what_cannot_be_set_up_is_refused_before_anybody_hears_of_it() {
    let mut setting = Setting::new(Features::MRG_RXBUF);
    let refused = |setting: &mut Setting, setup: DeviceSetup, why: &str| {
        let error = setting.front.start(setup).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(setting.front.state(), State::Ready);
    };
    let good = || Guest::new(Features::MRG_RXBUF).setup([0, 0]);
    refused(&mut setting, DeviceSetup { rings: vec![], ..good() }, "a device with 0 rings");
    let mut setup = good();
    setup.rings[1].device = MEMORY - 8;
    refused(&mut setting, setup, "ring 1: the used ring of the virtqueue");
    let mut setup = good();
    setup.rings[0].size = 3;
    refused(&mut setting, setup, "ring 0: a virtqueue of 3 entries");
    let features = Features::VERSION_1.with(Features::MQ);
    refused(&mut setting, DeviceSetup { features, ..good() }, "does not offer [\"MQ\"]");
    let many = (0..9).map(|n| region(n * MEMORY, file())).collect();
    assert!(matches!(DeviceMemory::new(many), Err(FrontEndError::Regions(9))));
    assert!(matches!(DeviceMemory::new(vec![region(0, file()), region(1, file())]), Err(FrontEndError::Region(_))));
    setting.front.start(good()).unwrap();
    assert!(matches!(setting.front.start(good()), Err(FrontEndError::Running)));
    setting.until(State::Running);
}

#[test]
fn a_back_end_that_lacks_what_is_needed_is_turned_away() {
    let mut setting = Setting::new(Features::MRG_RXBUF);
    let mut front = FrontEnd::new(Peer::Connect(setting.dir.path().join("0.sock")), Features::MQ);
    std::mem::swap(&mut front, &mut setting.front);
    drop(front);
    setting.wait("it is turned away", |setting| setting.front.failure().is_some());
    assert_eq!(setting.front.state(), State::Absent);
    assert!(matches!(setting.front.failure(), Some(FrontEndError::NotOffered(Features::MQ))));
}

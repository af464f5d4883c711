//! A vhost-user session without its socket, told anything by a hostile front end.
//!
//! Invariant: nothing panics; a message that waits goes on once the lanes it asked for are home; a closed session gets all lanes back.
//! Read first: `vmm::vhost_user::session`.
//!
//! Some messages are raw: 12 bytes of header and what payload it announces, as a connection assembles them. Others have the size and mostly
//! the values that their request has. And some come as front ends send them, several in order, so that rings do start and stop.
#![no_main]

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use sys::{GuestMemory, Region, arena::Arena, eventfd::EventFd, memory::Mapping};
use vmm::{
    Features, Lane,
    vhost_user::{
        Device,
        device::protocol,
        message::{HEADER_BYTES, Header, code},
        request::Request,
        session::{Effect, Session, Step},
    },
};

const MEMORY: u64 = 1 << 18;
const USER: u64 = 0x7f00_0000_0000;

struct Front {
    session: Session,
    file: OwnedFd,
    away: Vec<Lane>,
    wanted: Vec<u16>,
}

impl Front {
    fn pass_on(&mut self) {
        for effect in self.session.take_effects() {
            match effect {
                Effect::Attach(lane) => self.away.push(*lane),
                Effect::Detach(lane) => self.wanted.push(lane),
                _ => {}
            }
        }
    }

    fn home(&mut self, place: usize, why: Option<String>) -> Step {
        let lane = self.away.remove(place);
        self.wanted.retain(|index| *index != lane.index);
        let step = self.session.home(lane, why);
        self.pass_on();
        step
    }

    /// Brings home what was asked for, until nothing waits.
    fn bring(&mut self, mut step: Step) -> Step {
        while let Some(index) = self.wanted.pop() {
            let place =
                self.away.iter().position(|lane| lane.index == index).expect("a lane is asked for that nobody has");
            step = self.home(place, None);
        }
        assert!(!matches!(step, Step::Wait), "all lanes are home, and the message still waits");
        step
    }

    fn message(&mut self, header: Header, payload: &[u8], fds: Vec<OwnedFd>) -> Step {
        let step = self.session.message(header, Request::parse(header.request, payload, fds));
        self.pass_on();
        self.bring(step)
    }

    /// A message that wants to know how it went, so that a refusal does not end the session.
    fn ask(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Step {
        self.message(Header { request, need_reply: true, size: payload.len() as u32 }, payload, fds)
    }

    /// What comes before the rings: protocol, features and memory.
    fn greet(&mut self, features: u64) {
        self.ask(code::SET_PROTOCOL_FEATURES, &words(&[protocol::OFFERED]), Vec::new());
        self.ask(code::SET_FEATURES, &words(&[features]), Vec::new());
        let memory = self.descriptor(0).into_iter().collect();
        self.ask(code::SET_MEM_TABLE, &words(&[1, 0, MEMORY, USER, 0]), memory);
    }

    /// All that starts a ring.
    fn start(&mut self, ring: u32, entries: u32) -> Step {
        let state = |value: u32| [ring.to_ne_bytes(), value.to_ne_bytes()].concat();
        let at = USER + u64::from(ring) * 0x8000;
        self.ask(code::SET_VRING_NUM, &state(entries), Vec::new());
        self.ask(code::SET_VRING_BASE, &state(0), Vec::new());
        let address = [state(0), words(&[at, at + 0x4000, at + 0x2000, 0])].concat();
        self.ask(code::SET_VRING_ADDR, &address, Vec::new());
        let bell = self.descriptor(2).into_iter().collect();
        self.ask(code::SET_VRING_KICK, &words(&[u64::from(ring)]), bell);
        self.ask(code::SET_VRING_ENABLE, &state(1), Vec::new())
    }

    fn descriptor(&self, kind: u8) -> Option<OwnedFd> {
        match kind & 3 {
            0 | 1 => self.file.try_clone().ok(),
            2 => EventFd::new().ok()?.as_fd().try_clone_to_owned().ok(),
            _ => std::io::pipe().ok().map(|(_, writer)| writer.into()),
        }
    }
}

/// A number that means something often enough.
fn word(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u.arbitrary()?,
        1 => USER + (u64::from(u.arbitrary::<u8>()?) << 10),
        2 => u64::from(u.arbitrary::<u8>()?) << 12,
        _ => u64::from(u.arbitrary::<u8>()?),
    })
}

/// Features that a driver may agree to.
fn features(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(Features::VERSION_1.with(Features::PROTOCOL_FEATURES).0 | u.arbitrary::<u64>()? & OPTIONAL)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The payload of a request that is well formed, and how many descriptors belong to it.
fn payload(u: &mut Unstructured<'_>, request: u32) -> Result<(Vec<u8>, usize)> {
    let ring = u32::from(u.arbitrary::<u8>()? % 6);
    let state = |value: u32| [ring.to_ne_bytes(), value.to_ne_bytes()].concat();
    Ok(match request {
        code::SET_FEATURES => (words(&[if u.ratio(1, 8)? { u.arbitrary()? } else { features(u)? }]), 0),
        code::SET_MEM_TABLE => {
            let size = if u.ratio(1, 4)? { word(u)? } else { MEMORY };
            (words(&[1, 0, size, USER, 0]), 1)
        }
        code::ADD_MEM_REG | code::REM_MEM_REG => {
            let at = u64::from(u.arbitrary::<u8>()? & 3) << 16;
            (words(&[0, at, 1 << 16, USER + at, at]), usize::from(request == code::ADD_MEM_REG))
        }
        code::SET_LOG_BASE => (words(&[4096, word(u)?]), 1),
        code::SET_VRING_NUM => (state(1 << u.int_in_range(0..=8)?), 0),
        code::SET_VRING_BASE | code::GET_VRING_BASE => (state(u.arbitrary()?), 0),
        code::SET_VRING_ENABLE => (state(u.int_in_range(0..=1)?), 0),
        code::SET_VRING_ADDR => {
            let at = if u.ratio(1, 4)? { word(u)? } else { USER + u64::from(ring) * 0x8000 };
            ([state(0), words(&[at, at.wrapping_add(0x4000), at.wrapping_add(0x2000), 0])].concat(), 0)
        }
        code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
            let bare = u.arbitrary::<bool>()?;
            (words(&[u64::from(ring) | u64::from(bare) << 8]), usize::from(!bare))
        }
        code::GET_CONFIG | code::SET_CONFIG => {
            let (offset, flags) = (u32::from(u.arbitrary::<u8>()?), u.int_in_range(0..=1u32)?);
            let n = u.int_in_range(1..=16u32)?;
            let head: Vec<u8> = [offset, n, flags].iter().flat_map(|word| word.to_ne_bytes()).collect();
            ([head, vec![2; n as usize]].concat(), 0)
        }
        code::GET_INFLIGHT_FD | code::SET_INFLIGHT_FD => {
            let (queues, entries) = (u.int_in_range(0..=6u16)?, u.int_in_range(0..=300u16)?);
            let bytes =
                [words(&[word(u)?, word(u)?]), queues.to_ne_bytes().to_vec(), entries.to_ne_bytes().to_vec()].concat();
            (bytes, usize::from(request == code::SET_INFLIGHT_FD))
        }
        code::SET_PROTOCOL_FEATURES | code::SEND_RARP | code::NET_SET_MTU | code::SET_STATUS => (words(&[word(u)?]), 0),
        code::SET_LOG_FD | code::SET_BACKEND_REQ_FD => (Vec::new(), 1),
        _ => (Vec::new(), 0),
    })
}

/// What drivers may or may not agree to, of what is offered to all.
const OPTIONAL: u64 = Features::MRG_RXBUF
    .with(Features::CTRL_VQ)
    .with(Features::CTRL_RX)
    .with(Features::CTRL_VLAN)
    .with(Features::CTRL_MAC_ADDR)
    .with(Features::LOG_ALL)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX)
    .with(Features::RING_PACKED)
    .with(Features::IN_ORDER)
    .0;

/// Writes into the guest's memory as its driver would.
fn poke(file: &OwnedFd, at: u64, bytes: &[u8]) {
    let Ok(mapping) = Mapping::shared(file.as_fd(), 0, MEMORY) else { return };
    let Ok(region) = Region::new(0, MEMORY, USER, Arc::new(mapping), 0) else { return };
    let (Ok(memory), Ok(mut arena)) = (GuestMemory::new(vec![region], None), Arena::new(1)) else { return };
    let id = arena.insert(Arc::new(memory));
    if let Some(map) = arena.map(id)
        && let Some(room) = map.room(at, bytes.len() as u32)
    {
        map.write(room, bytes);
    }
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let Ok(file) = sys::memory::memfd("guest", MEMORY) else { return Ok(()) };
    let device = Device { queues: u.int_in_range(1..=2)?, mtu: u.arbitrary()?, ..Device::default() };
    let session = Session::new(Arc::new(device));
    let mut front = Front { session, file, away: Vec::new(), wanted: Vec::new() };
    if u.ratio(7, 8)? {
        front.greet(features(u)?);
    }
    while !u.is_empty() {
        let step = match u.int_in_range(0..=15)? {
            0 => {
                let at = u64::from(u.arbitrary::<u16>()?) << 2;
                let n = usize::from(u.arbitrary::<u8>()?).min(u.len());
                poke(&front.file, at, u.bytes(n)?);
                Step::Nothing
            }
            1 => {
                let outcome = front.session.control();
                front.pass_on();
                if outcome.is_err() {
                    break;
                }
                Step::Nothing
            }
            // A worker gives a lane up by itself.
            2 if !front.away.is_empty() => {
                let place = u.choose_index(front.away.len())?;
                let why = u.arbitrary::<bool>()?.then(|| "a rule was broken".to_owned());
                front.home(place, why)
            }
            3..=5 => {
                let ring = u32::from(u.arbitrary::<u8>()? % 6);
                front.start(ring, 1 << u.int_in_range(0..=8)?)
            }
            kind => {
                let (header, payload, belong) = if kind < 9 {
                    let bytes: [u8; HEADER_BYTES] = u.arbitrary()?;
                    let Ok(header) = Header::parse(&bytes) else { continue };
                    let n = (header.size as usize).min(u.len());
                    (header, u.bytes(n)?.to_vec(), usize::from(u.arbitrary::<u8>()? % 10))
                } else {
                    let request = u.int_in_range(1..=44)?;
                    let (payload, belong) = payload(u, request)?;
                    let header = Header { request, need_reply: u.ratio(7, 8)?, size: payload.len() as u32 };
                    (header, payload, belong)
                };
                let mut fds = Vec::new();
                for _ in 0..belong {
                    let bell =
                        matches!(header.request, code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR);
                    let kind = if u.ratio(7, 8)? { u8::from(bell) << 1 } else { u.arbitrary()? };
                    fds.extend(front.descriptor(kind));
                }
                front.message(header, &payload, fds)
            }
        };
        let _ = format!("{:?} {step:?}", front.session.state());
        if matches!(step, Step::End(..)) {
            break;
        }
    }
    front.session.close();
    front.pass_on();
    front.bring(Step::Nothing);
    assert!(front.session.is_home() && front.away.is_empty(), "a closed session leaves no lane behind");
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that ends early is as good as one that does not.
    let _ = run(&mut Unstructured::new(data));
});

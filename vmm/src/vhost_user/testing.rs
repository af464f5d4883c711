//! What the tests of this module share: a guest's memory, messages as bytes, and the usual order of them.
//!
//! Invariant: nothing here knows how a session works inside; it says what front ends say.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use sys::{GuestMemory, Region, eventfd::EventFd, memory::Mapping};

use super::message::code;
use crate::features::Features;

/// Bytes of a test guest's memory.
pub(super) const MEMORY: u64 = 1 << 22;
/// Where its front end has it mapped.
pub(super) const USER: u64 = 0x7f00_0000_0000;
/// Entries of its rings.
pub(super) const ENTRIES: u16 = 64;
/// Protocol features without the acknowledgement of each message.
pub(super) const QUIET: u64 = super::device::protocol::OFFERED & !super::device::protocol::REPLY_ACK;

/// What a driver like Linux agrees to, its control queue being kept by the front end.
pub(super) fn common() -> Features {
    [Features::MRG_RXBUF, Features::EVENT_IDX, Features::PROTOCOL_FEATURES]
        .into_iter()
        .fold(Features::VERSION_1, Features::with)
}

/// A guest's memory, in a file.
pub(super) struct Guest {
    pub(super) file: OwnedFd,
}

impl Guest {
    pub(super) fn new() -> Guest {
        Guest { file: sys::memory::memfd("guest", MEMORY).unwrap() }
    }

    pub(super) fn fd(&self) -> OwnedFd {
        self.file.try_clone().unwrap()
    }

    /// The memory as the driver sees it.
    pub(super) fn memory(&self) -> Arc<GuestMemory> {
        let mapping = Mapping::shared(self.file.as_fd(), 0, MEMORY).unwrap();
        let region = Region::new(0, MEMORY, USER, Arc::new(mapping), 0).unwrap();
        Arc::new(GuestMemory::new(vec![region], None).unwrap())
    }
}

/// Guest addresses of a ring's descriptor, driver and device areas.
pub(super) fn areas(ring: u16) -> [u64; 3] {
    let base = 0x1_0000 * (u64::from(ring) + 1);
    [base, base + 0x4000, base + 0x8000]
}

/// One message as a front end sends it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) code: u32,
    pub(super) ask: bool,
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    pub(super) fn new(code: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        Message { code, ask: false, payload, fds }
    }

    pub(super) fn asking(self) -> Message {
        Message { ask: true, ..self }
    }

    /// The bytes on the wire.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let words = [self.code, if self.ask { 0b1001 } else { 1 }, self.payload.len() as u32];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(self.payload.iter().copied()).collect()
    }

    /// Whether a reply is due.
    pub(super) fn is_answered(&self) -> bool {
        self.ask || super::session::replies(self.code)
    }
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn state(code: u32, ring: u16, value: u32) -> Message {
    Message::new(code, [u32::from(ring).to_ne_bytes(), value.to_ne_bytes()].concat(), vec![])
}

pub(super) fn word(code: u32, value: u64) -> Message {
    Message::new(code, words(&[value]), vec![])
}

pub(super) fn plain(code: u32) -> Message {
    Message::new(code, vec![], vec![])
}

/// `SET_MEM_TABLE` of regions: guest address, bytes, file offset.
pub(super) fn table(guest: &Guest, regions: &[(u64, u64, u64)]) -> Message {
    let mut payload = words(&[regions.len() as u64]);
    for (at, size, offset) in regions {
        payload.extend(words(&[*at, *size, USER + at, *offset]));
    }
    Message::new(code::SET_MEM_TABLE, payload, regions.iter().map(|_| guest.fd()).collect())
}

pub(super) fn whole_table(guest: &Guest) -> Message {
    table(guest, &[(0, MEMORY, 0)])
}

/// `ADD_MEM_REG` or `REM_MEM_REG`.
pub(super) fn region(guest: &Guest, code: u32, at: u64, size: u64) -> Message {
    let fds = if code == code::ADD_MEM_REG { vec![guest.fd()] } else { vec![] };
    Message::new(code, words(&[0, at, size, USER + at, at]), fds)
}

pub(super) fn address(ring: u16) -> Message {
    let [descriptors, driver, device] = areas(ring).map(|at| at + USER);
    let index = [u32::from(ring).to_ne_bytes(), 0u32.to_ne_bytes()].concat();
    Message::new(code::SET_VRING_ADDR, [index, words(&[descriptors, device, driver, 0])].concat(), vec![])
}

/// `SET_VRING_KICK`, `_CALL` or `_ERR` with this doorbell, or without one.
pub(super) fn bell(code: u32, ring: u16, bell: Option<&EventFd>) -> Message {
    let flag = if bell.is_none() { 1 << 8 } else { 0 };
    let fds = bell.map(|bell| bell.as_fd().try_clone_to_owned().unwrap()).into_iter().collect();
    Message::new(code, words(&[u64::from(ring) | flag]), fds)
}

/// What QEMU 7.2 sends before there is a driver: it enables rings before it agrees on features.
pub(super) fn greeting(protocol: u64) -> Vec<Message> {
    vec![
        plain(code::GET_FEATURES),
        plain(code::GET_PROTOCOL_FEATURES),
        word(code::SET_PROTOCOL_FEATURES, protocol),
        plain(code::GET_QUEUE_NUM),
        plain(code::GET_MAX_MEM_SLOTS),
        plain(code::SET_OWNER),
        plain(code::GET_FEATURES),
        state(code::SET_VRING_ENABLE, 0, 1),
        state(code::SET_VRING_ENABLE, 1, 1),
    ]
}

/// What sets one ring up and starts it.
pub(super) fn ring_start(ring: u16, base: u32, kick: &EventFd) -> Vec<Message> {
    vec![
        state(code::SET_VRING_NUM, ring, u32::from(ENTRIES)),
        state(code::SET_VRING_BASE, ring, base),
        address(ring),
        bell(code::SET_VRING_KICK, ring, Some(kick)),
        bell(code::SET_VRING_CALL, ring, Some(&EventFd::new().unwrap())),
    ]
}

/// What a front end sends when the driver is ready: features, memory, two rings.
pub(super) fn start(guest: &Guest, features: Features, base: u32) -> Vec<Message> {
    let kick = EventFd::new().unwrap();
    let mut messages = vec![word(code::SET_FEATURES, features.0), whole_table(guest)];
    for ring in [0, 1] {
        messages.extend(ring_start(ring, base, &kick));
    }
    messages
}

/// The same, for a front end that has not enabled the rings before.
pub(super) fn enable_and_start(guest: &Guest, features: Features, base: u32) -> Vec<Message> {
    let mut messages = vec![state(code::SET_VRING_ENABLE, 0, 1), state(code::SET_VRING_ENABLE, 1, 1)];
    messages.extend(start(guest, features, base));
    messages
}

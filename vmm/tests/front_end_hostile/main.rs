//! A back end that misbehaves at any message of a device's life: the front end names what is wrong, lets go of it, and leaks no descriptor.
//!
//! A program of its own, with one test: it counts the descriptors of the process.

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../front_end/script.rs"]
mod script;

use std::{
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use script::{Due, Script};
use sys::{eventfd::EventFd, memory::memfd, socket::send_with_fds};
use vmm::{
    Features,
    front_end::{DeviceMemory, DeviceSetup, FrontEnd, MemoryRegion, Peer, RingSetup, State},
    vhost_user::message::{RegionSpec, Reply, code},
};
use wire::{Clock, VirtualClock};

const MEMORY: u64 = 1 << 18;

/// Ways to answer a message wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Close,
    /// Part of the answer, then the end.
    HalfHeader,
    HalfPayload,
    Version,
    NoReply,
    OtherCode,
    Short,
    Long,
    Huge,
    Refusal,
    OneDescriptor,
    ManyDescriptors,
    Twice,
    Noise,
    /// A number that the answer cannot hold.
    Value,
}

const ALL: [Wrong; 15] = [
    Wrong::Close,
    Wrong::HalfHeader,
    Wrong::HalfPayload,
    Wrong::Version,
    Wrong::NoReply,
    Wrong::OtherCode,
    Wrong::Short,
    Wrong::Long,
    Wrong::Huge,
    Wrong::Refusal,
    Wrong::OneDescriptor,
    Wrong::ManyDescriptors,
    Wrong::Twice,
    Wrong::Noise,
    Wrong::Value,
];

fn setup() -> DeviceSetup {
    let file = memfd("guest", MEMORY).unwrap();
    let spec = RegionSpec { guest: 0, size: MEMORY, user: 1 << 40, offset: 0 };
    let ring = |at: u64| RingSetup {
        size: 64,
        descriptors: at,
        driver: at + 0x1000,
        device: at + 0x2000,
        kick: EventFd::new().unwrap(),
        call: EventFd::new().unwrap(),
        base: 0,
    };
    let memory = DeviceMemory::new(vec![MemoryRegion { spec, file }]).unwrap();
    DeviceSetup { features: Features::VERSION_1, memory, rings: vec![ring(0), ring(0x8000)] }
}

/// A device's whole life, the answer to message `at` going wrong. Returns why the front end let go, and the requests that were heard.
fn live(at: usize, wrong: Option<Wrong>) -> (Option<String>, Vec<u32>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let clock = VirtualClock::default();
    let mut front = FrontEnd::new(Peer::Stream(ours), Features::VERSION_1);
    let mut back = Script::new(theirs);
    front.start(setup()).unwrap();
    let mut stopped = false;
    for _ in 0..200 {
        front.poll(clock.now());
        match front.state() {
            State::Absent => break,
            State::Running => {
                front.stop();
                stopped = true;
            }
            State::Ready if stopped => break,
            _ => {}
        }
        while let Some(due) = back.hear() {
            match wrong {
                Some(wrong) if back.heard.len() == at + 1 => answer_wrongly(&mut back, due, wrong),
                // The connection may have been closed meanwhile.
                _ => due.answer.into_iter().for_each(|answer| drop(back.socket.write_all(&answer))),
            }
        }
    }
    let end = (front.state() == State::Absent).then(|| front.failure().map(ToString::to_string).unwrap_or_default());
    if end.is_some() {
        assert!(front.socket().is_none(), "it has let go");
    } else {
        assert_eq!(front.bases(), [0, 0]);
    }
    (end, back.heard)
}

fn words(words: [u32; 3]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn answer_wrongly(back: &mut Script, due: Due, wrong: Wrong) {
    let Due { request, answer } = due;
    let good = answer.unwrap_or_else(|| Reply::word(request, 0).bytes);
    let (header, payload) = good.split_at(12);
    let with = |header: Vec<u8>| [&header, payload].concat();
    let size = payload.len() as u32;
    let files = |count: usize| (0..count).map(|_| memfd("more", 4096).unwrap()).collect::<Vec<OwnedFd>>();
    let (bytes, fds, ends) = match wrong {
        Wrong::Close => (vec![], vec![], true),
        Wrong::HalfHeader => (header[..5].to_vec(), vec![], true),
        Wrong::HalfPayload => (good[..good.len() - 3].to_vec(), vec![], true),
        Wrong::Version => (with(words([request, 6, size])), vec![], false),
        Wrong::NoReply => (with(words([request, 1, size])), vec![], false),
        Wrong::OtherCode => (with(words([request + 1, 5, size])), vec![], false),
        Wrong::Short => ([&words([request, 5, 3])[..], &payload[..3]].concat(), vec![], false),
        Wrong::Long => ([&words([request, 5, size + 1])[..], payload, &[0]].concat(), vec![], false),
        Wrong::Huge => (words([request, 5, u32::MAX]), vec![], false),
        Wrong::Refusal if request == code::GET_VRING_BASE => {
            ([header, &payload[..4], &0x1_0000u32.to_ne_bytes()].concat(), vec![], false)
        }
        Wrong::Refusal => (Reply::word(request, 1).bytes, vec![], false),
        Wrong::OneDescriptor => (good.clone(), files(1), false),
        Wrong::ManyDescriptors => (good.clone(), files(8), false),
        Wrong::Twice => ([&good[..], &good].concat(), vec![], false),
        Wrong::Noise => (vec![0xff; 300], vec![], false),
        Wrong::Value => (absurd(request), vec![], false),
    };
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    if !bytes.is_empty() {
        let sent = send_with_fds(back.socket.as_fd(), &bytes, &fds).unwrap();
        assert_eq!(sent, bytes.len());
    }
    if ends {
        back.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

/// An answer of the right form that says what cannot be.
fn absurd(request: u32) -> Vec<u8> {
    match request {
        code::GET_FEATURES | code::GET_QUEUE_NUM => Reply::word(request, 0).bytes,
        code::GET_CONFIG => Reply::config(0, 0, &[0xff; 12]).bytes,
        code::GET_VRING_BASE => Reply::state(request, 77, 0).bytes,
        _ => Reply::word(request, u64::MAX).bytes,
    }
}

/// What the front end says of it, or nothing where it is not wrong.
fn expected(request: u32, wrong: Wrong) -> Option<&'static str> {
    let has_own_reply =
        [code::GET_FEATURES, code::GET_PROTOCOL_FEATURES, code::GET_QUEUE_NUM, code::GET_CONFIG, code::GET_VRING_BASE]
            .contains(&request);
    let is_asked = has_own_reply || request != code::SET_PROTOCOL_FEATURES;
    Some(match wrong {
        Wrong::Close => "the back end closed the connection",
        // It may be taken for the answer to the next message, or as said out of turn.
        _ if !is_asked => "",
        Wrong::HalfHeader | Wrong::HalfPayload => "the back end closed the connection instead of answering",
        Wrong::Version | Wrong::Noise => "message of protocol version",
        Wrong::NoReply => "without the flag of a reply",
        Wrong::OtherCode => "where",
        Wrong::Short | Wrong::Long | Wrong::Huge => "bytes instead of",
        Wrong::OneDescriptor | Wrong::ManyDescriptors => "attached file descriptors",
        Wrong::Twice => "",
        // One queue pair, protocol feature MQ alone.
        Wrong::Refusal if [code::GET_QUEUE_NUM, code::GET_PROTOCOL_FEATURES].contains(&request) => return None,
        Wrong::Refusal if request == code::GET_FEATURES => "does not offer",
        Wrong::Refusal if request == code::GET_CONFIG => "bytes instead of",
        Wrong::Refusal if request == code::GET_VRING_BASE => "base of a split ring 0x10000; allowed is 0 to 0xffff",
        Wrong::Refusal => "refused",
        Wrong::Value => match request {
            code::GET_FEATURES => "does not offer [\"VERSION_1\"]",
            code::GET_QUEUE_NUM => "queue pairs 0x0; allowed is 1 or more",
            code::GET_CONFIG => "MAC address (first byte last) 0xffffffffffff; allowed is the address of one station",
            code::GET_VRING_BASE => "ring 0x4d; allowed is the one that was asked for",
            // More than we ask for changes nothing.
            code::GET_PROTOCOL_FEATURES => return None,
            _ => "refused",
        },
    })
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn wrong_answers_are_named_and_cost_the_connection_only() {
    let (end, heard) = live(0, None);
    assert_eq!(end, None, "a good back end sees it through");
    assert_eq!(heard.first().zip(heard.last()), Some((&code::GET_FEATURES, &code::SET_STATUS)), "{heard:?}");
    assert_eq!(heard.iter().filter(|request| **request == code::GET_VRING_BASE).count(), 2, "{heard:?}");
    let before = descriptors();
    for (at, request) in heard.iter().enumerate() {
        for wrong in ALL {
            let (end, _) = live(at, Some(wrong));
            match (expected(*request, wrong), end) {
                (Some(expected), Some(end)) => {
                    assert!(end.contains(expected), "message {at}, request {request}, {wrong:?}: {end}");
                    assert!(!end.is_empty());
                }
                (None, None) => {}
                (expected, end) => {
                    panic!("message {at}, request {request}, {wrong:?}: {end:?} instead of {expected:?}")
                }
            }
        }
    }
    assert_eq!(descriptors(), before, "descriptors were leaked");
}

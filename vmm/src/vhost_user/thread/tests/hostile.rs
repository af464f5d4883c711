//! Front ends that break the protocol: each ends its own session, with a reason, and no other.

use std::os::fd::AsFd;

use sys::eventfd::EventFd;

use super::*;
use crate::features::Features;

/// What a front end whose port is up says next.
type Wrong = (&'static str, Box<dyn Fn(&Guest) -> Vec<Message>>);

fn wrong(reason: &'static str, messages: impl Fn(&Guest) -> Vec<Message> + 'static) -> Wrong {
    (reason, Box::new(messages))
}

fn all() -> Vec<Wrong> {
    let mut all = wrong_messages();
    all.extend(wrong_settings());
    all
}

fn wrong_messages() -> Vec<Wrong> {
    vec![
        wrong("request 77 is not supported", |_| vec![plain(77)]),
        wrong("IOTLB_MSG is not supported", |_| vec![plain(code::IOTLB_MSG)]),
        wrong("SET_FEATURES with 7 bytes instead of 8", |_| vec![Message::new(code::SET_FEATURES, vec![0; 7], vec![])]),
        wrong("SET_VRING_ADDR with 8 bytes", |_| vec![state(code::SET_VRING_ADDR, 0, 0)]),
        wrong("GET_FEATURES announces 4097 bytes", |_| vec![Message::new(code::GET_FEATURES, vec![0; 4097], vec![])]),
        wrong("SET_VRING_KICK with 2 file descriptors instead of 1", |guest| {
            vec![Message::new(code::SET_VRING_KICK, words(&[0]), vec![guest.fd(), guest.fd()])]
        }),
        wrong("SET_VRING_KICK with 0 file descriptors instead of 1", |_| {
            vec![Message::new(code::SET_VRING_KICK, words(&[0]), vec![])]
        }),
        wrong("GET_QUEUE_NUM with 1 file descriptors instead of 0", |guest| {
            vec![Message::new(code::GET_QUEUE_NUM, vec![], vec![guest.fd()])]
        }),
        wrong("SET_VRING_CALL for ring 1: ", |guest| {
            vec![Message::new(code::SET_VRING_CALL, words(&[1]), vec![guest.fd()])]
        }),
        wrong("ring 3 of a port with rings 0 to 2", |_| vec![state(code::SET_VRING_NUM, 3, 64)]),
        wrong("SET_VRING_NUM: entries 0", |_| vec![state(code::SET_VRING_NUM, 0, 0)]),
        wrong("SET_MEM_TABLE with 0 regions", |_| vec![Message::new(code::SET_MEM_TABLE, words(&[0]), vec![])]),
        wrong("inflight buffer for 0 queues", |_| vec![Message::new(code::GET_INFLIGHT_FD, words(&[0, 0, 0]), vec![])]),
        wrong("dirty log cannot be mapped", |guest| {
            vec![Message::new(code::SET_LOG_BASE, words(&[u64::MAX, 1]), vec![guest.fd()])]
        }),
        wrong("which were not offered", |_| vec![word(code::SET_FEATURES, 1 << 50)]),
        wrong("which were not offered", |_| vec![word(code::SET_PROTOCOL_FEATURES, 1 << 6)]),
    ]
}

fn wrong_settings() -> Vec<Wrong> {
    vec![
        wrong("cannot be mapped", |guest| {
            let fds = vec![EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap()];
            vec![Message { fds, ..whole_table(guest) }]
        }),
        wrong("SET_VRING_NUM for ring 0, which runs", |_| vec![state(code::SET_VRING_NUM, 0, 128)]),
        wrong("SET_VRING_BASE for ring 1, which runs", |_| vec![state(code::SET_VRING_BASE, 1, 5)]),
        wrong("SET_FEATURES changes 0x8000 while ring 0 runs", |_| {
            vec![word(code::SET_FEATURES, common().without(Features::MRG_RXBUF).0)]
        }),
        wrong("in no memory region", |guest| vec![table(guest, &[(0, 0x1_0000, 0)])]),
        wrong("overlap", |guest| vec![region(guest, code::ADD_MEM_REG, 0x1000, 0x1000)]),
        wrong("where no such region is", |guest| vec![region(guest, code::REM_MEM_REG, 0x1000, 0x1000)]),
        wrong("in no memory region", |_| {
            let mut message = address(0);
            message.payload[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
            vec![message]
        }),
        wrong("is not aligned to 16 bytes", |_| {
            let mut message = address(0);
            message.payload[8..16].copy_from_slice(&(USER + 0x1_0001).to_ne_bytes());
            vec![message]
        }),
        wrong("powers of two up to 32768", |guest| {
            let mut messages = vec![whole_table(guest), state(code::GET_VRING_BASE, 0, 0)];
            messages.push(state(code::SET_VRING_NUM, 0, 100));
            messages.push(bell(code::SET_VRING_KICK, 0, None));
            messages
        }),
    ]
}

#[test]
fn what_is_wrong_ends_its_own_session_with_a_reason() {
    let setting = Setting::new(2);
    let neighbour = Neighbour::new(&setting, 1);
    for (reason, messages) in all() {
        let (mut wire, guest) = (setting.connect(0), Guest::new());
        wire.say_all(greeting(QUIET));
        wire.say_all(start(&guest, common(), 0));
        setting.recorder.wait("up", |record| record.is_up(0));
        for message in messages(&guest) {
            wire.say(message);
        }
        setting
            .recorder
            .wait(reason, |record| record.lanes_of(0) == 0 && record.reason(0).is_some_and(|why| why.contains(reason)));
        assert!(wire.is_closed(), "{reason}");
        setting.recorder.forget(0);
    }
    neighbour.finish_well(&setting, 1);
}

#[test]
fn bytes_that_are_no_message_end_the_session() {
    let setting = Setting::new(2);
    let neighbour = Neighbour::new(&setting, 1);
    let header = |words: [u32; 3]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let cases = [
        ("protocol version 0", header([1, 0, 0]), 0),
        ("protocol version 3", header([1, 3, 0]), 0),
        ("a reply, though nothing was asked", header([1, 5, 0]), 0),
        ("SET_MEM_TABLE announces 4294967295 bytes", header([5, 1, u32::MAX]), 0),
        ("GET_FEATURES with 8 file descriptors instead of 0", header([1, 1, 0]), 8),
    ];
    for (reason, bytes, fds) in cases {
        let (mut wire, guest) = (setting.connect(0), Guest::new());
        wire.raw(&bytes, &(0..fds).map(|_| guest.fd()).collect::<Vec<_>>());
        setting.recorder.wait(reason, |record| record.reason(0).is_some_and(|why| why.contains(reason)));
        assert!(wire.is_closed());
        setting.recorder.forget(0);
    }
    // More descriptors than one message may carry: each part of it brings some.
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    let fds: Vec<_> = (0..8).map(|_| guest.fd()).collect();
    let bytes = header([1, 1, 0]);
    wire.raw(&bytes[..6], &fds);
    wire.raw(&bytes[6..], &fds);
    let reason = "a message with more than 8 file descriptors";
    setting.recorder.wait(reason, |record| record.reason(0).is_some_and(|why| why.contains(reason)));
    neighbour.finish_well(&setting, 1);
}

#[test]
fn a_front_end_that_reads_no_replies_is_not_waited_for() {
    let setting = Setting::new(2);
    let neighbour = Neighbour::new(&setting, 1);
    let mut wire = setting.connect(0);
    // Until neither side's socket takes more.
    while wire.say(plain(code::GET_FEATURES)) {}
    neighbour.finish_well(&setting, 1);
    drop(wire);
    setting.recorder.wait("gone", |record| {
        record.states(0).iter().any(|state| matches!(state, PortState::Waiting(why) if why.starts_with("a front end")))
            && record.reason(0).is_some_and(|why| why.starts_with("the"))
    });
}

#[test]
fn a_message_in_small_pieces_is_a_message() {
    let setting = Setting::new(1);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    let mut messages = greeting(QUIET);
    messages.extend(start(&guest, common(), 0));
    for message in messages {
        let (bytes, answered) = (message.bytes(), message.is_answered());
        wire.raw(&bytes[..1], &message.fds);
        for chunk in bytes[1..].chunks(3) {
            wire.raw(chunk, &[]);
        }
        if answered {
            wire.reply();
        }
    }
    setting.recorder.wait("up", |record| record.is_up(0));
}

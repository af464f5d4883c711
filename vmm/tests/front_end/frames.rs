//! Frames between two cards: intact byte for byte, of every length, both ways; and how a card sleeps.

use std::time::Duration;

use sys::poll::Sleep;
use vmm::Features;
use wire::{Accepts, Gso, Offload};

use crate::switch::{Setting, frame, mac};

fn up() -> Setting {
    let mut setting = Setting::new();
    setting.start_back_end();
    setting.bring_up();
    setting
}

#[test]
fn a_card_has_what_its_device_says() {
    let setting = up();
    for (port, nic) in (0..).zip(&setting.nics) {
        assert_eq!((nic.mac(), nic.mtu()), (mac(port), 9000));
        let all =
            [Features::MRG_RXBUF, Features::CSUM, Features::GUEST_TSO4, Features::GUEST_TSO6, Features::HOST_TSO6];
        assert!(all.into_iter().all(|bit| nic.features().has(bit)), "{:?}", nic.features().names());
        assert!(!nic.features().has(Features::EVENT_IDX) && !nic.features().has(Features::PROTOCOL_FEATURES));
        assert!(nic.accepts().has(Accepts::CSUM.with(Accepts::TSO4).with(Accepts::TSO6)));
    }
}

#[test]
fn frames_of_every_length_arrive_as_they_were_sent() {
    let mut setting = up();
    let around = [60, 2036, 4084, 8180, 16372, 32756, 65535].into_iter().flat_map(|at: usize| at - 1..=at + 1);
    let lengths: Vec<usize> = (18..60).step_by(5).chain((60..9018).step_by(211)).chain(around).chain([65550]).collect();
    for from in [0, 1] {
        let mut next = 0;
        setting.until("all have arrived", |setting| {
            while let Some(len) = lengths.get(next) {
                let frame = frame(next as u32, *len);
                // In parts, as a stack has headers and payload.
                let (head, rest) = frame.split_at(14);
                let (middle, tail) = rest.split_at(rest.len() / 3);
                if !setting.nics[from].send(Offload::NONE, &[head, middle, &[], tail]) {
                    break;
                }
                next += 1;
            }
            setting.got[1 - from].len() == lengths.len()
        });
        for (number, (len, (offload, got))) in (0..).zip(lengths.iter().zip(&setting.got[1 - from])) {
            assert_eq!(*got, frame(number, *len), "frame {number} of {len} bytes from {from}");
            assert!(offload.is_none());
        }
        let counters = setting.nics[from].counters();
        assert_eq!((counters.sent, counters.bad_sent), (lengths.len() as u64, 0));
        assert_eq!(setting.nics[1 - from].counters().received, lengths.len() as u64);
    }
}

#[test]
fn super_frames_keep_what_they_owe() {
    let mut setting = up();
    let owed = [Offload::new(Gso::Tcp4, 54, 1448, 34, 16), Offload::new(Gso::Tcp6, 74, 1428, 54, 16)];
    for (n, offload) in owed.into_iter().enumerate() {
        let bytes = frame(n as u32, 65_535);
        setting.until("sent", |setting| setting.nics[0].send(offload, &[&bytes]));
        setting.until("received", |setting| setting.got[1].len() == n + 1);
        assert_eq!(setting.got[1][n], (offload, bytes));
    }
}

#[test]
fn what_nobody_can_send_is_counted_and_no_obstacle() {
    let mut setting = Setting::new();
    assert!(!setting.nics[0].send(Offload::NONE, &[&frame(0, 60)]), "there is no device");
    setting.start_back_end();
    setting.bring_up();
    let ecn = Offload::from_words(Offload::new(Gso::Tcp4, 54, 1448, 34, 16).words(0).0 | 0x8000, 16);
    let wrong: [(Offload, &[u8]); 4] = [
        (Offload::NONE, &[0; 13]),
        (Offload::NONE, &[0; wire::MAX_FRAME + 1]),
        (ecn, &frame(0, 9000)),
        (Offload::new(Gso::Udp, 42, 1472, 34, 6), &frame(0, 9000)),
    ];
    for (offload, bytes) in wrong {
        assert!(setting.nics[0].send(offload, &[bytes]));
    }
    assert_eq!(setting.nics[0].counters().bad_sent, 4);
    assert!(setting.nics[0].send(Offload::NONE, &[&frame(7, 60)]));
    setting.until("the good one", |setting| setting.got[1].len() == 1);
}

#[test]
fn a_full_ring_says_so_and_has_room_again() {
    let mut setting = up();
    let back = setting.back.take().unwrap();
    let mut sent = 0;
    while setting.nics[0].send(Offload::NONE, &[&frame(sent, 65_535)]) {
        sent += 1;
        setting.nics[0].flush().unwrap();
    }
    assert_eq!(sent, 15, "of 17 buffers each");
    while setting.nics[0].send(Offload::NONE, &[&frame(sent, 60)]) {
        sent += 1;
    }
    assert_eq!(sent, 16, "one buffer is left");
    setting.back = Some(back);
    // The receive ring has 256 buffers, of which a super-frame needs 33: seven of them and the small one find room, the rest is dropped.
    setting.until("what finds room has arrived", |setting| setting.got[1].len() == 8);
    for n in 0..sent {
        let len = if n + 1 < sent { 65_535 } else { 60 };
        assert!(setting.nics[0].send(Offload::NONE, &[&frame(n, len)]), "all buffers came back");
    }
}

/// Whether one of the card's descriptors is readable.
fn is_woken(setting: &Setting, nic: usize) -> bool {
    let mut sleep = Sleep::default();
    let began = std::time::Instant::now();
    let limit = crate::switch::LONG;
    sleep.wait(setting.nics[nic].wait_fds(), Some(limit)).unwrap();
    began.elapsed() < limit
}

#[test]
fn a_card_sleeps_until_a_frame_comes_or_its_back_end_goes() {
    let mut setting = up();
    setting.until("quiet", |setting| !setting.nics[1].want_interrupts(true));
    assert!(setting.nics[0].send(Offload::NONE, &[&frame(1, 1000)]));
    setting.nics[0].flush().unwrap();
    setting.back.as_mut().unwrap().turn();
    assert!(is_woken(&setting, 1), "the call");
    assert!(setting.nics[1].want_interrupts(true), "what came is seen without a sleep");
    setting.until("it is here", |setting| setting.got[1].len() == 1);
    setting.until("quiet again", |setting| !setting.nics[1].want_interrupts(true));
    Sleep::default().wait(setting.nics[1].wait_fds(), Some(Duration::ZERO)).unwrap();
    drop(setting.back.take());
    assert!(is_woken(&setting, 1), "the end of the socket");
    setting.until("it is noticed", |setting| !setting.nics[1].is_up());
}

#[test]
fn who_waits_for_room_is_called_when_there_is_some() {
    let mut setting = up();
    let mut sent = 0;
    while setting.nics[0].send(Offload::NONE, &[&frame(sent, 65_535)]) {
        sent += 1;
    }
    setting.nics[0].flush().unwrap();
    assert!(!setting.nics[0].want_interrupts(true), "nothing is used yet");
    setting.back.as_mut().unwrap().turn();
    assert!(is_woken(&setting, 0), "the call of the transmit ring");
    setting.until("there is room", |setting| setting.nics[0].send(Offload::NONE, &[&frame(sent, 65_535)]));
}

#[test]
fn a_back_end_that_sleeps_is_kicked() {
    let mut setting = up();
    let back = setting.back.as_mut().unwrap();
    let mut wake = wire::Wake::default();
    assert!(back.arm(0, &mut wake), "nothing to do");
    assert!(setting.nics[0].send(Offload::NONE, &[&frame(1, 60)]));
    setting.nics[0].flush().unwrap();
    let began = std::time::Instant::now();
    Sleep::default().wait(wake.readable.iter().copied(), Some(crate::switch::LONG)).unwrap();
    assert!(began.elapsed() < crate::switch::LONG, "the kick");
}

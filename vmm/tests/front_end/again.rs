//! Back ends that go and come back.

use std::time::Duration;

use vmm::front_end::{FrontEnd, Peer, State};
use wire::{BURST, Clock, Offload, VirtualClock};

use crate::{
    script::{ADDRESS, Script},
    switch::{Setting, frame, number},
};

#[test]
fn frames_flow_again_and_at_most_one_burst_twice() {
    const FRAMES: u32 = 200;
    let mut setting = Setting::new();
    setting.start_back_end();
    setting.bring_up();
    for n in 0..FRAMES {
        assert!(setting.nics[0].send(Offload::NONE, &[&frame(n, 60 + 7 * n as usize)]));
    }
    setting.nics[0].flush().unwrap();
    setting.back.as_mut().unwrap().turn();
    let given = setting.back.take().unwrap().die_in_a_turn();
    assert_eq!(given, BURST);
    setting.until("the end is noticed", |setting| setting.nics.iter().all(|nic| !nic.is_up()));
    let why = setting.nics[0].front_end().failure().unwrap().to_string();
    assert!(why.contains("the back end"), "{why}");
    // What is sent meanwhile waits.
    assert!(setting.nics[0].send(Offload::NONE, &[&frame(FRAMES, 100)]));
    setting.start_back_end();
    setting.bring_up();
    setting.until("the last one", |setting| setting.got[1].last().is_some_and(|(_, bytes)| number(bytes) == FRAMES));
    let numbers: Vec<u32> = setting.got[1].iter().map(|(_, bytes)| number(bytes)).collect();
    let twice = numbers.len() - (FRAMES as usize + 1);
    assert_eq!(twice, given, "the burst that nobody knew to be done");
    let (first, again) = numbers.split_at(2 * BURST);
    assert!(first.iter().copied().eq(0..2 * BURST as u32), "{numbers:?}");
    assert!(again.iter().copied().eq(BURST as u32..=FRAMES), "{numbers:?}");
    for (_, bytes) in &setting.got[1] {
        assert_eq!(*bytes, frame(number(bytes), bytes.len()));
    }
    assert_eq!(setting.nics[0].front_end().starts(), 2);
}

#[test]
fn it_goes_on_through_many_ends() {
    let mut setting = Setting::new();
    for round in 0..5 {
        setting.start_back_end();
        setting.bring_up();
        for from in [0, 1] {
            for n in 0..300 {
                setting.until("sent", |setting| setting.nics[from].send(Offload::NONE, &[&frame(n, 1500)]));
            }
            setting.until("received", |setting| setting.got[1 - from].len() == 300 * (round + 1));
        }
        drop(setting.back.take());
        setting.until("the end is noticed", |setting| setting.nics.iter().all(|nic| !nic.is_up()));
    }
    for got in &setting.got {
        assert!(got.iter().map(|(_, bytes)| number(bytes)).eq((0..5).flat_map(|_| 0..300)), "all, once and in order");
    }
}

#[test]
fn pauses_double_up_to_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let clock = VirtualClock::default();
    let mut front = FrontEnd::new(Peer::Connect(dir.path().join("nobody.sock")), Default::default());
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let now = clock.now();
        let at = front.poll(now).unwrap();
        assert_eq!(front.poll(now), Some(at), "nothing happens before its time");
        pauses.push(at.since(now).as_millis());
        clock.advance(at.since(now));
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
    assert_eq!(front.state(), State::Absent);
    assert!(front.failure().unwrap().to_string().contains("nobody.sock"));
}

#[test]
fn a_back_end_that_says_nothing_is_given_up() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let clock = VirtualClock::default();
    let mut front = FrontEnd::new(Peer::Stream(ours), Default::default());
    let at = front.poll(clock.now()).unwrap();
    clock.advance(at.since(clock.now()) - Duration::from_nanos(1));
    assert_eq!((front.poll(clock.now()), front.state()), (Some(at), State::Greeting));
    clock.advance(Duration::from_nanos(1));
    front.poll(clock.now());
    assert_eq!(front.state(), State::Absent);
    assert_eq!(front.failure().unwrap().to_string(), "the back end has not answered GET_FEATURES for 10 s");
    drop(theirs);
}

#[test]
fn a_back_end_may_be_handed_over() {
    let clock = VirtualClock::default();
    let mut front = FrontEnd::new(Peer::Nobody, Default::default());
    assert_eq!((front.poll(clock.now()), front.state()), (None, State::Absent));
    for _ in 0..2 {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut back, before) = (Script::new(theirs), front.connections());
        front.adopt(ours);
        front.poll(clock.now());
        while front.state() == State::Greeting {
            back.serve();
            front.poll(clock.now());
        }
        assert_eq!((front.state(), front.offer().unwrap().mac), (State::Ready, Some(ADDRESS)));
        assert!(front.connections() > before);
    }
}

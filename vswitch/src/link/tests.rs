//! Links: order, fullness, sleepers, what is owed, and two workers that exchange frames.

use std::{
    os::fd::AsRawFd,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use sys::poll::Sleep;
use wire::{Gso, Instant, Sizes};

use super::*;
use crate::{
    BridgeSpec, NicSpec,
    change::{BridgeId, Change},
    thread::{Idle, WorkerHandle, WorkerSpec},
    worker::Worker,
};

const SPEC: LinkSpec = LinkSpec { depth: 4, frame: 2048 };

fn context() -> Context {
    let mut cx = Context::new(Sizes { heads: 256, pieces: 256, pool: 1 << 20 }).unwrap();
    cx.add_nic(NicId(0));
    cx.begin_turn(Instant::START);
    cx
}

/// Transmits frames of these lengths, each filled with its place; what they owe.
fn transmit(cx: &mut Context, port: &mut LinkPort, lengths: &[usize], owed: Offload) {
    let mut burst = Burst::default();
    for (n, len) in lengths.iter().enumerate() {
        let frame = cx.originate(Origin { nic: NicId(7), lane: 1 }, &vec![n as u8; *len]).unwrap();
        cx.heads.get_mut(&frame).offload = owed;
        burst.push(frame).unwrap();
    }
    port.transmit(cx, &mut burst).unwrap();
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
}

fn receive(cx: &mut Context, port: &mut LinkPort) -> Vec<(Origin, Offload, Vec<u8>)> {
    let mut burst = Burst::default();
    port.receive(cx, &mut burst).unwrap();
    let frames = burst.drain().map(|frame| {
        let head = cx.heads.get(&frame);
        let (origin, offload, mut bytes) = (head.origin, head.offload, vec![0; head.len()]);
        assert_eq!(cx.read_all(&frame, &mut bytes), Some(bytes.len()));
        cx.transmitted(1, 0);
        (origin, offload, bytes)
    });
    let frames = frames.collect();
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
    frames
}

#[test]
fn frames_cross_in_their_order_with_what_they_owe() {
    let (mut a, b) = link(SPEC).unwrap();
    let mut b = b.keeping_origin();
    let owed = Offload::new(Gso::Tcp4, 54, 100, 34, 16);
    let (mut here, mut there) = (context(), context());
    for _ in 0..5 {
        here.begin_turn(Instant::START);
        there.begin_turn(Instant::START);
        transmit(&mut here, &mut a, &[60, 128, 1514], owed);
        let came = receive(&mut there, &mut b);
        let lengths: Vec<usize> = came.iter().map(|(_, _, bytes)| bytes.len()).collect();
        assert_eq!(lengths, [60, 128, 1514]);
        for (n, (origin, offload, bytes)) in came.iter().enumerate() {
            assert_eq!((origin.nic, origin.lane, *offload), (NicId(7), 1, owed));
            assert!(bytes.iter().all(|byte| usize::from(*byte) == n));
        }
    }
    // And the other way, as if received by the port's own NIC.
    transmit(&mut there, &mut b, &[60], Offload::NONE);
    assert_eq!(receive(&mut here, &mut a), [(Origin { nic: NicId(0), lane: 0 }, Offload::NONE, vec![0; 60])]);
}

#[test]
fn a_full_link_and_a_frame_too_long_are_counted_drops_and_lose_no_parcel() {
    let (mut a, mut b) = link(SPEC).unwrap();
    let (mut here, mut there) = (context(), context());
    let drops = |cx: &Context, reason| cx.counters(NicId(0)).unwrap().drops(reason);
    for round in 1..4 {
        here.begin_turn(Instant::START);
        there.begin_turn(Instant::START);
        transmit(&mut here, &mut a, &[60, 3000, 61, 62, 63, 64, 65], Offload::NONE);
        assert_eq!((drops(&here, DropReason::RingFull), drops(&here, DropReason::TooBig)), (2 * round, round));
        assert_eq!(receive(&mut there, &mut b).len(), 4);
    }
    drop(b);
    here.begin_turn(Instant::START);
    transmit(&mut here, &mut a, &[60], Offload::NONE);
    assert_eq!(drops(&here, DropReason::NotReady), 1, "the other side is gone");
}

#[test]
fn a_turn_without_memory_loses_frames_with_a_reason_and_gets_the_next() {
    let (mut a, mut b) = link(LinkSpec { depth: 64, ..SPEC }).unwrap();
    let mut here = context();
    let mut there = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
    there.add_nic(NicId(0));
    there.begin_turn(Instant::START);
    transmit(&mut here, &mut a, &[1514; 20], Offload::NONE);
    let came = receive(&mut there, &mut b).len();
    assert!((1..20).contains(&came));
    assert_eq!(there.counters(NicId(0)).unwrap().drops(DropReason::NoBuffers), 20 - came as u64);
    there.begin_turn(Instant::START);
    here.begin_turn(Instant::START);
    transmit(&mut here, &mut a, &[60], Offload::NONE);
    assert_eq!(receive(&mut there, &mut b).len(), 1);
}

#[test]
fn who_sleeps_is_rung_once_and_who_polls_never() {
    let (mut port, mut end) = link_to_thread(SPEC).unwrap();
    let mut cx = context();
    let rung = |end: &LinkEnd| end.side.ours.event.drain().unwrap();
    transmit(&mut cx, &mut port, &[60], Offload::NONE);
    assert!(!rung(&end), "it does not sleep");
    assert!(!end.arm(), "something is there already");
    end.disarm();
    assert!(end.receive(|nic, bytes| assert_eq!((nic, bytes.len()), (NicId(7), 60))).is_some());
    assert!(end.receive(|_, _| ()).is_none());
    assert!(end.arm());
    cx.begin_turn(Instant::START);
    transmit(&mut cx, &mut port, &[60, 60], Offload::NONE);
    transmit(&mut cx, &mut port, &[60], Offload::NONE);
    Sleep::default().wait([end.as_raw_fd()].into_iter(), Some(Duration::from_secs(60))).unwrap();
    assert!(rung(&end));
    end.disarm();
    assert!(!rung(&end), "once");

    // The worker sleeps.
    let mut wake = Wake::default();
    assert!(port.wake(&mut wake));
    assert_eq!(wake.readable, [port.side.ours.event.as_raw_fd()]);
    assert!(end.send(&[1; 60]));
    assert!(!port.side.ours.event.drain().unwrap(), "not before the flush");
    end.flush();
    end.flush();
    Sleep::default().wait(wake.readable.iter().copied(), Some(Duration::from_secs(60))).unwrap();
    port.awake();
    assert_eq!(receive(&mut cx, &mut port).len(), 1);
    // A side that goes wakes the other.
    assert!(port.wake(&mut wake) && end.is_open());
    assert!(end.arm() || end.receive(|_, _| ()).is_some());
    drop(port);
    Sleep::default().wait([end.as_raw_fd()].into_iter(), Some(Duration::from_secs(60))).unwrap();
    assert!(!end.is_open() && !end.send(&[1; 60]));
}

/// An IPv4 frame with a TCP header and this much payload, without a checksum.
fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0]);
    bytes.extend((40 + payload as u16).to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0]);
    bytes.extend([0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.resize(54 + payload, 0x5a);
    let sum = wire::checksum::Checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, 20 + payload as u16);
    bytes[50..52].copy_from_slice(&sum.fold().to_be_bytes());
    bytes
}

#[test]
fn a_thread_gets_frames_that_owe_nothing() {
    let (mut port, mut end) = link_to_thread(LinkSpec { depth: 16, frame: 2048 }).unwrap();
    let mut cx = context();
    let mut burst = Burst::default();
    let frame = cx.originate(Origin::default(), &tcp(3000)).unwrap();
    cx.heads.get_mut(&frame).offload = Offload::new(Gso::Tcp4, 54, 1400, 34, 16);
    burst.push(frame).unwrap();
    port.transmit(&mut cx, &mut burst).unwrap();
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
    for payload in [1400, 1400, 200] {
        let segment = end.receive(|_, bytes| bytes.to_vec()).unwrap();
        assert_eq!(segment.len(), 54 + payload);
        let mut sum = wire::checksum::Checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, 20 + payload as u16);
        sum.add_bytes(&segment[34..]);
        assert!(sum.is_valid());
    }
    assert!(end.receive(|_, _| ()).is_none());
}

/// A station: sends numbered frames to the other one, as long as the window is open, and checks what arrives.
struct Station {
    me: u8,
    sent: u64,
    arrived: u64,
    acknowledged: u64,
    done: Sender<u64>,
}

const FRAMES: u64 = 20_000;
const WINDOW: u64 = 48;

fn numbered(to: u8, from: u8, number: u64) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    bytes.extend(number.to_be_bytes());
    bytes.resize(60 + (number % 1400) as usize, number as u8);
    bytes
}

impl Port for Station {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        while self.sent < FRAMES && self.sent - self.acknowledged < WINDOW && burst.room() > 0 {
            let bytes = numbered(3 - self.me, self.me, self.sent);
            let frame = cx.originate(Origin { nic: cx.nic, lane: 0 }, &bytes).unwrap();
            burst.push(frame).unwrap();
            self.sent += 1;
        }
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            let mut bytes = [0; 2048];
            let len = cx.read_all(&frame, &mut bytes).unwrap();
            assert_eq!(bytes[..len], numbered(self.me, 3 - self.me, self.arrived), "in order, whole, once");
            self.arrived += 1;
            // Each side sends one for every one that it gets, so what arrives says what has arrived there.
            self.acknowledged = self.arrived.saturating_sub(WINDOW / 2);
            cx.transmitted(1, len as u64);
            if self.arrived == FRAMES {
                self.done.send(self.arrived).unwrap();
            }
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        self.sent == FRAMES || self.sent - self.acknowledged >= WINDOW
    }
}

fn changes(me: u8, link: LinkPort) -> (Vec<Change>, Receiver<u64>) {
    let (done, ready) = channel();
    let station = Station { me, sent: 0, arrived: 0, acknowledged: 0, done };
    let ports: [Box<dyn Port>; 2] = [Box::new(station), Box::new(link)];
    let mut changes = vec![Change::AddBridge { id: BridgeId(0), spec: BridgeSpec::new(u64::from(me)) }];
    for (nic, port) in ports.into_iter().enumerate() {
        let nic = NicId(nic as u16);
        changes.push(Change::AddNic { nic, bridge: BridgeId(0), spec: NicSpec::default() });
        changes.push(Change::Attach { nic, lane: 0, port });
    }
    (changes, ready)
}

fn exchange(idle: Idle) {
    let (a, b) = link(LinkSpec { depth: 256, frame: 2048 }).unwrap();
    let spec = WorkerSpec { cpu: None, idle, sizes: Sizes::default() };
    let started: Vec<_> = [(1, a), (2, b)]
        .into_iter()
        .map(|(me, link)| {
            let worker = WorkerHandle::spawn(spec, Box::new(|failure| panic!("{}", failure.reason))).unwrap();
            let (changes, ready) = changes(me, link);
            changes.into_iter().for_each(|change| assert!(worker.changes().send(change)));
            (worker, ready)
        })
        .collect();
    for (_, ready) in &started {
        assert_eq!(ready.recv_timeout(Duration::from_secs(60)), Ok(FRAMES));
    }
    for (worker, _) in &started {
        let (reply, report) = std::sync::mpsc::sync_channel(1);
        assert!(worker.changes().send(Change::Show { reply }));
        let report = report.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(report.ledger.balances() && report.ledger.dropped == 0, "{:?}", report.ledger);
    }
}

#[test]
fn two_workers_that_sleep_exchange_frames() {
    exchange(Idle::Sleep);
}

#[test]
fn two_workers_that_spin_exchange_frames() {
    exchange(Idle::Adaptive(Duration::from_micros(50)));
}

#[test]
fn a_worker_without_its_peer_drops_and_goes_on() {
    let (a, b) = link(SPEC).unwrap();
    drop(b);
    let mut worker = Worker::new(Sizes::default(), None, Box::new(|failure| panic!("{}", failure.reason))).unwrap();
    let (changes, _ready) = changes(1, a);
    assert!(changes.into_iter().all(|change| worker.apply(change)));
    assert_eq!(worker.round(Instant::START), WINDOW as usize);
    let ledger = worker.context().ledger;
    assert!(ledger.balances() && ledger.dropped == WINDOW, "{ledger:?}");
}

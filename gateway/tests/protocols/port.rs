//! [`GatewayPort`] with a real context: the ledger balances, and nothing is allocated for a frame.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use etherparse::NetHeaders;
use gateway::{Elsewhere, Gateway, GatewayPort, Leg, dhcp::LeaseState, lease_book};
use sys::allocations::count;
use wire::{ANSWERS, Burst, Context, DropReason, Instant, Mac, NicId, Offload, Origin, Port, Sizes, Wake};

use crate::{
    arp::request,
    conflict::answer,
    dhcp_client::{ACK, Ask, DISCOVER, OFFER, REQUEST, Told},
    ipv6::solicitation,
    segment::{GLOBAL, GUEST, GUEST_GLOBAL, OUTSIDE, ROUTER, check, config, ping, udp},
};

const GUEST_NIC: NicId = NicId(0);
const ROUTER_NIC: NicId = NicId(1);

struct Bridge {
    cx: Context,
    now: Instant,
    /// Changes places with the context's answers, so that nothing is allocated for them.
    answers: Box<Burst<ANSWERS>>,
}

impl Bridge {
    fn new(port: &mut GatewayPort) -> Self {
        let mut cx = Context::new(Sizes::default()).unwrap();
        cx.add_nic(GUEST_NIC);
        cx.add_nic(ROUTER_NIC);
        cx.nic = ROUTER_NIC;
        port.attach(&mut cx).unwrap();
        Bridge { cx, now: Instant::START + Duration::from_secs(5), answers: Box::default() }
    }

    /// One turn in which the guest sends `frames`; the answers that `each` is shown count as transmitted to the guest.
    fn turn(&mut self, port: &mut dyn Port, frames: &[Vec<u8>], offload: Offload, mut each: impl FnMut(&[u8])) {
        let cx = &mut self.cx;
        cx.begin_turn(self.now);
        let mut burst = Burst::default();
        cx.nic = GUEST_NIC;
        for frame in frames {
            // From `originate` to `received`: as if a port had read it.
            let sent = cx.originate(Origin { nic: GUEST_NIC, lane: 0 }, frame).unwrap();
            cx.ledger.originated -= 1;
            cx.received(1, frame.len() as u64);
            cx.heads.get_mut(&sent).offload = offload;
            burst.push(sent).unwrap();
        }
        cx.nic = ROUTER_NIC;
        port.transmit(cx, &mut burst).unwrap();
        assert!(burst.is_empty());
        port.receive(cx, &mut burst).unwrap();
        std::mem::swap(&mut self.answers, &mut cx.answers);
        let mut bytes = [0; 2048];
        for frame in self.answers.drain().chain(burst.drain()) {
            assert_eq!(cx.heads.get(&frame).origin, Origin { nic: ROUTER_NIC, lane: 0 });
            assert_eq!(cx.heads.get(&frame).offload, Offload::NONE);
            let len = cx.read_all(&frame, &mut bytes).unwrap();
            each(&bytes[..len]);
            cx.nic = GUEST_NIC;
            cx.transmitted(1, len as u64);
        }
        cx.nic = ROUTER_NIC;
        port.release(cx).unwrap();
        assert!(cx.ledger.balances(), "{:?}", cx.ledger);
    }
}

fn leg(elsewhere: Elsewhere) -> Leg {
    Leg::new(Gateway::new(gateway::Config { elsewhere, ..config() }, Instant::START).unwrap())
}

fn router(elsewhere: Elsewhere) -> GatewayPort {
    GatewayPort::new(vec![leg(elsewhere)])
}

#[test]
fn every_frame_is_answered_or_dropped_with_a_reason_and_the_ledger_balances() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    let mut flooded = request(Ipv4Addr::new(192, 168, 7, 99), OUTSIDE);
    flooded[..6].copy_from_slice(&Mac::BROADCAST.bytes());
    let frames = [
        request(GUEST, ROUTER),
        ping(ROUTER, 64, &[1; 1400]),
        solicitation(GUEST_GLOBAL, GLOBAL, GLOBAL, true),
        Ask::new(DISCOVER).frame(),
        udp(OUTSIDE, 64, 53, &[2; 1000]),
        flooded,
        ping(GUEST, 64, b"")[..20].to_vec(),
    ];
    let mut answers = 0;
    bridge.turn(&mut port, &frames, Offload::NONE, |bytes| {
        check(bytes);
        answers += 1;
    });
    // Four answers, an error, and the first router advertisement.
    assert_eq!(answers, 6);
    let counters = bridge.cx.counters(ROUTER_NIC).unwrap();
    assert_eq!((counters.tx_frames, counters.total_drops()), (4, 3));
    assert_eq!(counters.drops(DropReason::NoRoute), 1);
}

#[test]
fn a_checksum_that_is_owed_is_not_looked_at_and_the_answer_is_complete() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    bridge.turn(&mut port, &[], Offload::NONE, |_| {});
    let mut frame = Ask::new(DISCOVER).frame();
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    let mut answers = 0;
    let owed = Offload::new(wire::Gso::None, 0, 0, 34, 6);
    for offload in [Offload::NONE, owed] {
        bridge.turn(&mut port, std::slice::from_ref(&frame), offload, |_| {});
    }
    bridge.now = bridge.now + Duration::from_millis(100);
    bridge.turn(&mut port, &[], Offload::NONE, |bytes| {
        Told::read(bytes);
        answers += 1;
    });
    assert_eq!(answers, 1);
    assert_eq!(bridge.cx.counters(ROUTER_NIC).unwrap().drops(DropReason::BadPacket), 1);
}

#[test]
fn arp_echo_and_neighbour_discovery_allocate_nothing() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    let frames = [
        request(GUEST, ROUTER),
        ping(ROUTER, 64, &[1; 1400]),
        solicitation(GUEST_GLOBAL, GLOBAL, GLOBAL, true),
        udp(OUTSIDE, 64, 53, &[2; 1000]),
    ];
    let mut answers = 0;
    bridge.turn(&mut port, &frames, Offload::NONE, |_| {});
    let before = count();
    assert!(before > 0, "the counting allocator is not in place");
    for _ in 0..100 {
        bridge.turn(&mut port, &frames, Offload::NONE, |_| answers += 1);
        bridge.now = bridge.now + Duration::from_secs(1);
    }
    assert_eq!(count() - before, 0);
    assert!(answers >= 400);
}

#[test]
fn advertisements_come_when_wake_said_so() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    for _ in 0..5 {
        let mut wake = Wake::default();
        assert!(port.wake(&mut wake));
        let due = wake.deadline.unwrap();
        if due > bridge.now {
            bridge.now = due - Duration::from_nanos(1);
            bridge.turn(&mut port, &[], Offload::NONE, |_| panic!("too early"));
        }
        bridge.now = bridge.now.max(due);
        let mut said = 0;
        bridge.turn(&mut port, &[], Offload::NONE, |_| said += 1);
        assert_eq!(said, 1);
    }
}

#[test]
fn the_book_shows_the_leases_also_after_it_was_not_read_for_long() {
    let (send, mut book) = lease_book();
    let mut port = GatewayPort::new(vec![leg(Elsewhere::Unreachable).with_book(send)]);
    let mut bridge = Bridge::new(&mut port);
    bridge.turn(&mut port, &[Ask::new(DISCOVER).frame()], Offload::NONE, |_| {});
    assert_eq!(book.leases().map(|lease| lease.state).collect::<Vec<_>>(), [LeaseState::Offered]);
    for n in 0..3000u16 {
        let [high, low] = n.to_be_bytes();
        let ask = Ask::new(DISCOVER).of(Mac::new([2, 0, 0, 2, high, low])).frame();
        bridge.turn(&mut port, &[ask], Offload::NONE, |_| {});
    }
    // What waited is read; then the whole table comes, at the time that the port asks to be woken at.
    let _ = book.leases().count();
    let mut wake = Wake::default();
    assert!(port.wake(&mut wake) && wake.deadline.unwrap() <= bridge.now + Duration::from_secs(1));
    bridge.now = bridge.now + Duration::from_secs(1);
    bridge.turn(&mut port, &[], Offload::NONE, |_| {});
    let shown: Vec<_> = book.leases().cloned().collect();
    assert!(shown.len() > 1);
    assert!(shown.iter().eq(port.gateways().next().unwrap().leases()));
}

/// What the router says in a turn: offers and the like, and addresses that it asks for.
fn said(bridge: &mut Bridge, port: &mut GatewayPort, frames: &[Vec<u8>]) -> (Vec<Told>, Vec<Ipv4Addr>) {
    let (mut told, mut asked) = (Vec::new(), Vec::new());
    bridge.turn(port, frames, Offload::NONE, |answer| match check(answer).net {
        Some(NetHeaders::Arp(arp)) => asked.push(<[u8; 4]>::try_from(arp.target_protocol_addr()).unwrap().into()),
        Some(NetHeaders::Ipv4(..)) => told.push(Told::read(answer)),
        _ => {}
    });
    (told, asked)
}

#[test]
fn a_new_address_is_asked_for_by_arp_and_offered_a_moment_later() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    let (told, asked) = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]);
    assert!(told.is_empty() && asked.len() == 1, "{told:?} {asked:?}");
    // Who is impatient is answered once.
    bridge.now = bridge.now + Duration::from_millis(10);
    assert!(said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]).0.is_empty());
    let mut wake = Wake::default();
    assert!(port.wake(&mut wake) && wake.deadline.unwrap() <= bridge.now + Duration::from_millis(40));
    bridge.now = wake.deadline.unwrap();
    let (told, _) = said(&mut bridge, &mut port, &[]);
    assert_eq!(told.iter().map(|told| (told.kind, told.address)).collect::<Vec<_>>(), [(OFFER, asked[0])]);
    let request = Ask::new(REQUEST).address(54, ROUTER).address(50, asked[0]).frame();
    assert_eq!(said(&mut bridge, &mut port, &[request]).0[0].kind, ACK);
    let (told, asked) = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]);
    assert!(told.len() == 1 && asked.is_empty(), "what it has it is offered at once");
}

#[test]
fn an_offer_is_not_made_when_somebody_says_that_the_address_is_theirs() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    let (_, first) = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]);
    let theirs = answer(Mac::new([2, 0, 0, 0, 0, 0x55]), first[0]);
    assert!(said(&mut bridge, &mut port, &[theirs]).0.is_empty());
    bridge.now = bridge.now + Duration::from_millis(100);
    assert!(said(&mut bridge, &mut port, &[]).0.is_empty(), "forgotten");
    let (_, second) = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]);
    bridge.now = bridge.now + Duration::from_millis(100);
    let (told, _) = said(&mut bridge, &mut port, &[]);
    assert_eq!((told[0].kind, told[0].address), (OFFER, second[0]));
    assert_ne!(first, second);
}

#[test]
fn a_lease_that_no_offer_went_before_begins_when_nobody_says_that_the_address_is_theirs() {
    let address = Ipv4Addr::new(192, 168, 7, 40);
    let renew = Ask::new(REQUEST).from(address).frame();
    for stranger in [false, true] {
        let mut port = router(Elsewhere::Unreachable);
        let mut bridge = Bridge::new(&mut port);
        let (told, asked) = said(&mut bridge, &mut port, std::slice::from_ref(&renew));
        assert!(told.is_empty() && asked == [address], "{told:?} {asked:?}");
        let theirs = [answer(Mac::new([2, 0, 0, 0, 0, 0x55]), address)];
        assert!(said(&mut bridge, &mut port, if stranger { &theirs } else { &[] }).0.is_empty());
        bridge.now = bridge.now + Duration::from_millis(100);
        let (told, _) = said(&mut bridge, &mut port, &[]);
        let state = port.gateways().next().unwrap().leases().next().unwrap().state;
        if stranger {
            assert!(told.is_empty() && state == LeaseState::InUse, "{told:?} {state:?}");
        } else {
            assert_eq!((told[0].kind, told[0].address, state), (ACK, address, LeaseState::Bound));
        }
    }
}

#[test]
fn who_takes_an_offer_before_it_is_made_waits_as_long_as_it() {
    let mut port = router(Elsewhere::Unreachable);
    let mut bridge = Bridge::new(&mut port);
    let (_, asked) = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).frame()]);
    let request = Ask::new(REQUEST).address(54, ROUTER).address(50, asked[0]).frame();
    assert!(said(&mut bridge, &mut port, &[request]).0.is_empty());
    let theirs = answer(Mac::new([2, 0, 0, 0, 0, 0x55]), asked[0]);
    assert!(said(&mut bridge, &mut port, &[theirs]).0.is_empty());
    bridge.now = bridge.now + Duration::from_millis(100);
    assert!(said(&mut bridge, &mut port, &[]).0.is_empty(), "neither offer nor acknowledgement");
    assert_eq!(port.gateways().next().unwrap().leases().next().unwrap().state, LeaseState::InUse);
}

/// A service that takes what it is given.
struct Serves(Arc<AtomicU64>);

impl Port for Serves {
    fn receive(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            let len = cx.heads.get(&frame).len();
            cx.transmitted(1, len as u64);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, _: &mut Wake) -> bool {
        true
    }
}

#[test]
fn a_way_out_that_fails_leaves_the_service_its_frames() {
    let config = gateway::Config { elsewhere: Elsewhere::Forward, services: vec![53], ..config() };
    let served = Arc::new(AtomicU64::new(0));
    let leg = Leg::new(Gateway::new(config, Instant::START).unwrap());
    let leg = leg.with_way_out(Box::new(WayOut(Arc::new(AtomicU64::new(1)))), 0);
    let mut port = GatewayPort::new(vec![leg.with_service(Box::new(Serves(served.clone())))]);
    let mut bridge = Bridge::new(&mut port);
    bridge.cx.begin_turn(bridge.now);
    let mut burst = Burst::default();
    for frame in [udp(OUTSIDE, 64, 53, b""), udp(ROUTER, 64, 53, b"")] {
        burst.push(bridge.cx.originate(Origin { nic: GUEST_NIC, lane: 0 }, &frame).unwrap()).unwrap();
    }
    assert!(port.transmit(&mut bridge.cx, &mut burst).is_err());
    assert_eq!(served.load(Ordering::Relaxed), 1);
    assert!(bridge.cx.ledger.balances(), "{:?}", bridge.cx.ledger);
}

#[test]
fn what_waits_for_an_address_stays_when_that_is_only_offered() {
    let (mut port, way_out) = (Vec::new(), Box::new(Inward(udp(GUEST, 64, 5, b"in"))));
    port.push(leg(Elsewhere::Forward).with_way_out(way_out, 0));
    let mut port = GatewayPort::new(port);
    let mut bridge = Bridge::new(&mut port);
    let (_, asked) = said(&mut bridge, &mut port, &[]);
    assert_eq!(asked, [GUEST], "a packet from outside waits for its guest");
    let held = bridge.cx.ledger.held;
    assert!(held > 0);
    let offered = said(&mut bridge, &mut port, &[Ask::new(DISCOVER).address(50, GUEST).frame()]);
    assert_eq!(offered.0.iter().map(|told| told.address).collect::<Vec<_>>(), [GUEST], "asked for already");
    assert!(bridge.cx.ledger.held >= held, "it waits on: {:?}", bridge.cx.ledger);
}

/// A way out that gives one packet back again and again.
struct Inward(Vec<u8>);

impl Port for Inward {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let frame = cx.originate(Origin { nic: ROUTER_NIC, lane: 0 }, &self.0).unwrap();
        cx.heads.get_mut(&frame).bytes_mut()[..6].fill(0);
        burst.push(frame).map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    fn transmit(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }

    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, _: &mut Wake) -> bool {
        true
    }
}

/// A way out that counts, and fails when it has counted to two.
struct WayOut(Arc<AtomicU64>);

impl Port for WayOut {
    fn receive(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        while let Some(frame) = burst.pop() {
            let len = cx.heads.get(&frame).len();
            cx.transmitted(1, len as u64);
            if self.0.fetch_add(1, Ordering::Relaxed) == 1 {
                return Err(io::ErrorKind::NotConnected.into());
            }
        }
        Ok(())
    }

    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, _: &mut Wake) -> bool {
        true
    }
}

#[test]
fn what_goes_elsewhere_is_handed_to_the_way_out() {
    let frames = [udp(OUTSIDE, 64, 53, &[2; 1000]), udp(OUTSIDE, 1, 53, b""), request(GUEST, ROUTER)];
    let out = Arc::new(AtomicU64::new(0));
    let way_out = Box::new(WayOut(out.clone()));
    let mut port = GatewayPort::new(vec![leg(Elsewhere::Forward).with_way_out(way_out, 0)]);
    let mut bridge = Bridge::new(&mut port);
    bridge.turn(&mut port, &frames, Offload::NONE, |_| {});
    assert_eq!(out.load(Ordering::Relaxed), 1);
    assert_eq!(bridge.cx.counters(ROUTER_NIC).unwrap().drops(DropReason::TtlExceeded), 1);
    bridge.cx.begin_turn(bridge.now);
    let mut burst = Burst::default();
    for _ in 0..3 {
        burst.push(bridge.cx.originate(Origin { nic: GUEST_NIC, lane: 0 }, &frames[0]).unwrap()).unwrap();
    }
    assert!(port.transmit(&mut bridge.cx, &mut burst).is_err(), "a port that fails takes the router with it");
    assert!(bridge.cx.ledger.balances(), "{:?}", bridge.cx.ledger);
    let mut port = router(Elsewhere::Forward);
    let mut bridge = Bridge::new(&mut port);
    bridge.turn(&mut port, &frames, Offload::NONE, |_| {});
    assert_eq!(bridge.cx.counters(ROUTER_NIC).unwrap().drops(DropReason::NoRoute), 1, "nothing is behind");
}

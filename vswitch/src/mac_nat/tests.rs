//! The port with an uplink in memory.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use wire::{Gso, NicId, Offload, Origin, Sizes};

use super::{remote::Remote, *};

const UPLINK: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Receives what it is told to and tells what it sends.
struct Wire {
    incoming: Receiver<Vec<u8>>,
    outgoing: Sender<(Vec<u8>, Offload)>,
    fails: bool,
}

impl Port for Wire {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for bytes in self.incoming.try_iter() {
            burst.push(cx.originate(Origin { nic: cx.nic, lane: 0 }, &bytes).unwrap()).unwrap();
        }
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        if self.fails {
            return Err(io::Error::other("gone"));
        }
        for frame in burst.drain() {
            let mut bytes = [0; 2048];
            let len = cx.read_all(&frame, &mut bytes).unwrap();
            self.outgoing.send((bytes[..len].to_vec(), cx.heads.get(&frame).offload)).unwrap();
            cx.transmitted(1, len as u64);
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

struct Stand {
    port: MacNatPort,
    cx: Context,
    incoming: Sender<Vec<u8>>,
    outgoing: Receiver<(Vec<u8>, Offload)>,
}

fn stand(fails: bool) -> Stand {
    let ((incoming, heard), (said, outgoing)) = (channel(), channel());
    let uplink = Wire { incoming: heard, outgoing: said, fails };
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(1));
    Stand { port: MacNatPort::new(Box::new(uplink), Mac::new(UPLINK), Vec::new()), cx, incoming, outgoing }
}

/// IPv4 from `from` to `to`, whose last bytes are a thousand bytes of body.
fn packet(mac_to: [u8; 6], mac_from: [u8; 6], from: u8, to: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(mac_from, mac_to);
    let builder = builder.ipv4([192, 0, 2, from], [192, 0, 2, to], 64).tcp(1, 2, 3, 4);
    builder.write(&mut bytes, &[7; 1000]).unwrap();
    bytes
}

fn send(stand: &mut Stand, bytes: &[u8], offload: Offload) -> io::Result<()> {
    let mut burst = Burst::default();
    let frame = stand.cx.originate(Origin { nic: NicId(1), lane: 0 }, bytes).unwrap();
    stand.cx.heads.get_mut(&frame).offload = offload;
    burst.push(frame).unwrap();
    stand.port.transmit(&mut stand.cx, &mut burst)
}

#[test]
fn a_super_frame_keeps_its_body_and_what_it_owes() {
    let mut stand = stand(false);
    let owed = Offload::new(Gso::Tcp4, 54, 500, 34, 16);
    send(&mut stand, &packet(OUTSIDE, GUEST, 10, 99), owed).unwrap();
    assert_eq!(stand.outgoing.try_recv().unwrap(), (packet(OUTSIDE, UPLINK, 10, 99), owed));
    assert!(stand.cx.ledger.balances());
}

#[test]
fn what_comes_in_is_the_guests_or_a_counted_drop() {
    let mut stand = stand(false);
    send(&mut stand, &packet(OUTSIDE, GUEST, 10, 99), Offload::NONE).unwrap();
    stand.incoming.send(packet(UPLINK, OUTSIDE, 99, 10)).unwrap();
    stand.incoming.send(packet(UPLINK, OUTSIDE, 99, 11)).unwrap();
    let mut burst = Burst::default();
    stand.port.receive(&mut stand.cx, &mut burst).unwrap();
    let frames: Vec<_> = burst.drain().collect();
    let mut bytes = [0; 2048];
    let len = stand.cx.read_all(&frames[0], &mut bytes).unwrap();
    assert_eq!((frames.len(), &bytes[..len]), (1, &packet(GUEST, OUTSIDE, 99, 10)[..]));
    assert_eq!(stand.cx.ledger.dropped, 1);
}

#[test]
fn of_an_uplink_that_fails_every_frame_is_accounted_for() {
    let mut stand = stand(true);
    send(&mut stand, &packet(OUTSIDE, GUEST, 10, 99), Offload::NONE).unwrap_err();
    assert_eq!(stand.cx.ledger.dropped, 1);
    assert!(stand.cx.ledger.balances());
}

#[test]
fn control_hears_of_addresses_and_reserves_some() {
    let mut stand = stand(false);
    let (remote, inbox) = remote::remote();
    stand.port = stand.port.with_inbox(inbox);
    let at = |stand: &mut Stand, ms: u64| stand.cx.begin_turn(wire::Instant::START + Duration::from_millis(ms));
    at(&mut stand, 1000);
    send(&mut stand, &packet(OUTSIDE, GUEST, 10, 99), Offload::NONE).unwrap();
    at(&mut stand, 1200);
    send(&mut stand, &packet(OUTSIDE, GUEST, 11, 99), Offload::NONE).unwrap();
    at(&mut stand, 1400);
    stand.port.receive(&mut stand.cx, &mut Burst::default()).unwrap();
    let told = |remote: &Remote| {
        let mut all: Vec<IpAddr> = remote.holders()?.into_iter().map(|(address, _)| address).collect();
        all.sort_unstable();
        Some(all)
    };
    let address = |last| IpAddr::from([192, 0, 2, last]);
    // The first list, of nobody, waits to be read; no other one comes in its place.
    assert_eq!(told(&remote), Some(vec![]));
    assert_eq!(told(&remote), None);
    let mut wake = Wake::default();
    stand.port.wake(&mut wake);
    assert_eq!(wake.deadline, Some(wire::Instant::START + Duration::from_millis(1500)));
    at(&mut stand, 1500);
    stand.port.receive(&mut stand.cx, &mut Burst::default()).unwrap();
    assert_eq!(told(&remote), Some(vec![address(10), address(11)]));
    // Nothing is told twice until it may be out of date.
    at(&mut stand, 2000);
    stand.port.receive(&mut stand.cx, &mut Burst::default()).unwrap();
    assert_eq!(told(&remote), None);

    assert!(remote.reserve(vec![address(10)]));
    send(&mut stand, &packet(OUTSIDE, GUEST, 10, 99), Offload::NONE).unwrap();
    assert_eq!(stand.cx.ledger.dropped, 1, "it is the host's now");
    at(&mut stand, 2100);
    stand.port.receive(&mut stand.cx, &mut Burst::default()).unwrap();
    assert_eq!(told(&remote), Some(vec![address(11)]));
    at(&mut stand, 2100 + 60_000);
    stand.port.receive(&mut stand.cx, &mut Burst::default()).unwrap();
    assert_eq!(told(&remote), Some(vec![address(11)]), "once a minute");
    drop(remote);
    send(&mut stand, &packet(OUTSIDE, GUEST, 12, 99), Offload::NONE).unwrap();
    assert!(stand.cx.ledger.balances());
}

#[test]
fn a_port_that_is_apart_takes_what_comes_from_others() {
    for (from, passes) in [(NicId(1), false), (NicId(2), true)] {
        let Stand { port, mut cx, outgoing, .. } = stand(false);
        let mut port = crate::apart::Apart::new(Box::new(port), from);
        let mut burst = Burst::default();
        let frame = cx.originate(Origin { nic: NicId(1), lane: 0 }, &packet(OUTSIDE, GUEST, 10, 99)).unwrap();
        burst.push(frame).unwrap();
        port.transmit(&mut cx, &mut burst).unwrap();
        assert_eq!(outgoing.try_recv().is_ok(), passes);
        assert!(burst.is_empty() && cx.ledger.balances());
    }
}

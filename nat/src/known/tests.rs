//! The short way against the long one: the same packets to two tables of one seed, of which one takes the short way wherever it may.

use std::time::Duration;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use wire::{Context, Frame, Gso, NicId, Offload, Origin, Sizes};

use super::*;
use crate::{Config, Decision};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

#[derive(Clone, Debug)]
struct Sent {
    from_inside: bool,
    is_tcp: bool,
    port: u16,
    remote: u8,
    flags: u8,
    /// Checksum: complete, owed, none (UDP) or of a super-frame.
    sum: u8,
    may_fragment: bool,
    payload: u8,
    seconds: u64,
}

fn sent() -> impl Strategy<Value = Sent> {
    let what = (any::<bool>(), any::<bool>(), 0..3u16, 0..3u8, 0..32u8, 0..6u8);
    (what, any::<bool>(), any::<u8>(), 0..90u64).prop_map(|(what, may_fragment, payload, seconds)| {
        let (from_inside, is_tcp, port, remote, flags, sum) = what;
        Sent {
            from_inside,
            is_tcp,
            port,
            remote,
            flags,
            sum,
            may_fragment,
            payload,
            seconds: seconds.saturating_sub(80) * 40,
        }
    })
}

fn bytes(sent: &Sent) -> Vec<u8> {
    let (here, there) = (if sent.from_inside { [10, 0, 0, 2] } else { OUTSIDE.octets() }, [198, 51, 100, sent.remote]);
    let (near, far) = (4000 + sent.port, if sent.remote == 0 { 53 } else { 7000 });
    let ends = if sent.from_inside { ((here, near), (there, far)) } else { ((there, far), (here, near)) };
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(ends.0.0, ends.1.0, 64);
    let (payload, mut bytes) = (vec![sent.payload; usize::from(sent.payload) % 9], Vec::new());
    if sent.is_tcp {
        let mut tcp = ip.tcp(ends.0.1, ends.1.1, 1, 1);
        // Opened now and then, closed seldom.
        tcp = if sent.flags < 8 { tcp.syn() } else { tcp };
        tcp = if sent.flags > 2 { tcp.ack(1) } else { tcp };
        tcp = if sent.flags == 30 { tcp.fin() } else { tcp };
        tcp = if sent.flags == 31 { tcp.rst() } else { tcp };
        tcp.write(&mut bytes, &payload).unwrap();
    } else {
        ip.udp(ends.0.1, ends.1.1).write(&mut bytes, &payload).unwrap();
        if sent.sum == 2 {
            bytes[40..42].fill(0);
        }
    }
    if !sent.may_fragment {
        bytes[20] |= 0x40;
        let mut sum = wire::checksum::Checksum::new();
        bytes[24..26].fill(0);
        sum.add_bytes(&bytes[14..34]);
        let field = sum.finish().to_be_bytes();
        bytes[24..26].copy_from_slice(&field);
    }
    bytes
}

fn owed(sent: &Sent) -> Offload {
    let offset = if sent.is_tcp { 16 } else { 6 };
    match sent.sum {
        1 => Offload::new(Gso::None, 0, 0, 34, offset),
        3 if sent.is_tcp => Offload::new(Gso::Tcp4, 54, 2, 34, offset),
        4 => Offload::new(Gso::None, 0, 0, 20, 4),
        _ => Offload::NONE,
    }
}

/// Puts a packet to a table, by the long way only if `long`. What became of its head, and whether it took the short way.
fn put(table: &mut NatTable, cx: &mut Context, sent: &Sent, now: Instant, long: bool) -> (Option<Vec<u8>>, bool) {
    cx.begin_turn(now);
    let nic = NicId(if sent.from_inside { 0 } else { 1 });
    let frame: Frame = cx.originate(Origin { nic, lane: 0 }, &bytes(sent)).unwrap();
    let side = if sent.from_inside { Side::Inside } else { Side::Outside };
    let head = cx.heads.get_mut(&frame);
    head.offload = owed(sent);
    let decision = table.decide(side, head, now);
    let known = Flow::of(head).and_then(|flow| table.known(side, head, &flow, now));
    let done = match known {
        Some(known) if !long => {
            let Decision::Translate(translation) = decision else { panic!("known, but {decision:?}") };
            let ours = if side == Side::Inside { translation.ends.source } else { translation.ends.destination };
            assert_eq!((translation.to, translation.nic, ours), (known.to, known.nic, known.end));
            table.pass(&known, head);
            true
        }
        _ => {
            let went = table.commit(decision, head).is_ok();
            if went && side == Side::Outside {
                let old = u16::from_be_bytes([head.bytes()[22], head.bytes()[23]]);
                let bytes = head.bytes_mut();
                bytes[22] -= 1;
                let field = u16::from_be_bytes([bytes[24], bytes[25]]);
                let field = wire::checksum::update(field, old, old - 0x100).to_be_bytes();
                bytes[24..26].copy_from_slice(&field);
            }
            went
        }
    };
    let after = done.then(|| head.bytes().to_vec());
    cx.drop(frame, wire::DropReason::NoDestination);
    (after, known.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_short_way_does_what_the_long_one_does(
        all in prop::collection::vec(sent(), 1..200), seed: u64, strict: bool, refresh: bool, published: bool,
    ) {
        let filtering = if strict { Filtering::AddressDependent } else { Filtering::EndpointIndependent };
        let config = Config { mappings: 64, filtering, inbound_refresh: refresh, ..Config::new(vec![OUTSIDE], seed) };
        let mut tables = [NatTable::new(&config).unwrap(), NatTable::new(&config).unwrap()];
        let mut now = Instant::START;
        for table in &mut tables {
            table.add_nic(NicId(1));
            if published {
                let inside = Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 4001);
                let forward = crate::Forward { protocol: Protocol::Udp, outside: OUTSIDE, ports: 4001..=4001, inside, nic: NicId(0) };
                table.publish(&forward, now).unwrap();
            }
        }
        let [long, short] = &mut tables;
        let mut cx = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
        for sent in &all {
            now = now + Duration::from_secs(sent.seconds);
            let expected = put(long, &mut cx, sent, now, true).0;
            prop_assert_eq!(put(short, &mut cx, sent, now, false).0, expected);
            prop_assert_eq!(short.snapshot(now), long.snapshot(now));
            prop_assert_eq!((short.id, short.stats), (long.id, long.stats));
        }
    }
}

#[test]
fn a_flow_that_is_there_takes_the_short_way_in_both_directions() {
    let mut table = NatTable::new(&Config::new(vec![OUTSIDE], 1)).unwrap();
    table.add_nic(NicId(1));
    let mut cx = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
    let udp = Sent {
        from_inside: true,
        is_tcp: false,
        port: 0,
        remote: 1,
        flags: 20,
        sum: 0,
        may_fragment: true,
        payload: 3,
        seconds: 0,
    };
    let mut shorts = Vec::new();
    for (sent, flags) in [(&udp, 20), (&Sent { is_tcp: true, ..udp.clone() }, 0)] {
        let out = Sent { flags, ..sent.clone() };
        let answer = Sent { from_inside: false, flags: 5, ..out.clone() };
        let more =
            [out.clone(), answer, Sent { flags: 20, ..out.clone() }, Sent { from_inside: false, flags: 20, ..out }];
        shorts.extend(more.iter().map(|sent| put(&mut table, &mut cx, sent, Instant::START, false).1));
    }
    assert_eq!(shorts, [false, true, true, true, false, false, true, true], "UDP, and TCP but for its SYNs");
}

//! The table against what must hold of it at all times, under random packets, times, forwards and restarts; and its size.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use proptest::prelude::*;
use wire::{Context, Origin, Sizes};

use super::*;
use crate::{Forward, Side};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A version of IP with addresses to try.
trait Tried: Family {
    fn outside() -> Self;
    fn inside(n: u8) -> Self;
    fn remote(n: u8) -> Self;
    fn ip(from: Self, to: Self) -> PacketBuilderStep<IpHeaders>;
    fn echo(ip: PacketBuilderStep<IpHeaders>, id: u16, reply: bool) -> Vec<u8>;
}

impl Tried for Ipv4Addr {
    fn outside() -> Ipv4Addr {
        OUTSIDE
    }

    fn inside(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn remote(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, n)
    }

    fn ip(from: Ipv4Addr, to: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from.octets(), to.octets(), 64)
    }

    fn echo(ip: PacketBuilderStep<IpHeaders>, id: u16, reply: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let echo = if reply { ip.icmpv4_echo_reply(id, 1) } else { ip.icmpv4_echo_request(id, 1) };
        echo.write(&mut bytes, b"").unwrap();
        bytes
    }
}

impl Tried for Ipv6Addr {
    fn outside() -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 1)
    }

    fn inside(n: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, n.into())
    }

    fn remote(n: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, n.into())
    }

    fn ip(from: Ipv6Addr, to: Ipv6Addr) -> PacketBuilderStep<IpHeaders> {
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(from.octets(), to.octets(), 64)
    }

    fn echo(ip: PacketBuilderStep<IpHeaders>, id: u16, reply: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let echo = if reply { ip.icmpv6_echo_reply(id, 1) } else { ip.icmpv6_echo_request(id, 1) };
        echo.write(&mut bytes, b"").unwrap();
        bytes
    }
}

/// What holds of every table at all times.
fn check<A: Family>(table: &NatTable<A>) {
    let used: Vec<(Slot, &Record<A>)> =
        (0..).map(Slot).zip(table.records.iter()).filter(|(_, record)| !record.is_empty()).collect();
    assert_eq!(used.len(), table.len);
    assert_eq!(used.iter().filter(|(_, record)| record.key.kind() == MAPPING).count(), table.mappings);
    assert_eq!(used.iter().filter(|(_, record)| record.state == State::Published).count(), table.published);
    for (slot, record) in &used {
        assert_eq!(table.find(record.key).map(|(found, _)| found), Some(*slot));
        let key = record.key;
        let hanging = used.iter().filter(|(_, other)| match key.kind() {
            MAPPING => other.key != key && other.key.own() == key,
            PERMIT => {
                other.key.kind() == SESSION
                    && other.tcp & tcp::PERMITTED != 0
                    && other.key.permit(other.key.remote().address) == key
            }
            _ => false,
        });
        assert_eq!(hanging.count(), record.children as usize, "{record:?}");
        assert!(record.state != State::Held || record.children > 0, "nothing keeps {record:?}");
        match key.kind() {
            MAPPING => assert_eq!(table.ports.owner(key.protocol(), record.outside), Some(*slot)),
            _ => assert!(table.find(key.own()).is_some()),
        }
    }
    let mut listed = 0;
    for nic in (0..table.holders.nics()).map(|nic| NicId(nic as u16)) {
        let mut of_nic = 0;
        for state in State::ALL {
            let (mut next, mut stamp) = (table.holders.first(nic, state), 0);
            if (state as usize) < State::MORTAL {
                let first = next.and_then(|slot| table.record(slot));
                assert!(first.is_none_or(|record| record.children == 0), "something hangs on the first: {first:?}");
            }
            while let Some(record) = next.and_then(|slot| table.record(slot)) {
                assert!(record.stamp >= stamp || state >= State::Held);
                assert_eq!((record.state, record.key.nic()), (state, nic));
                stamp = record.stamp;
                of_nic += 1;
                next = (record.after != Slot::NONE).then_some(record.after);
            }
        }
        assert_eq!(of_nic, table.count(nic));
        listed += of_nic;
    }
    assert_eq!(listed, table.len);
    let mut free = (table.free != Slot::NONE).then_some(table.free);
    let mut count = 0;
    while let Some(record) = free.and_then(|slot| table.record(slot)) {
        count += 1;
        free = (record.after != Slot::NONE).then_some(record.after);
    }
    assert_eq!(count + table.len, table.capacity());
}

#[derive(Clone, Debug)]
enum Step {
    Packet { side: bool, nic: u16, protocol: u8, inside: u8, port: u16, remote: u8, flags: u8 },
    Wait(u64),
    Sweep(usize),
    Publish(u16, u16, u16),
    Unpublish(u16, u16, u16),
    Leave(u16),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (any::<bool>(), 0..3u16, 0..3u8, 2..5u8, 1000..1040u16, 0..4u8, 0..32u8);
    prop_oneof![
        60 => packet.prop_map(|(side, nic, protocol, inside, port, remote, flags)| Step::Packet { side, nic, protocol, inside, port, remote, flags }),
        3 => (0..400u64).prop_map(Step::Wait),
        1 => Just(Step::Wait(8000)),
        2 => (0..40usize).prop_map(Step::Sweep),
        1 => (1000..1040u16, 1000..1040u16, 1..5u16).prop_map(|(a, b, n)| Step::Publish(a, b, n)),
        1 => (1000..1040u16, 1000..1040u16, 1..5u16).prop_map(|(a, b, n)| Step::Unpublish(a, b, n)),
        1 => (0..3u16).prop_map(Step::Leave),
        1 => Just(Step::Restart),
    ]
}

fn frame<A: Tried>(step: &Step) -> Vec<u8> {
    let Step::Packet { side, protocol, inside, port, remote, flags, .. } = *step else { return Vec::new() };
    let there = if remote == 3 { A::outside() } else { A::remote(remote) };
    let here = if side { A::inside(inside) } else { A::outside() };
    let (from, to) = if side { (here, there) } else { (A::remote(remote), here) };
    let far = if remote == 3 { 1000 + port % 16 } else { 7000 - u16::from(remote) * 3300 };
    let (source, destination) = if side { (port, far) } else { (far, port) };
    let ip = A::ip(from, to);
    let mut bytes = Vec::new();
    let _ = match protocol {
        0 => return A::echo(ip, port, !side),
        1 => {
            let mut tcp = ip.tcp(source, destination, 1, 1);
            tcp = if flags & 1 != 0 || flags > 20 { tcp.syn() } else { tcp };
            tcp = if flags & 2 != 0 && flags <= 20 { tcp.ack(1) } else { tcp };
            tcp = if flags & 4 != 0 && flags <= 20 { tcp.fin() } else { tcp };
            tcp = if flags & 24 == 24 && flags == 24 { tcp.rst() } else { tcp };
            tcp.write(&mut bytes, b"")
        }
        _ => ip.udp(source, destination).write(&mut bytes, b""),
    };
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_must_hold_holds_after_every_step(steps in prop::collection::vec(step(), 0..300), seed: u64, strict: bool, small: bool, refresh: bool) {
        stays_sound::<Ipv4Addr>(&steps, seed, [strict, small, refresh])?;
        stays_sound::<Ipv6Addr>(&steps, seed, [strict, small, refresh])?;
    }
}

/// The table after every one of these steps.
fn stays_sound<A: Tried>(steps: &[Step], seed: u64, [strict, small, refresh]: [bool; 3]) -> Result<(), TestCaseError> {
    let filtering = if strict { Filtering::AddressDependent } else { Filtering::EndpointIndependent };
    let quota = if small { 60 } else { 200 };
    let config =
        Config { mappings: 64, quota, filtering, inbound_refresh: refresh, ..Config::new(vec![A::outside()], seed) };
    let mut table = NatTable::<A>::new(&config).unwrap();
    (0..3).for_each(|nic| table.add_nic(NicId(nic)));
    let mut cx = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
    let mut now = Instant::START;
    for step in steps {
        let forward = |a: u16, b: u16, n: u16| Forward {
            protocol: if a.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
            outside: A::outside(),
            ports: a..=a + n - 1,
            inside: Endpoint::new(A::inside(2), b),
            nic: NicId(b % 3),
        };
        match step {
            Step::Packet { side, nic, .. } => {
                cx.begin_turn(now);
                let handle = cx.originate(Origin { nic: NicId(*nic), lane: 0 }, &frame::<A>(step)).unwrap();
                let head = cx.heads.get_mut(&handle);
                let side = if *side { Side::Inside } else { Side::Outside };
                let decision = table.decide(side, head, now);
                let done = table.commit(decision, head);
                prop_assert!(done != Err(Refusal::Stale) || table.len >= table.capacity() - 4 || quota == 60);
                cx.drop(handle, wire::DropReason::NoDestination);
            }
            Step::Wait(seconds) => now = now + Duration::from_secs(*seconds),
            Step::Sweep(budget) => prop_assert!(table.sweep(now, *budget) <= *budget),
            Step::Publish(a, b, n) => drop(table.publish(&forward(*a, *b, *n), now)),
            Step::Unpublish(a, b, n) => drop(table.unpublish(&forward(*a, *b, *n))),
            Step::Leave(nic) => {
                table.remove_nic(NicId(*nic));
                prop_assert_eq!(table.count(NicId(*nic)), 0);
            }
            Step::Restart => {
                let snapshot = table.snapshot(now);
                let mut next = NatTable::new(&Config { seed: seed ^ 1, ..config.clone() }).unwrap();
                (0..3).for_each(|nic| next.add_nic(NicId(nic)));
                next.restore(&snapshot, now);
                table = next;
            }
        }
        check(&table);
    }
    Ok(())
}

#[test]
fn a_million_mappings_take_at_most_256_mib() {
    assert_eq!(size_of::<Record>(), 64);
    let outside = (0..16).map(|n| Ipv4Addr::from_bits(OUTSIDE.to_bits() + n)).collect();
    let table = NatTable::new(&Config { mappings: 1_000_000, ..Config::new(outside, 1) }).unwrap();
    assert!(table.capacity() >= 2_000_000, "a session or permit for every one of them");
    assert!(table.memory() <= 256 << 20, "{} bytes", table.memory());
}

#[test]
fn the_index_holds_a_full_table() {
    let mut index = Index::new(1 << 16, 3);
    for n in 0..1 << 16 {
        let inside = Endpoint::new(Ipv4Addr::from_bits(n), 80);
        let hash = index.hash(Key::mapping(Protocol::Udp, NicId(0), inside));
        assert!(index.insert(hash, Slot(n)), "{n}");
    }
}

//! Once made, a table and a port allocate nothing, over IPv4 and over IPv6.

use nat::{Filtering, Side};
use sys::allocations::count;
use wire::{NicId, Origin};

family!();

#[test]
fn a_table_allocates_nothing_once_made() {
    assert!(count() > 0, "the counting allocator is not in place");
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let mut nat = Packets::new(&Config { mappings: 256, quota: 300, filtering, ..config() });
        let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60])).outward();
        let mut frames = Vec::new();
        for n in 0..2000 {
            frames.push((Side::Inside, (n % 3), udp(ep(GUEST, n), ep(PEER, n * 3), b"")));
            frames.push((Side::Inside, (n % 3), tcp(ep(GUEST, n), ep(PEER, n * 3), "S")));
            frames.push((Side::Outside, 3, tcp(ep(PEER, n * 3), ep(OUTSIDE, n), "SA")));
            frames.push((Side::Outside, 3, tcp(ep(SERVER, n), ep(OUTSIDE, n), "S")));
            frames.push((
                Side::Inside,
                0,
                fragments(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60]), 24, n)[(n % 2) as usize].clone(),
            ));
            frames.push((Side::Outside, 3, error(ROUTER, OUTSIDE, TOO_BIG, &sent.frame, 40)));
        }
        let (mut allocated, mut passed) = (0, 0);
        for (n, (side, nic, frame)) in frames.iter().enumerate() {
            nat.cx.begin_turn(nat.now);
            let handle = nat.cx.originate(Origin { nic: NicId(*nic), lane: 0 }, frame).unwrap();
            let head = nat.cx.heads.get_mut(&handle);
            let before = count();
            let decision = nat.table.decide(*side, head, nat.now);
            passed += u32::from(nat.table.commit(decision, head).is_ok());
            nat.table.sweep(nat.now, 8);
            while nat.table.unreachable(nat.now).is_some() {}
            allocated += count() - before;
            nat.cx.drop(handle, wire::DropReason::NoDestination);
            if n % 50 == 0 {
                nat.seconds(if n % 2000 == 0 { 10_000 } else { 1 });
            }
        }
        let stats = nat.table.stats();
        assert!(
            passed > 5000 && stats.over_quota + stats.evicted > 100 && stats.expired > 100,
            "{passed} passed, {stats:?}"
        );
        assert_eq!(allocated, 0, "{filtering:?}");
    }
}

#[test]
fn a_port_allocates_nothing_once_it_has_heard_of_a_nic() {
    use port::{Gate, INSIDE_NIC, OUTSIDE_NIC, from_outside};
    use wire::{Burst, Port};

    let table = Config { mappings: 256, quota: 100, ..config() };
    let mut gate = Gate::new(nat::PortConfig { mtu: 1280, ..port_config(table) });
    (0..4).for_each(|nic| gate.port.add_nic(NicId(nic)));
    let sent = gate.out(0, &udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60])).remove(0).frame;
    let port = seen(&sent).source.port;
    let mut frames = Vec::new();
    for n in 0..1000u16 {
        let nic = NicId(n % 3);
        frames.push((nic, udp(ep(GUEST, n), ep(PEER, n * 3), &[0; 20])));
        frames.push((nic, udp(ep(GUEST, n), ep(PEER, n * 3), &[0; 1300])));
        frames.push((nic, tcp(ep(GUEST, n), ep(PEER, n * 3), "S")));
        frames.push((nic, udp(ep(GUEST, n), ep(outside(2 + (n % 250) as u8), 9), b"")));
        frames.push((nic, fragments(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60]), 24, n)[(n % 2) as usize].clone()));
        let outside = [
            udp(ep(PEER, 9999), ep(OUTSIDE, port), b"x"),
            tcp(ep(SERVER, n), ep(OUTSIDE, n), "S"),
            fragments(&udp(ep(PEER, 9999), ep(OUTSIDE, port), &[1; 60]), 24, n)[1].clone(),
            error(ROUTER, OUTSIDE, TOO_BIG, &sent, 40),
            echo(SERVER, OUTSIDE, n, false),
        ];
        frames.extend(outside.map(|frame| (OUTSIDE_NIC, from_outside(frame))));
        frames.push((OUTSIDE_NIC, found(HOP)));
    }
    let (mut allocated, mut left, mut burst) = (0, 0, Burst::default());
    for (n, (nic, frame)) in frames.iter().enumerate() {
        gate.now = gate.now + std::time::Duration::from_millis(20);
        gate.cx.begin_turn(gate.now);
        let handle = gate.cx.originate(Origin { nic: *nic, lane: 0 }, frame).unwrap();
        burst.push(handle).unwrap();
        gate.cx.nic = if *nic == OUTSIDE_NIC { OUTSIDE_NIC } else { INSIDE_NIC };
        let before = count();
        gate.port.transmit(&mut gate.cx, &mut burst).unwrap();
        gate.cx.nic = INSIDE_NIC;
        gate.port.receive(&mut gate.cx, &mut burst).unwrap();
        allocated += count() - before;
        left += burst.len() + gate.cx.answers.len();
        burst.drain().for_each(|frame| gate.cx.drop(frame, wire::DropReason::NoDestination));
        while let Some(frame) = gate.cx.answers.pop() {
            gate.cx.drop(frame, wire::DropReason::NoDestination);
        }
        assert!(gate.cx.ledger.balances(), "frame {n}: {:?}", gate.cx.ledger);
    }
    assert!(left > 4000, "{left} came out of {}", frames.len());
    assert_eq!(allocated, 0);
}

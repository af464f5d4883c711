//! Once made, a table allocates nothing: not for new mappings, not when full, not for fragments, errors, unsolicited SYNs or sweeps.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use common::*;
use nat::{Config, Filtering, Side};
use sys::allocations::{CountingAllocator, count};
use wire::{NicId, Origin};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

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
            frames.push((Side::Outside, 3, error(ROUTER, OUTSIDE, 3, 4, &sent.frame, 60)));
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

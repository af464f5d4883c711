//! An endpoint in a network of ours takes all its memory between frames: none for a frame, not for the first one to an endpoint either.
//!
//! A program of its own, with one test: it counts allocations.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{net::IpAddr, time::Duration};

use sys::allocations::{CountingAllocator, count};
use wire::{Burst, NicId, Offload, Origin, Port};
use world::{GUEST, Host, Hub, Net, UNDER, Under, address, host, udp};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations while the port is given these frames at a NIC.
fn given(host: &mut Host, nic: NicId, frames: &[Vec<u8>]) -> u64 {
    host.cx.begin_turn(host.now);
    host.cx.nic = nic;
    let mut burst = Burst::default();
    for bytes in frames {
        burst.push(host.cx.originate(Origin { nic: GUEST, lane: 0 }, bytes).unwrap()).unwrap();
    }
    let before = count();
    host.port.transmit(&mut host.cx, &mut burst).unwrap();
    host.port.release(&mut host.cx).unwrap();
    let allocated = count() - before;
    host.answers();
    allocated
}

fn arp(operation: u8, from: u8, by: IpAddr, target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(by), IpAddr::V4(target)) = (by, target) else { panic!("no IPv4") };
    let mac = [2, 0x55, 0, 0, 0, from];
    let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &mac, &fixed, &mac, &by.octets(), &[0; 6], &target.octets()].concat()
}

#[test]
fn no_frame_takes_memory() {
    assert!(count() > 0, "the counting allocator is not in place");
    let peers: Vec<IpAddr> = (2..230).map(|n| address(n, false)).collect();
    let under = Under::Station { hub: Hub::default(), checksum: false };
    let net = Net { suppress: true, ..Net::new(5001, &peers) };
    let mut a = host(&under, address(1, false), 4789, 1500, &[net]);
    let mut flooded = udp(2, 40, false, true);
    flooded[..6].fill(0xff);
    let flooded = vec![flooded];
    let unknown = given(&mut a, NicId(0), &flooded);
    let answers: Vec<Vec<u8>> = (2..230).map(|n| arp(2, n, address(n, false), address(1, false))).collect();
    let heard: u64 = answers.chunks(wire::BURST).map(|some| given(&mut a, UNDER, some)).sum();
    let known = given(&mut a, NicId(0), &flooded);
    assert_eq!((unknown, heard, known), (0, 0, 0), "to endpoints that were never sent to, when they answer, and then");
    // Guests say who they are, and endpoints that are asked again.
    let said: Vec<Vec<u8>> = (1..60).map(|n| arp(1, n, [10, 0, 0, n].into(), [10, 0, 1, n].into())).collect();
    let first = given(&mut a, NicId(0), &said);
    a.now = a.now + Duration::from_secs(40);
    let again = given(&mut a, NicId(0), &flooded);
    let sent = a.send(0, &[(udp(2, 40, false, true), Offload::NONE)]);
    assert_eq!((first, again, sent.len()), (0, 0, 0));
}

//! An endpoint takes all its memory between frames: none for a frame, in a network of ours not for the first one to an endpoint either. Of a sealed
//! tunnel handshakes may take memory, packets of a session may not.
//!
//! A program of its own: it counts allocations, of each thread for itself.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{net::IpAddr, time::Duration};

use sys::allocations::{CountingAllocator, count};
use wire::{Burst, Mac, NicId, Offload, Origin, Port};
use world::{
    GUEST, Host, Hub, Net, Owing, UNDER, Under, address, free_port, host, mac_of, settle, station::arp, tcp, udp,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Allocations while the port is given these frames at a NIC.
fn given(host: &mut Host, nic: NicId, frames: &[Vec<u8>]) -> u64 {
    give(host, nic, &frames.iter().map(|bytes| (bytes.clone(), Offload::NONE)).collect::<Vec<_>>())
}

/// The same, of frames that owe something.
fn give(host: &mut Host, nic: NicId, frames: &[Owing]) -> u64 {
    host.cx.begin_turn(host.now);
    host.cx.nic = nic;
    let mut burst = Burst::default();
    for (bytes, offload) in frames {
        let frame = host.cx.originate(Origin { nic: GUEST, lane: 0 }, bytes).unwrap();
        host.cx.heads.get_mut(&frame).offload = *offload;
        burst.push(frame).unwrap();
    }
    let before = count();
    host.port.transmit(&mut host.cx, &mut burst).unwrap();
    host.port.release(&mut host.cx).unwrap();
    let allocated = count() - before;
    host.answers();
    allocated
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
    let answers: Vec<Vec<u8>> =
        (2..230).map(|n| arp(2, (mac_of(address(n, false)), address(n, false)), address(1, false))).collect();
    let heard: u64 = answers.chunks(wire::BURST).map(|some| given(&mut a, UNDER, some)).sum();
    let known = given(&mut a, NicId(0), &flooded);
    assert_eq!((unknown, heard, known), (0, 0, 0), "to endpoints that were never sent to, when they answer, and then");
    // Guests say who they are, and endpoints that are asked again.
    let said: Vec<Vec<u8>> = (1..60)
        .map(|n| arp(1, (Mac::new([2, 0x55, 0, 0, 0, n]), [10, 0, 0, n].into()), [10, 0, 1, n].into()))
        .collect();
    let first = given(&mut a, NicId(0), &said);
    a.now = a.now + Duration::from_secs(40);
    let again = given(&mut a, NicId(0), &flooded);
    let sent = a.send(0, &[(udp(2, 40, false, true), Offload::NONE)]);
    assert_eq!((first, again, sent.len()), (0, 0, 0));
}

/// Allocations while the port takes what has arrived, and the bytes of the frames that came of it.
fn taken(host: &mut Host, from: &Host) -> (u64, usize) {
    if let Some(packets) = from.has_hub().then(|| from.sent(1)) {
        let bytes: Vec<Vec<u8>> = packets.into_iter().map(|(bytes, _)| bytes).collect();
        host.now = host.now + Duration::from_micros(1);
        host.cx.begin_turn(host.now);
        let mut burst = Burst::default();
        for bytes in &bytes {
            burst.push(host.cx.originate(Origin { nic: GUEST, lane: 0 }, bytes).unwrap()).unwrap();
        }
        host.cx.nic = UNDER;
        let before = count();
        host.port.transmit(&mut host.cx, &mut burst).unwrap();
        host.port.release(&mut host.cx).unwrap();
        let allocated = count() - before;
        return (allocated, host.answers().iter().map(|(_, bytes, _)| bytes.len()).sum());
    }
    host.cx.begin_turn(host.now);
    host.cx.nic = NicId(0);
    let mut burst = Burst::default();
    let before = count();
    host.port.receive(&mut host.cx, &mut burst).unwrap();
    host.port.release(&mut host.cx).unwrap();
    let allocated = count() - before;
    (allocated, host.answers().iter().map(|(_, bytes, _)| bytes.len()).sum())
}

#[test]
fn no_packet_of_a_known_endpoint_takes_memory_over_any_underlay() {
    for under in Under::all() {
        let (a, b) = (address(1, false), address(2, false));
        let port = free_port(a);
        let mut one = host(&under, a, port, 1500, &[Net::new(5001, &[b])]);
        let mut two = host(&under, b, port, 1500, &[Net::new(5001, &[a])]);
        settle(&mut [&mut one, &mut two]);
        let mut frames: Vec<Owing> = (0..40).map(|n| (udp(2, 20 + n * 30, n % 3 == 0, true), Offload::NONE)).collect();
        frames.push(tcp(20_000, 1300));
        let least: usize = frames.iter().map(|(bytes, _)| bytes.len()).sum();
        let mut allocated = 0;
        for round in 0..20 {
            let mut sum = give(&mut one, NicId(0), &frames);
            let mut came = 0;
            for _ in 0..2000 {
                let (more, bytes) = taken(&mut two, &one);
                sum += more;
                came += bytes;
                if came >= least {
                    break;
                }
                // A handshake has two sides.
                one.turn();
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(came >= least, "{came} of {least} bytes");
            // The first packets are the handshake's, and of sockets.
            if round > 0 {
                allocated += sum;
            }
        }
        assert_eq!(allocated, 0);
    }
}

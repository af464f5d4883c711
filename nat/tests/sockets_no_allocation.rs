//! Datagrams of endpoints that are known cost no allocation, neither out nor in, nor do pieces of long ones once the buffers are there.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use scripted::*;
use sys::allocations::{CountingAllocator, count};
use wire::{Burst, NicId, Origin, Port};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn datagrams_of_known_endpoints_allocate_nothing() {
    assert!(count() > 0, "the counting allocator is not in place");
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let frames: Vec<Vec<u8>> = (0..64u16)
        .map(|n| udp(([10, 0, 0, 2], 4000 + n % 4).into(), name, 64, &vec![7; usize::from(n) * 20]))
        .chain(fragments(&udp(at("10.0.0.2:4000"), name, 64, &[1; 3000]), 1480, 5))
        .collect();
    let mut buffer = vec![0; 65_536];
    let (mut burst, mut made) = (Burst::default(), 0);
    for round in 0..20 {
        let mut allocated = 0;
        for frames in frames.chunks(32) {
            lab.cx.begin_turn(lab.now);
            lab.cx.nic = NicId(9);
            for bytes in frames {
                let frame = lab.cx.originate(Origin { nic: NicId(0), lane: 0 }, bytes).unwrap();
                burst.push(frame).unwrap();
            }
            let before = count();
            lab.port.transmit(&mut lab.cx, &mut burst).unwrap();
            lab.port.receive(&mut lab.cx, &mut burst).unwrap();
            allocated += count() - before;
            burst.drain().for_each(|_| lab.cx.transmitted(1, 0));
        }
        for _ in 0..65 {
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
        }
        loop {
            lab.cx.begin_turn(lab.now);
            let before = count();
            lab.port.receive(&mut lab.cx, &mut burst).unwrap();
            allocated += count() - before;
            if burst.is_empty() {
                break;
            }
            made += burst.len();
            burst.drain().for_each(|_| lab.cx.transmitted(1, 0));
        }
        // In the first round sockets are opened and buffers for fragments are made.
        assert!(round == 0 || allocated == 0, "{allocated} allocations in round {round}");
    }
    assert!(made >= 20 * 65, "{made}");
}

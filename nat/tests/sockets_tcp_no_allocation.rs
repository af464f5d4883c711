//! An open connection costs no allocation, whichever way its data goes.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::io::{Read, Write};

use scripted::{
    tcp::{ACK, End, PSH, accept, listener},
    *,
};
use sys::allocations::{CountingAllocator, count};
use wire::{Burst, NicId, Origin, Port};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// One turn with a guest's frame, if there is one; allocations, and the frames that came out.
fn turn(lab: &mut Lab, frame: Option<&[u8]>) -> (u64, Vec<Vec<u8>>) {
    lab.cx.begin_turn(lab.now);
    lab.cx.nic = NicId(9);
    let mut burst = Burst::default();
    if let Some(bytes) = frame {
        let frame = lab.cx.originate(Origin { nic: NicId(0), lane: 0 }, bytes).unwrap();
        burst.push(frame).unwrap();
    }
    let before = count();
    lab.port.transmit(&mut lab.cx, &mut burst).unwrap();
    lab.port.receive(&mut lab.cx, &mut burst).unwrap();
    let allocated = count() - before;
    let mut frames = Vec::new();
    for frame in burst.drain() {
        let mut bytes = vec![0; lab.cx.heads.get(&frame).len()];
        lab.cx.read_all(&frame, &mut bytes).unwrap();
        frames.push(bytes);
        lab.cx.transmitted(1, 0);
    }
    (allocated, frames)
}

#[test]
fn data_of_an_open_connection_allocates_nothing() {
    assert!(count() > 0, "the counting allocator is not in place");
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    let mut guest = End::new(0, at("10.0.0.2:4000"), name);
    guest.open(&mut lab);
    let mut host = accept(&listener);
    let (mut buffer, data) = (vec![0; 1000], vec![7; 50_000]);
    for round in 0..50 {
        let out = guest.frame(ACK | PSH, &data[..1000]);
        guest.seq = guest.seq.wrapping_add(1000);
        let (mut allocated, frames) = turn(&mut lab, Some(&out));
        guest.take(&frames);
        host.read_exact(&mut buffer).unwrap();
        host.write_all(&data).unwrap();
        let wanted = (round + 1) * data.len();
        for _ in 0..3000 {
            if guest.received.len() == wanted {
                break;
            }
            let (more, frames) = turn(&mut lab, None);
            allocated += more;
            if guest.take(&frames) == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let answer = guest.frame(ACK, b"");
            let (more, frames) = turn(&mut lab, Some(&answer));
            allocated += more;
            guest.take(&frames);
        }
        assert_eq!(guest.received.len(), wanted);
        // In the first rounds lists get their room.
        assert!(round < 2 || allocated == 0, "{allocated} allocations in round {round}");
    }
}

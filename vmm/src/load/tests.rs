//! Two guests of the load generator and one worker's turn: what is sent arrives, once, whole, in order.

use wire::{Burst, Context, Gso, NicId, Port, Sizes};

use super::*;
use crate::virtqueue::testing::turn;

struct Two {
    cx: Context,
    burst: Burst,
    ports: [RingPort; 2],
    guests: [Guest; 2],
}

fn two(spec: GuestSpec) -> Two {
    let mut cx = Context::new(Sizes::default()).unwrap();
    let guests = [Guest::new(spec).unwrap(), Guest::new(spec).unwrap()];
    let mut ports = [guests[0].port().unwrap(), guests[1].port().unwrap()];
    for (nic, port) in ports.iter_mut().enumerate() {
        cx.add_nic(NicId(nic as u16));
        port.attach(&mut cx).unwrap();
    }
    Two { cx, burst: Burst::default(), ports, guests }
}

impl Two {
    fn turn(&mut self) -> usize {
        let [from, to] = &mut self.ports;
        turn(&mut self.cx, &mut self.burst, from, to).unwrap()
    }
}

fn numbered(len: usize, n: usize) -> Vec<(Vec<u8>, Offload)> {
    let frame = |number: usize| {
        let mut bytes = vec![2; len];
        bytes[14..18].copy_from_slice(&(number as u32).to_le_bytes());
        (bytes, Offload::NONE)
    };
    (0..n).map(frame).collect()
}

#[test]
fn frames_arrive_once_whole_and_in_turn_on_every_kind_of_ring() {
    let base = Features::VERSION_1;
    let kinds = [
        base,
        base.with(Features::MRG_RXBUF),
        base.with(Features::MRG_RXBUF).with(Features::IN_ORDER),
        base.with(Features::RING_PACKED).with(Features::MRG_RXBUF),
        base.with(Features::RING_PACKED).with(Features::IN_ORDER),
    ];
    for features in kinds {
        let mut two = two(GuestSpec { features, frames: 300, ..GuestSpec::new() });
        two.guests[0].lay_out(&numbered(1514, 300));
        let (mut sent, mut received, mut expected) = (0, Count::default(), 0u32);
        for round in 0..200 {
            sent += two.guests[0].send(round % 65).unwrap();
            two.turn();
            let look = |map: &MapRef<'_>, frame: Lent| {
                let mut bytes = [0; 4];
                assert_eq!((frame.len(), map.read(frame.part(14, 4).unwrap(), &mut bytes)), (1514, 4));
                assert_eq!(u32::from_le_bytes(bytes), expected % 300);
                expected += 1;
            };
            received += two.guests[1].receive_with(look).unwrap();
        }
        assert!(sent > 5000, "{:?} sent {sent}", features.names());
        assert_eq!(received, Count { frames: sent as u64, bytes: sent as u64 * 1514 }, "{:?}", features.names());
        assert_eq!(two.guests[0].unsent().unwrap(), 0);
    }
}

#[test]
fn stamps_arrive_with_their_frames() {
    let mut two = two(GuestSpec::new());
    two.guests[0].lay_out(&numbered(60, 1));
    let mut stamp = 0u64;
    let mut seen = Vec::new();
    for _ in 0..40 {
        let sent = two.guests[0].send_with(50, |map, room| {
            stamp += 1;
            map.write(room.after(42), &stamp.to_le_bytes());
        });
        assert_eq!(sent.unwrap(), 50);
        two.turn();
        let look = |map: &MapRef<'_>, frame: Lent| {
            let mut bytes = [0; 8];
            map.read(frame.part(42, 8).unwrap(), &mut bytes);
            seen.push(u64::from_le_bytes(bytes));
        };
        two.guests[1].receive_with(look).unwrap();
    }
    assert_eq!(seen, (1..=2000).collect::<Vec<u64>>());
}

#[test]
fn super_frames_are_counted_once_over_many_buffers() {
    let features = GuestSpec::new().features.with(Features::GUEST_CSUM).with(Features::GUEST_TSO4);
    let mut two = two(GuestSpec { features, longest: 65_000, buffer: 4096, ..GuestSpec::new() });
    let offload = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
    two.guests[0].lay_out(&[(vec![2; 65_000], offload)]);
    let mut received = Count::default();
    for _ in 0..100 {
        // 16 buffers a frame: fifteen frames find room in 256 entries.
        assert_eq!(two.guests[0].send(15).unwrap(), 15);
        two.turn();
        for _ in 0..4 {
            received += two.guests[1].receive().unwrap();
        }
    }
    assert_eq!(received, Count { frames: 1500, bytes: 1500 * 65_000 });
}

#[test]
fn a_full_ring_takes_what_fits_and_goes_on() {
    let mut two = two(GuestSpec::new());
    two.guests[0].lay_out(&numbered(60, 1));
    assert_eq!((0..5).map(|_| two.guests[0].send(64).unwrap()).collect::<Vec<_>>(), [64, 64, 64, 64, 0]);
    assert_eq!(two.guests[0].unsent().unwrap(), 256);
    assert_eq!(two.turn(), 64);
    assert_eq!((two.guests[0].send(100).unwrap(), two.guests[0].unsent().unwrap()), (64, 256));
    assert_eq!(two.guests[1].receive().unwrap(), Count { frames: 64, bytes: 64 * 60 });
}

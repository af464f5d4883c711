//! Once warm, a turn between two rings allocates nothing: not for single buffers, not for chains, not for mergeable buffers, not when a ring
//! is full.

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sys::allocations::{CountingAllocator, count};
use vmm::{
    Features,
    load::{Guest, GuestSpec},
    virtqueue::testing::{Rig, RigSpec, turn},
};
use wire::{Burst, Context, NicId, Offload, Port, Sizes};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs `turns` turns of up to a burst of frames each; returns what the turns allocated.
fn run(features: Features, tx_cuts: &[u32], rx_cuts: &[u32], offers: usize, turns: usize) -> (u64, u64) {
    let spec = RigSpec { slots: 256, ..RigSpec::new(features) };
    let (mut a, mut b) = (Rig::new(spec).unwrap(), Rig::new(spec).unwrap());
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    cx.add_nic(NicId(1));
    let (mut from, mut to) = (a.port().unwrap(), b.port().unwrap());
    from.attach(&mut cx).unwrap();
    to.attach(&mut cx).unwrap();
    let mut burst = Burst::default();
    let mut allocated = 0;
    for number in 0..turns {
        for n in 0..64 {
            a.send(Offload::NONE, &vec![n; 60 + 20 * usize::from(n)], tx_cuts, number % 2 == 0);
        }
        // A ring that still has some of the turn before takes fewer.
        (0..offers).take_while(|_| b.offer(rx_cuts, number % 2 == 1)).for_each(drop);
        a.tx.publish().unwrap();
        b.rx.publish().unwrap();
        let before = count();
        assert!(turn(&mut cx, &mut burst, &mut from, &mut to).unwrap() > 0);
        if number >= turns / 2 {
            allocated += count() - before;
        }
        assert!(a.reap().unwrap() > 0);
        b.receive().unwrap();
        assert!(cx.ledger.balances());
    }
    assert!(cx.ledger.transmitted > 0);
    (allocated, cx.ledger.dropped)
}

#[test]
fn a_warm_turn_allocates_nothing() {
    assert!(count() > 0, "the counting allocator is not in place");
    let sets = [Features::INDIRECT_DESC, Features::EVENT_IDX, Features::IN_ORDER, Features::MRG_RXBUF];
    for format in [Features::VERSION_1, Features::RING_PACKED] {
        for set in sets {
            let features = format.with(set);
            let name = features.names();
            assert_eq!(run(features, &[], &[2048], 64, 40), (0, 0), "whole buffers, {name:?}");
            assert_eq!(run(features, &[12, 40], &[12, 700, 1400], 64, 40), (0, 0), "chains, {name:?}");
            let (allocated, dropped) = run(features, &[], &[2048], 10, 40);
            assert!(allocated == 0 && dropped > 0, "a full ring allocated {allocated} times, {name:?}");
        }
        let mergeable = format.with(Features::MRG_RXBUF);
        assert_eq!(run(mergeable, &[12], &[600], 200, 40).0, 0, "mergeable buffers");
    }
}

#[test]
fn a_warm_load_allocates_nothing() {
    for format in [Features::VERSION_1, Features::RING_PACKED] {
        for set in [Features::VERSION_1, Features::IN_ORDER, Features::MRG_RXBUF] {
            let features = format.with(set);
            let spec = GuestSpec { features, ..GuestSpec::new() };
            let (mut a, mut b) = (Guest::new(spec).unwrap(), Guest::new(spec).unwrap());
            a.lay_out(&[(vec![2; 1514], Offload::NONE)]);
            let mut cx = Context::new(Sizes::default()).unwrap();
            cx.add_nic(NicId(0));
            cx.add_nic(NicId(1));
            let (mut from, mut to) = (a.port().unwrap(), b.port().unwrap());
            from.attach(&mut cx).unwrap();
            to.attach(&mut cx).unwrap();
            let (mut burst, mut received, mut before) = (Burst::default(), 0, 0);
            for number in 0..200 {
                if number == 100 {
                    before = count();
                }
                assert_eq!(a.send(64).unwrap(), 64);
                turn(&mut cx, &mut burst, &mut from, &mut to).unwrap();
                received += b.receive().unwrap().frames;
            }
            assert_eq!((count() - before, received), (0, 200 * 64), "{:?}", features.names());
        }
    }
}

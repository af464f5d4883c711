//! Drivers that break rules: the port ends with an error that names the rule, or counts a drop; it never panics, and nothing outside of the
//! guest's own buffers is read or written.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use proptest::prelude::*;
use sys::{
    packed::{PACKED_AVAIL, PACKED_USED, PackedMemory},
    split::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, SplitMemory},
};
use vmm::{
    Features,
    virtqueue::{
        driver::DriverQueue,
        testing::{Areas, Rig, RigSpec, Side},
    },
};
use wire::{Burst, DropReason, NicId, Port};

use crate::pair::{Pair, context, feature_sets, frame};

/// A descriptor for the entry `index`, stored as the format asks; in a packed ring it is available in the first lap.
fn store(side: &Side, index: u16, descriptor: Descriptor) {
    match &side.queue {
        DriverQueue::Split(queue) => queue.memory().set_descriptor(index, descriptor),
        DriverQueue::Packed(queue) => {
            let flags = descriptor.flags | sys::packed::PACKED_AVAIL;
            queue.memory().set_descriptor(index, Descriptor { flags, next: index, ..descriptor });
        }
    }
}

/// Makes the chain whose first descriptor is entry 0 available.
fn show(side: &Side) {
    if let DriverQueue::Split(queue) = &side.queue {
        queue.memory().set_avail_head(0, 0);
        queue.memory().set_avail_index(1);
    }
}

/// One turn in which the side of a rig with these descriptors is used; the port's error.
fn outcome(features: Features, receives: bool, descriptors: &[Descriptor], table: &[u8]) -> Option<String> {
    let mut pair = Pair::new(RigSpec::new(features), RigSpec::new(features));
    let rig = if receives { &pair.b } else { &pair.a };
    let side = if receives { &rig.rx } else { &rig.tx };
    assert!(table.is_empty() || rig.write(side.areas.tables, table));
    for (index, descriptor) in descriptors.iter().enumerate().rev() {
        store(side, index as u16, *descriptor);
    }
    show(side);
    if receives {
        pair.send(&frame(1, 60), &[], false);
    }
    match pair.turn() {
        Err((port, error)) => {
            assert_eq!(port, usize::from(receives), "the wrong port failed: {error}");
            Some(error.to_string())
        }
        Ok(_) => None,
    }
}

fn both_formats(receives: bool, descriptors: &[Descriptor], reason: &str) {
    for features in [Features::INDIRECT_DESC, Features::RING_PACKED] {
        let error = outcome(features, receives, descriptors, &[]);
        let names = features.names();
        assert!(error.as_deref().is_some_and(|error| error.contains(reason)), "{error:?}, not {reason}, {names:?}");
    }
}

fn buffer(guest: u64, len: u32, flags: u16) -> Descriptor {
    Descriptor { guest, len, flags, next: 1 }
}

#[test]
fn buffers_outside_of_memory_are_refused() {
    let end = Rig::region(0) + RigSpec::new(Features::VERSION_1).region_bytes() as u64;
    let places = [
        (0, 64),
        (Rig::region(0) - 1, 64),
        (end, 1),
        (end - 10, 64),
        (end - 64, 65),
        (Rig::region(0), u32::MAX),
        (u64::MAX, 64),
        (u64::MAX - 63, 64),
        (u64::MAX - 10, u32::MAX),
        (Rig::region(1) - 32, 64),
    ];
    for (guest, len) in places {
        both_formats(false, &[buffer(guest, len, 0)], "not inside one memory region");
        both_formats(true, &[buffer(guest, len, DESC_WRITE)], "not inside one memory region");
        both_formats(
            false,
            &[buffer(Rig::region(0), 64, DESC_NEXT), buffer(guest, len, 0)],
            "not inside one memory region",
        );
    }
}

#[test]
fn buffers_of_the_wrong_direction_are_refused() {
    let at = Rig::region(0);
    both_formats(false, &[buffer(at, 64, DESC_WRITE)], "direction");
    both_formats(true, &[buffer(at, 64, 0)], "direction");
    both_formats(false, &[buffer(at, 64, DESC_NEXT), buffer(at, 64, DESC_WRITE)], "direction");
}

#[test]
fn bad_indirect_tables_are_refused() {
    let spec = RigSpec::new(Features::INDIRECT_DESC);
    let tables = Rig::new(spec).unwrap().tx.areas.tables;
    for len in [0, 1, 15, 17, 16 * 1025, u32::MAX, u32::MAX - 15] {
        both_formats(false, &[buffer(tables, len, DESC_INDIRECT)], "table");
    }
    both_formats(false, &[buffer(u64::MAX - 15, 32, DESC_INDIRECT)], "not inside one memory region");
    both_formats(false, &[buffer(tables, 32, DESC_INDIRECT | DESC_NEXT)], "indirect descriptor where none is allowed");
    // Tables of two entries: one inside another, and, split, one that leads out of the table or in a circle.
    let entry = |flags: u16, next: u16, packed: bool| {
        let (low, high) = match packed {
            false => Descriptor { guest: Rig::region(0), len: 32, flags, next }.words(),
            true => Descriptor { guest: Rig::region(0), len: 32, flags: next, next: flags }.words(),
        };
        [low.to_ne_bytes(), high.to_ne_bytes()].concat()
    };
    for (features, packed) in [(Features::INDIRECT_DESC, false), (Features::RING_PACKED, true)] {
        let table = [entry(DESC_NEXT, 1, packed), entry(DESC_INDIRECT, 0, packed)].concat();
        let error = outcome(features, false, &[buffer(tables, 32, DESC_INDIRECT)], &table).unwrap();
        assert!(error.contains("indirect descriptor where none is allowed"), "{error}");
    }
    for (next, reason) in [(2, ""), (3, "descriptor 3 in a ring of 2"), (0, "longer than")] {
        let table = [entry(DESC_NEXT, 1, false), entry(DESC_NEXT, next, false)].concat();
        let error = outcome(Features::INDIRECT_DESC, false, &[buffer(tables, 32, DESC_INDIRECT)], &table);
        assert!(error.unwrap_or_default().contains(reason), "{next} after the second entry of two");
    }
}

#[test]
fn chains_that_never_end_are_refused() {
    let at = Rig::region(0);
    let circle = |next| Descriptor { guest: at, len: 20, flags: DESC_NEXT, next };
    let split = Features::VERSION_1;
    assert!(outcome(split, false, &[circle(0)], &[]).unwrap().contains("longer than"));
    assert!(outcome(split, false, &[circle(1), circle(0)], &[]).unwrap().contains("longer than"));
    assert!(outcome(split, false, &[circle(256)], &[]).unwrap().contains("descriptor 256 in a ring of 256"));
    assert!(outcome(split, false, &[circle(u16::MAX)], &[]).unwrap().contains("descriptor 65535"));
    let all = vec![circle(0); 256];
    assert!(outcome(Features::RING_PACKED, false, &all, &[]).unwrap().contains("longer than"));
}

#[test]
fn indices_that_jump_and_heads_past_the_ring_are_refused() {
    for (head, index, reason) in [
        (256, 1, "descriptor 256 in a ring of 256"),
        (u16::MAX, 1, "descriptor 65535 in a ring of 256"),
        (0, 257, "jumped by 257"),
        (0, u16::MAX, "jumped by 65535"),
    ] {
        for receives in [false, true] {
            let mut pair = Pair::new(RigSpec::new(Features::VERSION_1), RigSpec::new(Features::VERSION_1));
            let side = if receives { &pair.b.rx } else { &pair.a.tx };
            let DriverQueue::Split(queue) = &side.queue else { panic!("a packed ring") };
            let flags = if receives { DESC_WRITE } else { 0 };
            store(side, 0, Descriptor { guest: Rig::region(0), len: 100, flags, next: 0 });
            queue.memory().set_avail_head(0, head);
            queue.memory().set_avail_index(index);
            if receives {
                pair.send(&frame(1, 60), &[], false);
            }
            let (port, error) = pair.turn().unwrap_err();
            assert_eq!(port, usize::from(receives));
            assert!(error.to_string().contains(reason), "{error}, not {reason}");
        }
    }
}

#[test]
fn an_index_that_runs_ahead_within_one_turn_is_refused() {
    let mut pair = Pair::new(
        RigSpec::new(Features::VERSION_1),
        RigSpec { size: 32, slots: 32, ..RigSpec::new(Features::VERSION_1) },
    );
    (0..32).for_each(|_| pair.offer(&[1600], false));
    (0..40).for_each(|n| pair.send(&frame(n, 60), &[], false));
    pair.cx.begin_turn(wire::Instant::START);
    pair.from.receive(&mut pair.cx, &mut pair.burst).unwrap();
    let mut first = Burst::default();
    let mut frames = pair.burst.drain();
    frames.by_ref().take(32).for_each(|frame| first.push(frame).unwrap());
    let rest: Vec<_> = frames.collect();
    rest.into_iter().for_each(|frame| pair.burst.push(frame).unwrap());
    pair.cx.nic = NicId(1);
    pair.to.transmit(&mut pair.cx, &mut first).unwrap();
    let DriverQueue::Split(queue) = &pair.b.rx.queue else { panic!("a packed ring") };
    queue.memory().set_avail_index(33);
    let error = pair.to.transmit(&mut pair.cx, &mut pair.burst).unwrap_err();
    assert!(error.to_string().contains("jumped by 33"), "{error}");
    pair.burst.drain().for_each(|frame| pair.cx.drop(frame, DropReason::NotReady));
    assert!(pair.cx.ledger.balances(), "{:?}", pair.cx.ledger);
}

#[test]
fn empty_and_short_buffers_are_a_drop() {
    for features in feature_sets() {
        let mut pair = Pair::new(RigSpec::new(features), RigSpec::new(features));
        pair.send(&frame(1, 0), &[0, 12], false);
        pair.send(&frame(1, 60), &[0, 0, 12, 0, 60, 0], false);
        // A driver offers room for no header, and nothing at all.
        pair.offer(&[0], false);
        pair.offer(&[5], true);
        assert_eq!(pair.turn().unwrap(), 1);
        assert_eq!(pair.drops(DropReason::Runt), 1);
        assert_eq!(pair.drops(DropReason::TooBig) + pair.drops(DropReason::RingFull), 1);
        assert_eq!(pair.a.reap().unwrap(), 2);
    }
}

#[test]
fn a_failed_port_disturbs_no_other() {
    let mut pair = Pair::new(RigSpec::new(Features::VERSION_1), RigSpec::new(Features::VERSION_1));
    store(&pair.b.rx, 0, buffer(0, 64, DESC_WRITE));
    show(&pair.b.rx);
    (0..5).for_each(|n| pair.send(&frame(n, 60), &[], false));
    assert_eq!(pair.turn().unwrap_err().0, 1);
    assert_eq!(pair.cx.ledger.dropped, 5);
    assert_eq!(pair.a.reap().unwrap(), 5, "the sender's chains are completed");
    pair.to.detach(&mut pair.cx);
    let home = pair.b.home.clone();
    drop(pair.to);
    let reason = home.lock().unwrap().take().unwrap().1;
    assert!(reason.unwrap().contains("not inside one memory region"));
}

/// A second view of a ring, for another thread.
enum View {
    Split(SplitMemory),
    Packed(PackedMemory),
}

impl View {
    fn new(rig: &Rig, side: &Side) -> View {
        let (memory, size) = (Arc::clone(rig.memory()), rig.spec().size);
        let Areas { descriptors, driver, device, .. } = side.areas;
        match &side.queue {
            DriverQueue::Split(_) => View::Split(SplitMemory::new(memory, size, descriptors, driver, device).unwrap()),
            DriverQueue::Packed(_) => {
                View::Packed(PackedMemory::new(memory, size, descriptors, driver, device).unwrap())
            }
        }
    }

    fn flip(&self, index: u16, descriptor: Descriptor, forward: bool) {
        match self {
            View::Split(memory) => {
                memory.set_descriptor(index, descriptor);
                memory.set_avail_head(index, descriptor.next);
                memory.set_avail_index(if forward { index } else { index.wrapping_mul(3) });
            }
            View::Packed(memory) => {
                let flags = descriptor.flags | if forward { PACKED_AVAIL } else { PACKED_USED };
                memory.set_descriptor(index, Descriptor { flags, ..descriptor });
            }
        }
    }
}

/// A driver thread turns descriptors over while the device looks at them.
#[test]
fn descriptors_that_change_under_the_device_do_no_harm() {
    for features in [Features::INDIRECT_DESC, Features::RING_PACKED] {
        let spec = RigSpec { size: 16, slots: 16, ..RigSpec::new(features) };
        let stop = AtomicBool::new(false);
        let rig = Rig::new(spec).unwrap();
        let tables = rig.tx.areas.tables;
        let mut cx = context();
        let mut failures = 0;
        std::thread::scope(|scope| {
            let (side, stop) = (&rig.tx, &stop);
            let other = View::new(&rig, side);
            scope.spawn(move || {
                let choices = [
                    buffer(Rig::region(0), 100, 0),
                    buffer(Rig::region(0), u32::MAX, 0),
                    buffer(u64::MAX - 50, 100, 0),
                    buffer(Rig::region(0), 20, DESC_NEXT),
                    buffer(tables, 64, DESC_INDIRECT),
                    buffer(Rig::region(0), 100, DESC_WRITE),
                ];
                let mut n = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let index = (n >> 8) as u16 % 16;
                    let mut descriptor = choices[(n >> 16) as usize % choices.len()];
                    descriptor.next = (n >> 24) as u16 % 17;
                    other.flip(index, descriptor, n >> 31 != 0);
                }
            });
            for _ in 0..20_000 {
                let mut port = rig.port().unwrap();
                port.attach(&mut cx).unwrap();
                let mut burst = Burst::default();
                cx.begin_turn(wire::Instant::START);
                cx.nic = NicId(0);
                let result = port.receive(&mut cx, &mut burst).and_then(|()| port.release(&mut cx));
                failures += u32::from(result.is_err());
                burst.drain().for_each(|frame| cx.drop(frame, DropReason::NoDestination));
                port.detach(&mut cx);
                assert!(cx.ledger.balances());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(failures > 0, "nothing was ever caught");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_in_the_whole_ring_area_do_no_harm(
        set in 0usize..16,
        seed: u64,
        noise in proptest::collection::vec((0u64..16_000, any::<u64>()), 1..200),
        small in any::<bool>(),
    ) {
        let spec = RigSpec { size: 16, slots: 16, ..RigSpec::new(feature_sets()[set]) };
        let mut pair = Pair::new(spec, spec);
        for n in 0..4 {
            pair.offer(&[300, 1300], n % 2 == 0);
            pair.send(&frame(seed ^ n, 200), &[12, 50], n % 2 == 0);
        }
        for (n, (at, word)) in noise.iter().enumerate() {
            let rig = if n % 2 == 0 { &pair.a } else { &pair.b };
            let side = if n % 2 == 0 { &rig.tx } else { &rig.rx };
            // Small words make indices and flags that are nearly right.
            let word = if small { *word & 0x0083_0007_0000_001f } else { *word };
            rig.write(side.areas.descriptors + at, &word.to_le_bytes());
            if n % 10 == 9 && pair.turn().is_err() {
                break;
            }
        }
        let _ = pair.turn();
    }
}

//! Kills between any two stores of a publish and of a recovery; journals of rings that are not there any more.

use std::os::fd::{AsFd, OwnedFd};

use sys::{
    arena::{Arena, MapId},
    memory::memfd,
};

use super::*;
use crate::{
    Features,
    virtqueue::{
        AnyRing, DeviceQueue, Ring,
        chain::{Batch, Chain, EitherWay},
        packed::PackedQueue,
        testing::{Rig, RigSpec, Side},
    },
};

const SIZE: u16 = 11;

/// One way of using a ring.
#[derive(Clone, Copy, Debug)]
struct Shape {
    features: Features,
    /// The device writes.
    receives: bool,
    /// Buffers of each chain.
    cuts: &'static [u32],
    /// Publishes of `burst` chains before the one that is cut short.
    history: usize,
    burst: usize,
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for features in [Features::RING_PACKED, Features::RING_PACKED.with(Features::IN_ORDER)] {
        for receives in [false, true] {
            for cuts in [&[100][..], &[12, 100], &[12, 20, 30]] {
                for history in [0, 1, 4, 7] {
                    for burst in [1, 3, 5, 11] {
                        if burst * cuts.len() <= usize::from(SIZE) {
                            shapes.push(Shape { features, receives, cuts, history, burst });
                        }
                    }
                }
            }
        }
    }
    shapes
}

/// A driver, and the device half with its journal.
struct World {
    rig: Rig,
    shape: Shape,
    arena: Arena,
    map: MapId,
    /// The file that holds the journal.
    file: OwnedFd,
}

impl World {
    fn new(shape: Shape) -> World {
        let spec = RigSpec { size: SIZE, slots: SIZE, slot: 2048, ..RigSpec::new(shape.features) };
        let rig = Rig::new(spec).unwrap();
        let mut arena = Arena::new(4096).unwrap();
        let map = arena.insert(rig.memory().clone());
        World { rig, shape, arena, map, file: memfd("journal", Journal::bytes(SIZE)).unwrap() }
    }

    fn side(&mut self) -> &mut Side {
        if self.shape.receives { &mut self.rig.rx } else { &mut self.rig.tx }
    }

    /// The driver makes as many chains available as it can, up to `max`.
    fn fill(&mut self, max: usize) -> usize {
        let Shape { cuts, receives, .. } = self.shape;
        let total = cuts.iter().sum::<u32>() as usize - 12;
        let one = |rig: &mut Rig| match receives {
            true => rig.offer(cuts, false),
            false => rig.send(wire::Offload::NONE, &vec![7; total], &cuts[..cuts.len() - 1], false),
        };
        let count = (0..max).take_while(|_| one(&mut self.rig)).count();
        self.side().publish().unwrap();
        count
    }

    /// The driver takes back what was used; the device keeps all rules.
    fn reap(&mut self) -> usize {
        if self.shape.receives { self.rig.receive().unwrap().len() } else { self.rig.reap().unwrap() }
    }

    fn journal(&self) -> Journal {
        Journal::within(Mapping::shared(self.file.as_fd(), 0, Journal::bytes(SIZE)).unwrap(), SIZE).unwrap()
    }

    /// A device half that was told to begin at the ring's start, which its journal may know better.
    fn device(&mut self) -> PackedQueue {
        let journal = self.journal();
        let side = if self.shape.receives { &self.rig.rx } else { &self.rig.tx };
        let mut setup = self.rig.setup(side).unwrap();
        setup.journal = Some(journal);
        match DeviceQueue::new(setup).unwrap().ring {
            AnyRing::Packed(ring) => ring,
            AnyRing::Split(_) => panic!("a split ring"),
        }
    }

    /// The device carries out up to `max` chains, without publishing.
    fn work(&self, device: &mut PackedQueue, max: usize) -> Vec<Chain> {
        let map = self.arena.map(self.map).unwrap();
        let mut batch = Batch::<EitherWay>::default();
        device.take(&map, &mut batch, max).unwrap();
        if !self.shape.receives {
            device.complete_all(&batch.chains);
            return batch.chains;
        }
        for chain in &batch.chains {
            let mut frame = [0; 20];
            frame[10] = 1;
            let pieces = batch.pieces(*chain);
            for (piece, bytes) in pieces.iter().zip([&frame[..12], &frame[12..]]) {
                if let EitherWay::Room(room) = piece {
                    map.write(*room, bytes);
                }
            }
            let whole = pieces.first().is_some_and(|piece| matches!(piece, EitherWay::Room(room) if room.len() > 12));
            device.complete(*chain, if whole { 12 } else { 14 });
        }
        batch.chains
    }

    fn memory(&mut self) -> PackedMemory {
        let areas = self.side().areas;
        let memory = self.rig.memory().clone();
        PackedMemory::new(memory, SIZE, areas.descriptors, areas.driver, areas.device).unwrap()
    }

    /// Everything up to the burst that is cut short: its stores are returned, none of them done, and the device is dead.
    fn up_to_the_burst(shape: Shape) -> (World, Vec<Store>, Publish<'static>, usize) {
        let mut world = World::new(shape);
        let mut device = world.device();
        for _ in 0..shape.history {
            world.fill(usize::from(SIZE));
            world.work(&mut device, shape.burst);
            device.publish();
            world.reap();
        }
        world.fill(usize::from(SIZE));
        let taken = world.work(&mut device, shape.burst).len();
        let staged = device.staged();
        let mut stores = Vec::new();
        staged.stores(|store| stores.push(store));
        let publish = Publish { from: staged.from, to: staged.to, elements: &[], tail: staged.tail };
        (world, stores, publish, taken)
    }

    /// A new device goes on from the journal until the driver has everything back, twice over. Returns the chains it carried out before
    /// the driver had anything new.
    fn go_on(&mut self) -> usize {
        let mut device = self.device();
        let repeated = self.work(&mut device, usize::from(SIZE)).len();
        device.publish();
        self.reap();
        assert_eq!(self.side().queue.outstanding(), 0, "a chain was lost: {:?}", self.shape);
        for _ in 0..3 {
            let count = self.fill(usize::from(SIZE));
            assert_eq!(self.work(&mut device, usize::from(SIZE)).len(), count);
            device.publish();
            assert_eq!(self.reap(), count);
        }
        repeated
    }
}

#[test]
fn a_kill_between_any_two_stores_loses_nothing_and_repeats_one_burst_at_most() {
    for shape in shapes() {
        let stores = World::up_to_the_burst(shape).1.len();
        for cut in 0..=stores {
            let (mut world, stores, publish, taken) = World::up_to_the_burst(shape);
            let memory = world.memory();
            let outstanding = usize::from(world.side().queue.outstanding());
            stores.iter().take(cut).for_each(|store| world.journal().carry_out(&memory, *store));
            let intent = stores.iter().position(|s| matches!(s, Store::Journal(WORD_STATE, _))).unwrap();
            let found = world.journal().recover(&memory);
            let expected = if cut <= intent { publish.from } else { publish.to };
            assert_eq!(found, Some(expected), "cut after {cut} of {stores:?} in {shape:?}");
            let left = outstanding - if cut <= intent { 0 } else { taken };
            assert_eq!(world.go_on(), left, "cut after {cut}, {shape:?}");
        }
    }
}

#[test]
fn a_kill_between_any_two_stores_of_a_recovery_changes_nothing() {
    for shape in shapes().into_iter().filter(|shape| shape.history == 4) {
        let count = World::up_to_the_burst(shape).1.len();
        for cut in 0..=count {
            for second in 0.. {
                let (mut world, stores, _, _) = World::up_to_the_burst(shape);
                let memory = world.memory();
                let journal = world.journal();
                stores.iter().take(cut).for_each(|store| journal.carry_out(&memory, *store));
                let mut done = 0;
                journal.recover_through(&memory, |store| {
                    if done < second {
                        journal.carry_out(&memory, store);
                    }
                    done += 1;
                });
                world.go_on();
                if second >= done {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_driver_that_goes_on_between_publish_and_commit_loses_nothing() {
    for shape in shapes() {
        let (_, stores, _, _) = World::up_to_the_burst(shape);
        let shown = stores.iter().rposition(|store| matches!(store, Store::Ring(..))).unwrap() + 1;
        for cut in shown..=stores.len() {
            for refill in [0, 1, usize::from(SIZE)] {
                let (mut world, stores, publish, taken) = World::up_to_the_burst(shape);
                let memory = world.memory();
                stores.iter().take(cut).for_each(|store| world.journal().carry_out(&memory, *store));
                assert_eq!(world.reap(), taken);
                world.fill(refill);
                assert_eq!(world.journal().recover(&memory), Some(publish.to), "cut after {cut}, {shape:?}");
                world.go_on();
            }
        }
    }
}

#[test]
fn a_driver_caught_in_the_middle_of_a_chain_is_no_contradiction() {
    let shape = Shape { features: Features::RING_PACKED, receives: false, cuts: &[12, 20, 30], history: 4, burst: 2 };
    let (mut world, stores, publish, _) = World::up_to_the_burst(shape);
    let memory = world.memory();
    stores.iter().for_each(|store| world.journal().carry_out(&memory, *store));
    world.reap();
    // Added, but the first descriptor not yet stored.
    assert!(world.rig.send(wire::Offload::NONE, &[7; 50], &[12, 20], false));
    assert_eq!(world.journal().recover(&memory), Some(publish.to));
    world.side().publish().unwrap();
    world.go_on();
}

#[test]
fn the_journal_of_a_guest_that_is_gone_is_refused() {
    for shape in shapes() {
        let count = World::up_to_the_burst(shape).1.len();
        for cut in 0..=count {
            for fill in [0, 1, usize::from(SIZE) / 2, usize::from(SIZE)] {
                let (mut old, stores, publish, _) = World::up_to_the_burst(shape);
                let memory = old.memory();
                stores.iter().take(cut).for_each(|store| old.journal().carry_out(&memory, *store));
                let mut new = World::new(shape);
                new.fill(fill);
                let found = old.journal().recover(&new.memory());
                // A first burst that was cut short cannot be told from that of the new guest, which then stands where it says.
                let at_start = found.is_none_or(|at| at == Position::START || publish.from == Position::START);
                assert!(at_start, "{found:?} after {cut} of {stores:?}, {fill} chains, {shape:?}");
            }
        }
    }
}

#[test]
fn a_journal_begun_and_never_written_is_refused_by_a_fresh_ring() {
    for fill in [0, 3, usize::from(SIZE)] {
        let shape = Shape { features: Features::RING_PACKED, receives: true, cuts: &[100], history: 5, burst: 1 };
        let (mut old, _, publish, _) = World::up_to_the_burst(shape);
        let memory = old.memory();
        let mut journal = old.journal();
        journal.start(publish.from, &memory);
        assert_eq!(journal.recover(&memory), Some(publish.from));
        let mut new = World::new(shape);
        new.fill(fill);
        assert_eq!(journal.recover(&new.memory()), None);
        journal.clear();
        assert_eq!(journal.recover(&memory), None, "a journal that was closed knows nothing");
    }
}

#[test]
fn a_journal_of_another_size_or_full_of_nonsense_is_refused() {
    let shape = Shape { features: Features::RING_PACKED, receives: true, cuts: &[100], history: 5, burst: 2 };
    let (mut world, _, _, _) = World::up_to_the_burst(shape);
    let memory = world.memory();
    let areas = world.side().areas;
    let shorter =
        PackedMemory::new(world.rig.memory().clone(), SIZE - 1, areas.descriptors, areas.driver, areas.device).unwrap();
    assert_eq!(world.journal().recover(&shorter), None);
    for seed in 1..2000u64 {
        let journal = world.journal();
        let noise = |n: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32 * 7) ^ n;
        (1..30).for_each(|at| journal.words.store(at, noise(at as u64)));
        journal.words.store(WORD_STATE, noise(1) & 0x000f_800f_800f);
        let _ = world.journal().recover(&memory);
    }
}

//! The split ring against the crate `virtio-queue`: the same driver before two devices, ours and theirs, in two equal memories. Chains found,
//! used rings and decisions about notifications agree.
//!
//! Theirs ignores `VIRTQ_AVAIL_F_NO_INTERRUPT`, so without `EVENT_IDX` our decision is compared with what the driver asked for.

use proptest::prelude::*;
use sys::arena::Arena;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::{
    Features,
    virtqueue::{
        AnyRing, DeviceQueue, Ring,
        chain::{Batch, EitherWay},
        split::SplitQueue,
        testing::{Areas, Rig, RigSpec, Side},
    },
};
use wire::Offload;

use crate::pair::frame;

const SIZE: u16 = 16;
const USED_BYTES: u32 = 6 + 8 * SIZE as u32;

#[derive(Clone, Debug)]
enum Step {
    Add { cuts: Vec<u32>, indirect: bool },
    Publish,
    Work { max: usize, written: u32 },
    Reap,
    WantInterrupts(bool),
    WantKicks(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (proptest::collection::vec(1u32..300, 1..5), any::<bool>()).prop_map(|(cuts, indirect)| Step::Add { cuts, indirect }),
        4 => Just(Step::Publish),
        5 => (0usize..20, 0u32..300).prop_map(|(max, written)| Step::Work { max, written }),
        3 => Just(Step::Reap),
        2 => any::<bool>().prop_map(Step::WantInterrupts),
        2 => any::<bool>().prop_map(Step::WantKicks),
    ];
    proptest::collection::vec(step, 1..400)
}

struct Both {
    rig: Rig,
    receives: bool,
    event_idx: bool,
    arena: Arena,
    map: sys::arena::MapId,
    ours: SplitQueue,
    theirs: Queue,
    memory: GuestMemoryMmap,
    wants_interrupts: bool,
    seed: u64,
}

impl Both {
    fn new(receives: bool, event_idx: bool) -> Both {
        let mut features = Features::INDIRECT_DESC;
        if event_idx {
            features = features.with(Features::EVENT_IDX);
        }
        let spec = RigSpec { size: SIZE, slots: SIZE, slot: 2048, regions: 1, ..RigSpec::new(features) };
        let rig = Rig::new(spec).unwrap();
        let side = if receives { &rig.rx } else { &rig.tx };
        let AnyRing::Split(ours) = DeviceQueue::new(rig.setup(side).unwrap()).unwrap().ring else {
            panic!("a packed ring")
        };
        let Areas { descriptors, driver, device, .. } = side.areas;
        let halves = |at: u64| (Some(at as u32), Some((at >> 32) as u32));
        let mut theirs = Queue::new(SIZE).unwrap();
        theirs.set_size(SIZE);
        theirs.set_desc_table_address(halves(descriptors).0, halves(descriptors).1);
        theirs.set_avail_ring_address(halves(driver).0, halves(driver).1);
        theirs.set_used_ring_address(halves(device).0, halves(device).1);
        theirs.set_event_idx(event_idx);
        theirs.set_ready(true);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(Rig::region(0)), spec.region_bytes())]).unwrap();
        assert!(theirs.is_valid(&memory));
        let mut arena = Arena::new(4096).unwrap();
        let map = arena.insert(rig.memory().clone());
        Both { rig, receives, event_idx, arena, map, ours, theirs, memory, wants_interrupts: true, seed: 0 }
    }

    fn side(&mut self) -> &mut Side {
        if self.receives { &mut self.rig.rx } else { &mut self.rig.tx }
    }

    /// Copies everything but the used ring: what a driver writes.
    fn show_theirs(&mut self) {
        let device = self.side().areas.device;
        for page in (0..self.rig.spec().region_bytes() as u64).step_by(4096).map(|at| Rig::region(0) + at) {
            if page != device {
                self.memory.write_slice(&self.rig.read(page, 4096).unwrap(), GuestAddress(page)).unwrap();
            }
        }
    }

    fn compare_used_rings(&mut self) {
        let device = self.side().areas.device;
        let mut theirs = vec![0; USED_BYTES as usize];
        self.memory.read_slice(&mut theirs, GuestAddress(device)).unwrap();
        assert_eq!(self.rig.read(device, USED_BYTES).unwrap(), theirs, "the used rings differ");
    }

    fn work(&mut self, max: usize, written: u32) {
        self.show_theirs();
        let map = self.arena.map(self.map).unwrap();
        let mut batch = Batch::<EitherWay>::default();
        self.ours.take(&map, &mut batch, max).unwrap();
        for chain in &batch.chains {
            let expected = self.theirs.pop_descriptor_chain(&self.memory).expect("a chain that theirs does not see");
            assert_eq!(chain.id, expected.head_index());
            let descriptors: Vec<_> = expected.collect();
            let pieces = batch.pieces(*chain);
            assert_eq!(pieces.len(), descriptors.len());
            for (piece, descriptor) in pieces.iter().zip(&descriptors) {
                match piece {
                    EitherWay::Lent(lent) => {
                        assert!(!descriptor.is_write_only());
                        let (mut ours, mut theirs) = (vec![0; lent.len()], vec![0; descriptor.len() as usize]);
                        assert_eq!(map.read(*lent, &mut ours), lent.len());
                        self.memory.read_slice(&mut theirs, descriptor.addr()).unwrap();
                        assert_eq!(ours, theirs);
                    }
                    EitherWay::Room(room) => {
                        assert!(descriptor.is_write_only());
                        assert_eq!(room.len(), descriptor.len() as usize);
                        // What is written through the room is found where theirs says it is.
                        map.write(*room, &self.seed.to_le_bytes());
                        let at = self.rig.read(descriptor.addr().0, descriptor.len().min(8)).unwrap();
                        assert_eq!(at, self.seed.to_le_bytes()[..at.len()]);
                        self.seed += 1;
                    }
                }
            }
            let room: u32 = descriptors.iter().filter(|d| d.is_write_only()).map(|d| d.len()).sum();
            self.ours.complete(*chain, written.min(room));
            self.theirs.add_used(&self.memory, chain.id, written.min(room)).unwrap();
        }
        if batch.chains.len() < max {
            assert!(self.theirs.pop_descriptor_chain(&self.memory).is_none(), "a chain that ours does not see");
        }
        let notified = self.ours.publish();
        let expected = self.theirs.needs_notification(&self.memory).unwrap();
        if self.event_idx {
            assert_eq!(notified, expected);
        } else {
            assert_eq!(notified, !batch.chains.is_empty() && self.wants_interrupts);
        }
        self.compare_used_rings();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add { cuts, indirect } => {
                self.seed += 1;
                if self.receives {
                    self.rig.offer(&cuts, indirect);
                } else {
                    let len = cuts.iter().sum::<u32>() as usize;
                    self.rig.send(Offload::NONE, &frame(self.seed, len), &cuts, indirect);
                }
            }
            Step::Publish => {
                self.side().publish().unwrap();
            }
            Step::Work { max, written } => self.work(max, written),
            Step::Reap => {
                self.side().reap().unwrap();
            }
            Step::WantInterrupts(want) => {
                self.side().queue.want_interrupts(want);
                self.wants_interrupts = want;
            }
            Step::WantKicks(want) => {
                self.show_theirs();
                let more = self.ours.want_kicks(want);
                if want {
                    assert_eq!(more, self.theirs.enable_notification(&self.memory).unwrap());
                } else {
                    self.theirs.disable_notification(&self.memory).unwrap();
                }
                self.compare_used_rings();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn both_devices_see_and_do_the_same(receives: bool, event_idx: bool, steps in steps()) {
        let mut both = Both::new(receives, event_idx);
        steps.into_iter().for_each(|step| both.step(step));
    }
}

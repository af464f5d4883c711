//! Once warm, a worker with a bridge between virtio rings allocates nothing for a frame: known and unknown destinations, floods, tags put on and
//! taken off, full rings; and every frame is accounted for.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::time::Duration;

use sys::allocations::{CountingAllocator, count};
use vmm::{
    Features,
    virtqueue::testing::{Rig, RigSpec},
};
use vswitch::{
    BridgeSpec, Budget, Budgets, Membership, NicSpec,
    change::{BridgeId, Change},
    worker::Worker,
};
use wire::{Instant, NicId, Offload, Sizes, Vid};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const GUESTS: u8 = 4;

/// Guests 0 and 1 are on an access port of VLAN 100, the others on a trunk that carries it.
fn membership(guest: usize) -> Membership {
    let vlan = Vid::new(100).unwrap();
    if guest < 2 { Membership::Access(vlan) } else { Membership::Trunk { vlans: vec![vlan], native: None } }
}

/// A frame from guest `from` to guest `to` (255: everybody, 200: nobody that is known).
fn frame(to: u8, from: u8, len: usize) -> Vec<u8> {
    let mut bytes = if to == 255 { vec![255; 6] } else { vec![2, 0, 0, 0, 0, to] };
    bytes.extend([2, 0, 0, 0, 0, from]);
    if from >= 2 {
        bytes.extend([0x81, 0, 0, 100]);
    }
    bytes.extend([8, 0]);
    bytes.resize(len, from);
    bytes
}

#[test]
fn a_warm_worker_allocates_nothing_per_frame() {
    assert!(count() > 0, "the counting allocator is not in place");
    for features in [Features::MRG_RXBUF, Features::RING_PACKED.with(Features::IN_ORDER), Features::EVENT_IDX] {
        let mut worker = Worker::new(Sizes::default(), None, Box::new(|failure| panic!("{}", failure.reason))).unwrap();
        assert!(worker.apply(Change::AddBridge { id: BridgeId(0), spec: BridgeSpec::new(7) }));
        let spec = RigSpec { slots: 256, ..RigSpec::new(features) };
        let mut rigs: Vec<Rig> = (0..GUESTS).map(|_| Rig::new(spec).unwrap()).collect();
        for (nic, rig) in rigs.iter().enumerate() {
            let (nic, membership) = (NicId(nic as u16), membership(nic));
            let budget = Budget::per_second(10_000_000);
            let budgets = Budgets { broadcast: budget, multicast: budget, unknown: budget, held: budget };
            let spec = NicSpec { membership, budgets, ..NicSpec::default() };
            assert!(worker.apply(Change::AddNic { nic, bridge: BridgeId(0), spec }));
            assert!(worker.apply(Change::Attach { nic, lane: 0, port: Box::new(rig.port().unwrap()) }));
        }
        let mut now = Instant::START;
        let (mut allocated, mut arrived) = (0, 0);
        for round in 0..200usize {
            now = now + Duration::from_millis(1);
            for (n, rig) in rigs.iter_mut().enumerate() {
                for burst in 0..32u8 {
                    let to = if round % 10 == 3 {
                        [255, 200][usize::from(burst % 2)]
                    } else {
                        (n as u8 + 1 + burst % 3) % GUESTS
                    };
                    rig.send(Offload::NONE, &frame(to, n as u8, 60 + usize::from(burst) * 40), &[12], false);
                }
                // Every now and then a guest takes nothing, so that its ring fills up.
                while round % 7 != n && rig.offer(&[2048], false) {}
                rig.tx.publish().unwrap();
                rig.rx.publish().unwrap();
            }
            let before = count();
            let received = worker.round(now);
            if round >= 100 {
                allocated += count() - before;
            }
            assert!(received > 0);
            assert!(worker.context().ledger.balances());
            for rig in &mut rigs {
                rig.reap().unwrap();
                arrived += rig.receive().unwrap().len();
            }
        }
        let ledger = worker.context().ledger;
        assert_eq!(allocated, 0, "{:?}", features.names());
        assert_eq!(arrived as u64, ledger.transmitted);
        assert!(ledger.copied > 0 && ledger.dropped > 0, "floods and full rings were part of it: {ledger:?}");
        assert!(!worker.apply(Change::Stop));
        assert!(rigs.iter().all(|rig| rig.home.lock().unwrap().is_some()), "every ring came home");
    }
}

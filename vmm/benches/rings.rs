//! What a ring costs: driver half, device half and ring port in one thread, so that nothing of it is the way between two CPUs.
//!
//! `rig` moves bursts from one rig's ring to another's through two ring ports, one turn a burst: rings, heads and the copy of the body, but
//! no bridge. The load generator's guests do the same without allocating. Divide by 64 for the cost of a frame.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to measure")]
#![allow(missing_docs, reason = "criterion's macros make public items without any")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmm::{
    Features,
    load::{Guest, GuestSpec},
    virtqueue::testing::{Rig, RigSpec, turn},
};
use wire::{BURST, Burst, Context, NicId, Offload, Port, Sizes};

fn kinds() -> [(&'static str, Features); 4] {
    let mergeable = Features::VERSION_1.with(Features::MRG_RXBUF);
    let packed = mergeable.with(Features::RING_PACKED);
    [
        ("split", mergeable),
        ("split in order", mergeable.with(Features::IN_ORDER)),
        ("packed", packed),
        ("packed in order", packed.with(Features::IN_ORDER)),
    ]
}

fn context() -> Context {
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    cx.add_nic(NicId(1));
    cx
}

/// Whole bursts through `Rig`, whose own part (a vector for each received frame) is in the figure.
fn rig(c: &mut Criterion) {
    let mut group = c.benchmark_group("a burst of 64 from rig to rig");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, features) in kinds() {
        let spec = RigSpec::new(features);
        let (mut a, mut b) = (Rig::new(spec).unwrap(), Rig::new(spec).unwrap());
        let (mut from, mut to) = (a.port().unwrap(), b.port().unwrap());
        let (mut cx, mut burst) = (context(), Burst::default());
        from.attach(&mut cx).unwrap();
        to.attach(&mut cx).unwrap();
        let bytes = [2; 60];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..BURST {
                    assert!(b.offer(&[2048], false) && a.send(Offload::NONE, &bytes, &[], false));
                }
                b.rx.publish().unwrap();
                a.tx.publish().unwrap();
                let moved = turn(&mut cx, &mut burst, &mut from, &mut to).unwrap();
                assert_eq!((moved, a.reap().unwrap()), (BURST, BURST));
                black_box(b.receive().unwrap().len())
            });
        });
    }
    group.finish();
}

/// The same by the load generator's guests, which allocate nothing: nearly all of it is rings and ports.
fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("a burst of 64 from guest to guest");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, features) in kinds() {
        for len in [60u32, 1514] {
            let spec = GuestSpec { features, ..GuestSpec::new() };
            let (mut a, mut b) = (Guest::new(spec).unwrap(), Guest::new(spec).unwrap());
            a.lay_out(&[(vec![2; len as usize], Offload::NONE)]);
            let (mut from, mut to) = (a.port().unwrap(), b.port().unwrap());
            let (mut cx, mut burst) = (context(), Burst::default());
            from.attach(&mut cx).unwrap();
            to.attach(&mut cx).unwrap();
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                bencher.iter(|| {
                    assert_eq!(a.send(BURST).unwrap(), BURST);
                    assert_eq!(turn(&mut cx, &mut burst, &mut from, &mut to).unwrap(), BURST);
                    assert_eq!(b.receive().unwrap().frames, BURST as u64);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rig, load);
criterion_main!(benches);

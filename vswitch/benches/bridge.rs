//! What the bridge costs: whole bursts through `forward`, and the forwarding database alone.
//!
//! A burst is 64 frames of 60 bytes between two ports with known addresses; heads are laid out outside of the measured time. Divide by 64
//! for the cost of a frame.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to measure")]
#![allow(missing_docs, reason = "criterion's macros make public items without any")]

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vswitch::{Bridge, BridgeSpec, Egress, Fdb, Membership, NicSpec};
use wire::{BURST, Burst, Context, Mac, NicId, Origin, Segment, Sizes, Vid};

fn mac(side: u8, n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac::new([2, 0, 0, side, high, low])
}

/// A bridge with two ports, everything about it learnt.
struct Bench {
    bridge: Bridge,
    cx: Context,
    egress: Egress,
    stations: u16,
    tag: Option<[u8; 4]>,
}

impl Bench {
    fn new(stations: u16, memberships: [Membership; 2], tag: Option<[u8; 4]>) -> Bench {
        let mut bridge = Bridge::new(BridgeSpec::new(1));
        let mut egress = Egress::default();
        egress.resize(2);
        let cx = Context::new(Sizes { heads: 256, pieces: 64, pool: 4096 }).unwrap();
        for (nic, membership) in (0..).zip(memberships) {
            bridge.add_nic(NicId(nic), NicSpec { membership, ..NicSpec::default() });
            bridge.set_lanes(NicId(nic), &[nic]);
        }
        let mut bench = Bench { bridge, cx, egress, stations, tag };
        for n in 0..stations {
            for side in [1, 0] {
                let mut burst = bench.burst(side, n, 1);
                bench.forward(&mut burst);
            }
        }
        bench
    }

    /// Frames from the stations of one side to those of the other, beginning with station `first`.
    fn burst(&mut self, side: u8, first: u16, frames: usize) -> Burst {
        self.cx.begin_turn(self.cx.now);
        let mut burst = Burst::default();
        for n in 0..frames as u16 {
            let n = (first + n) % self.stations;
            let mut bytes = [mac(1 - side, n).bytes(), mac(side, n).bytes()].concat();
            bytes.extend(self.tag.iter().flatten());
            bytes.extend([8, 0, 0x45]);
            bytes.resize(60, 0);
            let origin = Origin { nic: NicId(side.into()), lane: 0 };
            burst.push(self.cx.originate(origin, &bytes).unwrap()).unwrap();
        }
        burst
    }

    fn forward(&mut self, burst: &mut Burst) {
        self.bridge.forward(&mut self.cx, burst, &mut self.egress);
        while let Some(lane) = self.egress.next_touched() {
            black_box(self.egress.burst(lane).drain().count());
        }
    }
}

fn forward(c: &mut Criterion) {
    let vid = |number| Vid::new(number).unwrap();
    let access = || Membership::Access(vid(100));
    let trunk = || Membership::Trunk { vlans: vec![vid(100)], native: None };
    let tag = Some([0x81, 0, 0, 100]);
    let cases = [
        ("1 station", 1, [Membership::Untagged, Membership::Untagged], None),
        ("1000 stations", 1000, [Membership::Untagged, Membership::Untagged], None),
        ("access to access, 1 station", 1, [access(), access()], None),
        ("trunk to trunk, 1 station", 1, [trunk(), trunk()], tag),
    ];
    let mut group = c.benchmark_group("forward a burst of 64");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, stations, memberships, tag) in cases {
        let mut bench = Bench::new(stations, memberships, tag);
        let mut first = 0;
        group.bench_function(name, |b| {
            b.iter_custom(|bursts| {
                let mut spent = Duration::ZERO;
                for _ in 0..bursts {
                    first = (first + BURST as u16) % 32_000;
                    let mut burst = bench.burst(0, first, BURST);
                    let begin = std::time::Instant::now();
                    bench.forward(&mut burst);
                    spent += begin.elapsed();
                }
                spent
            });
        });
    }
}

fn database(c: &mut Criterion) {
    let mut group = c.benchmark_group("forwarding database");
    let segment = Segment(0);
    for stations in [1u16, 1000, 50_000] {
        let mut fdb = Fdb::new(65_536, Duration::from_secs(300), 1);
        fdb.add_nic(NicId(0));
        fdb.add_nic(NicId(1));
        let now = fdb.tick(wire::Instant::START);
        for n in 0..stations {
            fdb.learn(segment, mac(0, n), NicId(0), now);
        }
        let mut n = 0;
        let mut next = move || {
            n = (n + 7919) % stations.max(1);
            mac(0, n)
        };
        group.bench_function(format!("lookup, {stations} stations"), |b| {
            b.iter(|| fdb.lookup(segment, black_box(next()), now));
        });
        group.bench_function(format!("learn what is known, {stations} stations"), |b| {
            b.iter(|| fdb.learn(segment, black_box(next()), NicId(0), now));
        });
    }
    group.bench_function("learn at the bound", |b| {
        b.iter_batched_ref(
            || {
                let mut fdb = Fdb::new(4096, Duration::from_secs(300), 1);
                fdb.add_nic(NicId(0));
                let now = fdb.tick(wire::Instant::START);
                for n in 0..4096 {
                    fdb.learn(segment, mac(0, n), NicId(0), now);
                }
                (fdb, now)
            },
            |(fdb, now)| (0..1000).filter(|n| fdb.learn(segment, mac(1, *n), NicId(0), *now)).count(),
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, forward, database);
criterion_main!(benches);

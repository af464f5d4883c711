//! What a packet of an established flow costs: `decide` and `commit`, with 1, 1,000 and 50,000 flows, UDP and TCP, out and in.
//!
//! One iteration is one packet. Its head is laid out from a template in the measured time (two cache lines are copied); the case `head alone`
//! is that without the NAT, to be taken off.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot be set up has nothing to measure")]
#![allow(missing_docs, reason = "criterion's macros make public items without any")]

mod packets;

use std::{hint::black_box, net::Ipv4Addr, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nat::{Config, NatTable, Side};
use packets::packet;
use wire::{Context, Frame, Instant, NicId, Origin, Sizes};

const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const SERVER: [u8; 4] = [198, 51, 100, 7];
const MACS: ([u8; 6], [u8; 6]) = ([2; 6], [4; 6]);

struct Bench {
    nat: NatTable,
    cx: Context,
    frame: Frame,
    out: Vec<Vec<u8>>,
    back: Vec<Vec<u8>>,
}

impl Bench {
    fn new(tcp: bool, flows: u32) -> Bench {
        let config = Config { mappings: 1 << 17, quota: 1 << 18, ..Config::new(vec![OUTSIDE.into()], 5) };
        let mut nat = NatTable::new(&config).unwrap();
        nat.add_nic(NicId(0));
        let mut cx = Context::new(Sizes { heads: 256, pieces: 64, pool: 4096 }).unwrap();
        cx.begin_turn(Instant::START);
        let frame = cx
            .originate(Origin { nic: NicId(0), lane: 0 }, &packet(tcp, true, MACS, (SERVER, 1), (SERVER, 1)))
            .unwrap();
        let mut bench = Bench { nat, cx, frame, out: Vec::new(), back: Vec::new() };
        for n in 0..flows {
            let inside =
                (Ipv4Addr::new(10, 0, (n / 250) as u8, 2 + (n % 250) as u8).octets(), 2000 + (n % 50_000) as u16);
            let remote = (SERVER, 5001);
            let head = bench.cross(Side::Inside, &packet(tcp, true, MACS, inside, remote)).unwrap();
            let port = u16::from_be_bytes([head[34], head[35]]);
            if tcp {
                bench.cross(Side::Outside, &packet(tcp, true, MACS, remote, (OUTSIDE, port))).unwrap();
            }
            bench.out.push(packet(tcp, false, MACS, inside, remote));
            bench.back.push(packet(tcp, false, MACS, remote, (OUTSIDE, port)));
        }
        bench
    }

    fn lay_out(&mut self, bytes: &[u8]) {
        let head = self.cx.heads.get_mut(&self.frame);
        head.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    }

    fn cross(&mut self, side: Side, bytes: &[u8]) -> Option<[u8; 36]> {
        self.lay_out(bytes);
        let head = self.cx.heads.get_mut(&self.frame);
        let decision = self.nat.decide(side, head, Instant::START);
        self.nat.commit(decision, head).ok()?;
        head.bytes().first_chunk().copied()
    }
}

fn flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("established");
    group
        .throughput(Throughput::Elements(1))
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for flows in [1, 1000, 50_000] {
        for tcp in [false, true] {
            let mut bench = Bench::new(tcp, flows);
            let name = if tcp { "tcp" } else { "udp" };
            // Flows take turns in an order that no prefetcher foresees.
            let order: Vec<usize> = (0..flows as usize).map(|n| n * 7919 % flows as usize).collect();
            for side in [Side::Inside, Side::Outside] {
                let frames = if side == Side::Inside { bench.out.clone() } else { bench.back.clone() };
                let way = if side == Side::Inside { "out" } else { "in" };
                let mut next = order.iter().cycle();
                group.bench_function(format!("{name} {way}, {flows} flows"), |b| {
                    b.iter(|| black_box(bench.cross(side, &frames[*next.next().unwrap()]).unwrap()));
                });
            }
        }
        let mut bench = Bench::new(false, flows);
        let frames = bench.out.clone();
        let mut next = (0..frames.len()).cycle();
        group.bench_function(format!("head alone, {flows} flows"), |b| {
            b.iter(|| {
                bench.lay_out(&frames[next.next().unwrap() * 7919 % frames.len()]);
                black_box(bench.cx.heads.get_mut(&bench.frame).bytes()[30]);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, flows);
criterion_main!(benches);

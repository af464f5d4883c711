//! What a frame costs in the packet port: bursts of 64 frames of 64 bytes out of its outside NIC and in to the router, with 1, 1,000 and
//! 50,000 flows, of UDP and TCP.
//!
//! One iteration is a burst. Its heads are filled in the measured time (as a port's `receive` does); the case `heads alone` is that without
//! the port, to be taken off.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark that cannot be set up has nothing to measure")]
#![allow(missing_docs, reason = "criterion's macros make public items without any")]

mod packets;

use std::{hint::black_box, net::Ipv4Addr, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nat::{Config, PacketPort, PortConfig};
use packets::packet;
use wire::{BURST, Burst, Context, Instant, Mac, NicId, Origin, Port, Sizes};

const OUTSIDE: [u8; 4] = [192, 0, 2, 1];
const SERVER: [u8; 4] = [198, 51, 100, 7];
const GUEST_NIC: NicId = NicId(0);
const ROUTER_NIC: NicId = NicId(1);
const OUTSIDE_NIC: NicId = NicId(2);
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const HOP: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];

struct Bench {
    port: PacketPort,
    cx: Context,
    burst: Burst,
    out: Vec<Vec<u8>>,
    back: Vec<Vec<u8>>,
}

impl Bench {
    fn new(tcp: bool, flows: u32) -> Bench {
        let table = Config { mappings: 1 << 17, quota: 1 << 18, ..Config::new(vec![OUTSIDE.into()], 0x5eed_5eed_5eed) };
        let hop = Ipv4Addr::new(192, 0, 2, 254);
        let config = PortConfig::new(Mac::new(OWN), table, 24, Some(hop), Ipv4Addr::new(10, 0, 0, 1));
        let mut cx = Context::new(Sizes { heads: 512, pieces: 64, pool: 1 << 16 }).unwrap();
        (0..3).for_each(|nic| cx.add_nic(NicId(nic)));
        let mut bench =
            Bench { port: PacketPort::new(config).unwrap(), cx, burst: Burst::default(), out: vec![], back: vec![] };
        for nic in [ROUTER_NIC, OUTSIDE_NIC] {
            bench.cx.nic = nic;
            bench.port.attach(&mut bench.cx).unwrap();
        }
        let mut answer = [&OWN[..], &HOP, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2], &HOP, &hop.octets(), &OWN].concat();
        answer.extend(OUTSIDE);
        let inside_macs = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        for n in 0..flows {
            let inside = ([10, 0, (n / 50_000) as u8, 2 + (n % 4) as u8], 2000 + (n % 50_000) as u16);
            let remote = (SERVER, 5001);
            let mut left = bench.cross(GUEST_NIC, &[&packet(tcp, true, inside_macs, inside, remote)]);
            if n == 0 {
                left = bench.cross(OUTSIDE_NIC, &[&answer]);
            }
            let port = u16::from_be_bytes([left[34], left[35]]);
            let outside = (HOP, OWN);
            if tcp {
                bench.cross(OUTSIDE_NIC, &[&packet(tcp, true, outside, remote, (OUTSIDE, port))]);
            }
            bench.out.push(packet(tcp, false, inside_macs, inside, remote));
            bench.back.push(packet(tcp, false, outside, remote, (OUTSIDE, port)));
        }
        bench
    }

    fn fill(&mut self, nic: NicId, frames: &[&Vec<u8>]) {
        self.cx.begin_turn(Instant::START);
        for frame in frames {
            let (handle, head) = self.cx.heads.begin(Origin { nic, lane: 0 }, frame.len()).unwrap();
            head.fill().copy_from_slice(frame);
            self.burst.push(handle).unwrap();
        }
    }

    /// A burst through the port; the head of the last frame that came out.
    fn cross(&mut self, nic: NicId, frames: &[&Vec<u8>]) -> [u8; 42] {
        self.fill(nic, frames);
        self.cx.nic = if nic == OUTSIDE_NIC { OUTSIDE_NIC } else { ROUTER_NIC };
        self.port.transmit(&mut self.cx, &mut self.burst).unwrap();
        self.port.receive(&mut self.cx, &mut self.burst).unwrap();
        let mut last = [0; 42];
        for frame in self.burst.drain().chain(self.cx.answers.drain()) {
            last = *self.cx.heads.get(&frame).bytes().first_chunk().unwrap();
        }
        last
    }
}

fn port(c: &mut Criterion) {
    let mut group = c.benchmark_group("port");
    group
        .throughput(Throughput::Elements(BURST as u64))
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    for flows in [1, 1000, 50_000] {
        for tcp in [false, true] {
            let mut bench = Bench::new(tcp, flows);
            let name = if tcp { "tcp" } else { "udp" };
            for (nic, way) in [(GUEST_NIC, "out"), (OUTSIDE_NIC, "in")] {
                let frames = if nic == GUEST_NIC { bench.out.clone() } else { bench.back.clone() };
                // Flows take turns in an order that no prefetcher foresees.
                let mut next = (0..frames.len()).cycle().map(|n| &frames[n * 7919 % frames.len()]);
                group.bench_function(format!("{name} {way}, {flows} flows"), |b| {
                    b.iter(|| {
                        let burst: [&Vec<u8>; BURST] = std::array::from_fn(|_| next.next().unwrap());
                        let last = bench.cross(nic, &burst);
                        assert_ne!(last[12], 0, "frames pass");
                        black_box(last)
                    });
                });
            }
        }
        let mut bench = Bench::new(false, flows);
        let frames = bench.out.clone();
        let mut next = (0..frames.len()).cycle().map(|n| &frames[n * 7919 % frames.len()]);
        group.bench_function(format!("heads alone, {flows} flows"), |b| {
            b.iter(|| {
                let burst: [&Vec<u8>; BURST] = std::array::from_fn(|_| next.next().unwrap());
                bench.fill(GUEST_NIC, &burst);
                for frame in bench.burst.drain() {
                    black_box(bench.cx.heads.get(&frame).bytes()[30]);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, port);
criterion_main!(benches);

//! What a port pays that cannot pass on what a frame owes: checksums over bytes that lie together, completion over a lent body, and
//! cutting super-frames. Read first: `wire::segmentation`. The throughput is in payload bytes.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wire::{
    Accepts, Context, Gso, HEAD_BYTES, Instant, NicId, Offload, Origin, Sizes, checksum::Checksum, segmentation::Settle,
};

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [20usize, 64, 256, 1460, 65_000] {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |b, bytes| {
            b.iter(|| {
                let mut sum = Checksum::new();
                sum.add_bytes(black_box(bytes));
                sum.finish()
            });
        });
    }
    group.finish();
}

/// The bytes of a TCP frame over IPv4 with 12 bytes of options.
fn tcp(payload: usize) -> Vec<u8> {
    let len = (20 + 32 + payload) as u16;
    let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0x13, 0x88, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend([1; 12]);
    bytes.resize(66 + payload, 5);
    bytes
}

fn settle(c: &mut Criterion) {
    let mut group = c.benchmark_group("settle");
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    let cases = [
        ("complete 1448", 1448, Gso::None, 0, Accepts::NONE),
        ("complete 64000", 64_000, Gso::None, 0, Accepts::NONE),
        ("cut 64000 to 1448", 64_000, Gso::Tcp4, 1448, Accepts::NONE),
        ("cut 64000 to 1448, checksums owed", 64_000, Gso::Tcp4, 1448, Accepts::CSUM),
        ("cut 64000 to 8948", 64_000, Gso::Tcp4, 8948, Accepts::NONE),
    ];
    for (name, payload, gso, mss, accepts) in cases {
        let bytes = tcp(payload);
        let (front, rest) = bytes.split_at(HEAD_BYTES);
        // Nothing else is pooled, so the bytes stay where they are from turn to turn.
        let rest = cx.arena.pool(rest).unwrap();
        group.throughput(Throughput::Bytes(payload as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                cx.begin_turn(Instant::START);
                let (frame, head) = cx.heads.begin(Origin::default(), bytes.len()).unwrap();
                head.fill().copy_from_slice(front);
                head.offload = Offload::new(gso, 66, mss, 34, 16);
                assert!(cx.heads.add_piece(&frame, rest));
                let mut settle = Settle::new(&mut cx, frame, accepts);
                let mut frames = 0;
                while let Some(frame) = settle.next(&mut cx) {
                    black_box(&frame);
                    frames += 1;
                }
                frames
            });
        });
    }
    group.finish();
}

criterion_group!(benches, checksums, settle);
criterion_main!(benches);

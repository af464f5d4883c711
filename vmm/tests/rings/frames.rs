//! Frames pass from one driver through two ports to another driver byte for byte, whatever was agreed on and however buffers are cut.

use vmm::{Features, virtqueue::testing::RigSpec};
use wire::{DropReason, Gso, MAX_FRAME, NicId, Offload, Port};

use crate::pair::{Pair, feature_sets, frame};

const SIZES: [usize; 16] = [14, 15, 59, 60, 64, 115, 116, 127, 128, 129, 1500, 1514, 4097, 9018, 65_535, MAX_FRAME];

/// How a transmitted frame is cut: whole; header apart; header in two; head in parts; many small ones; an empty buffer between.
const TX_CUTS: [&[u32]; 6] = [&[], &[12], &[5, 9], &[12, 14, 20, 100], &[3, 1, 40, 7, 700, 1, 1, 300], &[12, 0, 33]];

/// Buffers long enough for the longest frame, without mergeable buffers.
const RX_WHOLE: [&[u32]; 4] = [&[65_562], &[12, 65_550], &[7, 5, 14, 1, 65_600], &[1500, 0, 63_000, 2000]];

/// Mergeable buffers.
const RX_MERGED: [&[u32]; 4] = [&[65_562], &[1536], &[2336, 12], &[1, 2, 4200]];

fn spec(features: Features) -> RigSpec {
    RigSpec { size: 64, slots: 64, slot: 67_000, ..RigSpec::new(features) }
}

/// Passes every size in every cut, until the rings have wrapped around a few times.
fn pass_all(features: Features) {
    let mergeable = features.has(Features::MRG_RXBUF);
    let mut pair = Pair::new(spec(features), spec(features));
    let mut seed = 0;
    for rx_cuts in if mergeable { RX_MERGED } else { RX_WHOLE } {
        for tx_cuts in TX_CUTS {
            for indirect in [false, true] {
                for len in SIZES {
                    while pair.b.offer(rx_cuts, indirect) {}
                    pair.b.rx.publish().unwrap();
                    // Long frames one by one: some of these need most of the ring.
                    let burst = if len > 5000 { 1 } else { 3 };
                    let sent: Vec<_> = (0..burst).map(|n| frame(seed + n, len)).collect();
                    seed += burst;
                    for bytes in &sent {
                        pair.send(bytes, tx_cuts, indirect);
                    }
                    assert_eq!(pair.turn().unwrap(), sent.len());
                    assert_eq!(pair.a.reap().unwrap(), sent.len());
                    let received = pair.b.receive().unwrap();
                    assert_eq!(received.len(), sent.len(), "{len} bytes by {tx_cuts:?} into {rx_cuts:?}");
                    for (got, expected) in received.iter().zip(&sent) {
                        assert!(got.bytes == *expected, "{len} bytes by {tx_cuts:?} into {rx_cuts:?} differ");
                        assert_eq!(got.header[..10], [0; 10]);
                    }
                }
            }
        }
        // What is left of one cut is used up by frames before the next.
        while pair.b.rx.queue.outstanding() > 0 {
            pair.send(&frame(seed, 60), &[], false);
            pair.turn().unwrap();
            pair.a.reap().unwrap();
            assert_eq!(pair.b.receive().unwrap().len(), 1);
        }
    }
    assert_eq!(pair.cx.ledger.dropped, 0);
    assert_eq!(pair.cx.ledger.received, pair.cx.ledger.transmitted);
}

#[test]
fn every_split_feature_set_passes_every_size_and_layout() {
    feature_sets().into_iter().filter(|set| !set.has(Features::RING_PACKED)).for_each(pass_all);
}

#[test]
fn every_packed_feature_set_passes_every_size_and_layout() {
    feature_sets().into_iter().filter(|set| set.has(Features::RING_PACKED)).for_each(pass_all);
}

#[test]
fn packed_rings_need_not_be_a_power_of_two() {
    let spec = RigSpec { size: 23, slots: 23, ..RigSpec::new(Features::RING_PACKED.with(Features::EVENT_IDX)) };
    let mut pair = Pair::new(spec, spec);
    for n in 0..200 {
        while pair.b.offer(&[20, 2000], false) {}
        pair.b.rx.publish().unwrap();
        let sent: Vec<_> = (0..5).map(|i| frame(5 * n + i, 100 + i as usize)).collect();
        sent.iter().for_each(|bytes| pair.send(bytes, &[12, 30], false));
        assert_eq!(pair.turn().unwrap(), 5);
        assert_eq!(pair.a.reap().unwrap(), 5);
        let received = pair.b.receive().unwrap();
        assert!(received.iter().map(|frame| &frame.bytes).eq(&sent), "turn {n}");
    }
}

#[test]
fn a_whole_burst_passes_in_one_turn() {
    for features in feature_sets() {
        let spec = RigSpec { slots: 256, ..RigSpec::new(features) };
        let mut pair = Pair::new(spec, spec);
        for n in 0..20 {
            while pair.b.offer(&[1600], false) {}
            pair.b.rx.publish().unwrap();
            let sent: Vec<_> = (0..100).map(|i| frame(100 * n + i, 60)).collect();
            sent.iter().for_each(|bytes| assert!(pair.a.send(Offload::NONE, bytes, &[], false)));
            pair.a.tx.publish().unwrap();
            assert_eq!((pair.turn().unwrap(), pair.turn().unwrap()), (64, 36));
            assert_eq!(pair.a.reap().unwrap(), 100);
            let received = pair.b.receive().unwrap();
            assert!(received.iter().map(|frame| &frame.bytes).eq(&sent), "{:?}", features.names());
        }
    }
}

#[test]
fn headers_pass_as_they_are_where_they_are_understood() {
    let offloads = Features::GUEST_CSUM.with(Features::GUEST_TSO4);
    for features in [offloads, offloads.with(Features::MRG_RXBUF).with(Features::RING_PACKED)] {
        let spec = RigSpec { slot: 67_000, ..RigSpec::new(features) };
        let mut pair = Pair::new(spec, spec);
        let owed = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
        let bytes = frame(1, 20_000);
        while pair.b.offer(&[66_000], false) {}
        pair.b.rx.publish().unwrap();
        assert!(pair.a.send(owed, &bytes, &[12, 54], false));
        pair.a.tx.publish().unwrap();
        pair.turn().unwrap();
        let received = pair.b.receive().unwrap();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].header, owed.to_bytes(1));
        assert!(received[0].bytes == bytes);
    }
}

#[test]
fn a_full_ring_gets_a_last_look_and_drops_the_rest_in_order() {
    for features in feature_sets() {
        let mut pair = Pair::new(RigSpec::new(features), RigSpec::new(features));
        (0..3).for_each(|_| pair.offer(&[1600], false));
        let sent: Vec<_> = (0..8).map(|n| frame(n, 200)).collect();
        sent.iter().for_each(|bytes| pair.send(bytes, &[], false));
        pair.cx.begin_turn(wire::Instant::START);
        pair.cx.nic = NicId(0);
        pair.from.receive(&mut pair.cx, &mut pair.burst).unwrap();
        pair.cx.nic = NicId(1);
        pair.to.transmit(&mut pair.cx, &mut pair.burst).unwrap();
        assert_eq!(pair.cx.ledger.transmitted, 3);
        (0..2).for_each(|_| pair.offer(&[1600], false));
        pair.to.release(&mut pair.cx).unwrap();
        pair.cx.nic = NicId(0);
        pair.from.release(&mut pair.cx).unwrap();
        assert_eq!(pair.drops(DropReason::RingFull), 3);
        assert!(pair.cx.ledger.balances());
        let received = pair.b.receive().unwrap();
        assert!(received.iter().map(|frame| &frame.bytes).eq(&sent[..5]));
        assert_eq!(pair.a.reap().unwrap(), 8, "dropped frames are completed all the same");
    }
}

#[test]
fn a_frame_that_waits_is_not_overtaken_by_a_shorter_one() {
    let features = Features::MRG_RXBUF;
    let mut pair = Pair::new(RigSpec::new(features), RigSpec::new(features));
    (0..2).for_each(|_| pair.offer(&[600], false));
    pair.send(&frame(1, 1500), &[], false);
    pair.send(&frame(2, 60), &[], false);
    pair.turn().unwrap();
    assert_eq!(pair.drops(DropReason::RingFull), 1);
    assert_eq!(pair.b.receive().unwrap().len(), 1, "in the last look the long one is given up, the short one fits");
}

#[test]
fn frames_of_no_allowed_length_are_counted_and_completed() {
    for features in [Features::VERSION_1, Features::RING_PACKED] {
        let spec = RigSpec { slot: 67_000, ..RigSpec::new(features) };
        let mut pair = Pair::new(spec, spec);
        pair.offer(&[66_000], false);
        for (len, cuts) in [(0, &[][..]), (13, &[]), (13, &[12]), (1, &[4, 4, 4])] {
            pair.send(&frame(1, len), cuts, false);
        }
        pair.send(&frame(1, MAX_FRAME + 1), &[], false);
        pair.send(&frame(1, MAX_FRAME + 1), &[12, 1], false);
        assert_eq!(pair.turn().unwrap(), 0);
        assert_eq!(pair.drops(DropReason::Runt), 4);
        assert_eq!(pair.drops(DropReason::Oversize), 2);
        assert_eq!(pair.a.reap().unwrap(), 6);
    }
}

#[test]
fn a_buffer_too_short_for_a_frame_is_kept_for_a_shorter_one() {
    for features in [Features::VERSION_1, Features::RING_PACKED] {
        let mut pair = Pair::new(RigSpec::new(features), RigSpec::new(features));
        pair.offer(&[500], false);
        pair.send(&frame(1, 489), &[], false);
        pair.send(&frame(2, 488), &[], false);
        pair.turn().unwrap();
        assert_eq!(pair.drops(DropReason::TooBig), 1);
        assert_eq!(pair.b.receive().unwrap()[0].bytes, frame(2, 488));
    }
}

#[test]
fn a_disabled_ring_is_drained_without_effect() {
    let (a, b) = (RigSpec::new(Features::VERSION_1), RigSpec::new(Features::VERSION_1));
    for disabled in 0..2 {
        let (a, b) = (vmm::virtqueue::testing::Rig::new(a).unwrap(), vmm::virtqueue::testing::Rig::new(b).unwrap());
        let (mut tx, mut rx) = (a.setup(&a.tx).unwrap(), b.setup(&b.rx).unwrap());
        tx.enabled = disabled != 0;
        rx.enabled = disabled != 1;
        let from = a.port_of(a.setup(&a.rx).unwrap(), tx).unwrap();
        let to = b.port_of(rx, b.setup(&b.tx).unwrap()).unwrap();
        let mut pair = Pair::with_ports(a, b, from, to);
        pair.offer(&[1600], false);
        pair.send(&frame(1, 60), &[], false);
        pair.turn().unwrap();
        assert_eq!(pair.drops(DropReason::NotReady), 1);
        assert_eq!(pair.a.reap().unwrap(), 1);
        assert_eq!(pair.b.receive().unwrap().len(), 0);
    }
}

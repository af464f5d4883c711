//! The bridge under random bursts over random memberships, against the rules as a table would tell them.
//!
//! The oracle here knows nothing of segments, labels and lists: it says from the specs alone which VLAN a frame is in and how a NIC wants
//! it, and takes frames apart itself.

use std::time::Duration;

use proptest::prelude::*;
use wire::{Gso, Offload};

use super::*;
use crate::{
    budget::Budget,
    testing::{Net, access, frame, mac, tagged, trunk},
};

/// How a frame is tagged, as the test sees it: priority and VID.
type Tag = Option<(u8, u16)>;

#[derive(Clone, Debug)]
struct Sending {
    from_nic: u16,
    to: u8,
    from: u8,
    tag: Tag,
    offload: bool,
}

fn membership() -> impl Strategy<Value = Membership> {
    let number = || prop::sample::select(vec![1u16, 100, 200, 4094]);
    prop_oneof![
        2 => Just(Membership::Untagged),
        3 => number().prop_map(access),
        4 => (prop::collection::vec(number(), 0..4), prop::option::of(number()))
            .prop_map(|(vlans, native)| trunk(&vlans, native)),
    ]
}

fn spec() -> impl Strategy<Value = NicSpec> {
    (membership(), any::<bool>()).prop_map(|(membership, isolated)| NicSpec {
        membership,
        isolated,
        ..NicSpec::default()
    })
}

/// Specs of every kind, with budgets that run out.
fn guarded_spec() -> impl Strategy<Value = NicSpec> {
    let guard = prop::option::weighted(0.3, (1..6u8).prop_map(mac));
    (spec(), guard, any::<bool>(), 0..40u32).prop_map(|(spec, guard, pass_reserved, burst)| {
        let few = Budget { per_second: 1, burst };
        NicSpec {
            guard,
            pass_reserved,
            budgets: Budgets { broadcast: few, multicast: few, unknown: few, held: few },
            ..spec
        }
    })
}

fn sending(nics: u16) -> impl Strategy<Value = Sending> {
    let tag = prop::option::of((0..8u8, prop::sample::select(vec![0u16, 1, 100, 200, 300, 4094, 4095])));
    (0..nics, 0..9u8, 0..6u8, tag, any::<bool>()).prop_map(|(from_nic, to, from, tag, offload)| Sending {
        from_nic,
        to,
        from,
        tag,
        offload,
    })
}

/// The VLAN of a frame in a VLAN-aware network; nothing when it may not enter.
fn entered(spec: &NicSpec, tag: Tag) -> Option<u16> {
    let carried = tag.map(|(_, number)| number).filter(|number| *number != 0);
    match (&spec.membership, carried) {
        (Membership::Untagged, None) => Some(1),
        (Membership::Access(vlan), None) => Some(vlan.get()),
        (Membership::Untagged | Membership::Access(_), Some(_)) => None,
        (Membership::Trunk { native, .. }, None) => native.map(Vid::get),
        (Membership::Trunk { vlans, native }, Some(number)) => {
            vlans.iter().chain(native).any(|vlan| vlan.get() == number).then_some(number)
        }
    }
}

/// Whether a NIC takes part in a VLAN, and if so, whether it wants the tag.
fn wants(spec: &NicSpec, vlan: u16) -> Option<bool> {
    match &spec.membership {
        Membership::Untagged => (vlan == 1).then_some(false),
        Membership::Access(own) => (vlan == own.get()).then_some(false),
        Membership::Trunk { native, .. } if native.is_some_and(|native| native.get() == vlan) => Some(false),
        Membership::Trunk { vlans, .. } => vlans.iter().any(|own| own.get() == vlan).then_some(true),
    }
}

fn bytes(sending: &Sending) -> Vec<u8> {
    let to = match sending.to {
        0 => Mac::BROADCAST,
        6 => Mac::new([1, 0, 0x5e, 0, 0, 1]),
        7 => Mac::new([1, 0x80, 0xc2, 0, 0, 0]),
        n => mac(n),
    };
    let from = if sending.from == 0 { Mac::BROADCAST } else { mac(sending.from) };
    let mut bytes = frame(to, from);
    bytes.resize(if sending.offload { 400 } else { 60 }, sending.from);
    match sending.tag {
        Some((priority, number)) => tagged(bytes, priority, number),
        None => bytes,
    }
}

fn owed(sending: &Sending) -> Offload {
    let tag = if sending.tag.is_some() { 4 } else { 0 };
    if sending.offload { Offload::new(Gso::Tcp4, 54, 100, 34, 16).shifted(tag) } else { Offload::NONE }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn frames_stay_in_their_vlan_and_add_up(
        specs in prop::collection::vec(spec(), 2..7),
        sendings in prop::collection::vec(sending(7), 1..150),
        lanes in 1..4usize,
    ) {
        let mut net = Net::new();
        for (nic, spec) in specs.iter().enumerate() {
            net.add(nic as u16, spec.clone(), lanes);
        }
        let is_aware = specs.iter().any(|spec| spec.membership != Membership::Untagged);
        for burst in sendings.chunk_by(|a, b| a.from_nic == b.from_nic).flat_map(|same| same.chunks(16)) {
            let Some(origin) = specs.get(usize::from(burst[0].from_nic)) else { continue };
            let frames: Vec<_> = burst.iter().map(|sending| (bytes(sending), owed(sending))).collect();
            // Slowly enough that stations that move are followed.
            net.advance(Duration::from_secs(1));
            let sent = net.burst(burst[0].from_nic, &frames);
            for out in &sent {
                prop_assert_ne!(out.nic, burst[0].from_nic, "never back");
                let receiver = &specs[usize::from(out.nic)];
                prop_assert!(!(receiver.isolated && origin.isolated), "isolated");
                let explained = burst.iter().any(|sending| {
                    let plain = Sending { tag: None, ..sending.clone() };
                    let expected = if is_aware {
                        let Some(vlan) = entered(origin, sending.tag) else { return false };
                        let Some(with_tag) = wants(receiver, vlan) else { return false };
                        let priority = sending.tag.map_or(0, |(priority, _)| priority);
                        Sending { tag: with_tag.then_some((priority, vlan)), ..plain }
                    } else {
                        sending.clone()
                    };
                    (&out.bytes, out.offload) == (&bytes(&expected), owed(&expected))
                });
                prop_assert!(explained, "{:?} got {:02x?}", receiver, &out.bytes[..18]);
            }
            for sending in burst.iter().filter(|sending| sending.from > 0 && matches!(sending.to, 0 | 6)) {
                let reached = |nic: usize, spec: &NicSpec| {
                    nic != usize::from(sending.from_nic)
                        && !(spec.isolated && origin.isolated)
                        && (!is_aware || entered(origin, sending.tag).and_then(|vlan| wants(spec, vlan)).is_some())
                };
                let expected = specs.iter().enumerate().filter(|(nic, spec)| reached(*nic, spec)).count();
                let same = burst.iter().filter(|other| bytes(other)[..12] == bytes(sending)[..12]);
                let floor = if same.count() == 1 { expected } else { 0 };
                let got = sent.iter().filter(|out| out.bytes[..12] == bytes(sending)[..12]).count();
                prop_assert!(got >= floor, "a group frame reaches all: {} of {}", got, floor);
            }
        }
    }

    /// What a memo of the burst spares must not show: frame by frame comes out what comes out of whole bursts, drops included.
    #[test]
    fn bursts_and_single_frames_come_to_the_same(
        specs in prop::collection::vec(guarded_spec(), 2..5),
        sendings in prop::collection::vec(sending(5), 1..120),
        repeats in prop::collection::vec(1..4usize, 120),
    ) {
        let net = || {
            let mut net = Net::new();
            for (nic, spec) in specs.iter().enumerate() {
                net.add(nic as u16, spec.clone(), 1 + nic % 2);
            }
            net
        };
        let (mut whole, mut single) = (net(), net());
        for burst in sendings.chunk_by(|a, b| a.from_nic == b.from_nic).flat_map(|same| same.chunks(16)) {
            let nic = burst[0].from_nic;
            let frames: Vec<_> = burst.iter().zip(&repeats)
                .flat_map(|(sending, n)| vec![(bytes(sending), owed(sending)); *n])
                .collect();
            let mut one_by_one: Vec<_> = frames.iter().flat_map(|frame| single.burst(nic, std::slice::from_ref(frame))).collect();
            one_by_one.sort_by_key(|sent| sent.lane);
            prop_assert_eq!(whole.burst(nic, &frames), one_by_one);
        }
        for nic in (0..specs.len() as u16).map(NicId) {
            let drops = |net: &Net| net.cx.counters(nic).map(|counters| counters.all_drops().collect::<Vec<_>>());
            prop_assert_eq!(drops(&whole), drops(&single));
        }
        prop_assert_eq!(whole.bridge.fdb_stats(), single.bridge.fdb_stats());
    }
}

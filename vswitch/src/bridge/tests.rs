//! Every rule of the bridge as a small test on virtual time.

use std::time::Duration;

use wire::{DropReason, Gso, Offload};

use super::*;
use crate::{
    budget::{Budget, Traffic},
    decide::{Decision, Outcome},
    testing::{Net, access, frame, mac, tagged, trunk, vid},
};

fn nic_spec(change: impl FnOnce(&mut NicSpec)) -> NicSpec {
    let mut spec = NicSpec::default();
    change(&mut spec);
    spec
}

#[test]
fn unknown_addresses_are_flooded_and_known_ones_are_not() {
    let mut net = Net::plain(3);
    assert_eq!(net.reaches(0, &frame(mac(2), mac(1))), [1, 2]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2))), [0]);
    assert_eq!(net.reaches(0, &frame(mac(2), mac(1))), [1]);
    net.advance(Duration::from_secs(300));
    assert_eq!(net.reaches(0, &frame(mac(2), mac(1))), [1, 2], "forgotten");
    assert_eq!(net.reaches(0, &frame(Mac::new([0; 6]), mac(1))), [1, 2], "nobody has the address zero");
}

#[test]
fn a_burst_is_learnt_from_and_looked_up_frame_by_frame() {
    let mut net = Net::plain(3);
    let frames = [
        frame(mac(9), mac(1)),
        frame(mac(1), mac(2)),
        frame(mac(2), mac(1)),
        frame(mac(3), mac(3)),
        frame(mac(9), mac(1)),
    ];
    let owed: Vec<_> = frames.iter().map(|bytes| (bytes.clone(), Offload::NONE)).collect();
    let sent = net.burst(0, &owed);
    assert_eq!(sent.iter().map(|sent| sent.nic).collect::<Vec<_>>(), [1, 1, 2, 2]);
    let counters = net.cx.counters(NicId(0)).unwrap();
    assert_eq!((counters.drops(DropReason::SamePort), counters.total_drops()), (3, 3));
    net.reaches(1, &frame(mac(1), mac(9)));
    assert_eq!(net.burst(0, &owed).iter().map(|sent| sent.nic).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_frame_to_its_own_source_goes_nowhere_whatever_was_known() {
    let mut net = Net::plain(2);
    net.send(1, &frame(Mac::BROADCAST, mac(3)));
    let frames = [frame(mac(3), mac(1)), frame(mac(3), mac(3))].map(|bytes| (bytes, Offload::NONE));
    assert_eq!(net.burst(0, &frames).len(), 1);
    assert_eq!(net.cx.counters(NicId(0)).unwrap().drops(DropReason::SamePort), 1);
}

#[test]
fn a_station_that_moves_takes_its_frames_along() {
    let mut net = Net::plain(3);
    net.send(0, &frame(Mac::BROADCAST, mac(1)));
    net.send(1, &frame(Mac::BROADCAST, mac(1)));
    assert_eq!(net.reaches(2, &frame(mac(1), mac(3))), [1]);
    assert_eq!(net.bridge.fdb_stats().moves, 1);
}

#[test]
fn bad_frames_end_with_their_reason_and_teach_nothing() {
    let mut net = Net::plain(2);
    assert_eq!(net.dropped(0, &[2; 13]), DropReason::Runt);
    assert_eq!(net.dropped(0, &frame(mac(2), Mac::new([3, 0, 0, 0, 0, 1]))), DropReason::BadSource);
    assert_eq!(net.dropped(0, &frame(mac(2), Mac::BROADCAST)), DropReason::BadSource);
    assert_eq!(net.dropped(0, &frame(mac(2), Mac::new([0; 6]))), DropReason::BadSource);
    assert_eq!(net.dropped(0, &frame(Mac::new([1, 0x80, 0xc2, 0, 0, 0x0e]), mac(1))), DropReason::Reserved);
    assert_eq!(net.bridge.fdb_len(), 0);
    assert_eq!(net.reaches(0, &frame(Mac::new([1, 0x80, 0xc2, 0, 0, 0x10]), mac(1))), [1]);
}

#[test]
fn reserved_addresses_pass_where_the_origin_may() {
    let mut net = Net::plain(2);
    net.add(5, nic_spec(|spec| spec.pass_reserved = true), 1);
    let lldp = frame(Mac::new([1, 0x80, 0xc2, 0, 0, 0x0e]), mac(1));
    assert_eq!(net.reaches(5, &lldp), [0, 1]);
    assert_eq!(net.dropped(0, &lldp), DropReason::Reserved);
}

#[test]
fn a_guarded_port_sends_from_its_own_address_only() {
    let mut net = Net::plain(2);
    net.add(2, nic_spec(|spec| spec.guard = Some(mac(3))), 1);
    assert_eq!(net.reaches(2, &frame(Mac::BROADCAST, mac(3))), [0, 1]);
    assert_eq!(net.dropped(2, &frame(Mac::BROADCAST, mac(4))), DropReason::SpoofedSource);
    assert_eq!(net.bridge.fdb_len(), 1);
}

#[test]
fn a_guarded_address_cannot_be_taken_while_its_port_is_attached() {
    let mut net = Net::of(&[access(10), access(10), access(20)]);
    net.add(3, nic_spec(|spec| (spec.guard, spec.membership) = (Some(mac(3)), access(10))), 1);
    assert_eq!(net.dropped(0, &frame(Mac::BROADCAST, mac(3))), DropReason::SpoofedSource, "not even before it speaks");
    net.send(3, &frame(Mac::BROADCAST, mac(3)));
    assert_eq!(net.dropped(0, &frame(Mac::BROADCAST, mac(3))), DropReason::SpoofedSource);
    assert_eq!(net.reaches(1, &frame(mac(3), mac(2))), [3]);
    assert_eq!(
        net.dropped(2, &frame(Mac::BROADCAST, mac(3))),
        DropReason::NoDestination,
        "another VLAN, another station"
    );
    net.bridge.set_lanes(NicId(3), &[]);
    assert_eq!(net.reaches(0, &frame(Mac::BROADCAST, mac(3))), [1], "the guest may have gone to another host");
}

#[test]
fn a_static_address_is_nobody_elses() {
    let mut net = Net::plain(3);
    net.bridge.add_static(None, mac(1), NicId(0)).unwrap();
    assert_eq!(net.reaches(2, &frame(mac(1), mac(3))), [0], "known before it speaks");
    assert_eq!(net.dropped(1, &frame(mac(3), mac(1))), DropReason::SpoofedSource);
    net.advance(Duration::from_secs(100_000));
    assert_eq!(net.reaches(2, &frame(mac(1), mac(3))), [0]);
    assert!(net.bridge.remove_station(None, mac(1)));
    assert_eq!(net.bridge.add_static(Some(vid(7)), mac(1), NicId(0)), Err(StaticError::NotMember(NicId(0))));
}

#[test]
fn a_guarded_port_may_send_from_its_static_addresses() {
    let mut net = Net::plain(2);
    net.add(2, nic_spec(|spec| spec.guard = Some(mac(3))), 1);
    net.bridge.add_static(None, mac(5), NicId(2)).unwrap();
    net.bridge.add_static(None, mac(6), NicId(1)).unwrap();
    assert_eq!(net.reaches(2, &frame(Mac::BROADCAST, mac(3))), [0, 1]);
    assert_eq!(net.reaches(2, &frame(Mac::BROADCAST, mac(5))), [0, 1]);
    assert_eq!(net.dropped(2, &frame(Mac::BROADCAST, mac(6))), DropReason::SpoofedSource, "another port's");
    assert_eq!(net.dropped(2, &frame(Mac::BROADCAST, mac(4))), DropReason::SpoofedSource);
}

#[test]
fn isolated_ports_reach_only_the_others() {
    let mut net = Net::plain(1);
    for nic in [1, 2] {
        net.add(nic, nic_spec(|spec| spec.isolated = true), 1);
    }
    assert_eq!(net.reaches(1, &frame(Mac::BROADCAST, mac(1))), [0]);
    assert_eq!(net.reaches(0, &frame(Mac::BROADCAST, mac(9))), [1, 2]);
    assert_eq!(net.dropped(2, &frame(mac(1), mac(2))), DropReason::Isolated);
    assert_eq!(net.reaches(0, &frame(mac(1), mac(9))), [1]);
    assert_eq!(net.reaches(1, &frame(mac(9), mac(1))), [0]);
    net.bridge.set_lanes(NicId(0), &[]);
    assert_eq!(net.dropped(1, &frame(Mac::BROADCAST, mac(1))), DropReason::NoDestination);
}

#[test]
fn ports_that_are_not_attached_get_nothing_and_keep_their_entries() {
    let mut net = Net::plain(2);
    assert_eq!(net.reaches(1, &frame(Mac::BROADCAST, mac(2))), [0]);
    net.bridge.set_lanes(NicId(1), &[]);
    assert_eq!(net.dropped(0, &frame(mac(2), mac(1))), DropReason::NotReady);
    assert_eq!(net.dropped(0, &frame(Mac::BROADCAST, mac(1))), DropReason::NoDestination);
    net.bridge.set_lanes(NicId(1), &[1]);
    assert_eq!(net.reaches(0, &frame(mac(2), mac(1))), [1]);
    net.bridge.forget(NicId(1));
    net.bridge.remove_nic(NicId(0));
    assert_eq!((net.bridge.fdb_len(), net.dropped(0, &frame(mac(2), mac(1)))), (0, DropReason::NoDestination));
}

#[test]
fn every_kind_of_flood_has_its_budget() {
    let few = Budget { per_second: 10, burst: 5 };
    type Set = fn(&mut NicSpec, Budget);
    let kinds: [(Mac, Traffic, Set); 3] = [
        (Mac::BROADCAST, Traffic::Broadcast, |spec, few| spec.budgets.broadcast = few),
        (Mac::new([1, 0, 0x5e, 1, 2, 3]), Traffic::Multicast, |spec, few| spec.budgets.multicast = few),
        (mac(99), Traffic::Unknown, |spec, few| spec.budgets.unknown = few),
    ];
    for (to, traffic, set) in kinds {
        let mut net = Net::plain(2);
        net.add(2, nic_spec(|spec| set(spec, few)), 1);
        let burst = vec![(frame(to, mac(1)), Offload::NONE); 64];
        assert_eq!(net.burst(2, &burst).len(), 2 * 5, "{traffic:?}");
        net.advance(Duration::from_millis(200));
        assert_eq!(net.burst(2, &burst).len(), 2 * 2, "{traffic:?}");
        assert_eq!(net.cx.counters(NicId(2)).unwrap().drops(traffic.over_budget()), 59 + 62);
        assert_eq!(net.reaches(0, &frame(mac(1), mac(2))), [2], "other frames and ports are not held");
        assert_eq!(net.burst(0, &burst).len(), 2 * 64);
    }
}

#[test]
fn each_endpoint_behind_a_tunnel_has_a_budget_of_its_own() {
    let few = Budget { per_second: 10, burst: 5 };
    let mut net = Net::plain(2);
    net.add(
        2,
        nic_spec(|spec| (spec.budgets.broadcast, spec.budgets.unknown, spec.budgets_each) = (few, few, true)),
        1,
    );
    let all = vec![(frame(Mac::BROADCAST, mac(1)), Offload::NONE); 64];
    let unknown = vec![(frame(mac(99), mac(1)), Offload::NONE); 64];
    let known = vec![(frame(mac(5), mac(1)), Offload::NONE); 64];
    net.reaches(0, &frame(mac(99), mac(5)));
    for endpoint in [0, 3] {
        assert_eq!(net.burst_of(2, endpoint, &all).len(), 2 * 5, "endpoint {endpoint}");
        assert_eq!(net.burst_of(2, endpoint, &unknown).len(), 2 * 5, "endpoint {endpoint}");
        assert_eq!(net.burst_of(2, endpoint, &all).len(), 0);
        assert_eq!(net.burst_of(2, endpoint, &known).len(), 64, "what is for one station is not held");
    }
    let drops = |reason| net.cx.counters(NicId(2)).unwrap().drops(reason);
    assert_eq!((drops(DropReason::BroadcastBudget), drops(DropReason::UnknownBudget)), (2 * (59 + 64), 2 * 59));
    net.advance(Duration::from_millis(200));
    // Frames of two endpoints that look alike, in one burst's time: each pays for itself.
    assert_eq!(net.burst_of(2, 3, &all).len() + net.burst_of(2, 4, &all).len(), 2 * (2 + 5));
}

#[test]
fn a_tunnel_does_not_speak_with_the_address_of_a_guest_or_router_that_is_here() {
    let mut net = Net::plain(1);
    let tunnel = nic_spec(|spec| spec.budgets_each = true);
    net.add(1, tunnel, 1);
    net.add(2, nic_spec(|spec| spec.guard = Some(mac(7))), 1);
    net.add(3, nic_spec(|spec| (spec.guard, spec.role) = (Some(mac(8)), Role::Router)), 1);
    for declared in [7, 8] {
        assert_eq!(net.dropped(1, &frame(Mac::BROADCAST, mac(declared))), DropReason::SpoofedSource);
    }
    // A station that was learnt moves.
    net.reaches(0, &frame(Mac::BROADCAST, mac(1)));
    net.reaches(1, &frame(Mac::BROADCAST, mac(1)));
    assert_eq!(net.reaches(2, &frame(mac(1), mac(7))), [1]);
    // A guest that is not attached here may be elsewhere.
    net.bridge.set_lanes(NicId(2), &[]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(7))), [] as [u16; 0]);
    assert!(!net.reaches(1, &frame(Mac::BROADCAST, mac(7))).is_empty());
}

#[test]
fn of_a_tunnel_whose_stations_are_told_nothing_is_learnt_and_what_is_told_is_known() {
    let mut net = Net::plain(3);
    net.add(3, nic_spec(|spec| (spec.told, spec.budgets_each) = (true, true)), 1);
    let tunnel = NicId(3);
    // Nobody told of it: it is let in and stays unknown.
    assert_eq!(net.reaches(3, &frame(Mac::BROADCAST, mac(50))), [0, 1, 2]);
    assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [1, 2, 3]);
    // Told and silent: it is reached, and nobody else gets a copy.
    net.bridge.tell(None, mac(50), tunnel);
    net.advance(Duration::from_secs(10_000));
    assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [3]);
    // A frame with the address of a guest that is here, forged or gone round, changes nothing.
    assert_eq!(net.dropped(3, &frame(Mac::BROADCAST, mac(1))), DropReason::SpoofedSource);
    assert_eq!(net.reaches(2, &frame(mac(1), mac(2))), [0]);
    // It moves here when it speaks here, and back when that is told.
    for _ in 0..20 {
        assert_eq!(net.reaches(1, &frame(Mac::BROADCAST, mac(50))), [0, 2, 3]);
        assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [1]);
        net.bridge.forget_station(None, mac(50));
        net.bridge.tell(None, mac(50), tunnel);
        assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [3], "however often");
    }
    // What was told is taken back; where it was heard since, that stays.
    net.reaches(1, &frame(Mac::BROADCAST, mac(50)));
    net.bridge.untell(None, mac(50), tunnel);
    assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [1]);
    net.bridge.tell(None, mac(50), tunnel);
    net.bridge.forget_station(None, mac(50));
    assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [3], "what is told is not what was heard");
    net.bridge.untell(None, mac(50), tunnel);
    assert_eq!(net.reaches(0, &frame(mac(50), mac(1))), [1, 2, 3]);
    // Where it was before does not work any more: what speaks out of the tunnel may be the same guest.
    net.bridge.set_lanes(NicId(0), &[]);
    assert_eq!(net.reaches(3, &frame(Mac::BROADCAST, mac(1))), [1, 2]);
}

#[test]
fn what_is_told_yields_to_static_entries_and_to_declared_ones_what_they_are() {
    let mut net = Net::plain(2);
    net.add(2, nic_spec(|spec| spec.told = true), 1);
    net.add(3, nic_spec(|spec| spec.guard = Some(mac(7))), 1);
    net.bridge.add_static(None, mac(60), NicId(1)).unwrap();
    net.bridge.tell(None, mac(60), NicId(2));
    net.bridge.untell(None, mac(60), NicId(2));
    assert_eq!(net.reaches(0, &frame(mac(60), mac(1))), [1]);
    assert_eq!(net.dropped(2, &frame(Mac::BROADCAST, mac(60))), DropReason::SpoofedSource);
    assert_eq!(net.dropped(2, &frame(Mac::BROADCAST, mac(7))), DropReason::SpoofedSource, "declared and silent");
    assert_eq!(net.dropped(2, &frame(mac(1), Mac::BROADCAST)), DropReason::BadSource);
    // Control's word stands against what is declared: the guest is on its way elsewhere. When it speaks it is here.
    net.bridge.tell(None, mac(7), NicId(2));
    assert_eq!(net.reaches(0, &frame(mac(7), mac(1))), [2]);
    net.reaches(3, &frame(Mac::BROADCAST, mac(7)));
    assert_eq!(net.reaches(0, &frame(mac(7), mac(1))), [3]);
}

#[test]
fn where_two_ports_are_joined_outside_copies_are_dropped_and_the_station_stays() {
    let mut net = Net::plain(4);
    let from_guest = frame(Mac::BROADCAST, mac(1));
    net.reaches(0, &from_guest);
    // What leaves by port 2 comes back by port 3, and the other way round.
    let mut dropped = 0;
    for _ in 0..100 {
        for joined in [2, 3] {
            dropped += usize::from(net.reaches(joined, &from_guest).is_empty());
        }
    }
    assert!(dropped > 180, "{dropped}");
    assert_eq!(net.dropped(2, &from_guest), DropReason::Flapping);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(9))), [0], "where it was first");
    assert_eq!(net.reaches(0, &from_guest), [1, 2, 3], "the station itself goes on");
    let flapping = net.bridge.flapping(net.now());
    let [Flapping { mac: address, home: NicId(0), other: NicId(2), vlan: None, moves, .. }] = flapping[..] else {
        panic!("{flapping:?}")
    };
    assert_eq!((address, moves), (mac(1), 201), "those that were refused are counted");
    // It has few copies while it is held: what comes round by its own port ends.
    for (to, few) in [(Mac::BROADCAST, 3 * 99), (mac(77), 0), (mac(9), 256)] {
        let storm = vec![(frame(to, mac(1)), Offload::NONE); 64];
        assert_eq!((0..4).map(|_| net.burst(0, &storm).len()).sum::<usize>(), few, "{to}");
    }
    assert_eq!(net.dropped(0, &from_guest), DropReason::Flapping);
    assert_eq!(net.reaches(1, &frame(Mac::BROADCAST, mac(9))), [0, 2, 3], "others have what they had");
    net.advance(Duration::from_secs(61));
    assert_eq!(net.reaches(2, &from_guest), [0, 1, 3], "later it is believed again");
}

#[test]
fn an_unknown_address_with_one_possible_place_is_no_flood() {
    let mut net = Net::plain(1);
    let none = Budget { per_second: 0, burst: 0 };
    net.add(1, nic_spec(|spec| (spec.budgets.unknown, spec.budgets.broadcast) = (none, none)), 1);
    assert_eq!(net.burst(1, &vec![(frame(mac(9), mac(1)), Offload::NONE); 64]).len(), 64);
    assert_eq!(net.dropped(1, &frame(Mac::BROADCAST, mac(1))), DropReason::BroadcastBudget);
    // A tunnel sends it to all of its endpoints.
    net.add(0, nic_spec(|spec| spec.budgets_each = true), 1);
    assert_eq!(net.dropped(1, &frame(mac(9), mac(1))), DropReason::UnknownBudget);
}

#[test]
fn tags_are_payload_where_no_port_names_a_vlan() {
    let mut net = Net::plain(3);
    let bytes = tagged(frame(mac(2), mac(1)), 5, 100);
    assert_eq!(net.send(0, &bytes), [(1, bytes.clone()), (2, bytes.clone())]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2))), [0], "one segment whatever the tag");
    assert_eq!(net.bridge.fdb_entries(net.now())[0].vlan, None);
    net.add(7, nic_spec(|spec| spec.membership = access(100)), 1);
    assert_eq!(net.dropped(0, &bytes), DropReason::VlanNotAllowed, "now one does");
    assert_eq!(net.bridge.fdb_entries(net.now())[0].vlan, Some(vid(1)));
    net.bridge.remove_nic(NicId(7));
    assert_eq!(net.send(0, &bytes), [(1, bytes.clone())]);
}

#[test]
fn access_ports_meet_their_vlan_only() {
    let mut net = Net::of(&[access(100), access(100), access(200), Membership::Untagged]);
    assert_eq!(net.reaches(0, &frame(Mac::BROADCAST, mac(1))), [1]);
    assert_eq!(net.dropped(2, &frame(mac(1), mac(2))), DropReason::NoDestination);
    assert_eq!(net.dropped(3, &frame(Mac::BROADCAST, mac(3))), DropReason::NoDestination);
    assert_eq!(net.dropped(0, &tagged(frame(Mac::BROADCAST, mac(1)), 0, 100)), DropReason::VlanNotAllowed);
    assert_eq!(net.dropped(0, &tagged(frame(Mac::BROADCAST, mac(1)), 0, 200)), DropReason::VlanNotAllowed);
    assert_eq!(net.dropped(0, &tagged(frame(Mac::BROADCAST, mac(1)), 0, 4095)), DropReason::VlanNotAllowed);
    let service = [frame(Mac::BROADCAST, mac(1))[..12].to_vec(), vec![0x88, 0xa8, 0, 200, 8, 0, 1, 2]].concat();
    assert_eq!(net.send(0, &service), [(1, service)], "a service tag is payload");
}

#[test]
fn a_trunk_carries_its_vlans_with_tags_and_its_native_one_without() {
    let mut net = Net::of(&[trunk(&[100, 200], Some(1)), access(100), access(200), Membership::Untagged, access(300)]);
    let plain = frame(Mac::BROADCAST, mac(1));
    assert_eq!(net.send(0, &tagged(plain.clone(), 0, 100)), [(1, plain.clone())]);
    assert_eq!(net.send(0, &tagged(plain.clone(), 6, 200)), [(2, plain.clone())]);
    assert_eq!(net.send(0, &plain), [(3, plain.clone())]);
    assert_eq!(net.send(0, &tagged(plain.clone(), 0, 1)), [(3, plain.clone())], "the native VLAN may bear its tag");
    assert_eq!(net.dropped(0, &tagged(plain.clone(), 0, 300)), DropReason::VlanNotAllowed);
    assert_eq!(net.dropped(0, &tagged(plain, 0, 4095)), DropReason::VlanNotAllowed);
    let back = frame(mac(1), mac(9));
    assert_eq!(net.send(1, &back), [(0, tagged(back.clone(), 0, 100))]);
    assert_eq!(net.send(2, &back), [(0, tagged(back.clone(), 0, 200))]);
    assert_eq!(net.send(3, &back), [(0, back.clone())]);
    assert_eq!(net.dropped(4, &back), DropReason::NoDestination);
    let vlans: Vec<_> = net.bridge.fdb_entries(net.now()).iter().filter(|e| e.mac == mac(1)).map(|e| e.vlan).collect();
    assert_eq!(vlans.len(), 3, "one station a VLAN: {vlans:?}");
}

#[test]
fn a_trunk_without_a_native_vlan_takes_tags_only() {
    let mut net = Net::of(&[trunk(&[1, 100], None), Membership::Untagged, trunk(&[100], None)]);
    let plain = frame(Mac::BROADCAST, mac(1));
    assert_eq!(net.dropped(0, &plain), DropReason::UntaggedNotAllowed);
    assert_eq!(net.dropped(0, &tagged(plain.clone(), 3, 0)), DropReason::UntaggedNotAllowed);
    assert_eq!(net.dropped(0, &tagged(plain.clone(), 0, 100)[..17]), DropReason::Runt);
    assert_eq!(net.send(1, &plain), [(0, tagged(plain.clone(), 0, 1))], "who names no VLAN is in VLAN 1");
    let kept = tagged(plain, 7, 100);
    assert_eq!(net.send(0, &kept), [(2, kept)], "trunk to trunk, untouched");
}

#[test]
fn a_priority_tag_is_no_vlan_and_its_priority_lasts_as_long_as_a_tag() {
    let mut net = Net::of(&[access(100), access(100), trunk(&[100], None)]);
    let plain = frame(Mac::BROADCAST, mac(1));
    let expected = [(1, plain.clone()), (2, tagged(plain.clone(), 5, 100))];
    assert_eq!(net.send(0, &tagged(plain, 5, 0)), expected);
}

#[test]
fn what_a_frame_owes_moves_with_its_headers() {
    let mut net = Net::of(&[access(100), trunk(&[100], None)]);
    let owed = Offload::new(Gso::Tcp4, 54, 1448, 34, 16);
    let sent = net.burst(0, &[(frame(Mac::BROADCAST, mac(1)), owed)]);
    assert_eq!((sent.len(), sent[0].offload), (1, owed.shifted(4)));
    let sent = net.burst(1, &[(tagged(frame(Mac::BROADCAST, mac(2)), 0, 100), owed.shifted(4))]);
    assert_eq!((sent.len(), sent[0].offload), (1, owed));
    let lies = Offload::new(Gso::None, 0, 0, 14, 2);
    assert_eq!(net.burst(1, &[(tagged(frame(Mac::BROADCAST, mac(2)), 0, 100), lies)]), []);
    assert_eq!(net.cx.counters(NicId(1)).unwrap().drops(DropReason::BadOffload), 1);
}

#[test]
fn flows_keep_their_lane_and_use_all_of_them() {
    let mut net = Net::plain(1);
    net.add(1, NicSpec::default(), 4);
    net.send(1, &frame(Mac::BROADCAST, mac(2)));
    let udp = |port: u8| {
        let mut bytes = frame(mac(2), mac(1));
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[14] = 0x45;
        bytes[20..24].copy_from_slice(&[0, 0, 64, 17]);
        bytes[34..38].copy_from_slice(&[10, port, 0, 53]);
        (bytes, Offload::NONE)
    };
    let frames: Vec<_> = (0..64).map(udp).collect();
    let first = net.burst(0, &frames);
    assert_eq!(first, net.burst(0, &frames));
    for lane in 1..=4 {
        let share = first.iter().filter(|sent| sent.lane == lane).count();
        assert!((6..=26).contains(&share), "lane {lane} has {share} of 64");
    }
}

#[test]
fn a_flood_out_of_heads_is_a_drop_that_adds_up() {
    let mut net = Net::plain(40);
    let sent = net.burst(0, &vec![(frame(Mac::BROADCAST, mac(1)), Offload::NONE); 64]);
    let dropped = net.cx.counters(NicId(0)).unwrap().drops(DropReason::NoHeads);
    assert!(dropped > 0 && sent.len() as u64 + dropped == net.cx.ledger.originated + net.cx.ledger.copied);
}

#[test]
fn a_decision_changes_nothing_and_says_what_forward_does() {
    let mut net = Net::of(&[access(100), trunk(&[100], None), access(100)]);
    let bytes = frame(Mac::BROADCAST, mac(1));
    let Decision { segment, outcome, .. } = net.bridge.decide(NicId(0), &bytes, net.now());
    assert_eq!((outcome, net.bridge.fdb_len()), (Outcome::Flood(Traffic::Broadcast), 0));
    let receivers: Vec<_> = net.bridge.receivers(NicId(0), segment).map(|route| (route.nic, route.label)).collect();
    assert_eq!(receivers, [(NicId(1), Label::tagged(vid(100))), (NicId(2), Label::NONE)]);
    assert_eq!(net.reaches(0, &bytes), [1, 2]);
    let answer = net.bridge.decide(NicId(2), &frame(mac(1), mac(3)), net.now()).outcome;
    assert!(matches!(answer, Outcome::Forward(route) if route.nic == NicId(0)));
    let back = net.bridge.decide(NicId(0), &frame(mac(1), mac(1)), net.now()).outcome;
    assert_eq!(back, Outcome::Drop(DropReason::SamePort));
}

#[test]
fn a_snapshot_survives_other_segment_numbers() {
    let mut net = Net::of(&[access(100), trunk(&[100, 200], Some(1)), access(200)]);
    net.bridge.add_static(Some(vid(200)), mac(7), NicId(2)).unwrap();
    net.send(0, &frame(Mac::BROADCAST, mac(1)));
    net.advance(Duration::from_secs(100));
    net.send(1, &tagged(frame(Mac::BROADCAST, mac(2)), 0, 200));
    net.send(1, &frame(Mac::BROADCAST, mac(2)));
    let sorted = |net: &Net| {
        let mut entries = net.bridge.fdb_entries(net.now());
        entries.sort_by_key(|entry| (entry.vlan, entry.mac));
        entries
    };
    let snapshot = sorted(&net);
    assert_eq!(snapshot.len(), 4);
    let mut other = Net::of(&[Membership::Untagged, trunk(&[200, 100], Some(1)), access(200), access(100)]);
    let mut moved = snapshot.clone();
    moved.iter_mut().filter(|entry| entry.nic == NicId(0)).for_each(|entry| entry.nic = NicId(3));
    assert_eq!(other.bridge.restore(&moved, other.now()), 4);
    assert_eq!(sorted(&other), moved);
    assert_eq!(net.bridge.restore(&snapshot, net.now()), 0, "all known already");
    let mut third = Net::plain(3);
    assert_eq!(third.bridge.restore(&snapshot, third.now()), 1, "who is no member is left out");
}

#[test]
fn the_sweep_empties_a_silent_bridge() {
    let mut net = Net::plain(2);
    (1..50).for_each(|n| drop(net.send(0, &frame(Mac::BROADCAST, mac(n)))));
    net.advance(Duration::from_secs(300));
    assert_eq!((net.bridge.fdb_entries(net.now()).len(), net.bridge.fdb_len()), (0, 49));
    assert_eq!(net.bridge.sweep(net.now(), 4096), 49);
    assert_eq!(net.bridge.fdb_len(), 0);
}

//! Addresses that somebody uses without a lease: they are put aside, at the cost of who uses them.

use std::{net::Ipv4Addr, time::Duration};

use etherparse::ArpOperation;
use gateway::dhcp::{Guest, LeaseState, Reservation};
use wire::{DropReason, Mac, NicId};

use crate::{
    arp::arp,
    dhcp::{last, mac, with},
    dhcp_client::{ACK, Ask, DISCOVER, NAK, REQUEST},
    segment::{GUEST_MAC, ROUTER, ROUTER_MAC, Segment, config},
};

/// What a machine with this MAC says when it is asked for `address`.
pub fn answer(from: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp(ROUTER_MAC, ArpOperation::REPLY, address, ROUTER_MAC, ROUTER);
    frame[6..12].copy_from_slice(&from.bytes());
    frame[22..28].copy_from_slice(&from.bytes());
    frame
}

impl Segment {
    /// Has the router hear that `from` on a NIC uses an address.
    fn hear(&mut self, nic: u16, from: Mac, address: Ipv4Addr) {
        let own = std::mem::replace(&mut self.nic, NicId(nic));
        let _ = self.say(&answer(from, address));
        self.nic = own;
    }

    fn state(&self, address: Ipv4Addr) -> Option<LeaseState> {
        self.gateway.leases().find(|lease| lease.address == address).map(|lease| lease.state)
    }
}

#[test]
fn an_address_that_was_heard_in_use_is_not_offered_for_a_time() {
    let mut segment = Segment::new(config());
    segment.hear(5, mac(5), last(20));
    assert_eq!(segment.state(last(20)), Some(LeaseState::InUse));
    assert_ne!(segment.dhcp(&Ask::new(DISCOVER).address(50, last(20))).address, last(20));
    segment.later(Duration::from_secs(400));
    segment.hear(5, mac(5), last(20));
    segment.later(Duration::from_secs(400));
    assert_ne!(segment.dhcp(&Ask::new(DISCOVER).address(50, last(20))).address, last(20), "heard again");
    segment.later(Duration::from_secs(600));
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(9)).address(50, last(20))).address, last(20));
}

#[test]
fn an_offer_of_an_address_that_turns_out_to_be_used_is_taken_back() {
    let mut segment = Segment::new(config());
    let offer = segment.dhcp(&Ask::new(DISCOVER));
    segment.hear(5, mac(5), offer.address);
    assert_eq!(segment.event.as_ref().unwrap().lease.state, LeaseState::InUse);
    let told = segment.dhcp(&Ask::new(REQUEST).address(54, ROUTER).address(50, offer.address));
    assert_eq!(told.kind, NAK);
    assert_ne!(segment.lease(&Ask::new(DISCOVER)).address, offer.address);
}

#[test]
fn who_has_a_lease_or_an_offer_may_say_so_and_who_says_so_of_anothers_lease_is_not_believed() {
    let mut segment = Segment::new(config());
    let offer = segment.dhcp(&Ask::new(DISCOVER).address(50, last(30)));
    segment.hear(3, GUEST_MAC, last(30));
    assert_eq!(segment.state(last(30)), Some(LeaseState::Offered));
    let told = segment.dhcp(&Ask::new(REQUEST).address(54, ROUTER).address(50, offer.address));
    assert_eq!(told.kind, ACK);
    for from in [GUEST_MAC, mac(66)] {
        segment.hear(6, from, last(30));
        assert_eq!(segment.state(last(30)), Some(LeaseState::Bound));
    }
}

#[test]
fn who_uses_an_address_may_lease_it() {
    // A forgotten lease: the router hears the address before its client renews.
    let mut segment = Segment::new(config());
    segment.hear(3, GUEST_MAC, last(40));
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).from(last(40)).of(mac(1))).kind, NAK, "nobody else may");
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).from(last(40))).kind, ACK);
    assert_eq!(segment.state(last(40)), Some(LeaseState::Bound));
    // And its own lease of another address is not touched by what it is heard to use besides.
    segment.hear(3, GUEST_MAC, last(41));
    assert_eq!((segment.state(last(40)), segment.state(last(41))), (Some(LeaseState::Bound), Some(LeaseState::InUse)));
}

#[test]
fn who_goes_on_after_its_lease_is_over_keeps_others_from_the_address() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    segment.later(Duration::from_secs(90_000));
    segment.hear(3, GUEST_MAC, address);
    assert_ne!(segment.lease(&Ask::new(DISCOVER).of(mac(1)).address(50, address)).address, address);
    assert_eq!(segment.lease(&Ask::new(DISCOVER).address(50, address)).address, address);
}

#[test]
fn who_claims_all_addresses_keeps_its_share_from_others_and_no_more() {
    let mut segment = Segment::new(config());
    for round in 0..3 {
        for n in 2..255 {
            segment.hear(66, mac(600 + u16::from(n) + round), last(n));
            segment.later(Duration::from_millis(10));
        }
    }
    let held = segment.gateway.leases().count();
    assert_eq!(held, 64);
    segment.nic = NicId(66);
    assert_eq!(segment.refused(&Ask::new(DISCOVER).frame()), DropReason::NoLease, "its own share is used up");
    for n in 0..100 {
        segment.nic = NicId(100 + n);
        segment.lease(&Ask::new(DISCOVER).of(mac(n)));
    }
}

#[test]
fn reserved_addresses_and_those_outside_the_pool_are_left_alone() {
    let mut segment = Segment::new(with(|dhcp| {
        (dhcp.first, dhcp.last) = (last(100), last(199));
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(GUEST_MAC), address: last(150) }];
    }));
    segment.hear(5, mac(5), last(150));
    segment.hear(5, mac(5), last(50));
    assert_eq!(segment.gateway.leases().count(), 0);
    assert_eq!(segment.lease(&Ask::new(DISCOVER)).address, last(150));
}

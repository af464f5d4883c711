//! Who gets which address of a pool: reservations, shares, and what happens when nothing is left.

use std::time::Duration;

use gateway::dhcp::{Guest, Reservation};
use wire::{DropReason, NicId};

use crate::{
    dhcp::{last, mac, reboot, with},
    dhcp_client::{ACK, Ask, DECLINE, DISCOVER, NAK, REQUEST, Told},
    segment::{ROUTER, Segment, config},
};

#[test]
fn reservations_by_mac_and_by_name() {
    let mut segment = Segment::new(with(|dhcp| {
        dhcp.first = last(100);
        dhcp.last = last(110);
        dhcp.reservations = vec![
            Reservation { guest: Guest::Mac(mac(1)), address: last(50) },
            Reservation { guest: Guest::Name("Db".to_owned()), address: last(105) },
        ];
    }));
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(1))).address, last(50));
    assert_eq!(
        segment.lease(&Ask::new(DISCOVER).of(mac(1)).with(61, &[1, 2])).address,
        last(50),
        "whatever identifier"
    );
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(2)).with(12, b"db.example")).address, last(105));
    let renewed = segment.dhcp(&Ask::new(REQUEST).of(mac(2)).from(last(105)));
    assert_eq!(renewed.kind, ACK, "a client need not say its name again");
    for n in 10..19 {
        let address = segment.lease(&Ask::new(DISCOVER).of(mac(n)).address(50, last(50))).address;
        assert!(address != last(50) && address != last(105) && (last(100)..=last(110)).contains(&address));
        segment.nic = NicId(n);
    }
    // With nobody at home, too: nothing of the pool is left, but what is reserved is not of it.
    let mut segment = Segment::new(with(|dhcp| {
        (dhcp.first, dhcp.last) = (last(100), last(103));
        dhcp.reservations = vec![Reservation { guest: Guest::Name("Db".to_owned()), address: last(101) }];
    }));
    for n in 10..13 {
        segment.nic = NicId(n);
        segment.lease(&Ask::new(DISCOVER).of(mac(n)));
    }
    segment.nic = NicId(20);
    assert_eq!(segment.refused(&Ask::new(DISCOVER).of(mac(20)).frame()), DropReason::NoLease);
    segment.lease(&Ask::new(DISCOVER).of(mac(2)).with(12, b"db"));
}

#[test]
fn a_reserved_address_is_not_given_away_while_somebody_has_it() {
    let mut segment = Segment::new(with(|dhcp| {
        dhcp.reservations = vec![
            Reservation { guest: Guest::Mac(mac(1)), address: last(50) },
            Reservation { guest: Guest::Name("Db".to_owned()), address: last(105) },
        ];
    }));
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(2)).with(12, b"db.example")).address, last(105));
    let thief = segment.lease(&Ask::new(DISCOVER).of(mac(99)).with(12, b"db"));
    assert_ne!(thief.address, last(105), "not while somebody has it");
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).of(mac(77)).from(last(50))).kind, NAK);
}

#[test]
fn a_client_that_gets_a_reserved_address_gives_its_old_one_back() {
    let mut segment = Segment::new(with(|dhcp| {
        dhcp.reservations = vec![Reservation { guest: Guest::Name("db".to_owned()), address: last(50) }];
    }));
    let old = segment.lease(&Ask::new(DISCOVER)).address;
    segment.dhcp(&Ask::new(DISCOVER).with(12, b"db"));
    let event = segment.event.clone().unwrap();
    assert_eq!((event.lease.address, event.left), (last(50), Some(old)));
    assert_eq!(segment.gateway.leases().count(), 1);
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(1)).address(50, old)).address, old);
}

#[test]
fn offers_are_taken_from_nobody_who_holds_no_more_than_the_asker() {
    let mut segment = Segment::new(with(|dhcp| (dhcp.first, dhcp.last) = (last(10), last(15))));
    for (nic, n, bound) in [(1, 1, true), (1, 2, true), (2, 3, false), (2, 4, false), (3, 5, true), (3, 6, true)] {
        segment.nic = NicId(nic);
        let ask = Ask::new(DISCOVER).of(mac(n));
        if bound {
            segment.lease(&ask)
        } else {
            segment.dhcp(&ask)
        };
    }
    segment.nic = NicId(1);
    assert_eq!(segment.refused(&Ask::new(DISCOVER).of(mac(7)).frame()), DropReason::NoLease);
    segment.nic = NicId(4);
    segment.dhcp(&Ask::new(DISCOVER).of(mac(7)));
}

#[test]
fn one_guest_under_ever_new_names_takes_its_share_and_no_more() {
    let mut segment = Segment::new(config());
    let victim = segment.lease(&Ask::new(DISCOVER)).address;
    segment.nic = NicId(66);
    for n in 0..5000 {
        let ask = Ask::new(DISCOVER).of(mac(n)).with(12, b"flood");
        if n % 3 == 0 {
            let _ = segment.say(&ask.frame());
        } else if let (_, Some(offer)) = segment.say(&ask.frame()) {
            let offer = Told::read(&offer);
            let request = Ask::new(REQUEST).of(mac(n)).address(54, ROUTER).address(50, offer.address);
            assert_eq!(segment.dhcp(&request).kind, ACK);
            if n % 5 == 0 {
                segment.say(&Ask::new(DECLINE).of(mac(n)).address(54, ROUTER).address(50, offer.address).frame());
            }
        }
        // And by asking for addresses it knows of.
        segment.say(&Ask::new(REQUEST).of(mac(n)).from(last((n % 256) as u8)).frame());
        let held = segment.gateway.leases().filter(|lease| lease.nic == Some(NicId(66))).count();
        assert!(held <= 64, "{held} addresses after {n} clients");
    }
    assert_eq!(segment.refused(&Ask::new(DISCOVER).of(mac(6000)).frame()), DropReason::NoLease);
    segment.nic = NicId(3);
    assert_eq!(segment.dhcp(&reboot(victim)).kind, ACK);
    for n in 0..100 {
        segment.nic = NicId(100 + n);
        segment.lease(&Ask::new(DISCOVER).of(mac(7000 + n)));
    }
}

#[test]
fn in_a_small_pool_half_is_left_to_others() {
    let mut segment = Segment::new(with(|dhcp| (dhcp.first, dhcp.last) = (last(10), last(17))));
    for n in 0..4 {
        segment.lease(&Ask::new(DISCOVER).of(mac(n)));
    }
    assert_eq!(segment.refused(&Ask::new(DISCOVER).of(mac(9)).frame()), DropReason::NoLease);
    segment.nic = NicId(4);
    segment.lease(&Ask::new(DISCOVER).of(mac(9)));
}

#[test]
fn an_exhausted_pool_takes_from_what_is_over_then_offers_of_whoever_holds_most_and_never_what_runs() {
    let mut segment = Segment::new(with(|dhcp| (dhcp.first, dhcp.last) = (last(10), last(13))));
    segment.nic = NicId(1);
    let bound = segment.lease(&Ask::new(DISCOVER).of(mac(1))).address;
    let offered = segment.dhcp(&Ask::new(DISCOVER).of(mac(2))).address;
    segment.nic = NicId(2);
    segment.lease(&Ask::new(DISCOVER).of(mac(3)));
    segment.lease(&Ask::new(DISCOVER).of(mac(4)));
    segment.nic = NicId(3);
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(5))).address, offered);
    segment.nic = NicId(4);
    assert_eq!(segment.refused(&Ask::new(DISCOVER).of(mac(6)).frame()), DropReason::NoLease);
    segment.later(Duration::from_secs(50_000));
    for n in [3, 4, 5] {
        segment.nic = NicId(if n == 5 { 3 } else { 2 });
        segment.lease(&Ask::new(DISCOVER).of(mac(n)));
    }
    segment.later(Duration::from_secs(50_000));
    segment.nic = NicId(4);
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(6))).address, bound, "the one that is over");
}

#[test]
fn who_only_asks_recycles_their_own_offers() {
    let mut segment = Segment::new(with(|dhcp| (dhcp.first, dhcp.last) = (last(10), last(17))));
    let oldest = segment.dhcp(&Ask::new(DISCOVER).of(mac(0))).address;
    for n in 1..4 {
        segment.later(Duration::from_secs(1));
        segment.dhcp(&Ask::new(DISCOVER).of(mac(n)));
    }
    assert_eq!(segment.dhcp(&Ask::new(DISCOVER).of(mac(4))).address, oldest);
    assert_eq!(segment.gateway.leases().count(), 4);
}

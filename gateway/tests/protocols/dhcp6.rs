//! DHCPv6: RFC 8415, RFC 4704, RFC 3646, RFC 5908.

use std::{net::Ipv6Addr, time::Duration};

use gateway::{
    Config,
    dhcp::{Guest, LeaseState, Reservation},
    dhcp6::Dhcp6Config,
};
use wire::{DropReason, Mac, NicId};

use crate::{
    dhcp::mac,
    dhcp6_client::{
        ADVERTISE, Ask6, CONFIRM, DECLINE, INFORMATION_REQUEST, REBIND, RELEASE, RENEW, REPLY, REQUEST, SOLICIT,
    },
    segment::{GLOBAL, GUEST_MAC, LINK_LOCAL, Segment, config, icmpv6},
};

const NO_ADDRS_AVAIL: u16 = 2;
const NO_BINDING: u16 = 3;
const NOT_ON_LINK: u16 = 4;
const USE_MULTICAST: u16 = 5;
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// PREFIX::number.
fn at(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, number)
}

pub fn with(change: impl FnOnce(&mut Dhcp6Config)) -> Config {
    let mut config = config();
    let v6 = config.v6.as_mut().unwrap();
    let mut dhcp = Dhcp6Config::new(true);
    change(&mut dhcp);
    (v6.managed, v6.other, v6.dhcp) = (dhcp.stateful, true, Some(dhcp));
    config
}

fn stateful() -> Segment {
    Segment::new(with(|_| {}))
}

/// A pool of seven addresses: that of a /125, without its first and the router's.
fn small() -> Segment {
    let mut config = with(|_| {});
    config.v6.as_mut().unwrap().global = Some((GLOBAL, 125));
    Segment::new(config)
}

fn only(segment: &Segment) -> gateway::dhcp::Lease<Ipv6Addr> {
    let leases: Vec<_> = segment.gateway.leases6().cloned().collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
    leases[0].clone()
}

#[test]
fn rfc8415_18_3_1_and_2_from_solicit_to_a_lease() {
    let mut segment = stateful();
    let told = segment.dhcp6(&Ask6::new(SOLICIT).association(9, None));
    let [offered] = &told.associations()[..] else { panic!("{told:?}") };
    let (address, preferred, valid) = offered.address.unwrap();
    assert_eq!((told.kind, offered.id, preferred, valid), (ADVERTISE, 9, 86_400, 86_400));
    assert_eq!((offered.t1, offered.t2), (43_200, 69_120), "section 21.4: half and four fifths");
    assert!((at(0x1000)..=at(0x1fff)).contains(&address), "{address}");
    assert_eq!(told.option(7), Some(&[255][..]), "nobody else is to be waited for");
    assert_eq!(told.option(23), Some(&GLOBAL.octets()[..]));
    assert_eq!(told.option(24), Some(&b"\x03lan\x07example\0"[..]));
    assert_eq!(only(&segment).state, LeaseState::Offered);
    let told = segment.dhcp6(&Ask6::new(REQUEST).sent_to_the_server().association(9, Some(address)));
    assert_eq!((told.kind, told.address(), told.option(7)), (REPLY, Some(address), None));
    let lease = only(&segment);
    assert_eq!((lease.address, lease.state, lease.nic), (address, LeaseState::Bound, Some(NicId(3))));
    assert_eq!(lease.expires, segment.now + Duration::from_secs(86_400));
    assert_eq!(segment.lease6(GUEST_MAC, None), segment.lease6(GUEST_MAC, None), "IAID 1 has one address");
    assert_eq!(segment.gateway.leases6().count(), 2, "two associations of one client have two");
}

#[test]
fn rfc8415_18_3_1_rapid_commit_takes_two_messages() {
    let mut segment = stateful();
    let told = segment.dhcp6(&Ask6::new(SOLICIT).association(1, None).with(14, &[]));
    assert_eq!((told.kind, told.option(14)), (REPLY, Some(&[][..])));
    assert_eq!((Some(only(&segment).address), only(&segment).state), (told.address(), LeaseState::Bound));
    let told = segment.dhcp6(&Ask6::new(SOLICIT).of(mac(1)).association(1, None));
    assert_eq!((told.kind, told.option(14)), (ADVERTISE, None), "only for who asks for it");
}

#[test]
fn rfc8415_18_3_4_and_5_renewing_and_rebinding() {
    let mut segment = stateful();
    let address = segment.lease6(GUEST_MAC, Some(at(0x1234)));
    assert_eq!(address, at(0x1234), "a wish that is free");
    for (kind, to_server) in [(RENEW, true), (REBIND, false)] {
        segment.later(Duration::from_secs(50_000));
        let mut ask = Ask6::new(kind).association(1, Some(address));
        if to_server {
            ask = ask.sent_to_the_server();
        }
        let told = segment.dhcp6(&ask);
        assert_eq!((told.kind, told.address()), (REPLY, Some(address)));
        assert_eq!(only(&segment).expires, segment.now + Duration::from_secs(86_400));
    }
    // Of somebody else's.
    let ask = |kind| Ask6::new(kind).of(mac(1)).association(1, Some(address));
    assert_eq!(segment.dhcp6(&ask(RENEW).sent_to_the_server()).refusal(), Some(NO_BINDING));
    assert_eq!(segment.refused(&ask(REBIND).frame()), DropReason::NoLease, "another server may know");
    // Where it cannot be right its time is over.
    let told = segment.dhcp6(&Ask6::new(REBIND).of(mac(1)).association(1, Some(ELSEWHERE)));
    assert_eq!(told.associations()[0].address, Some((ELSEWHERE, 0, 0)));
    // A forgotten lease goes on when nobody else has the address.
    let told = segment.dhcp6(&Ask6::new(RENEW).of(mac(2)).sent_to_the_server().association(1, Some(at(0x1777))));
    assert_eq!(told.address(), Some(at(0x1777)));
}

#[test]
fn rfc8415_18_3_7_a_released_address_is_free_and_remembered() {
    let mut segment = stateful();
    let address = segment.lease6(GUEST_MAC, None);
    let release = Ask6::new(RELEASE).sent_to_the_server().association(1, Some(address));
    segment.nic = NicId(8);
    let told = segment.dhcp6(&release);
    assert_eq!((told.kind, told.status(), told.refusal()), (REPLY, Some(0), Some(NO_BINDING)), "not from there");
    assert_eq!(only(&segment).state, LeaseState::Bound);
    segment.nic = NicId(3);
    let told = segment.dhcp6(&release);
    assert_eq!((told.kind, told.status(), told.associations()), (REPLY, Some(0), vec![]));
    assert_eq!(only(&segment).state, LeaseState::Released);
    assert_eq!(segment.lease6(GUEST_MAC, None), address, "remembered for its client");
    segment.dhcp6(&release);
    assert_eq!(segment.lease6(mac(1), Some(address)), address);
}

#[test]
fn rfc8415_18_3_8_a_declined_address_is_put_aside_for_a_time() {
    let mut segment = stateful();
    let address = segment.lease6(GUEST_MAC, None);
    let decline = Ask6::new(DECLINE).sent_to_the_server().association(1, Some(address));
    let told = segment.dhcp6(&decline.clone().of(mac(9)));
    assert_eq!(told.refusal(), Some(NO_BINDING), "not its address");
    assert_eq!(segment.dhcp6(&decline).status(), Some(0));
    assert_ne!(segment.lease6(GUEST_MAC, Some(address)), address);
    assert_ne!(segment.lease6(mac(1), Some(address)), address);
    segment.later(Duration::from_secs(600));
    assert_eq!(segment.lease6(mac(2), Some(address)), address);
}

#[test]
fn rfc8415_18_3_3_confirm_says_whether_the_prefix_is_right() {
    let mut segment = stateful();
    let confirm = |address| Ask6::new(CONFIRM).association(1, address);
    assert_eq!(segment.dhcp6(&confirm(Some(at(0x1555)))).status(), Some(0));
    assert_eq!(segment.dhcp6(&confirm(Some(ELSEWHERE))).status(), Some(NOT_ON_LINK));
    assert_eq!(segment.refused(&confirm(None).frame()), DropReason::NoLease, "nothing to confirm");
    assert_eq!(segment.gateway.leases6().count(), 0);
}

#[test]
fn rfc8415_18_3_2_a_request_for_another_prefix_is_refused() {
    let ask = Ask6::new(REQUEST).sent_to_the_server().association(1, Some(ELSEWHERE));
    assert_eq!(stateful().dhcp6(&ask).refusal(), Some(NOT_ON_LINK));
}

#[test]
fn rfc8415_18_3_6_information_is_told_without_an_address() {
    for stateful in [false, true] {
        let mut segment = Segment::new(with(|dhcp| {
            dhcp.stateful = stateful;
            dhcp.ntp = vec![at(2), at(3)];
        }));
        let told = segment.dhcp6(&Ask6::new(INFORMATION_REQUEST));
        assert_eq!((told.kind, told.option(23)), (REPLY, Some(&GLOBAL.octets()[..])));
        assert_eq!(told.option(32), Some(&86_400u32.to_be_bytes()[..]));
        let ntp = [&[0, 1, 0, 16][..], &at(2).octets(), &[0, 1, 0, 16], &at(3).octets()].concat();
        assert_eq!(told.option(56), Some(&ntp[..]), "RFC 5908");
        let told = segment.dhcp6(&Ask6::new(INFORMATION_REQUEST).without(1).with(6, &[0, 24]));
        assert!(told.option(23).is_none() && told.option(24).is_some(), "what was asked for");
        assert_eq!(segment.gateway.leases6().count(), 0);
    }
}

#[test]
fn a_stateless_server_says_nothing_about_addresses() {
    let mut segment = Segment::new(with(|dhcp| dhcp.stateful = false));
    for kind in [SOLICIT, CONFIRM, REBIND] {
        let ask = Ask6::new(kind).association(1, Some(at(0x1000)));
        assert_eq!(segment.refused(&ask.frame()), DropReason::NotForGateway);
    }
    assert_eq!(segment.gateway.leases6().count(), 0);
}

#[test]
fn rfc8415_18_4_who_asks_the_router_alone_is_told_to_ask_all_servers() {
    let mut segment = stateful();
    let mut ask = Ask6::new(REQUEST).sent_to_the_server().association(1, None).association(2, None);
    ask.unicast = true;
    let told = segment.dhcp6(&ask);
    assert_eq!((told.kind, told.status(), told.associations()), (REPLY, Some(USE_MULTICAST), vec![]));
    let mut ask = Ask6::new(SOLICIT).association(1, None);
    ask.unicast = true;
    assert_eq!(segment.refused(&ask.frame()), DropReason::NotForGateway);
    assert_eq!(segment.gateway.leases6().count(), 0);
}

#[test]
fn rfc8415_16_messages_that_must_be_discarded() {
    let mut segment = stateful();
    let other = [0, 3, 0, 1, 2, 0, 0, 0, 0, 0x99];
    for (what, ask, reason) in [
        (
            "a solicit to one server",
            Ask6::new(SOLICIT).sent_to_the_server().association(1, None),
            DropReason::BadPacket,
        ),
        ("a solicit of nobody", Ask6::new(SOLICIT).without(1).association(1, None), DropReason::BadPacket),
        ("a request to no server", Ask6::new(REQUEST).association(1, None), DropReason::BadPacket),
        ("a request to another", Ask6::new(REQUEST).with(2, &other).association(1, None), DropReason::NotForGateway),
        ("a rebind to a server", Ask6::new(REBIND).sent_to_the_server().association(1, None), DropReason::BadPacket),
        ("information with an IA", Ask6::new(INFORMATION_REQUEST).association(1, None), DropReason::BadPacket),
        ("what servers say", Ask6::new(ADVERTISE), DropReason::BadPacket),
        ("what relays say", Ask6::new(12), DropReason::BadPacket),
        ("an IA without times", Ask6::new(SOLICIT).with(3, &[0, 0, 0, 1]), DropReason::BadPacket),
        ("an empty DUID", Ask6::new(SOLICIT).without(1).with(1, &[]).association(1, None), DropReason::BadPacket),
        ("a long DUID", Ask6::new(SOLICIT).without(1).with(1, &[7; 131]).association(1, None), DropReason::BadPacket),
    ] {
        assert_eq!(segment.refused(&ask.frame()), reason, "{what}");
    }
    assert_eq!(segment.gateway.leases6().count(), 0);
}

#[test]
fn of_several_associations_the_first_gets_an_address_and_each_an_answer() {
    let mut segment = stateful();
    let ask = |kind| Ask6::new(kind).association(1, None).association(2, None).association(3, None);
    let told = segment.dhcp6(&ask(SOLICIT));
    let answers: Vec<_> = told.associations().iter().map(|a| (a.id, a.address.is_some(), a.status)).collect();
    assert_eq!(answers, [(1, true, None), (2, false, Some(NO_ADDRS_AVAIL)), (3, false, Some(NO_ADDRS_AVAIL))]);
    let told = segment.dhcp6(&ask(REQUEST).sent_to_the_server());
    let address = told.address();
    let release = |kind| Ask6::new(kind).sent_to_the_server().association(1, address).association(2, address);
    for kind in [RENEW, RELEASE] {
        let answers = segment.dhcp6(&release(kind)).associations();
        assert_eq!(answers.last().map(|a| (a.id, a.status)), Some((2, Some(NO_BINDING))));
    }
}

#[test]
fn rfc4704_a_name_is_remembered_and_a_server_is_known_by_the_same_duid_after_every_start() {
    let mut segment = stateful();
    let name = [&[0, 5][..], b"Web_1", &[3], b"lan", &[0]].concat();
    segment.dhcp6(&Ask6::new(SOLICIT).association(1, None).with(14, &[]).with(39, &name));
    assert_eq!(only(&segment).name.as_deref(), Some("web-1"));
    // `Told6::read` compares the DUID each time.
    let mut again = stateful();
    again.lease6(GUEST_MAC, None);
}

#[test]
fn an_address_is_kept_for_the_guest_it_is_declared_for() {
    let reserve = |dhcp: &mut Dhcp6Config| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(mac(1)), address: at(0x77) }];
    };
    let mut segment = Segment::new(with(reserve));
    assert_ne!(segment.lease6(GUEST_MAC, Some(at(0x77))), at(0x77));
    assert_eq!(segment.lease6(mac(1), None), at(0x77));
    assert_eq!(segment.lease6(mac(1), Some(at(0x1010))), at(0x77), "whatever it wishes");
}

#[test]
fn copies_of_a_machine_with_one_duid_get_addresses_of_their_own() {
    let mut segment = stateful();
    let mut ask = Ask6::new(SOLICIT).association(1, None).with(14, &[]);
    let first = segment.dhcp6(&ask).address();
    ask.mac = mac(1);
    let second = segment.dhcp6(&ask).address();
    assert!(first.is_some() && second.is_some() && first != second, "{first:?} {second:?}");
}

#[test]
fn who_asks_for_all_addresses_leaves_half_of_a_small_pool() {
    let mut segment = small();
    segment.nic = NicId(66);
    for n in 0..50 {
        let told = segment.dhcp6(&Ask6::new(SOLICIT).of(mac(n)).association(1, None).with(14, &[]));
        assert!(told.address().is_some() != (told.refusal() == Some(NO_ADDRS_AVAIL)));
    }
    assert_eq!(segment.gateway.leases6().count(), 2, "half of the five that there are");
    for n in 0..3 {
        segment.nic = NicId(n);
        segment.lease6(mac(100 + n), None);
    }
    segment.nic = NicId(9);
    let told = segment.dhcp6(&Ask6::new(SOLICIT).of(mac(200)).association(1, None));
    assert_eq!((told.kind, told.refusal()), (ADVERTISE, Some(NO_ADDRS_AVAIL)), "section 18.3.9");
    let told = segment.dhcp6(&Ask6::new(REQUEST).of(mac(200)).sent_to_the_server().association(1, None));
    assert_eq!((told.kind, told.refusal()), (REPLY, Some(NO_ADDRS_AVAIL)));
}

#[test]
fn leases_survive_a_restart_and_what_does_not_fit_any_more_is_left_out() {
    let mut segment = stateful();
    let kept = segment.lease6(GUEST_MAC, Some(at(0x1050)));
    segment.lease6(mac(1), Some(at(0x1060)));
    segment.later(Duration::from_secs(1000));
    let snapshot = segment.gateway.snapshot(segment.now);
    assert_eq!(snapshot.leases6.len(), 2);
    let reserve = |dhcp: &mut Dhcp6Config| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(mac(7)), address: at(0x1060) }];
    };
    let mut restarted = Segment::new(with(reserve));
    assert_eq!(restarted.gateway.restore(&snapshot, restarted.now, Duration::from_secs(60)), 1);
    let lease = only(&restarted);
    assert_eq!((lease.address, lease.state, lease.nic), (kept, LeaseState::Bound, None));
    assert_eq!(lease.expires, restarted.now + Duration::from_secs(86_400 - 1060));
    let told = restarted.dhcp6(&Ask6::new(RENEW).sent_to_the_server().association(1, Some(kept)));
    assert_eq!(told.address(), Some(kept));
}

#[test]
fn rfc4861_4_6_2_guests_are_told_whether_to_make_addresses_themselves() {
    for (stateful, flags, prefix_flags) in [(false, 0x40, 0xc0), (true, 0xc0, 0x80)] {
        let mut segment = Segment::new(with(|dhcp| dhcp.stateful = stateful));
        let advertisement = segment.tick().unwrap();
        let message = &advertisement[54..];
        assert_eq!(message[5], flags, "managed and other");
        let mut options = &message[16..];
        while options[0] != 3 {
            options = &options[usize::from(options[1]) * 8..];
        }
        assert_eq!(options[2..4], [64, prefix_flags], "on link; autonomous only where it is stateless");
    }
}

#[test]
fn a_lease_shows_the_router_where_its_client_is() {
    let mut segment = stateful();
    let address = segment.lease6(GUEST_MAC, None);
    let known = segment.gateway.neighbour(address.into(), segment.now);
    assert_eq!(known, gateway::Neighbour::Known(GUEST_MAC, NicId(3)));
    let other = Mac::new([2, 0, 0, 0, 0, 0x66]);
    let mut claim = vec![0x60, 0, 0, 0];
    claim.extend(address.octets());
    claim.extend([2, 1]);
    claim.extend(other.bytes());
    let mut frame = icmpv6(crate::segment::ROUTER_MAC, address, LINK_LOCAL, 255, [136, 0], &claim);
    frame[6..12].copy_from_slice(&other.bytes());
    let _ = segment.say(&frame);
    assert_eq!(segment.gateway.neighbour(address.into(), segment.now), known, "whoever else says it is theirs");
}

#[test]
fn a_guest_that_was_installed_anew_has_the_address_that_is_declared_for_it() {
    let reserve = |dhcp: &mut Dhcp6Config| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(mac(1)), address: at(0x77) }];
    };
    let mut segment = Segment::new(with(reserve));
    assert_eq!(segment.lease6(mac(1), None), at(0x77));
    let ask = Ask6::new(SOLICIT).of(mac(1)).without(1).with(1, &[0, 4, 9, 9, 9]).association(4, None).with(14, &[]);
    assert_eq!(segment.dhcp6(&ask).address(), Some(at(0x77)), "under another DUID and IAID");
    assert_eq!(only(&segment).address, at(0x77));
}

#[test]
fn rfc8415_18_3_4_who_renews_is_given_the_address_reserved_since_and_leaves_the_old_one() {
    let mut segment = stateful();
    let old = segment.lease6(GUEST_MAC, Some(at(0x1050)));
    let snapshot = segment.gateway.snapshot(segment.now);
    let reserve = |dhcp: &mut Dhcp6Config| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(GUEST_MAC), address: at(0x77) }];
    };
    let mut restarted = Segment::new(with(reserve));
    restarted.gateway.restore(&snapshot, restarted.now, Duration::ZERO);
    let told = restarted.dhcp6(&Ask6::new(RENEW).sent_to_the_server().association(1, Some(old)));
    let [association] = &told.associations()[..] else { panic!("{told:?}") };
    assert_eq!(association.address, Some((at(0x77), 86_400, 86_400)));
    assert_eq!(association.more, [(old, 0, 0)]);
    assert_eq!(only(&restarted).address, at(0x77));
}

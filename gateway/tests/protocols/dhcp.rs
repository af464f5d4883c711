//! DHCP: RFC 2131, RFC 2132, RFC 3046, RFC 3442, RFC 6842.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gateway::{
    Config, Gateway,
    dhcp::{Client, DhcpConfig, Guest, LeaseState, Reservation, Route},
};
use wire::{DropReason, Mac, NicId};

use crate::{
    dhcp_client::{ACK, Ask, DECLINE, DISCOVER, INFORM, NAK, OFFER, RELEASE, REQUEST},
    segment::{GUEST_MAC, ROUTER, Segment, config},
};

pub fn with(change: impl FnOnce(&mut DhcpConfig)) -> Config {
    let mut config = config();
    change(config.v4.as_mut().unwrap().dhcp.as_mut().unwrap());
    config
}

pub fn mac(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac::new([2, 0, 0, 1, high, low])
}

pub fn last(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, host)
}

/// A request in the state INIT-REBOOT.
pub fn reboot(address: Ipv4Addr) -> Ask {
    Ask::new(REQUEST).address(50, address)
}

#[test]
fn rfc2131_3_1_discover_offer_request_acknowledge() {
    let mut segment = Segment::new(config());
    let offer = segment.dhcp(&Ask::new(DISCOVER));
    assert_eq!((offer.kind, offer.to_mac, offer.to), (OFFER, GUEST_MAC, offer.address));
    assert_eq!(segment.event.as_ref().unwrap().lease.state, LeaseState::Offered);
    let ack = segment.dhcp(&Ask::new(REQUEST).address(54, ROUTER).address(50, offer.address));
    assert_eq!((ack.kind, ack.address), (ACK, offer.address));
    assert_eq!((ack.number(51), ack.number(58), ack.number(59)), (Some(86_400), Some(43_200), Some(75_600)));
    let lease = &segment.event.as_ref().unwrap().lease;
    assert_eq!((lease.state, lease.nic), (LeaseState::Bound, Some(NicId(3))));
    assert_eq!(lease.expires, segment.now + Duration::from_secs(86_400));
}

#[test]
fn rfc2131_4_1_the_broadcast_flag_is_honoured_and_comes_back() {
    let mut ask = Ask::new(DISCOVER);
    ask.flags = 0x8000;
    let told = Segment::new(config()).dhcp(&ask);
    assert_eq!((told.to_mac, told.to, told.flags), (Mac::BROADCAST, Ipv4Addr::BROADCAST, 0x8000));
}

#[test]
fn rfc2131_4_1_relayed_messages_are_ignored() {
    let mut ask = Ask::new(DISCOVER);
    ask.giaddr = last(200);
    assert_eq!(Segment::new(config()).refused(&ask.frame()), DropReason::NotForGateway);
}

#[test]
fn rfc2131_4_1_options_in_file_and_sname_are_read() {
    let mut segment = Segment::new(config());
    let mut ask = Ask::new(DISCOVER).with(52, &[3]);
    ask.options.remove(0);
    ask.file = vec![53, 1, DISCOVER, 255];
    ask.sname = [&[50, 4][..], &last(77).octets(), &[255]].concat();
    assert_eq!(segment.dhcp(&ask).address, last(77));
    ask.options[0].1 = vec![2];
    assert_eq!(segment.refused(&ask.frame()), DropReason::BadPacket, "without `file` there is no message type");
    ask.options[0].1 = vec![1];
    ask.sname = [&[50, 4][..], &last(88).octets(), &[255]].concat();
    assert_ne!(segment.dhcp(&ask.clone().of(mac(1))).address, last(88), "without `sname` there is no wish");
    ask.file = vec![53, 200];
    assert_eq!(segment.refused(&ask.frame()), DropReason::BadPacket);
}

#[test]
fn rfc2131_4_3_1_the_wished_address_is_offered_if_free() {
    let mut segment = Segment::new(config());
    assert_eq!(segment.lease(&Ask::new(DISCOVER).address(50, last(99))).address, last(99));
    let other = segment.dhcp(&Ask::new(DISCOVER).of(mac(1)).address(50, last(99)));
    assert_ne!(other.address, last(99));
    for never in [ROUTER, last(0), last(255), Ipv4Addr::new(10, 0, 0, 1)] {
        assert_ne!(segment.dhcp(&Ask::new(DISCOVER).of(mac(2)).address(50, never)).address, never);
    }
}

#[test]
fn rfc2131_4_3_2_selecting_another_server_frees_the_offer() {
    let mut segment = Segment::new(config());
    let offer = segment.dhcp(&Ask::new(DISCOVER));
    let (_, answer) = segment.say(&Ask::new(REQUEST).address(54, last(250)).address(50, offer.address).frame());
    assert_eq!(answer, None);
    assert_eq!(segment.event.as_ref().unwrap().lease.state, LeaseState::Released);
    let other = segment.dhcp(&Ask::new(DISCOVER).of(mac(1)).address(50, offer.address));
    assert_eq!(other.address, offer.address);
}

#[test]
fn rfc2131_4_3_2_selecting_an_address_that_was_not_offered_is_refused_to_all() {
    let mut segment = Segment::new(config());
    let offer = segment.dhcp(&Ask::new(DISCOVER).address(50, last(20)));
    let told = segment.dhcp(&Ask::new(REQUEST).address(54, ROUTER).address(50, last(21)));
    assert_eq!((told.kind, told.to_mac, told.to), (NAK, Mac::BROADCAST, Ipv4Addr::BROADCAST));
    assert_eq!((offer.address, told.address), (last(20), Ipv4Addr::UNSPECIFIED));
    assert!(told.option(51).is_none() && told.option(56).is_some(), "RFC 2131 table 3");
}

#[test]
fn rfc2131_4_3_2_init_reboot() {
    let mut segment = Segment::new(config());
    assert_eq!(segment.refused(&reboot(last(9)).frame()), DropReason::NoLease, "silent without a record");
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    let told = segment.dhcp(&reboot(address));
    assert_eq!((told.kind, told.address), (ACK, address));
    let wrong = Ipv4Addr::from(u32::from(address) ^ 1);
    assert_eq!(segment.dhcp(&reboot(wrong)).kind, NAK, "another address than it has");
    assert_eq!(segment.dhcp(&reboot(Ipv4Addr::new(10, 1, 2, 3)).of(mac(1))).kind, NAK, "another network");
}

#[test]
fn rfc2131_4_3_2_renewing_goes_directly_and_rebinding_too() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    segment.later(Duration::from_secs(43_200));
    let mut renew = Ask::new(REQUEST).from(address);
    let told = segment.dhcp(&renew);
    assert_eq!((told.kind, told.to, told.to_mac), (ACK, address, GUEST_MAC));
    assert_eq!((told.address, told.ciaddr), (address, address));
    assert_eq!(segment.event.as_ref().unwrap().lease.expires, segment.now + Duration::from_secs(86_400));
    renew.unicast = false;
    assert_eq!(segment.dhcp(&renew).kind, ACK);
}

#[test]
fn an_address_in_use_whose_lease_was_forgotten_is_renewed_unless_somebody_else_has_it() {
    let mut segment = Segment::new(config());
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).from(last(40))).kind, ACK);
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).from(last(40)).of(mac(1))).kind, NAK);
}

#[test]
fn rfc2131_4_3_3_a_declined_address_is_put_aside_for_a_time() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    let decline = Ask::new(DECLINE).address(54, ROUTER).address(50, address);
    assert_eq!(segment.refused(&decline.clone().of(mac(9)).frame()), DropReason::NoLease, "not its address");
    assert_eq!(segment.say(&decline.frame()).1, None);
    assert_ne!(segment.lease(&Ask::new(DISCOVER).address(50, address)).address, address);
    assert_ne!(segment.lease(&Ask::new(DISCOVER).of(mac(1)).address(50, address)).address, address);
    segment.later(Duration::from_secs(600));
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(2)).address(50, address)).address, address);
}

#[test]
fn rfc2131_4_3_4_a_released_address_is_free_and_remembered() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    let release = Ask::new(RELEASE).address(54, ROUTER).from(address);
    segment.nic = NicId(8);
    assert_eq!(segment.refused(&release.frame()), DropReason::NoLease, "a message of somebody else, by its NIC");
    segment.nic = NicId(3);
    assert_eq!(segment.say(&release.frame()).1, None);
    assert_eq!(segment.lease(&Ask::new(DISCOVER)).address, address);
    segment.say(&release.frame());
    assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(1)).address(50, address)).address, address);
    assert_ne!(segment.lease(&Ask::new(DISCOVER)).address, address);
}

#[test]
fn rfc2131_4_3_5_inform_is_told_everything_but_an_address() {
    let mut segment = Segment::new(config());
    let told = segment.dhcp(&Ask::new(INFORM).from(last(30)).with(55, &[1, 3]));
    assert_eq!((told.kind, told.to, told.address), (ACK, last(30), Ipv4Addr::UNSPECIFIED));
    assert!(told.option(51).is_none() && told.option(58).is_none());
    assert_eq!(told.option(3), Some(&ROUTER.octets()[..]));
    assert!(segment.event.is_none());
}

#[test]
fn rfc2132_every_option_in_the_order_it_was_asked_for() {
    let config = with(|dhcp| {
        dhcp.dns = vec![ROUTER, last(2)];
        dhcp.domain = Some("lan.example".to_owned());
        dhcp.search = vec!["a.example".to_owned(), "b.example".to_owned()];
        dhcp.ntp = vec![last(3)];
        dhcp.routes = vec![Route { network: Ipv4Addr::new(10, 128, 0, 0), prefix: 9, via: last(4) }];
    });
    let mut segment = Segment::new(config);
    let wanted = [28, 26, 15, 12, 6, 3, 1, 42, 119, 121, 200, 28];
    let ask = Ask::new(DISCOVER).with(12, b"Web_1.example").with(55, &wanted).with(57, &1500u16.to_be_bytes());
    let told = segment.dhcp(&ask);
    let codes: Vec<u8> = told.options.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [53, 54, 51, 58, 59, 28, 26, 15, 12, 6, 3, 1, 42, 119, 121]);
    assert_eq!(told.option(1), Some(&[255, 255, 255, 0][..]));
    assert_eq!(told.option(3), Some(&ROUTER.octets()[..]));
    assert_eq!(told.option(6), Some(&[ROUTER.octets(), last(2).octets()].concat()[..]));
    assert_eq!(told.option(12), Some(&b"web-1"[..]));
    assert_eq!(told.option(15), Some(&b"lan.example"[..]));
    assert_eq!(told.option(26), Some(&1500u16.to_be_bytes()[..]));
    assert_eq!(told.option(28), Some(&last(255).octets()[..]));
    assert_eq!(told.option(42), Some(&last(3).octets()[..]));
    assert_eq!(told.option(119), Some(&b"\x01a\x07example\0\x01b\x07example\0"[..]));
    let routes = [&[9, 10, 128][..], &last(4).octets(), &[0], &ROUTER.octets()].concat();
    assert_eq!(told.option(121), Some(&routes[..]), "RFC 3442, with the default route");
}

#[test]
fn rfc2132_9_8_only_what_is_asked_for_and_something_of_use_to_who_does_not_ask() {
    let mut segment = Segment::new(config());
    let told = segment.dhcp(&Ask::new(DISCOVER).with(55, &[1]));
    assert!(told.option(1).is_some() && told.option(3).is_none());
    let told = segment.dhcp(&Ask::new(DISCOVER));
    assert!(told.option(1).is_some() && told.option(3).is_some() && told.option(26).is_some());
}

#[test]
fn rfc2131_2_an_answer_is_no_longer_than_the_client_takes() {
    let config = with(|dhcp| {
        dhcp.dns = vec![ROUTER; 60];
        dhcp.search = (0..40).map(|n| format!("domain-{n}.example")).collect();
    });
    let mut segment = Segment::new(config);
    let relay = [7; 40];
    let ask = Ask::new(DISCOVER).with(61, &[1; 30]).with(55, &[6, 119, 1]).with(82, &relay);
    let told = segment.dhcp(&ask);
    assert!(told.bytes <= 576, "{} bytes", told.bytes);
    assert!(told.option(119).is_none() && told.option(1).is_some(), "what fits");
    assert_eq!((told.option(82), told.option(61)), (Some(&relay[..]), Some(&[1; 30][..])));
    let told = segment.dhcp(&ask.with(57, &1500u16.to_be_bytes()));
    assert!(told.bytes <= 1500);
    let pieces: Vec<_> = told.options.iter().filter(|(code, _)| *code == 119).map(|(_, value)| value.len()).collect();
    assert!(pieces.len() > 1 && pieces[0] == 255, "RFC 3396: {pieces:?}");
}

#[test]
fn rfc6842_the_client_identifier_comes_back_and_rfc3046_so_does_the_relays_option_last() {
    let mut segment = Segment::new(config());
    let ask = Ask::new(DISCOVER).with(82, &[1, 2, 9, 9]).with(61, &[0xff, 1, 2, 3]);
    let told = segment.lease(&ask);
    assert_eq!(told.options.last(), Some(&(82, vec![1, 2, 9, 9])));
    assert_eq!(told.option(61), Some(&[0xff, 1, 2, 3][..]));
    assert_eq!(segment.event.as_ref().unwrap().lease.client, Client { mac: GUEST_MAC, id: [0xff, 1, 2, 3].into() });
}

#[test]
fn copies_of_a_machine_with_one_client_identifier_get_addresses_of_their_own() {
    let mut segment = Segment::new(config());
    let first = segment.lease(&Ask::new(DISCOVER).with(61, &[5; 19]));
    let second = segment.lease(&Ask::new(DISCOVER).of(mac(1)).with(61, &[5; 19]));
    assert_ne!(first.address, second.address);
}

#[test]
fn rfc2131_3_3_a_client_may_ask_for_a_shorter_lease_but_not_for_a_longer() {
    let mut segment = Segment::new(config());
    let mut asked = |seconds: u32| segment.lease(&Ask::new(DISCOVER).with(51, &seconds.to_be_bytes())).number(51);
    assert_eq!((asked(3600), asked(1), asked(u32::MAX)), (Some(3600), Some(60), Some(86_400)));
}

#[test]
fn rfc2131_4_3_1_a_client_gets_its_address_again_after_the_lease_is_over() {
    let mut segment = Segment::new(config());
    let addresses: Vec<_> = (0..20).map(|n| segment.lease(&Ask::new(DISCOVER).of(mac(n))).address).collect();
    segment.later(Duration::from_secs(200_000));
    for n in (0..20).rev() {
        assert_eq!(segment.lease(&Ask::new(DISCOVER).of(mac(n))).address, addresses[usize::from(n)]);
    }
}

#[test]
fn the_same_clients_get_the_same_addresses_from_a_router_that_forgot_everything() {
    let addresses = || -> Vec<_> {
        let mut segment = Segment::new(config());
        (0..30).map(|n| segment.lease(&Ask::new(DISCOVER).of(mac(n))).address).collect()
    };
    assert_eq!(addresses(), addresses());
}

#[test]
fn a_client_that_asks_again_keeps_what_it_has() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    let until = segment.event.clone().unwrap().lease.expires;
    segment.later(Duration::from_secs(10));
    assert_eq!(segment.dhcp(&Ask::new(DISCOVER)).address, address);
    let lease = segment.event.clone().unwrap().lease;
    assert_eq!((lease.state, lease.expires), (LeaseState::Bound, until));
}

#[test]
fn a_message_for_another_hardware_address_than_the_frames_is_not_listened_to() {
    let mut frame = Ask::new(DISCOVER).of(mac(1)).frame();
    frame[6..12].copy_from_slice(&GUEST_MAC.bytes());
    assert_eq!(Segment::new(config()).refused(&frame), DropReason::BadPacket);
}

#[test]
fn a_guest_that_moves_to_another_nic_keeps_its_address() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    segment.nic = NicId(12);
    assert_eq!(segment.lease(&Ask::new(DISCOVER)).address, address);
    assert_eq!(segment.gateway.leases().count(), 1);
    assert_eq!(segment.gateway.leases().next().unwrap().nic, Some(NicId(12)));
}

#[test]
fn leases_survive_a_restart_and_what_does_not_fit_any_more_is_left_out() {
    let mut segment = Segment::new(config());
    let kept = segment.lease(&Ask::new(DISCOVER).address(50, last(50))).address;
    segment.lease(&Ask::new(DISCOVER).of(mac(1)).address(50, last(200)));
    segment.later(Duration::from_secs(1000));
    let snapshot = segment.gateway.snapshot(segment.now);
    assert_eq!(snapshot.leases.len(), 2);
    let mut restarted = Segment::new(with(|dhcp| dhcp.last = last(99)));
    assert_eq!(restarted.gateway.restore(&snapshot, restarted.now, Duration::from_secs(60)), 1);
    let lease = restarted.gateway.leases().next().unwrap().clone();
    assert_eq!((lease.address, lease.state, lease.nic), (kept, LeaseState::Bound, None));
    assert_eq!(lease.expires, restarted.now + Duration::from_secs(86_400 - 1060));
    assert_eq!(restarted.dhcp(&reboot(kept)).kind, ACK);
    let again = restarted.gateway.snapshot(restarted.now);
    assert_eq!(again.leases.len(), 1);
}

#[test]
fn configurations_that_cannot_be_are_refused_with_what_to_do() {
    let error = |change: fn(&mut DhcpConfig)| {
        Gateway::new(with(change), wire::Instant::START).map(|_| ()).unwrap_err().to_string()
    };
    assert!(error(|dhcp| dhcp.last = Ipv4Addr::new(10, 0, 0, 1)).contains("192.168.7.0/24"));
    assert!(error(|dhcp| dhcp.lease = Duration::from_secs(1)).contains("60 s"));
    assert!(error(|dhcp| dhcp.dns = vec![ROUTER; 64]).contains("option 6"));
    assert!(error(|dhcp| dhcp.domain = Some("a..b".to_owned())).contains("a..b"));
    let reserve = |address| Reservation { guest: Guest::Mac(GUEST_MAC), address };
    let twice = with(|dhcp| dhcp.reservations = vec![reserve(last(5)), reserve(last(5))]);
    assert!(Gateway::new(twice, wire::Instant::START).is_err());
    let router = with(|dhcp| dhcp.reservations = vec![reserve(ROUTER)]);
    assert!(Gateway::new(router, wire::Instant::START).is_err());
}

#[test]
fn rfc2131_4_3_2_who_selects_without_an_offer_is_refused() {
    let reserved = |dhcp: &mut DhcpConfig| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(mac(1)), address: last(50) }];
    };
    let mut segment = Segment::new(with(reserved));
    let select = |address| Ask::new(REQUEST).address(54, ROUTER).address(50, address);
    assert_eq!(segment.dhcp(&select(last(20))).kind, NAK);
    assert_eq!(segment.dhcp(&select(last(50)).of(mac(1))).kind, NAK, "not even what is kept for it");
    assert_eq!(segment.gateway.leases().count(), 0);
    // What was offered and is over was not offered.
    let offer = segment.dhcp(&Ask::new(DISCOVER));
    segment.later(Duration::from_secs(61));
    assert_eq!(segment.dhcp(&select(offer.address)).kind, NAK);
}

#[test]
fn a_running_lease_is_renewed_and_the_address_reserved_since_is_offered_next_time() {
    let mut segment = Segment::new(config());
    let old = segment.lease(&Ask::new(DISCOVER).address(50, last(50))).address;
    let snapshot = segment.gateway.snapshot(segment.now);
    let reserved = |dhcp: &mut DhcpConfig| {
        dhcp.reservations = vec![Reservation { guest: Guest::Mac(GUEST_MAC), address: last(60) }];
    };
    let mut restarted = Segment::new(with(reserved));
    restarted.gateway.restore(&snapshot, restarted.now, Duration::ZERO);
    let told = restarted.dhcp(&Ask::new(REQUEST).from(old));
    assert_eq!((told.kind, told.address), (ACK, old));
    assert_eq!(restarted.lease(&Ask::new(DISCOVER)).address, last(60));
    assert_eq!(restarted.dhcp(&Ask::new(REQUEST).from(old)).kind, NAK, "it is given back");
}

#[test]
fn with_its_mac_from_another_nic_nobody_gives_a_lease_back() {
    let mut segment = Segment::new(config());
    let address = segment.lease(&Ask::new(DISCOVER)).address;
    let release = Ask::new(RELEASE).address(54, ROUTER).from(address);
    let decline = Ask::new(DECLINE).address(54, ROUTER).address(50, address);
    segment.nic = NicId(8);
    assert_eq!(segment.dhcp(&Ask::new(DISCOVER)).address, address);
    assert_eq!(segment.gateway.leases().next().unwrap().nic, Some(NicId(3)), "who only asks has not moved");
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).from(address)).kind, ACK);
    for ask in [&release, &decline] {
        assert_eq!(segment.refused(&ask.frame()), DropReason::NoLease);
    }
    segment.nic = NicId(3);
    assert_eq!(segment.say(&release.frame()).1, None);
    assert_eq!(segment.gateway.leases().next().unwrap().state, LeaseState::Released);
}

#[test]
fn which_lease_began_first_is_known_over_renewals_and_restarts() {
    let began = |segment: &Segment, address| segment.gateway.leases().find(|l| l.address == address).unwrap().began;
    let named = |n, name: &str| Ask::new(DISCOVER).of(mac(n)).with(12, name.as_bytes());
    let mut segment = Segment::new(config());
    let first = segment.lease(&named(1, "web").address(50, last(90))).address;
    let second = segment.lease(&named(2, "web").address(50, last(20))).address;
    segment.later(Duration::from_secs(40_000));
    assert_eq!(segment.dhcp(&Ask::new(REQUEST).of(mac(1)).from(first)).kind, ACK);
    assert!(began(&segment, first) < began(&segment, second));
    let snapshot = segment.gateway.snapshot(segment.now);
    let mut restarted = Segment::new(config());
    restarted.gateway.restore(&snapshot, restarted.now, Duration::ZERO);
    let third = restarted.lease(&named(3, "web")).address;
    let order = [first, second, third].map(|address| began(&restarted, address));
    assert!(order.is_sorted() && order[0] < order[1] && order[1] < order[2], "{order:?}");
    // Under another name it begins anew.
    let renamed = Ask::new(REQUEST).of(mac(1)).from(first).with(12, b"db");
    assert_eq!(restarted.dhcp(&renamed).kind, ACK);
    assert!(began(&restarted, first) > began(&restarted, third));
}

#[test]
fn which_lease_began_first_is_known_over_routers_that_count_together() {
    let begun = Arc::new(AtomicU64::new(7));
    let segment = || {
        let mut segment = Segment::new(config());
        segment.gateway = segment.gateway.with_begun(Arc::clone(&begun));
        segment
    };
    let mut segments = [segment(), segment()];
    let mut began = Vec::new();
    for (n, at) in [(1, 0), (2, 1), (3, 0)] {
        let segment = &mut segments[at];
        let address = segment.lease(&Ask::new(DISCOVER).of(mac(n))).address;
        began.extend(segment.gateway.leases().filter(|lease| lease.address == address).map(|lease| lease.began));
    }
    assert!(began[0] > 7 && began[0] < began[1] && began[1] < began[2], "{began:?}");
    let [one, mut two] = segments;
    let snapshot = one.gateway.snapshot(one.now);
    begun.store(0, Ordering::Relaxed);
    two.gateway.restore(&snapshot, two.now, Duration::ZERO);
    assert_eq!(begun.load(Ordering::Relaxed), began[2], "what was saved counts");
}

#[test]
fn no_lease_that_was_saved_goes_on_for_longer_than_leases_do_now() {
    let mut segment = Segment::new(config());
    segment.lease(&Ask::new(DISCOVER));
    let snapshot = segment.gateway.snapshot(segment.now);
    let mut restarted = Segment::new(with(|dhcp| dhcp.lease = Duration::from_secs(3600)));
    restarted.gateway.restore(&snapshot, restarted.now, Duration::ZERO);
    let lease = restarted.gateway.leases().next().unwrap();
    assert_eq!(lease.expires, restarted.now + Duration::from_secs(3600));
}

//! What an endpoint learns of neighbours, and whom it answers for.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    control::Command,
    neighbours::{Neighbour, Whence},
    resolution::{Asked, LONGEST, Message, Said, announcement},
};

const GUEST: NicId = NicId(40);
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)
}

fn link_local(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n)
}

fn arp(operation: u16, from: Mac, by: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let to = if operation == 1 { [0xff; 6] } else { [2; 6] };
    let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation as u8];
    [&to[..], &from.bytes(), &fixed, &from.bytes(), &by.octets(), &[0; 6], &target.octets(), &[0; 18]].concat()
}

/// A message of neighbour discovery with a right checksum.
fn nd(from: Mac, by: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let kind = etherparse::Icmpv6Type::Unknown {
        type_u8: body[0],
        code_u8: body[1],
        bytes5to8: body[4..8].try_into().unwrap(),
    };
    let builder = etherparse::PacketBuilder::ethernet2(from.bytes(), [0x33, 0x33, 0, 0, 0, 1]);
    let mut frame = Vec::new();
    builder.ipv6(by.octets(), to.octets(), 255).icmpv6(kind).write(&mut frame, &body[8..]).unwrap();
    frame
}

fn solicitation(from: Mac, by: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    nd(from, by, to, &[&[135, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..], &[1, 1], &from.bytes()].concat())
}

fn advertisement(from: Mac, target: Ipv6Addr, flags: u8) -> Vec<u8> {
    let to = if flags & SOLICITED == 0 { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1) } else { v6(99) };
    nd(from, target, to, &[&[136, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], &[2, 1], &from.bytes()].concat())
}

fn suppressing() -> Vtep {
    Vtep::new(config(vec![NetworkConfig { suppress: true, ..network(5001, &[2, 3]) }])).unwrap()
}

const NET: NetworkId = NetworkId(0);

/// A frame comes out of the tunnel.
fn comes(vtep: &mut Vtep, from: u8, frame: &[u8], now: Instant) {
    let id = vtep.remotes.find(peer(from)).unwrap();
    let source = Mac::new(frame[6..12].try_into().unwrap());
    vtep.hear(Sender::Known(id), NET, source.to_bits(), now).unwrap();
    vtep.tell(NET, id, frame, now);
}

/// A guest of this host sends a frame; what it is answered.
fn asks(vtep: &mut Vtep, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
    let source = Mac::new(frame[6..12].try_into().unwrap());
    vtep.leaves(NET, source.to_bits(), now);
    let mut answer = [0; LONGEST];
    let len = vtep.ask(NET, GUEST, frame, now, &mut answer)?;
    Some(answer[..len].to_vec())
}

#[test]
fn rfc826_a_neighbour_that_was_heard_is_answered_for_and_another_is_not() {
    let mut vtep = suppressing();
    let question = arp(1, A, v4(1), v4(2));
    assert_eq!(asks(&mut vtep, &question, at(1)), None, "nobody knows");
    comes(&mut vtep, 2, &arp(2, B, v4(2), v4(1)), at(2));
    let mut expected = arp(2, B, v4(2), v4(1));
    expected[..6].copy_from_slice(&A.bytes());
    expected[32..38].copy_from_slice(&A.bytes());
    assert_eq!(asks(&mut vtep, &question, at(3)), Some(expected));
    assert_eq!(asks(&mut vtep, &arp(1, A, v4(1), v4(3)), at(3)), None);
    assert_eq!(vtep.answered(), 1);
    assert_eq!(asks(&mut vtep, &question, at(302)), None, "what was heard has aged");
    let local: Vec<_> = vtep.neighbours.iter(at(302)).collect();
    assert_eq!(local, [(NET, v4(1).into(), Neighbour::new(A, Whence::Local(GUEST)))], "who asks says who he is");
}

#[test]
fn rfc5227_probes_and_announcements_take_their_way() {
    let mut vtep = suppressing();
    comes(&mut vtep, 2, &arp(1, B, v4(2), v4(2)), at(1));
    assert!(asks(&mut vtep, &arp(1, A, v4(1), v4(2)), at(2)).is_some(), "an announcement was heard");
    let unspecified = Ipv4Addr::UNSPECIFIED;
    assert_eq!(asks(&mut vtep, &arp(1, A, unspecified, v4(2)), at(2)), None, "a probe is for who has the address");
    assert_eq!(asks(&mut vtep, &arp(1, A, v4(9), v4(9)), at(2)), None);
    assert_eq!(asks(&mut vtep, &arp(2, A, v4(9), v4(2)), at(2)), None, "a reply asks nothing");
}

#[test]
fn nobody_is_answered_for_who_is_on_this_host_or_whose_station_is_not_known() {
    let mut vtep = suppressing();
    comes(&mut vtep, 2, &arp(2, B, v4(2), v4(1)), at(1));
    let question = arp(1, A, v4(1), v4(2));
    assert!(asks(&mut vtep, &question, at(2)).is_some());
    // It moves here, and says so by its MAC alone.
    vtep.leaves(NET, B.to_bits(), at(3));
    assert_eq!(asks(&mut vtep, &question, at(3)), None);
    // And away again, with the addresses that were known.
    let id = vtep.remotes.find(peer(3)).unwrap();
    vtep.hear(Sender::Known(id), NET, B.to_bits(), at(4)).unwrap();
    assert!(asks(&mut vtep, &question, at(4)).is_some());
    assert_eq!(way(&vtep, NET, B, at(4)), Ok(Way::One(id)));
    // A guest here takes the address.
    asks(&mut vtep, &arp(1, Mac::new([2, 0, 0, 0, 0, 0xc]), v4(2), v4(7)), at(5));
    assert_eq!(asks(&mut vtep, &question, at(5)), None);
    vtep.join(NET, peer(4), 1500).unwrap();
    vtep.place(NET, B, vtep.remotes.find(peer(4)).unwrap()).unwrap();
    vtep.part(NET, peer(4));
    assert_eq!(vtep.stations(at(5)).count(), 0, "nothing is known behind endpoints that are gone");
}

#[test]
fn what_a_guest_said_goes_with_its_nic() {
    let mut vtep = suppressing();
    asks(&mut vtep, &arp(1, A, v4(1), v4(2)), at(1));
    comes(&mut vtep, 2, &arp(2, B, v4(2), v4(1)), at(1));
    assert_eq!(vtep.neighbours.len(), 2);
    // Whether or not control wants to hear of the stations of this host.
    Command::ForgetNic(GUEST).carry_out(&mut vtep, None, at(2));
    assert_eq!(vtep.neighbours.iter(at(2)).map(|(_, address, _)| address).collect::<Vec<_>>(), [IpAddr::from(v4(2))]);
}

#[test]
fn rfc4861_neighbours_are_answered_for_with_the_flags_they_gave() {
    let mut vtep = suppressing();
    comes(&mut vtep, 2, &advertisement(B, v6(2), OVERRIDE | ROUTER), at(1));
    let answer = asks(&mut vtep, &solicitation(A, v6(1), v6(2)), at(2)).unwrap();
    let packet = etherparse::PacketHeaders::from_ethernet_slice(&answer).unwrap();
    let Some(etherparse::NetHeaders::Ipv6(ip, _)) = &packet.net else { panic!("no IPv6") };
    let Some(etherparse::TransportHeader::Icmpv6(icmp)) = &packet.transport else { panic!("no ICMPv6") };
    assert_eq!((ip.source, ip.destination, ip.hop_limit), (v6(2).octets(), v6(1).octets(), 255));
    let sum = icmp.icmp_type.calc_checksum(ip.source, ip.destination, packet.payload.slice()).unwrap();
    assert_eq!(icmp.checksum, sum);
    assert_eq!((answer[54], answer[58]), (136, OVERRIDE | SOLICITED | ROUTER));
    assert_eq!((&answer[..12], answer.len()), (&[A.bytes(), B.bytes()].concat()[..], 86));
    assert_eq!(answer[78..], [&[2, 1][..], &B.bytes()].concat());
    comes(&mut vtep, 2, &advertisement(B, v6(2), 0), at(3));
    assert_eq!(asks(&mut vtep, &solicitation(A, v6(1), v6(2)), at(3)).unwrap()[58], SOLICITED);
    // A solicitation makes its sender known, too, without saying whether it is a router.
    comes(&mut vtep, 2, &solicitation(B, v6(5), v6(1)), at(4));
    assert_eq!(asks(&mut vtep, &solicitation(A, v6(1), v6(5)), at(4)).unwrap()[58], SOLICITED | OVERRIDE);
    comes(&mut vtep, 2, &solicitation(B, link_local(5), v6(1)), at(5));
    let question = solicitation(A, v6(1), link_local(5));
    assert_eq!(asks(&mut vtep, &question, at(5)), None, "it may be a router, and must not be said to be none");
    comes(&mut vtep, 2, &advertisement(B, link_local(5), ROUTER), at(6));
    assert!(asks(&mut vtep, &question, at(6)).is_some());
}

#[test]
fn rfc4861_7_1_what_a_receiver_would_not_believe_is_not_read() {
    let good = solicitation(A, v6(1), v6(2));
    assert!(Message::read(&good).is_some_and(|message| message.asked.is_some() && message.said.is_some()));
    let wrong = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        Message::read(&frame)
    };
    assert_eq!(wrong(&|frame| frame[21] = 254), None, "it crossed a router");
    assert_eq!(wrong(&|frame| frame[70] ^= 1), None, "a wrong checksum");
    assert_eq!(wrong(&|frame| frame.truncate(80)), None, "cut off");
    assert_eq!(wrong(&|frame| frame[6] |= 1), None, "from a group");
    let other = nd(A, v6(1), v6(2), &[&[135, 0, 0, 0, 0, 0, 0, 0], &v6(2).octets()[..], &[1, 0], &[0; 6]].concat());
    assert_eq!(Message::read(&other), None, "an option without length");
    let probe = solicitation(A, Ipv6Addr::UNSPECIFIED, v6(2));
    assert_eq!(Message::read(&probe), None, "RFC 4862: it looks whether an address is free");
    let mut frame = solicitation(B, v6(1), v6(2));
    frame[6..12].copy_from_slice(&A.bytes());
    assert_eq!(Message::read(&frame), Some(Message::default()), "a proxy's");
    let mut frame = arp(1, A, v4(1), v4(2));
    frame[22] ^= 4;
    assert_eq!(Message::read(&frame), None, "in the name of another MAC");
    assert_eq!(Message::read(&advertisement(A, v6(1), SOLICITED)).unwrap().asked, None);
}

#[test]
fn what_control_placed_is_answered_for_and_where_it_alone_says_nothing_else_is_learnt() {
    let evpn = NetworkConfig { suppress: true, learning: false, ..network(5001, &[2]) };
    let mut vtep = Vtep::new(config(vec![evpn])).unwrap();
    let two = vtep.remotes.find(peer(2)).unwrap();
    vtep.place(NET, B, two).unwrap();
    assert!(vtep.neighbours.place(NET, v4(2).into(), B) && vtep.neighbours.place(NET, link_local(2).into(), B));
    assert!(asks(&mut vtep, &arp(1, A, v4(1), v4(2)), at(100_000)).is_some());
    let question = solicitation(A, v6(1), link_local(2));
    assert_eq!(asks(&mut vtep, &question, at(1)), None);
    comes(&mut vtep, 2, &advertisement(B, link_local(2), ROUTER), at(2));
    assert_eq!(asks(&mut vtep, &question, at(2)).unwrap()[58], SOLICITED | ROUTER);
    comes(&mut vtep, 2, &arp(2, B, v4(3), v4(1)), at(3));
    assert_eq!(asks(&mut vtep, &arp(1, A, v4(1), v4(3)), at(3)), None);
    vtep.forget(NET, B);
    assert_eq!(asks(&mut vtep, &arp(1, A, v4(1), v4(2)), at(4)), None, "nobody knows where it is");
}

#[test]
fn an_announcement_says_who_has_an_address_and_asks_nothing() {
    for address in [IpAddr::from(v4(7)), v6(7).into()] {
        let mut frame = [0; LONGEST];
        let len = announcement(address, B, &mut frame);
        let message = Message::read(&frame[..len]).unwrap();
        let said = message.said.unwrap();
        assert_eq!((said.address, said.mac, message.asked), (address, B, None));
        assert_eq!(frame[6..12], B.bytes());
        assert!(frame[0] & 1 == 1, "to all");
    }
}

fn may_be(bytes: &[u8]) -> bool {
    let ethertype = bytes.get(12..14).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]));
    Message::may_be(ethertype, bytes)
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(mut bytes in proptest::collection::vec(any::<u8>(), 0..128), kind in 0..3usize) {
        if let Some(front) = bytes.get_mut(12..22) {
            let known: &[u8] = [&[8, 6][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255], &[]][kind];
            front[..known.len()].copy_from_slice(known);
        }
        let message = Message::read(&bytes);
        prop_assert!(message.is_none() || may_be(&bytes), "what is read is looked at");
        if let Some(Asked { target, .. }) = message.and_then(|message| message.asked) {
            let said = Said { address: target, mac: B, router: None, overrides: true };
            let mut frame = [0; LONGEST];
            let len = message.unwrap().asked.unwrap().answer(&said, &mut frame).unwrap();
            prop_assert_eq!(Message::read(&frame[..len]).unwrap().said.map(|said| said.mac), Some(B));
        }
    }
}

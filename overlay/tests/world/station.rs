//! Endpoints in a network of ours, and what others there see of them.

use std::{collections::VecDeque, net::IpAddr};

use wire::Mac;

use super::{Host, Hub, Net, Owing, Under, address, host, mac_of, settle};

/// Two endpoints of the IP version asked for, and the hub with somebody who looks on.
pub fn pair(v6: bool, checksum: bool) -> (Host, Host, Hub) {
    let hub = Hub::default();
    let under = Under::Station { hub: hub.clone(), checksum };
    let (one, two) = (address(1, v6), address(2, v6));
    let mut a = host(&under, one, 4789, 1500, &[Net::new(5001, &[two])]);
    let mut b = host(&under, two, 4789, 1500, &[Net::new(5001, &[one])]);
    settle(&mut [&mut a, &mut b]);
    hub.borrow_mut().push(VecDeque::new());
    (a, b, hub)
}

pub fn seen(hub: &Hub) -> Vec<Owing> {
    hub.borrow_mut()[2].drain(..).collect()
}

/// One endpoint alone, and what it says.
pub fn alone(v6: bool, net: Net) -> (Host, Hub) {
    let hub = Hub::default();
    let host = host(&Under::Station { hub: hub.clone(), checksum: false }, address(1, v6), 4789, 1500, &[net]);
    hub.borrow_mut().push(VecDeque::new());
    (host, hub)
}

pub fn said(hub: &Hub) -> Vec<Vec<u8>> {
    hub.borrow_mut()[1].drain(..).map(|(bytes, _)| bytes).collect()
}

pub fn arp(operation: u8, (mac, by): (Mac, IpAddr), target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(by), IpAddr::V4(target)) = (by, target) else { panic!("no IPv4") };
    let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &mac.bytes(), &fixed, &mac.bytes(), &by.octets(), &[0; 6], &target.octets()].concat()
}

/// The inner frame of a packet and the UDP source port, after its headers were found right.
pub fn opened(bytes: &[u8], v6: bool, checksum: bool) -> (Vec<u8>, u16) {
    let packet = etherparse::SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP: {bytes:x?}") };
    let payload = udp.payload().to_vec();
    assert_eq!((udp.destination_port(), usize::from(udp.length())), (4789, payload.len() + 8));
    assert!(udp.source_port() >= 49_152);
    match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert!(!v6 && header.dont_fragment && header.time_to_live == 64);
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let right = udp.to_header().calc_checksum_ipv4(&header, &payload).unwrap();
            assert_eq!(udp.checksum(), if checksum { right } else { 0 });
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert!(v6 && usize::from(header.payload_length) == payload.len() + 8);
            assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, &payload).unwrap());
        }
        _ => panic!("no IP"),
    }
    assert_eq!(payload[..8], [8, 0, 0, 0, 0, 0x13, 0x89, 0]);
    (payload[8..].to_vec(), udp.source_port())
}

pub fn icmp4(kind: [u8; 2], rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 7, 7, 7, 7, 7], mac_of(address(1, false)).bytes());
    let mut bytes = Vec::new();
    let IpAddr::V4(us) = address(1, false) else { panic!("IPv4") };
    let packet = ethernet.ipv4([127, 0, 9, 7], us.octets(), 9).icmpv4_raw(kind[0], kind[1], rest);
    packet.write(&mut bytes, payload).unwrap();
    bytes
}

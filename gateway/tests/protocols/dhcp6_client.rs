//! [`Ask6`]: a DHCPv6 message as a client makes it; [`Told6`]: an answer, taken apart.

use std::net::Ipv6Addr;

use etherparse::{NetHeaders, PacketBuilder, TransportHeader};
use wire::Mac;

use crate::segment::{GUEST_LINK_LOCAL, GUEST_MAC, LINK_LOCAL, ROUTER_MAC, Segment, check};

pub const SOLICIT: u8 = 1;
pub const ADVERTISE: u8 = 2;
pub const REQUEST: u8 = 3;
pub const CONFIRM: u8 = 4;
pub const RENEW: u8 = 5;
pub const REBIND: u8 = 6;
pub const REPLY: u8 = 7;
pub const RELEASE: u8 = 8;
pub const DECLINE: u8 = 9;
pub const INFORMATION_REQUEST: u8 = 11;

pub const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// DUID-LL of the router (RFC 8415 section 11.4).
pub const SERVER: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 1];
const XID: [u8; 3] = [0xde, 0xad, 0x42];

#[derive(Clone)]
pub struct Ask6 {
    pub kind: u8,
    pub mac: Mac,
    /// Straight to the router and not to the group of servers.
    pub unicast: bool,
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Ask6 {
    /// From a client that says who it is.
    pub fn new(kind: u8) -> Self {
        Ask6 { kind, mac: GUEST_MAC, unicast: false, options: vec![(1, duid(GUEST_MAC))] }
    }

    pub fn of(mut self, mac: Mac) -> Self {
        self.mac = mac;
        self.options[0].1 = duid(mac);
        self
    }

    pub fn with(mut self, code: u16, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub fn without(mut self, code: u16) -> Self {
        self.options.retain(|(option, _)| *option != code);
        self
    }

    /// To this server.
    pub fn sent_to_the_server(self) -> Self {
        self.with(2, &SERVER)
    }

    /// With an IA_NA, and an address in it.
    pub fn association(self, id: u32, address: Option<Ipv6Addr>) -> Self {
        let mut value = id.to_be_bytes().to_vec();
        value.extend([0; 8]);
        if let Some(address) = address {
            value.extend([0, 5, 0, 24]);
            value.extend(address.octets());
            value.extend([0; 8]);
        }
        self.with(3, &value)
    }

    pub fn message(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind];
        bytes.extend(XID);
        for (code, value) in &self.options {
            bytes.extend(code.to_be_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
        }
        bytes
    }

    pub fn frame(&self) -> Vec<u8> {
        let group = Mac::new([0x33, 0x33, 0, 1, 0, 2]);
        let (to_mac, to) = if self.unicast { (ROUTER_MAC, LINK_LOCAL) } else { (group, ALL_SERVERS) };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac.bytes(), to_mac.bytes())
            .ipv6(GUEST_LINK_LOCAL.octets(), to.octets(), 1)
            .udp(546, 547)
            .write(&mut frame, &self.message())
            .unwrap();
        frame
    }
}

pub fn duid(mac: Mac) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &mac.bytes()].concat()
}

/// What is said about one IA_NA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    pub id: u32,
    pub t1: u32,
    pub t2: u32,
    /// Address, preferred and valid lifetime.
    pub address: Option<(Ipv6Addr, u32, u32)>,
    /// Addresses behind the first.
    pub more: Vec<(Ipv6Addr, u32, u32)>,
    pub status: Option<u16>,
}

#[derive(Debug)]
pub struct Told6 {
    pub to_mac: Mac,
    pub kind: u8,
    pub options: Vec<(u16, Vec<u8>)>,
}

fn options(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let [a, b, c, d, more @ ..] = rest {
        let (value, next) = more.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        all.push((u16::from_be_bytes([*a, *b]), value.to_vec()));
        rest = next;
    }
    assert!(rest.is_empty(), "trailing bytes {rest:?}");
    all
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Told6 {
    pub fn read(frame: &[u8]) -> Told6 {
        let headers = check(frame);
        let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { panic!("not IPv6") };
        let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("not UDP") };
        assert_eq!((udp.source_port, udp.destination_port), (547, 546));
        assert_eq!((ip.source, ip.destination), (LINK_LOCAL.octets(), GUEST_LINK_LOCAL.octets()));
        let message = headers.payload.slice();
        assert_eq!(message[1..4], XID);
        let told = Told6 {
            to_mac: Mac::new(headers.link.unwrap().ethernet2().unwrap().destination),
            kind: message[0],
            options: options(&message[4..]),
        };
        assert_eq!(told.option(2), Some(&SERVER[..]), "who it is from");
        told
    }

    pub fn option(&self, code: u16) -> Option<&[u8]> {
        self.options.iter().find(|(found, _)| *found == code).map(|(_, value)| &value[..])
    }

    /// The status of the message itself.
    pub fn status(&self) -> Option<u16> {
        self.option(13).map(|value| u16::from_be_bytes([value[0], value[1]]))
    }

    pub fn associations(&self) -> Vec<Association> {
        let read = |(_, value): &(u16, Vec<u8>)| {
            let inside = options(&value[12..]);
            let find = |code| inside.iter().find(|(found, _)| *found == code).map(|(_, value)| value);
            let address = |value: &Vec<u8>| {
                let octets: [u8; 16] = value[..16].try_into().unwrap();
                (Ipv6Addr::from(octets), number(value, 16), number(value, 20))
            };
            Association {
                id: number(value, 0),
                t1: number(value, 4),
                t2: number(value, 8),
                address: find(5).map(address),
                more: inside.iter().filter(|(code, _)| *code == 5).skip(1).map(|(_, value)| address(value)).collect(),
                status: find(13).map(|value| u16::from_be_bytes([value[0], value[1]])),
            }
        };
        self.options.iter().filter(|(code, _)| *code == 3).map(read).collect()
    }

    /// The address in the first IA_NA.
    pub fn address(&self) -> Option<Ipv6Addr> {
        self.associations().first().and_then(|association| association.address).map(|(address, ..)| address)
    }

    /// The status of the first IA_NA.
    pub fn refusal(&self) -> Option<u16> {
        self.associations().first().and_then(|association| association.status)
    }
}

impl Segment {
    pub fn dhcp6(&mut self, ask: &Ask6) -> Told6 {
        let told = Told6::read(&self.ask(&ask.frame()));
        assert_eq!(told.to_mac, ask.mac);
        assert_eq!(told.option(1), ask.options.iter().find(|(code, _)| *code == 1).map(|(_, value)| &value[..]));
        told
    }

    /// From nothing to a lease for association 1 of `mac`.
    pub fn lease6(&mut self, mac: Mac, wish: Option<Ipv6Addr>) -> Ipv6Addr {
        let told = self.dhcp6(&Ask6::new(SOLICIT).of(mac).association(1, wish));
        assert_eq!(told.kind, ADVERTISE);
        let offered = told.address().unwrap();
        let told = self.dhcp6(&Ask6::new(REQUEST).of(mac).sent_to_the_server().association(1, Some(offered)));
        assert_eq!((told.kind, told.address()), (REPLY, Some(offered)));
        offered
    }
}

//! [`Ask`]: a DHCP message as a client makes it; [`Told`]: an answer, taken apart.

use std::net::Ipv4Addr;

use etherparse::{NetHeaders, PacketBuilder, TransportHeader};
use wire::Mac;

use crate::segment::{GUEST_MAC, ROUTER, ROUTER_MAC, Segment, check};

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;

#[derive(Clone)]
pub struct Ask {
    pub mac: Mac,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub flags: u16,
    pub unicast: bool,
    pub options: Vec<(u8, Vec<u8>)>,
    pub file: Vec<u8>,
    pub sname: Vec<u8>,
}

impl Ask {
    pub fn new(kind: u8) -> Self {
        Ask {
            mac: GUEST_MAC,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            flags: 0,
            unicast: false,
            options: vec![(53, vec![kind])],
            file: Vec::new(),
            sname: Vec::new(),
        }
    }

    pub fn of(mut self, mac: Mac) -> Self {
        self.mac = mac;
        self
    }

    pub fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub fn address(self, code: u8, address: Ipv4Addr) -> Self {
        self.with(code, &address.octets())
    }

    /// From a client that has `address`.
    pub fn from(mut self, address: Ipv4Addr) -> Self {
        self.ciaddr = address;
        self.unicast = true;
        self
    }

    pub fn message(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 9];
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.ciaddr.octets());
        bytes.extend([0; 8]);
        bytes.extend(self.giaddr.octets());
        bytes.extend(self.mac.bytes());
        bytes.extend([0; 10]);
        for (field, len) in [(&self.sname, 64), (&self.file, 128)] {
            let mut field = field.clone();
            field.resize(len, 0);
            bytes.extend(field);
        }
        bytes.extend([99, 130, 83, 99]);
        for (code, value) in &self.options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(value);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }

    pub fn frame(&self) -> Vec<u8> {
        let (to_mac, to) = if self.unicast { (ROUTER_MAC, ROUTER) } else { (Mac::BROADCAST, Ipv4Addr::BROADCAST) };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac.bytes(), to_mac.bytes())
            .ipv4(self.ciaddr.octets(), to.octets(), 64)
            .udp(68, 67)
            .write(&mut frame, &self.message())
            .unwrap();
        frame
    }
}

#[derive(Debug)]
pub struct Told {
    pub to_mac: Mac,
    pub to: Ipv4Addr,
    pub kind: u8,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub address: Ipv4Addr,
    pub options: Vec<(u8, Vec<u8>)>,
    pub bytes: usize,
}

impl Told {
    pub fn read(frame: &[u8]) -> Told {
        let headers = check(frame);
        let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("not IPv4") };
        let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("not UDP") };
        assert_eq!((udp.source_port, udp.destination_port), (67, 68));
        assert_eq!(ip.source, ROUTER.octets());
        let message = headers.payload.slice();
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&message[at..at + 4]).unwrap());
        assert_eq!(message[..8], [2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(message[236..240], [99, 130, 83, 99]);
        assert!(message.len() >= 300, "RFC 1542: {} bytes", message.len());
        let mut options = Vec::new();
        let mut rest = &message[240..];
        loop {
            match *rest {
                [255, ref padding @ ..] => {
                    assert!(padding.iter().all(|byte| *byte == 0));
                    break;
                }
                [code, len, ref more @ ..] => {
                    let (value, more) = more.split_at(usize::from(len));
                    options.push((code, value.to_vec()));
                    rest = more;
                }
                _ => panic!("options without an end"),
            }
        }
        let told = Told {
            to_mac: Mac::new(headers.link.unwrap().ethernet2().unwrap().destination),
            to: ip.destination.into(),
            kind: options[0].1[0],
            flags: u16::from_be_bytes([message[10], message[11]]),
            ciaddr: address(12),
            address: address(16),
            options,
            bytes: usize::from(ip.total_len),
        };
        assert_eq!(told.options[0].0, 53);
        assert_eq!(told.option(54), Some(&ROUTER.octets()[..]));
        told
    }

    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(found, _)| *found == code).map(|(_, value)| &value[..])
    }

    pub fn number(&self, code: u8) -> Option<u32> {
        self.option(code).map(|value| u32::from_be_bytes(value.try_into().unwrap()))
    }
}

impl Segment {
    pub fn dhcp(&mut self, ask: &Ask) -> Told {
        Told::read(&self.ask(&ask.frame()))
    }

    /// From nothing to a lease, as `ask` (a discover message) has it; the acknowledgement.
    pub fn lease(&mut self, discover: &Ask) -> Told {
        let offer = self.dhcp(discover);
        assert_eq!(offer.kind, OFFER);
        let mut request = discover.clone().address(54, ROUTER);
        request.options.retain(|(code, _)| *code != 50);
        request = request.address(50, offer.address);
        request.options[0].1 = vec![REQUEST];
        let ack = self.dhcp(&request);
        assert_eq!((ack.kind, ack.address), (ACK, offer.address));
        ack
    }
}

//! [`Record`]: one line of the table, and the small types it is made of.
//!
//! Invariant: a record is one cache line. Its key says what it is and whose, and two records never have the same key.

use std::net::Ipv4Addr;

use wire::NicId;

/// What the NAT translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// ICMP queries, whose identifier stands for a port.
    Icmp = 0,
    /// TCP.
    Tcp = 1,
    /// UDP.
    Udp = 2,
}

impl Protocol {
    /// All of them, in the order of their numbers here.
    pub const ALL: [Protocol; 3] = [Protocol::Icmp, Protocol::Tcp, Protocol::Udp];

    /// By IANA's number.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Protocol> {
        match number {
            1 => Some(Protocol::Icmp),
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// An address and a port, or the identifier of an ICMP query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: Ipv4Addr,
    /// The port or identifier.
    pub port: u16,
}

impl Endpoint {
    /// Of these.
    #[inline]
    pub const fn new(address: Ipv4Addr, port: u16) -> Endpoint {
        Endpoint { address, port }
    }

    #[inline]
    const fn bits(self) -> u64 {
        (self.address.to_bits() as u64) << 16 | self.port as u64
    }

    #[inline]
    const fn from_bits(bits: u64) -> Endpoint {
        Endpoint { address: Ipv4Addr::from_bits((bits >> 16) as u32), port: bits as u16 }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// On which side of the NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the guests are.
    Inside,
    /// Where the outside addresses are.
    Outside,
}

/// How far a mapping or session is. Each has a lifetime and a list per NIC; those first in the order give way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// TCP: closed by both sides, or reset.
    Closing = 0,
    /// TCP: a SYN has been seen from one side only.
    Opening = 1,
    /// An ICMP query mapping.
    Query = 2,
    /// A UDP mapping or permit that has spoken to well-known ports only.
    Brief = 3,
    /// A UDP mapping or permit.
    Udp = 4,
    /// TCP: open on both sides, or closed by one.
    Established = 5,
    /// Goes with what hangs on it: a TCP mapping with its sessions, a TCP permit likewise.
    Held = 6,
    /// Put there by configuration: does not expire or give way.
    Published = 7,
}

impl State {
    /// All of them, in order.
    pub const ALL: [State; 8] = [
        State::Closing,
        State::Opening,
        State::Query,
        State::Brief,
        State::Udp,
        State::Established,
        State::Held,
        State::Published,
    ];
    /// Those whose records expire.
    pub(crate) const MORTAL: usize = 6;

    /// Its name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            State::Closing => "closing",
            State::Opening => "opening",
            State::Query => "query",
            State::Brief => "brief",
            State::Udp => "udp",
            State::Established => "established",
            State::Held => "held",
            State::Published => "published",
        }
    }
}

pub(crate) const MAPPING: u8 = 1;
pub(crate) const SESSION: u8 = 2;
pub(crate) const PERMIT: u8 = 3;

/// What a record is and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Kind (8), protocol (8), inside endpoint (48).
    low: u64,
    /// NIC (16), remote endpoint (48).
    high: u64,
}

impl Key {
    const NONE: Key = Key { low: 0, high: 0 };

    #[inline]
    pub(crate) const fn mapping(protocol: Protocol, nic: NicId, inside: Endpoint) -> Key {
        Key { low: (MAPPING as u64) << 56 | (protocol as u64) << 48 | inside.bits(), high: (nic.0 as u64) << 48 }
    }

    /// Of the same inside endpoint: the session with a remote endpoint.
    #[inline]
    pub(crate) const fn session(self, remote: Endpoint) -> Key {
        self.of(SESSION, remote)
    }

    /// Of the same inside endpoint: the permit of a remote address.
    #[inline]
    pub(crate) const fn permit(self, remote: Ipv4Addr) -> Key {
        self.of(PERMIT, Endpoint::new(remote, 0))
    }

    /// Of the same inside endpoint: the mapping.
    #[inline]
    pub(crate) const fn own(self) -> Key {
        self.of(MAPPING, Endpoint::new(Ipv4Addr::UNSPECIFIED, 0))
    }

    #[inline]
    const fn of(self, kind: u8, remote: Endpoint) -> Key {
        let low = self.low & 0x00ff_ffff_ffff_ffff | (kind as u64) << 56;
        Key { low, high: self.high & 0xffff_0000_0000_0000 | remote.bits() }
    }

    #[inline]
    pub(crate) const fn words(self) -> (u64, u64) {
        (self.low, self.high)
    }

    #[inline]
    pub(crate) const fn kind(self) -> u8 {
        (self.low >> 56) as u8
    }

    #[inline]
    pub(crate) const fn protocol(self) -> Protocol {
        match (self.low >> 48) as u8 {
            0 => Protocol::Icmp,
            1 => Protocol::Tcp,
            _ => Protocol::Udp,
        }
    }

    #[inline]
    pub(crate) const fn inside(self) -> Endpoint {
        Endpoint::from_bits(self.low)
    }

    #[inline]
    pub(crate) const fn remote(self) -> Endpoint {
        Endpoint::from_bits(self.high)
    }

    #[inline]
    pub(crate) const fn nic(self) -> NicId {
        NicId((self.high >> 48) as u16)
    }
}

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    pub(crate) const NONE: Slot = Slot(u32::MAX);
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) outside: Endpoint,
    /// TCP: see `tcp.rs`.
    pub(crate) tcp: u8,
    pub(crate) state: State,
    /// When it was last renewed, in seconds.
    pub(crate) stamp: u32,
    /// Of a mapping or permit: sessions and permits that hang on it.
    pub(crate) children: u32,
    /// Neighbours in the list of its NIC and state.
    pub(crate) before: Slot,
    pub(crate) after: Slot,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

const _: () = assert!(size_of::<Record>() == 64, "a record is one cache line");

impl Record {
    pub(crate) const EMPTY: Record = Record {
        key: Key::NONE,
        outside: Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
        tcp: 0,
        state: State::Held,
        stamp: 0,
        children: 0,
        before: Slot::NONE,
        after: Slot::NONE,
        packets: 0,
        bytes: 0,
    };

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.key == Key::NONE
    }
}

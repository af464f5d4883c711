//! [`Record`]: one line of the table, and the small types it is made of.
//!
//! Invariant: a record is one cache line, or two with the addresses of IPv6. Its key says what it is and whose, and two records never have the
//! same key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::NicId;

use crate::family::Family;

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

    /// By IANA's number, over a version of IP.
    #[inline]
    pub fn from_number<A: Family>(number: u8) -> Option<Protocol> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            number => (number == A::ICMP).then_some(Protocol::Icmp),
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
pub struct Endpoint<A = Ipv4Addr> {
    /// The address.
    pub address: A,
    /// The port or identifier.
    pub port: u16,
}

impl<A> Endpoint<A> {
    /// Of these.
    #[inline]
    pub const fn new(address: A, port: u16) -> Endpoint<A> {
        Endpoint { address, port }
    }
}

impl<A: Into<IpAddr>> From<Endpoint<A>> for SocketAddr {
    fn from(endpoint: Endpoint<A>) -> SocketAddr {
        SocketAddr::new(endpoint.address.into(), endpoint.port)
    }
}

impl<A: Copy + Into<IpAddr>> std::fmt::Display for Endpoint<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        SocketAddr::from(*self).fmt(f)
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
pub(crate) struct Key<A: Family = Ipv4Addr> {
    /// Kind (8 bits), protocol (8), inside endpoint.
    low: A::Half,
    /// NIC, remote endpoint.
    high: A::Half,
}

impl<A: Family> Key<A> {
    const NONE: Key<A> = Key { low: A::NOTHING, high: A::NOTHING };

    #[inline]
    pub(crate) fn mapping(protocol: Protocol, nic: NicId, inside: Endpoint<A>) -> Key<A> {
        let nobody = Endpoint::new(A::UNSPECIFIED, 0);
        Key { low: A::half(u16::from(MAPPING) << 8 | protocol as u16, inside), high: A::half(nic.0, nobody) }
    }

    /// Of the same inside endpoint: the session with a remote endpoint.
    #[inline]
    pub(crate) fn session(self, remote: Endpoint<A>) -> Key<A> {
        self.of(SESSION, remote)
    }

    /// Of the same inside endpoint: the permit of a remote address.
    #[inline]
    pub(crate) fn permit(self, remote: A) -> Key<A> {
        self.of(PERMIT, Endpoint::new(remote, 0))
    }

    /// Of the same inside endpoint: the mapping.
    #[inline]
    pub(crate) fn own(self) -> Key<A> {
        self.of(MAPPING, Endpoint::new(A::UNSPECIFIED, 0))
    }

    #[inline]
    fn of(self, kind: u8, remote: Endpoint<A>) -> Key<A> {
        let tag = u16::from(kind) << 8 | A::tag(self.low) & 0x00ff;
        Key { low: A::half(tag, self.inside()), high: A::half(A::tag(self.high), remote) }
    }

    /// Its hash by these secrets.
    #[inline]
    pub(crate) fn hash(self, secret: [u64; 4]) -> u64 {
        A::mix(self.low, self.high, secret)
    }

    #[inline]
    pub(crate) fn kind(self) -> u8 {
        (A::tag(self.low) >> 8) as u8
    }

    #[inline]
    pub(crate) fn protocol(self) -> Protocol {
        match A::tag(self.low) as u8 {
            0 => Protocol::Icmp,
            1 => Protocol::Tcp,
            _ => Protocol::Udp,
        }
    }

    #[inline]
    pub(crate) fn inside(self) -> Endpoint<A> {
        A::endpoint(self.low)
    }

    #[inline]
    pub(crate) fn remote(self) -> Endpoint<A> {
        A::endpoint(self.high)
    }

    #[inline]
    pub(crate) fn nic(self) -> NicId {
        NicId(A::tag(self.high))
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
pub(crate) struct Record<A: Family = Ipv4Addr> {
    pub(crate) key: Key<A>,
    pub(crate) outside: Endpoint<A>,
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
const _: () = assert!(size_of::<Record<Ipv6Addr>>() == 128, "a record of IPv6 is two");

impl<A: Family> Record<A> {
    pub(crate) const EMPTY: Record<A> = Record {
        key: Key::NONE,
        outside: Endpoint::new(A::UNSPECIFIED, 0),
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

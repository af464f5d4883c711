//! [`Hub`]: what the parts of a socket engine share.
//!
//! Invariant: whom a guest reaches is decided here alone ([`Hub::reach`]), and under which name an outside address is seen inside
//! ([`Hub::seen_as`]) is its inverse. Descriptors are counted by NIC, and none has more than its quota: where all quotas together are no more than
//! there is, one guest's sockets never leave another without.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use sys::epoll::Epoll;
use wire::{Burst, Context, Mac, NicId, Origin, keyed::splitmix};

use super::{SocketsConfig, inward::Way, mappings::Slot};
use crate::prefix::{Prefix, Prefixes};

/// Which socket an event is about: a kind, a place, and which use of the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A UDP endpoint's.
    Udp(Slot),
    /// A published UDP port's.
    Published(u32),
    /// A ping's.
    Ping(Slot),
    /// A TCP connection's.
    Tcp(Slot),
    /// A published TCP port's.
    Listener(u32),
}

impl Token {
    pub(crate) fn to_bits(self) -> u64 {
        let (kind, slot) = match self {
            Token::Udp(slot) => (1, slot),
            Token::Published(place) => (2, Slot { place, generation: 0 }),
            Token::Ping(slot) => (3, slot),
            Token::Tcp(slot) => (4, slot),
            Token::Listener(place) => (5, Slot { place, generation: 0 }),
        };
        kind << 56 | u64::from(slot.generation & Slot::GENERATIONS) << 32 | u64::from(slot.place)
    }

    pub(crate) fn from_bits(bits: u64) -> Option<Token> {
        let slot = Slot { place: bits as u32, generation: (bits >> 32) as u32 & Slot::GENERATIONS };
        match bits >> 56 {
            1 => Some(Token::Udp(slot)),
            2 => Some(Token::Published(slot.place)),
            3 => Some(Token::Ping(slot)),
            4 => Some(Token::Tcp(slot)),
            5 => Some(Token::Listener(slot.place)),
            _ => None,
        }
    }
}

/// System calls and descriptors of a NIC.
#[derive(Clone, Copy, Default)]
struct Spent {
    turn: u64,
    calls: u32,
    descriptors: usize,
}

/// See the module's documentation.
pub(crate) struct Hub {
    pub(crate) config: SocketsConfig,
    /// Frames for guests, of this turn.
    pub(crate) out: Burst,
    pub(crate) epoll: Epoll,
    /// The host's addresses.
    host: Prefixes,
    spent: Vec<Spent>,
    descriptors: usize,
    turn: u64,
    chance: u64,
    id: u16,
}

impl Hub {
    pub(crate) fn new(config: SocketsConfig) -> io::Result<Hub> {
        Ok(Hub {
            out: Burst::default(),
            epoll: Epoll::new()?,
            host: Prefixes::new(&config.host_addresses),
            spent: Vec::new(),
            descriptors: 0,
            turn: 0,
            chance: config.seed ^ 0x4348_414e,
            id: 0,
            config,
        })
    }

    /// Asks to be told of a socket. It is forgotten when it is closed.
    pub(crate) fn watch(&self, socket: &impl AsRawFd, token: Token) -> io::Result<()> {
        self.epoll.add(socket, token.to_bits())
    }

    /// Asks to be told of every change of a socket, once. It is forgotten when it is closed.
    pub(crate) fn watch_changes(&self, socket: &impl AsRawFd, token: Token) -> io::Result<()> {
        self.epoll.add_for_changes(socket, token.to_bits())
    }

    /// A number that guests cannot foretell.
    pub(crate) fn chance(&mut self) -> u64 {
        splitmix(&mut self.chance)
    }

    /// The first of `count` identifications for IPv4 packets, that follow on each other.
    pub(crate) fn next_ids(&mut self, count: usize) -> u16 {
        let first = self.id;
        self.id = self.id.wrapping_add(count as u16);
        first
    }

    /// An identification for one.
    pub(crate) fn next_id(&mut self) -> u16 {
        self.next_ids(1)
    }

    /// A new turn: everybody may call again.
    pub(crate) fn begin_turn(&mut self) {
        self.turn += 1;
    }

    fn spent(&mut self, nic: NicId) -> Option<&mut Spent> {
        if self.spent.len() <= nic.index() {
            self.spent.resize(nic.index() + 1, Spent::default());
        }
        self.spent.get_mut(nic.index())
    }

    /// Counts a system call for a NIC; false when it has had its share of this turn.
    pub(crate) fn spend(&mut self, nic: NicId) -> bool {
        let (turn, most) = (self.turn, self.config.calls);
        let Some(spent) = self.spent(nic) else { return false };
        if spent.turn != turn {
            (spent.turn, spent.calls) = (turn, 0);
        }
        spent.calls += 1;
        spent.calls <= most
    }

    /// Counts a descriptor that a NIC is about to open; false when it may not.
    pub(crate) fn take_descriptor(&mut self, nic: NicId) -> bool {
        let (all, quota) = (self.config.descriptors, self.config.descriptor_quota);
        let full = self.descriptors >= all;
        let Some(spent) = self.spent(nic) else { return false };
        if full || spent.descriptors >= quota {
            return false;
        }
        spent.descriptors += 1;
        self.descriptors += 1;
        true
    }

    /// Counts one as closed.
    pub(crate) fn return_descriptor(&mut self, nic: NicId) {
        if let Some(spent) = self.spent(nic) {
            spent.descriptors = spent.descriptors.saturating_sub(1);
        }
        self.descriptors = self.descriptors.saturating_sub(1);
    }

    /// A descriptor that was counted as one NIC's is another's.
    pub(crate) fn move_descriptor(&mut self, from: NicId, to: NicId) {
        self.return_descriptor(from);
        self.descriptors += 1;
        if let Some(spent) = self.spent(to) {
            spent.descriptors += 1;
        }
    }

    /// What the host's addresses are from now on; whether they are others than before.
    pub(crate) fn set_host(&mut self, addresses: &[Prefix]) -> bool {
        let host = Prefixes::new(addresses);
        let changed = self.host != host;
        self.host = host;
        changed
    }

    /// Whether an address is one of the host's, and the host not for guests to reach.
    pub(crate) fn keeps_out_of(&self, address: IpAddr) -> bool {
        self.config.host.is_none() && self.host.hold(address)
    }

    /// Where a packet to `destination` is to be sent; nothing where guests may not send to. Link-local addresses are of the link they are on, and
    /// no router's to pass on (RFC 3927 section 2.7, RFC 4291 section 2.5.6).
    pub(crate) fn reach(&self, destination: IpAddr) -> Option<IpAddr> {
        match (destination, self.config.host) {
            (IpAddr::V4(v4), Some((host, _))) if v4 == host => return Some(Ipv4Addr::LOCALHOST.into()),
            (IpAddr::V6(v6), Some((_, host))) if v6 == host => return Some(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let never = match destination {
            IpAddr::V4(v4) => {
                let [first, ..] = v4.octets();
                first == 0 || first >= 224 || v4.is_loopback() || v4.is_link_local()
            }
            IpAddr::V6(v6) => {
                let [first, ..] = v6.segments();
                let link = first & 0xffc0 == 0xfe80;
                v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.to_ipv4().is_some() || link
            }
        };
        let ours = Some(destination) == self.router(destination.is_ipv6());
        (!never && !ours && !self.keeps_out_of(destination)).then_some(destination)
    }

    /// As whom a guest sees an outside endpoint, in the family asked for; nothing for those that it can have no word with.
    pub(crate) fn seen_as(&self, outside: SocketAddr, v6: bool) -> Option<SocketAddr> {
        let address = outside.ip();
        if address.is_ipv6() != v6 {
            return None;
        }
        let seen = match (address.is_loopback(), self.config.host) {
            (true, Some((v4, _))) if !v6 => IpAddr::V4(v4),
            (true, Some((_, v6))) => IpAddr::V6(v6),
            (true, None) => return None,
            (false, _) if self.keeps_out_of(address) => return None,
            (false, _) => address,
        };
        Some(SocketAddr::new(seen, outside.port()))
    }

    /// The router's address in a family.
    pub(crate) fn router(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.config.router6.map(IpAddr::V6) } else { self.config.router4.map(IpAddr::V4) }
    }

    /// The way to a guest with this MAC; zero if it is not known.
    pub(crate) fn way(&self, cx: &Context, mac: Mac) -> Way {
        Way { origin: Origin { nic: cx.nic, lane: 0 }, mac, mtu: usize::from(self.config.mtu) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(host: bool) -> Hub {
        let mut config = SocketsConfig::new(Some([10, 0, 0, 1].into()), Some("fd00::1".parse().unwrap()), 7);
        config.host = host.then(|| ([10, 0, 0, 1].into(), "fd00::1".parse().unwrap()));
        let mut hub = Hub::new(config).unwrap();
        let host = ["192.0.2.2", "2001:db8::2"].map(|address| address.parse::<IpAddr>().unwrap().into());
        assert!(hub.set_host(&host) && !hub.set_host(&host));
        hub
    }

    #[test]
    fn the_host_is_reached_only_if_allowed() {
        let reach = |host, to: &str| hub(host).reach(to.parse().unwrap()).map(|address| address.to_string());
        for to in ["198.51.100.7", "2001:db8::9"] {
            assert_eq!((reach(false, to), reach(true, to)), (Some(to.into()), Some(to.into())));
        }
        for to in ["192.0.2.2", "2001:db8::2"] {
            assert_eq!((reach(false, to), reach(true, to)), (None, Some(to.into())), "{to}");
        }
        assert_eq!((reach(false, "10.0.0.1"), reach(true, "10.0.0.1")), (None, Some("127.0.0.1".into())));
        assert_eq!((reach(false, "fd00::1"), reach(true, "fd00::1")), (None, Some("::1".into())));
        let never = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
        for to in never.into_iter().chain(["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1", "ff02::1"]) {
            assert_eq!((reach(false, to), reach(true, to)), (None, None), "{to}");
        }
    }

    #[test]
    fn sources_are_seen_under_the_names_they_are_reached_by() {
        let seen = |host, from: &str| hub(host).seen_as(from.parse().unwrap(), false).map(|seen| seen.to_string());
        assert_eq!(seen(false, "198.51.100.7:5"), Some("198.51.100.7:5".into()));
        assert_eq!((seen(false, "127.0.0.1:5"), seen(true, "127.0.0.1:5")), (None, Some("10.0.0.1:5".into())));
        assert_eq!((seen(false, "192.0.2.2:5"), seen(true, "192.0.2.2:5")), (None, Some("192.0.2.2:5".into())));
        assert_eq!(seen(true, "[2001:db8::9]:5"), None, "the other family");
    }

    #[test]
    fn tokens_come_back_and_descriptors_are_counted_by_nic() {
        let slot = Slot { place: 70_000, generation: 0xff_ffff };
        for token in [Token::Udp(slot), Token::Published(9), Token::Ping(slot), Token::Tcp(slot), Token::Listener(7)] {
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        let mut hub = hub(false);
        (hub.config.descriptors, hub.config.descriptor_quota) = (5, 3);
        let taken = |hub: &mut Hub, nic| (0..4).filter(|_| hub.take_descriptor(NicId(nic))).count();
        assert_eq!((taken(&mut hub, 0), taken(&mut hub, 1), taken(&mut hub, 2)), (3, 2, 0));
        hub.return_descriptor(NicId(0));
        assert!(hub.take_descriptor(NicId(2)));
    }
}

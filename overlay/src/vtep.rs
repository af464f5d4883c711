//! [`Vtep`]: a tunnel endpoint of this host, without sockets and clock: which network a packet belongs to, which endpoint a station is behind,
//! and what is refused.
//!
//! Invariant: a packet is taken only from an endpoint that its network names, or from anybody where the network learns from anyone. A station is
//! behind one endpoint at a time; a table of stations holds no more than its capacity, and an endpoint that invents stations loses its own. What
//! came out of a tunnel never goes into one.
//!
//! Theory of operation: to [`Fdb`] an endpoint is what a NIC is to a bridge, and a network what a segment is, so the table that bridges learn with
//! is the one that tunnels learn with: bounded, aged, fair. A VNI is found in two steps of twelve bits. A frame to a known station goes to its
//! endpoint, one to a group or to nobody known to every endpoint of the network (head-end replication, RFC 7348 section 4.2 without multicast).
//! Read first: RFC 7348 sections 4 and 5, [`crate::encap`], [`wire::fdb`].

use std::{net::IpAddr, time::Duration};

use wire::{
    DropReason, Instant, Mac, NicId, Segment, Vni,
    fdb::{Fdb, Key, Learn, StaticError, Tick},
};

use crate::{
    encap::{Encapsulation, HEADER, Malformed},
    neighbours::Neighbours,
    remotes::{RemoteId, Remotes},
};

mod config;
mod membership;
mod show;
mod suppress;
#[cfg(test)]
mod tests;
mod vnis;

pub use config::{NetworkConfig, VtepConfig, VtepError};
use vnis::Vnis;

/// Ethernet header of an inner frame.
const ETHERNET: usize = 14;

/// A network of an endpoint, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u16);

struct Network {
    vni: Vni,
    /// In the order of their numbers.
    flood: Vec<RemoteId>,
    /// Those of them that control has told of.
    joined: Vec<RemoteId>,
    group: Option<IpAddr>,
    learning: bool,
    anyone: bool,
    suppress: bool,
}

/// A packet that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inward {
    /// Whose frame it is.
    pub network: NetworkId,
    /// Where the frame begins behind the UDP header.
    pub at: usize,
}

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// An endpoint that is known.
    Known(RemoteId),
    /// Another one.
    Stranger(IpAddr),
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the endpoint that its destination is behind.
    One(RemoteId),
    /// To every endpoint of the network.
    All,
}

/// See the module's documentation.
pub struct Vtep {
    local: IpAddr,
    port: u16,
    encapsulation: Encapsulation,
    sealed: bool,
    networks: Vec<Option<Network>>,
    vnis: Vnis,
    /// The endpoints it knows.
    pub remotes: Remotes,
    /// Who has which IP address; empty where no network looks.
    pub neighbours: Neighbours,
    stations: Fdb,
    ageing: Duration,
    answered: u64,
}

/// The narrowest path of IPv4 that is believed in, in bytes of an IP packet.
pub(crate) const LEAST: u16 = 576;

/// Bytes that a tunnel puts before an inner frame, and behind it, over IPv4 or IPv6, open or sealed.
pub const fn overhead(v4: bool, sealed: bool) -> u16 {
    let udp = if v4 { 20 + 8 } else { 40 + 8 };
    // A sealed packet is a whole one in another.
    let seal = if sealed { udp + crate::tunnel::SEAL } else { 0 };
    udp + HEADER as u16 + seal
}

/// As [`overhead`], with the inner Ethernet header: bytes around an inner IP packet.
pub const fn around(v4: bool, sealed: bool) -> u16 {
    overhead(v4, sealed) + ETHERNET as u16
}

/// Networks of an endpoint at most.
pub const MOST_NETWORKS: usize = 32_768;
/// Endpoints that are only heard, at most.
pub(crate) const HEARD_ONLY: usize = 1024;

impl Vtep {
    /// An endpoint that knows no station. All memory for stations is taken here.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: VtepConfig) -> Result<Vtep, VtepError> {
        let mut vtep = Vtep {
            local: config.local,
            port: config.port,
            encapsulation: config.encapsulation,
            sealed: config.sealed,
            networks: Vec::new(),
            vnis: Vnis::new(),
            remotes: Remotes::new(config.seed, HEARD_ONLY, config.mtu),
            stations: Fdb::new(config.stations, config.ageing, config.seed),
            neighbours: {
                // Who looks at no neighbours has no room for them.
                let looks = config.networks.iter().any(|network| network.suppress || !network.learning);
                Neighbours::new(if looks { config.stations } else { 0 }, config.ageing, config.seed)
            },
            ageing: config.ageing,
            answered: 0,
        };
        for network in &config.networks {
            vtep.add(network)?;
        }
        Ok(vtep)
    }

    /// A network begins. Allocates.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub fn add(&mut self, config: &NetworkConfig) -> Result<NetworkId, VtepError> {
        if self.vnis.find(config.vni.get()).is_some() {
            return Err(VtepError::Twice(config.vni));
        }
        for peer in config.peers.iter() {
            self.check(*peer)?;
        }
        if let Some(group) = config.group {
            self.check_group(group)?;
        }
        let at = self.networks.iter().position(Option::is_none).unwrap_or(self.networks.len());
        if at >= MOST_NETWORKS {
            return Err(VtepError::TooMany("networks", MOST_NETWORKS));
        }
        let mut flood: Vec<RemoteId> = Vec::new();
        for peer in config.peers.iter().chain(&config.group) {
            let Some(id) = self.remotes.name(*peer) else {
                flood.into_iter().for_each(|id| self.leave(id));
                return Err(VtepError::TooMany("remote endpoints", crate::remotes::MOST));
            };
            self.stations.add_nic(NicId(id.0));
            match flood.binary_search(&id) {
                Ok(_) => _ = self.remotes.unname(id),
                Err(at) => flood.insert(at, id),
            }
        }
        if self.networks.len() <= at {
            self.networks.resize_with(at + 1, || None);
        }
        let NetworkConfig { vni, group, learning, suppress, .. } = *config;
        let anyone = config.anyone || group.is_some();
        let network = Network { vni, flood, joined: Vec::new(), group, learning, anyone, suppress };
        if let Some(place) = self.networks.get_mut(at) {
            *place = Some(network);
        }
        self.vnis.set(config.vni, at as u16);
        Ok(NetworkId(at as u16))
    }

    /// A network ends.
    pub fn remove(&mut self, id: NetworkId) {
        let Some(network) = self.networks.get_mut(usize::from(id.0)).and_then(Option::take) else { return };
        self.vnis.set(network.vni, u16::MAX);
        let known: Vec<Mac> =
            self.stations(Instant::START).filter(|entry| entry.0 == id).map(|entry| entry.1).collect();
        for mac in known {
            self.stations.remove(Segment(id.0), mac);
        }
        self.neighbours.forget_network(id);
        network.flood.into_iter().for_each(|id| self.leave(id));
    }

    fn leave(&mut self, id: RemoteId) {
        if self.remotes.unname(id) {
            self.lose(id);
        }
    }

    /// An endpoint is known no more, and nothing behind it.
    fn lose(&mut self, id: RemoteId) {
        self.stations.remove_nic(NicId(id.0), true);
        self.neighbours.forget_remote(id);
    }

    fn check(&self, peer: IpAddr) -> Result<(), VtepError> {
        let group = peer.is_multicast() || peer.is_unspecified() || peer == IpAddr::from([255; 4]);
        match peer {
            _ if peer == self.local => Err(VtepError::Ourselves(peer)),
            _ if peer.is_ipv4() != self.local.is_ipv4() => Err(VtepError::Family { peer, local: self.local }),
            _ if group => Err(VtepError::Address(peer)),
            _ => Ok(()),
        }
    }

    fn check_group(&self, group: IpAddr) -> Result<(), VtepError> {
        match group {
            _ if !group.is_multicast() => Err(VtepError::Group(group)),
            _ if group.is_ipv4() != self.local.is_ipv4() => Err(VtepError::Family { peer: group, local: self.local }),
            _ => Ok(()),
        }
    }

    /// How many networks it has.
    pub fn networks(&self) -> usize {
        self.networks.iter().flatten().count()
    }

    /// The groups of its networks, each once. Allocates.
    pub fn groups(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.networks.iter().flatten().filter_map(|network| network.group).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Its address in the underlay.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that its packets have before the inner frame and behind it; see [`overhead`].
    pub fn overhead(&self) -> u16 {
        overhead(self.local.is_ipv4(), self.sealed)
    }

    /// The longest inner IP packet, in bytes, that reaches an endpoint.
    pub fn inner_mtu(&self, remote: RemoteId) -> u16 {
        let mtu = self.remotes.get(remote).map_or(0, |remote| remote.mtu);
        mtu.saturating_sub(around(self.local.is_ipv4(), self.sealed))
    }

    /// The longest inner IP packet, in bytes, that goes this way.
    pub fn fits(&self, network: NetworkId, way: Way) -> u16 {
        self.at_end(network, &way).iter().map(|remote| self.inner_mtu(*remote)).min().unwrap_or(u16::MAX)
    }

    /// The header of a network's packets.
    #[inline]
    pub fn header(&self, network: NetworkId) -> Option<[u8; HEADER]> {
        self.network(network).map(|network| self.encapsulation.header(network.vni))
    }

    /// The endpoints that a way leads to.
    #[inline]
    pub fn at_end<'w>(&'w self, network: NetworkId, way: &'w Way) -> &'w [RemoteId] {
        match way {
            Way::One(remote) => std::slice::from_ref(remote),
            Way::All => self.flood(network),
        }
    }

    /// The endpoints of a network.
    #[inline]
    pub fn flood(&self, network: NetworkId) -> &[RemoteId] {
        self.network(network).map_or(&[], |network| &network.flood)
    }

    #[inline]
    fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(usize::from(id.0))?.as_ref()
    }

    /// The time as its table of stations counts it.
    #[inline]
    pub fn tick(&self, now: Instant) -> Tick {
        self.stations.tick(now)
    }

    /// Who sent a packet, by its address in the underlay. Found once for a run of packets.
    #[inline]
    pub fn sender(&self, from: IpAddr) -> Sender {
        match self.remotes.find(from) {
            Some(id) => Sender::Known(id),
            None => Sender::Stranger(from),
        }
    }

    /// Whether a packet of `len` bytes behind the UDP header, which begins with `front`, is taken, and whose it is. Changes nothing.
    ///
    /// # Errors
    /// `BadTunnel`: headers that are not known; `UnknownVni`; `UnknownVtep`: no peer of that network; `Runt`; `BadSource`; `TunnelLoop`: the frame
    /// is a packet to this endpoint itself.
    #[inline]
    pub fn accept(&self, sender: Sender, front: &[u8], len: usize) -> Result<Inward, DropReason> {
        let (vni, at) = self.encapsulation.read(front).map_err(|malformed| match malformed {
            Malformed::Short => DropReason::Runt,
            Malformed::Unknown | Malformed::Protocol => DropReason::BadTunnel,
        })?;
        let id = self.vnis.find(vni).ok_or(DropReason::UnknownVni)?;
        let network = self.network(id).ok_or(DropReason::UnknownVni)?;
        let named = matches!(sender, Sender::Known(id) if network.flood.binary_search(&id).is_ok());
        if !named && !network.anyone {
            return Err(DropReason::UnknownVtep);
        }
        if len < at + ETHERNET {
            return Err(DropReason::Runt);
        }
        if self.is_ours(front.get(at..).unwrap_or_default(), false) {
            return Err(DropReason::TunnelLoop);
        }
        Ok(Inward { network: id, at })
    }

    /// Whose a packet is that begins with `front` behind the UDP header, taken or not; nothing: of no network of ours.
    #[cold]
    pub fn meant(&self, front: &[u8]) -> Option<NetworkId> {
        let (vni, _) = self.encapsulation.read(front).ok()?;
        self.vnis.find(vni)
    }

    /// Its sender was heard now, and a frame's source is learnt behind it. A stranger that is heard becomes known, if there is room for it.
    ///
    /// # Errors
    /// `Flapping`: the source moved to and fro between endpoints, and is held behind another one.
    pub fn hear(
        &mut self,
        sender: Sender,
        network: NetworkId,
        source: u64,
        now: Instant,
    ) -> Result<Option<RemoteId>, DropReason> {
        let id = match sender {
            Sender::Known(id) => id,
            Sender::Stranger(address) => match self.meet(address, now) {
                Some(id) => id,
                None => return Ok(None),
            },
        };
        if let Some(remote) = self.remotes.get_mut(id) {
            remote.heard = Some(now);
        }
        if self.network(network).is_some_and(|network| network.learning) && Mac::from_bits(source).is_unicast() {
            let (key, nic, tick) = (Key::new(Segment(network.0), source), NicId(id.0), self.tick(now));
            match self.stations.consider(key, nic, tick) {
                Learn::Current => {}
                learn => {
                    self.stations.settle(learn, key, nic, tick);
                    if matches!(learn, Learn::Held(_)) {
                        return Err(DropReason::Flapping);
                    }
                }
            }
        }
        Ok(Some(id))
    }

    #[cold]
    fn meet(&mut self, address: IpAddr, now: Instant) -> Option<RemoteId> {
        self.check(address).ok()?;
        let (id, gone) = self.remotes.hear(address, now)?;
        if let Some(gone) = gone {
            self.lose(gone);
        }
        self.stations.add_nic(NicId(id.0));
        Some(id)
    }

    /// Whether a frame that begins with these bytes is a packet of this endpoint itself. Such a one does not go out.
    #[inline]
    pub fn is_loop(&self, bytes: &[u8]) -> bool {
        self.is_ours(bytes, true)
    }

    /// Where the frames for a station of a network go. Changes nothing.
    ///
    /// # Errors
    /// `NoDestination`: there is no other endpoint.
    #[inline]
    pub fn way(&self, network: NetworkId, destination: u64, tick: Tick) -> Result<Way, DropReason> {
        let known = if Mac::from_bits(destination).is_group() {
            None
        } else {
            self.stations.find(Key::new(Segment(network.0), destination), tick)
        };
        match known {
            Some(nic) => Ok(Way::One(RemoteId(nic.0))),
            None if self.flood(network).is_empty() => Err(DropReason::NoDestination),
            None => Ok(Way::All),
        }
    }

    /// The path to an endpoint takes IP packets of `mtu` bytes at most, as somebody on it says. What is less than every path takes is not believed, and
    /// neither is the zero of a router that does not know.
    pub fn narrows(&mut self, to: IpAddr, mtu: u16, now: Instant) {
        // RFC 791 section 3.1 (all hosts take 576 bytes), RFC 8201 section 4.
        let least = if to.is_ipv4() { LEAST } else { 1280 };
        if mtu >= least {
            self.remotes.narrows(to, mtu, now);
        }
    }

    /// Whether an inner frame is a packet of a tunnel of this endpoint: from it, or else to it. Such a one would go round for ever.
    #[inline]
    fn is_ours(&self, bytes: &[u8], from: bool) -> bool {
        let field = |at: usize| bytes.get(at..at + 2).map(|b| b == self.port.to_be_bytes());
        match (self.local, bytes.get(12..14)) {
            (IpAddr::V4(local), Some([0x08, 0x00])) => {
                bytes.get(23) == Some(&17)
                    && bytes.get(if from { 26..30 } else { 30..34 }) == Some(&local.octets())
                    && field(36) == Some(true)
            }
            (IpAddr::V6(local), Some([0x86, 0xdd])) => {
                bytes.get(20) == Some(&17)
                    && bytes.get(if from { 22..38 } else { 38..54 }) == Some(&local.octets())
                    && field(56) == Some(true)
            }
            _ => false,
        }
    }

    /// A station is behind an endpoint, whatever is learnt: control's word.
    ///
    /// # Errors
    /// What [`Fdb::add_static`] refuses.
    pub fn place(&mut self, network: NetworkId, mac: Mac, remote: RemoteId) -> Result<(), StaticError> {
        let tick = self.tick(Instant::START);
        self.stations.add_static(Segment(network.0), mac, NicId(remote.0), tick)
    }

    /// A station is forgotten, placed or learnt; false when it was not known.
    pub fn forget(&mut self, network: NetworkId, mac: Mac) -> bool {
        self.stations.remove(Segment(network.0), mac)
    }

    /// The stations that are known: network, address, endpoint, whether placed by control.
    pub fn stations(&self, now: Instant) -> impl Iterator<Item = (NetworkId, Mac, RemoteId, bool)> {
        let entries = self.stations.iter(self.tick(now));
        entries.map(|entry| (NetworkId(entry.segment.0), entry.mac, RemoteId(entry.nic.0), entry.fixed))
    }

    /// Frees up to `budget` stations that are silent for too long, forgets endpoints that were only heard and are silent as long, and tries paths again that
    /// were narrow.
    pub fn sweep(&mut self, now: Instant, budget: usize) {
        self.remotes.widen(now);
        for id in (0..self.remotes.places()).map(|at| RemoteId(at as u16)) {
            if self.remotes.age(id, now, self.ageing) {
                self.lose(id);
            }
        }
        self.stations.sweep(self.stations.tick(now), budget);
        self.neighbours.sweep(now, budget);
    }
}

//! What an endpoint tells people and programs: the endpoints of other hosts, and stations that move to and fro.
//!
//! Invariant: telling changes nothing. Read first: [`super`], [`crate::control`].

use std::collections::HashMap;

use wire::{
    Instant, NicId,
    fdb::{Entry, Flap},
};

use super::{NetworkId, Vtep};
use crate::{
    control::{FlapLine, PeerLine, StationLine},
    remotes::RemoteId,
};

impl Vtep {
    /// What is known of every endpoint, network by network.
    pub fn peers(&self, now: Instant) -> Vec<PeerLine> {
        let mut behind: HashMap<(NetworkId, RemoteId), usize> = HashMap::new();
        for (network, _, remote, _) in self.stations(now) {
            *behind.entry((network, remote)).or_default() += 1;
        }
        let networks = self.networks.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)));
        let lines = networks.flat_map(|(at, network)| {
            let id = NetworkId(at as u16);
            // Those that it names, and strangers that it has heard.
            let strangers = behind.keys().filter(move |(of, _)| *of == id).map(|(_, remote)| *remote);
            let strangers = strangers.filter(|remote| network.flood.binary_search(remote).is_err());
            let behind = &behind;
            network.flood.iter().copied().chain(strangers).filter_map(move |remote| {
                // A group is nobody's address.
                let known = self.remotes.get(remote).filter(|known| !known.address.is_multicast())?;
                Some(PeerLine {
                    vni: network.vni,
                    address: known.address,
                    macs: behind.get(&(id, remote)).copied().unwrap_or(0),
                    mtu: self.inner_mtu(remote),
                    silent: known.heard.map(|heard| now.since(heard)),
                    sealed: self.sealed,
                    session: known.session,
                    source: network.source(remote),
                })
            })
        });
        lines.collect()
    }

    /// Every station that is known behind an endpoint.
    pub fn station_lines(&self, now: Instant) -> Vec<StationLine> {
        let line = |entry: Entry| {
            Some(StationLine {
                vni: self.network(NetworkId(entry.segment.0))?.vni,
                mac: entry.mac,
                address: self.remotes.get(RemoteId(entry.nic.0))?.address,
                age: entry.age,
                placed: entry.fixed,
            })
        };
        self.stations.iter(self.tick(now)).filter_map(line).collect()
    }

    /// Stations that move to and fro between endpoints.
    pub fn flapping(&self, now: Instant) -> Vec<FlapLine> {
        let line = |flap: Flap| {
            let address = |nic: NicId| self.remotes.get(RemoteId(nic.0)).map(|remote| remote.address);
            Some(FlapLine {
                vni: self.network(NetworkId(flap.segment.0))?.vni,
                mac: flap.mac,
                between: [address(flap.home)?, address(flap.other)?],
                moves: flap.moves,
                held: flap.held,
            })
        };
        self.stations.flapping(self.tick(now)).filter_map(line).collect()
    }
}

//! [`Evpn`]: what an endpoint makes of the routes that come and of the stations that are here, without I/O and clock.
//!
//! Invariant: a station is in one place, here or behind one endpoint, and everybody who knows the same routes says the same. What is announced is here.
//! Tables are bounded, an endpoint that sends too many routes loses its own, and none of them takes the room of this host's stations. The tunnel is told of an
//! endpoint before the stations behind it, and of their end before its end.
//!
//! Theory of operation: each station has candidates, one of which may be this host. Who does not move (sticky) comes first, then the highest sequence number, then the
//! lowest address (RFC 7432 section 15.1). A station that is heard here while it is elsewhere has moved: it is announced with the next number. One
//! that moves five times in three minutes is in two places at once: it stays where it is for a while, whatever comes. Routes carry the number of the snapshot
//! that they were last seen in; the sweep after a snapshot forgets all others. Read first: RFC 7432 sections 7.7 and 15, [`crate::route`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use wire::{Instant, Mac, Vni};

use crate::{
    action::Action,
    route::{Mobility, Prefix, Rd, Route},
    station::{Station, Where},
};

/// How much is kept at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Routes of other hosts.
    pub routes: usize,
    /// Stations of other hosts; as many again of this one.
    pub stations: usize,
}

impl Default for Most {
    fn default() -> Self {
        Most { routes: 65_536, stations: 32_768 }
    }
}

/// Moves within [`WINDOW`] after which a station counts as being in two places (RFC 7432 section 15.1).
pub const MOVES: usize = 5;
/// See [`MOVES`].
pub const WINDOW: Duration = Duration::from_secs(180);
/// How long such a station stays where it is.
pub const HOLD: Duration = Duration::from_secs(180);
/// IP addresses announced of one station at most.
pub const ADDRESSES: usize = 8;
/// Routes of other hosts for one station at most: all of them are looked at with each that comes.
pub const CANDIDATES: usize = 256;

/// A route of another host.
struct Known {
    vni: Vni,
    next_hop: IpAddr,
    mobility: Mobility,
    snapshot: u32,
}

#[derive(Default)]
struct Network {
    /// What tells our routes of this network from those of others (with the router's address).
    number: u16,
    stations: HashMap<Mac, Station>,
    /// By endpoint, how many routes name it.
    endpoints: BTreeMap<IpAddr, usize>,
    /// Whose the addresses are that the tunnel knows.
    neighbours: HashMap<IpAddr, Mac>,
    /// Whose the addresses are that we announce.
    own: HashMap<IpAddr, Mac>,
}

/// See the module's documentation.
pub struct Evpn {
    local: IpAddr,
    router: Ipv4Addr,
    most: Most,
    networks: BTreeMap<Vni, Network>,
    routes: HashMap<Prefix, Known>,
    /// By endpoint, how many routes it has.
    held: HashMap<IpAddr, usize>,
    /// Stations that other hosts have routes for, and those that are or were here.
    remote: usize,
    local_stations: usize,
    /// Stations that have moved of late.
    restless: HashSet<(Vni, Mac)>,
    snapshot: u32,
    refused: u64,
    actions: Vec<Action>,
}

impl Evpn {
    /// An endpoint at `local` with these networks, each with a number that no other of this host has.
    pub fn new(local: IpAddr, networks: &[(Vni, u16)], most: Most) -> Evpn {
        let network = |(vni, number): &(Vni, u16)| (*vni, Network { number: *number, ..Network::default() });
        Evpn {
            local,
            router: Ipv4Addr::UNSPECIFIED,
            most,
            networks: networks.iter().map(network).collect(),
            routes: HashMap::new(),
            held: HashMap::new(),
            remote: 0,
            local_stations: 0,
            restless: HashSet::new(),
            snapshot: 0,
            refused: 0,
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last time, in order.
    pub fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The speaker's address in its routes; what is announced later is named after it.
    pub fn set_router(&mut self, router: Ipv4Addr) {
        self.router = router;
    }

    /// Routes of other hosts that are known, and those that found no room.
    pub fn count(&self) -> (usize, u64) {
        (self.routes.len(), self.refused)
    }

    /// Stations of a network behind other endpoints, and here.
    pub fn located(&self, vni: Vni) -> (usize, usize) {
        let stations = self.networks.get(&vni).into_iter().flat_map(|network| network.stations.values());
        stations.fold((0, 0), |(there, here), station| match station.at {
            Where::There(_) => (there + 1, here),
            Where::Here => (there, here + 1),
            Where::Nowhere => (there, here),
        })
    }

    /// Where a station is: behind an endpoint, or here (our own address).
    pub fn find(&self, vni: Vni, mac: Mac) -> Option<IpAddr> {
        match self.networks.get(&vni)?.stations.get(&mac)?.at {
            Where::There(vtep) => Some(vtep),
            Where::Here => Some(self.local),
            Where::Nowhere => None,
        }
    }

    /// Everything that is to be announced: our endpoint in each network, and the stations that are here.
    pub fn own(&self) -> Vec<Route> {
        let mut all = Vec::new();
        for (vni, network) in &self.networks {
            let rd = Rd::Address(self.router, network.number);
            let prefix = Prefix::Endpoint { rd, tag: 0, origin: self.local };
            all.push(Route { prefix, vni: *vni, next_hop: self.local, mobility: Mobility::default() });
            for (mac, station) in network.stations.iter().filter(|(_, station)| station.at == Where::Here) {
                all.extend(station.routes(*vni, *mac, rd, self.local));
            }
        }
        all
    }

    /// A station was heard at a port of this host.
    pub fn heard(&mut self, vni: Vni, mac: Mac, port: u32, now: Instant) {
        self.arrive(vni, mac, now, |local| local.heard = Some(port));
    }

    /// A station is known to be at a port of this host that has come up; if it is `sticky`, for good.
    pub fn declared(&mut self, vni: Vni, mac: Mac, port: u32, sticky: bool, now: Instant) {
        self.arrive(vni, mac, now, |local| {
            local.declared = Some(port);
            local.sticky = sticky;
        });
    }

    /// A station of this host has an IP address.
    pub fn addressed(&mut self, vni: Vni, mac: Mac, ip: IpAddr) {
        let rd = self.rd(vni);
        let Some(network) = self.networks.get_mut(&vni) else { return };
        if network.own.get(&ip) == Some(&mac) {
            return;
        }
        let here = |network: &Network, mac| network.stations.get(&mac).is_some_and(|station| station.at == Where::Here);
        if !here(network, mac) {
            return;
        }
        // An address is one station's: the one that spoke last.
        let before = network.own.insert(ip, mac);
        if let Some(station) = before.and_then(|before| network.stations.get_mut(&before)) {
            station.addresses.retain(|other| *other != ip);
        }
        self.actions.extend(before.map(|mac| Action::Withdraw(Prefix::Station { rd, tag: 0, mac, ip: Some(ip) })));
        let Some(station) = network.stations.get_mut(&mac) else { return };
        if station.addresses.len() >= ADDRESSES {
            let oldest = station.addresses.remove(0);
            network.own.remove(&oldest);
            self.actions.push(Action::Withdraw(Prefix::Station { rd, tag: 0, mac, ip: Some(oldest) }));
        }
        station.addresses.push(ip);
        self.actions.extend(station.routes(vni, mac, rd, self.local).last().map(Action::Announce));
    }

    /// A port of this host went down, and its stations with it.
    pub fn down(&mut self, port: u32, now: Instant) {
        let mut gone = Vec::new();
        for (vni, network) in &mut self.networks {
            for (mac, station) in &mut network.stations {
                let Some(local) = &mut station.local else { continue };
                if local.forget(|at| at == port) {
                    gone.push((*vni, *mac));
                }
            }
        }
        gone.into_iter().for_each(|(vni, mac)| self.choose(vni, mac, now));
    }

    /// These are all the stations that were heard here and not forgotten since.
    pub fn present(&mut self, all: &[(Vni, Mac, u32)], now: Instant) {
        let there: HashSet<(Vni, Mac)> = all.iter().map(|(vni, mac, _)| (*vni, *mac)).collect();
        let mut gone = Vec::new();
        for (vni, network) in &mut self.networks {
            for (mac, station) in network.stations.iter_mut().filter(|(mac, _)| !there.contains(&(*vni, **mac))) {
                if let Some(local) = &mut station.local
                    && local.heard.take().is_some()
                {
                    gone.push((*vni, *mac));
                }
            }
        }
        gone.into_iter().for_each(|(vni, mac)| self.choose(vni, mac, now));
        let known = |network: &Network, mac| {
            network.stations.get(mac).and_then(|station| station.local.as_ref()).and_then(|local| local.heard)
        };
        for (vni, mac, port) in all {
            if self.networks.get(vni).is_some_and(|network| known(network, mac) != Some(*port)) {
                self.heard(*vni, *mac, *port, now);
            }
        }
    }

    /// A route of another host. Of a network that is not ours it is passed over.
    pub fn learn(&mut self, route: &Route, now: Instant) {
        let Route { prefix, vni, next_hop, mobility } = *route;
        let before = match self.routes.get_mut(&prefix) {
            Some(known) if (known.vni, known.next_hop, known.mobility) == (vni, next_hop, mobility) => {
                known.snapshot = self.snapshot;
                return;
            }
            Some(known) if known.vni == vni && self.networks.contains_key(&vni) => Some(known.next_hop),
            Some(_) => {
                self.forget(&prefix, now);
                None
            }
            None => None,
        };
        let Some(network) = self.networks.get_mut(&vni) else { return };
        let candidates = match prefix {
            Prefix::Station { mac, .. } => network.stations.get(&mac).map_or(0, |station| station.remote.len()),
            Prefix::Endpoint { .. } => 1,
        };
        // Nobody may have more than there are places left.
        let held = self.held.get(&next_hop).copied().unwrap_or(0);
        let fits = |most: usize, there: usize| held < most.saturating_sub(there);
        let room = fits(self.most.routes, self.routes.len()) && candidates < CANDIDATES;
        if before.is_none() && !(room && (candidates > 0 || fits(self.most.stations, self.remote))) {
            self.refused += 1;
            return;
        }
        *self.held.entry(next_hop).or_default() += 1;
        self.routes.insert(prefix, Known { vni, next_hop, mobility, snapshot: self.snapshot });
        let named = network.endpoints.entry(next_hop).or_default();
        *named += 1;
        if *named == 1 {
            self.actions.push(Action::Join(vni, next_hop));
        }
        if let Prefix::Station { mac, .. } = prefix {
            let station = network.stations.entry(mac).or_default();
            self.remote += usize::from(station.remote.is_empty());
            if before.is_none() {
                station.remote.push(prefix);
            }
            self.choose(vni, mac, now);
        }
        if let Some(before) = before {
            self.unname(vni, before);
        }
    }

    /// A route of another host is no more, or not to be believed any more.
    pub fn forget(&mut self, prefix: &Prefix, now: Instant) {
        let Some(known) = self.routes.remove(prefix) else { return };
        if let Prefix::Station { mac, .. } = prefix {
            let network = self.networks.get_mut(&known.vni);
            if let Some(station) = network.and_then(|network| network.stations.get_mut(mac)) {
                station.remote.retain(|other| other != prefix);
                self.remote -= usize::from(station.remote.is_empty());
            }
            self.choose(known.vni, *mac, now);
        }
        self.unname(known.vni, known.next_hop);
    }

    /// A snapshot of all routes begins: each is learnt, and [`Evpn::sweep`] follows.
    pub fn begin(&mut self) {
        self.snapshot = self.snapshot.wrapping_add(1);
    }

    /// The snapshot was complete: what was not in it is forgotten. Returns how many routes.
    pub fn sweep(&mut self, now: Instant) -> usize {
        let old = self.routes.iter().filter(|(_, known)| known.snapshot != self.snapshot);
        let old: Vec<Prefix> = old.map(|(prefix, _)| *prefix).collect();
        old.iter().for_each(|prefix| self.forget(prefix, now));
        old.len()
    }

    /// Does what is due by the clock. Once a second or so.
    pub fn tick(&mut self, now: Instant) {
        let quiet = |station: &Station| station.moves.last().is_none_or(|last| now.since(*last) >= HOLD.max(WINDOW));
        let (networks, mut thawed) = (&mut self.networks, Vec::new());
        self.restless.retain(|(vni, mac)| {
            let Some(station) = networks.get_mut(vni).and_then(|network| network.stations.get_mut(mac)) else {
                return false;
            };
            let done = quiet(station) && station.frozen.is_none_or(|until| now >= until);
            if done {
                station.moves.clear();
                station.frozen = None;
                thawed.push((*vni, *mac));
            }
            !done
        });
        for (vni, mac) in thawed {
            // What was heard meanwhile counted for nothing, and counts again from now on.
            let at = self.find(vni, mac);
            if at != Some(self.local) {
                self.actions.push(Action::ForgetLocal(vni, mac));
                self.actions.extend(at.map(|at| Action::Place(vni, mac, at)));
            }
            self.choose(vni, mac, now);
        }
    }

    fn rd(&self, vni: Vni) -> Rd {
        Rd::Address(self.router, self.networks.get(&vni).map_or(0, |network| network.number))
    }

    /// A route that named an endpoint does so no longer.
    fn unname(&mut self, vni: Vni, endpoint: IpAddr) {
        if let Some(held) = self.held.get_mut(&endpoint) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(&endpoint);
            }
        }
        let Some(network) = self.networks.get_mut(&vni) else { return };
        if let Some(named) = network.endpoints.get_mut(&endpoint) {
            *named = named.saturating_sub(1);
            if *named == 0 {
                network.endpoints.remove(&endpoint);
                self.actions.push(Action::Part(vni, endpoint));
            }
        }
    }
}

mod choose;
#[cfg(test)]
mod tests;

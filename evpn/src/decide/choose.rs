//! Where a station is: a decision among this host and the routes of others, and what follows from it.
//!
//! Invariant: a decision depends on what is known and on nothing else, but for a station that is held. What is counted of a station is bounded, whatever routes come and go.
//! Read first: [`super`], RFC 7432 section 15.

use std::{cmp::Reverse, net::IpAddr};

use wire::{Instant, Mac, Vni};

use super::{Evpn, HOLD, MOVES, WINDOW};
use crate::{
    action::Action,
    route::{Mobility, Prefix, Rd},
    station::{Local, Where},
};

/// What a candidate is worth: the greatest one has the station.
type Rank = (bool, u32, Reverse<IpAddr>);

fn rank(mobility: Mobility, endpoint: IpAddr) -> Rank {
    (mobility.sticky, mobility.sequence, Reverse(endpoint))
}

impl Evpn {
    /// A station is here, as `how` says.
    pub(super) fn arrive(&mut self, vni: Vni, mac: Mac, now: Instant, how: impl FnOnce(&mut Local)) {
        let Some(network) = self.networks.get_mut(&vni) else { return };
        if network.stations.get(&mac).is_none_or(|station| station.local.is_none()) {
            if self.local_stations >= self.most.stations || !mac.is_unicast() {
                self.refused += 1;
                return;
            }
            self.local_stations += 1;
        }
        let station = network.stations.entry(mac).or_default();
        let local = station.local.get_or_insert_with(Local::default);
        let before = local.mobility();
        how(local);
        if station.at == Where::Here {
            if local.mobility() != before {
                let rd = Rd::Address(self.router, network.number);
                self.actions.extend(station.routes(vni, mac, rd, self.local).map(Action::Announce));
            }
            return;
        }
        if station.at != Where::Nowhere && station.frozen.is_some_and(|until| now < until) {
            local.lost = true;
            return;
        }
        let routes = &self.routes;
        let elsewhere = station.remote.iter().filter_map(|prefix| routes.get(prefix));
        let best = elsewhere.max_by_key(|known| rank(known.mobility, known.next_hop));
        match best {
            Some(known) if known.mobility.sticky && !local.sticky => {
                local.lost = true;
                self.actions.push(Action::Sticky(vni, mac, known.next_hop));
            }
            Some(known) => {
                local.lost = false;
                local.sequence = local.sequence.max(known.mobility.sequence.saturating_add(1));
            }
            None => local.lost = false,
        }
        self.choose(vni, mac, now);
    }

    /// Decides where a station is, and does what follows.
    pub(super) fn choose(&mut self, vni: Vni, mac: Mac, now: Instant) {
        let rd = self.rd(vni);
        let Some(network) = self.networks.get_mut(&vni) else { return };
        let Some(station) = network.stations.get_mut(&mac) else { return };
        if station.local.as_ref().is_some_and(Local::is_gone) {
            station.local = None;
            self.local_stations -= 1;
        }
        if let Some(local) = &mut station.local
            && station.remote.is_empty()
            && local.declared.is_some()
        {
            // Who had it has it no more, and it need not be heard to be here.
            local.lost = false;
        }
        let before = station.at;
        let mut best: Option<(Rank, Where)> = None;
        let mut offer = |rank: Rank, at: Where| {
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, at));
            }
        };
        if let Some(local) = station.local.as_ref().filter(|local| !local.lost) {
            offer(rank(local.mobility(), self.local), Where::Here);
        }
        let mut still = matches!((before, &station.local), (Where::Here, Some(local)) if !local.lost);
        for known in station.remote.iter().filter_map(|prefix| self.routes.get(prefix)) {
            offer(rank(known.mobility, known.next_hop), Where::There(known.next_hop));
            still |= before == Where::There(known.next_hop);
        }
        let frozen = station.frozen.is_some_and(|until| now < until);
        let at = if frozen && still { before } else { best.map_or(Where::Nowhere, |(_, at)| at) };
        if at != before && before != Where::Nowhere && at != Where::Nowhere {
            station.moves.retain(|moved| now.since(*moved) < WINDOW);
            self.restless.insert((vni, mac));
            // One that is held moves only when its place is withdrawn, and that is not told again each time.
            if !frozen {
                station.moves.push(now);
                if station.moves.len() >= MOVES {
                    station.frozen = Some(now + HOLD);
                    let address = |place: Where| match place {
                        Where::There(endpoint) => endpoint,
                        Where::Here | Where::Nowhere => self.local,
                    };
                    self.actions.push(Action::Duplicate(vni, mac, [address(at), address(before)]));
                }
            }
        }
        if at != before {
            if before == Where::Here {
                let prefixes = station.routes(vni, mac, rd, self.local).map(|route| Action::Withdraw(route.prefix));
                self.actions.extend(prefixes);
                station.addresses.drain(..).for_each(|ip| _ = network.own.remove(&ip));
                self.actions.push(Action::ForgetLocal(vni, mac));
                if let Some(local) = &mut station.local {
                    local.lost = true;
                }
            }
            match (before, at) {
                (_, Where::There(vtep)) => self.actions.push(Action::Place(vni, mac, vtep)),
                (Where::There(_), _) => self.actions.push(Action::Forget(vni, mac)),
                _ => {}
            }
            if at == Where::Nowhere && before != Where::Here && station.local.is_some() {
                // It spoke here all the while, and that counts again.
                self.actions.push(Action::ForgetLocal(vni, mac));
            }
            station.at = at;
            if at == Where::Here {
                self.actions.extend(station.routes(vni, mac, rd, self.local).map(Action::Announce));
            }
        }
        // Whose addresses the tunnel knows.
        let there = station.remote.iter().filter_map(|prefix| match (prefix, self.routes.get(prefix)) {
            (Prefix::Station { ip: Some(ip), .. }, Some(known)) if at == Where::There(known.next_hop) => Some(*ip),
            _ => None,
        });
        let wanted: Vec<IpAddr> = there.collect();
        for ip in std::mem::take(&mut station.neighbours) {
            if !wanted.contains(&ip) && network.neighbours.get(&ip) == Some(&mac) {
                network.neighbours.remove(&ip);
                self.actions.push(Action::ForgetNeighbour(vni, ip));
            }
        }
        for ip in &wanted {
            if network.neighbours.insert(*ip, mac) != Some(mac) {
                self.actions.push(Action::PlaceNeighbour(vni, *ip, mac));
            }
        }
        station.neighbours = wanted;
        if station.is_nothing() {
            network.stations.remove(&mac);
            self.restless.remove(&(vni, mac));
        }
    }
}

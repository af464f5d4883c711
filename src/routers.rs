//! The routers of a running configuration: ports of the bridges that their networks are, with what lies behind them.
//!
//! Invariant: each segment that a router is in has one NIC for it besides those of ports, with an address that no guest may send from; segments of one
//! network, and networks that are routed to each other, share one port, and the segments of a network its way out. What one network lacks is told of it, and no other network goes without for that.
//! Read first: `gateway`'s crate page, [`crate::gateways`], [`crate::place`].

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::AtomicBool},
};

use gateway::GatewayPort;
use vswitch::{
    BridgeSpec, Membership, NicSpec, Role,
    change::{BridgeId, Change},
    thread::Changes,
};
use wire::NicId;

use crate::{
    config::{Config, Name, Network, Segment},
    gateways::{Leases, Made},
    nat::{Nats, Outside, WayOut},
    place::{self, On, Places},
    seed,
    service::Networks,
    uplinks::{Uplink, Uplinks},
};

/// The router of a network, or its NIC outside: a NIC that no port of the configuration stands for.
#[derive(Clone, Debug)]
pub struct Router {
    /// The network.
    pub network: String,
    /// Its worker and its NIC there.
    pub at: On<NicId>,
    /// As tables have it.
    pub name: String,
}

/// What was started, and what was not.
#[derive(Clone, Debug, Default)]
pub struct Routers {
    /// Those that run.
    pub all: Vec<Router>,
    /// What a network lacks, and why.
    pub lacks: BTreeMap<String, String>,
}

impl Routers {
    fn lacks(&mut self, network: &Name, what: &'static str, error: &io::Error) {
        tracing::error!(%network, %error, "{what}; the other networks run");
        self.lacks.insert(network.to_string(), format!("{what}: {error}"));
    }

    /// The way out of a network; none where it has none or where it cannot be made, which is then remembered.
    fn way_out(&mut self, config: &Config, network: &Network, worker: usize, nats: &Nats) -> Option<WayOut> {
        let made = nats.make(config, network, worker);
        made.unwrap_or_else(|error| {
            self.lacks(&network.name, "no way out", &error);
            None
        })
    }
}

/// Makes every router and attaches it. A network whose way out cannot be made has a router without one, which says so to guests.
///
/// # Errors
/// The system refuses what every router needs.
pub fn start(
    config: &Config,
    places: &mut Places,
    inboxes: &[Changes],
    (leases, nats, uplinks): (&Leases, &Nats, &Uplinks),
    services: &mut Networks,
) -> io::Result<Routers> {
    let mut routers = Routers::default();
    for members in place::routers(config) {
        let networks: Vec<&Network> = members.iter().filter_map(|at| config.networks.get(*at)).collect();
        let segments: Vec<Segment<'_>> = networks.iter().flat_map(|network| network.segments()).collect();
        let first_served = services.len();
        let (mut legs, mut nics, mut outsides) = (Vec::new(), Vec::new(), Vec::new());
        for (at, network) in members.iter().zip(&networks) {
            let Some((worker, bridge)) = places.networks.get(*at).copied() else { continue };
            let isolated = isolated(config, places, network);
            let mut way_out = routers.way_out(config, network, worker, nats);
            // Whether an uplink is there, where the way out needs one.
            let needs_uplink =
                way_out.iter().filter_map(|way_out| way_out.outside.as_ref()).any(|outside| outside.uplink.is_some());
            let leads = needs_uplink.then(|| Arc::new(AtomicBool::new(false)));
            // The leg that has the way out: the network's first.
            let mut owner = None;
            for segment in network.segments() {
                let beside: Vec<Segment<'_>> =
                    segments.iter().copied().filter(|other| other.key() != segment.key()).collect();
                let leads_out = way_out.is_some() || owner.is_some();
                let made = match leases.make(config, segment, &beside, leads_out, seed::random()?) {
                    Ok(made) => made,
                    Err(error) => {
                        routers.lacks(&network.name, "no router", &error);
                        None
                    }
                };
                let Some(Made { mut leg, mac, addresses }) = made else { continue };
                if let Some(leads) = &leads {
                    leg = leg.leads_out_while(Arc::clone(leads));
                }
                let service = services.add(config, places, segment, addresses.clone())?;
                let leg = leg.with_service(Box::new(service)).with_isolated(isolated.clone());
                let nic = places.nic(worker);
                let membership = segment.vid().map_or(Membership::Untagged, Membership::Access);
                let spec =
                    NicSpec { membership, guard: Some(mac), addresses, role: Role::Router, ..NicSpec::default() };
                nics.push((worker, bridge, nic, spec));
                let vlan = segment.vid().map_or_else(String::new, |vid| format!("/{vid}"));
                routers.all.push(Router {
                    network: network.name.to_string(),
                    at: (worker, nic),
                    name: format!("{}/router{vlan}", network.name),
                });
                legs.push(match (way_out.take(), owner) {
                    (Some(way_out), _) => {
                        owner = Some(legs.len());
                        let outside_nics = usize::from(way_out.outside.is_some());
                        let leads = leads.clone().unwrap_or_default();
                        outsides.extend(way_out.outside.map(|outside| (worker, network.name.clone(), outside, leads)));
                        leg.with_way_out(way_out.port, outside_nics)
                    }
                    (None, Some(owner)) => leg.with_way_out_of(owner),
                    (None, None) => leg,
                });
            }
        }
        services.join(first_served);
        let Some((worker, first)) = nics.first().map(|(worker, _, nic, ..)| (*worker, *nic)) else { continue };
        let Some(inbox) = inboxes.get(worker) else { continue };
        let others: Vec<NicId> = nics.iter().skip(1).map(|(_, _, nic, ..)| *nic).collect();
        for (_, bridge, nic, spec) in nics {
            inbox.send(Change::AddNic { nic, bridge, spec });
        }
        inbox.send(Change::Attach { nic: first, lane: 0, port: Box::new(GatewayPort::new(legs)) });
        for nic in others {
            inbox.send(Change::AttachToo { nic, to: first });
        }
        for (worker, network, outside, leads) in outsides {
            let uplink = outside.uplink.clone().map(|via| (via, outside.mac));
            let (all, at) = go_outside(config, places, inbox, (worker, first), &network, outside)?;
            routers.all.extend(all);
            if let (Some((via, mac)), Some(at)) = (uplink, at) {
                uplinks.add(Uplink { network, via, mac, at, leads }, inbox);
            }
        }
    }
    Ok(routers)
}

/// The ports of a network that do not reach each other.
fn isolated(config: &Config, places: &Places, network: &Network) -> Vec<NicId> {
    let ports = config.ports.iter().zip(&places.ports);
    ports.filter(|(port, _)| port.isolated && port.network == network.name).map(|(_, (_, nic))| *nic).collect()
}

/// Gives the router whose first NIC is `router` one outside, and an uplink one beside it, where that is to be attached.
fn go_outside(
    config: &Config,
    places: &mut Places,
    inbox: &Changes,
    (worker, router): On<NicId>,
    network: &Name,
    outside: Outside,
) -> io::Result<(Vec<Router>, Option<On<NicId>>)> {
    let nic = places.nic(worker);
    let addresses = outside.addresses.clone();
    let spec = NicSpec { guard: Some(outside.mac), addresses, role: Role::Host, ..NicSpec::default() };
    let mut all = vec![Router { network: network.to_string(), at: (worker, nic), name: format!("{network}/outside") }];
    let bridge: BridgeId = match &outside.network {
        Some(name) => {
            let at = config.networks.iter().position(|network| network.name == *name);
            at.and_then(|at| places.networks.get(at)).map(|(_, bridge)| *bridge).ok_or(io::ErrorKind::NotFound)?
        }
        None => {
            let bridge = places.bridge(worker);
            inbox.send(Change::AddBridge { id: bridge, spec: BridgeSpec::new(seed::random()?) });
            bridge
        }
    };
    inbox.send(Change::AddNic { nic, bridge, spec });
    inbox.send(Change::AttachToo { nic, to: router });
    let uplink = outside.uplink.map(|_| (worker, places.nic(worker)));
    if let Some((_, nic)) = uplink {
        inbox.send(Change::AddNic { nic, bridge, spec: NicSpec { role: Role::Host, ..NicSpec::default() } });
        all.push(Router { network: network.to_string(), at: (worker, nic), name: format!("{network}/uplink") });
    }
    Ok((all, uplink))
}

//! The routers of a running configuration: ports of the bridges that their networks are, with what lies behind them.
//!
//! Invariant: each network that has a router has one NIC for it besides those of its ports, with an address that no guest may send from; networks that
//! are routed to each other share one port. What one network lacks is told of it, and no other network goes without for that.
//! Read first: `gateway`'s crate page, [`crate::gateways`], [`crate::place`].

use std::{collections::BTreeMap, io};

use gateway::GatewayPort;
use vswitch::{
    BridgeSpec, NicSpec, Role,
    change::{BridgeId, Change},
    thread::Changes,
};
use wire::NicId;

use crate::{
    config::{Config, Name, Network},
    gateways::{Leases, Made},
    nat::{Nats, Outside, WayOut},
    place::{self, On, Places},
    seed,
    service::Networks,
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
    leases: &Leases,
    nats: &Nats,
    services: &mut Networks,
) -> io::Result<Routers> {
    let mut routers = Routers::default();
    for members in place::routers(config) {
        let networks: Vec<&Network> = members.iter().filter_map(|at| config.networks.get(*at)).collect();
        let first_served = services.len();
        let (mut legs, mut nics, mut outsides) = (Vec::new(), Vec::new(), Vec::new());
        for (at, network) in members.iter().zip(&networks) {
            let Some((worker, bridge)) = places.networks.get(*at).copied() else { continue };
            let beside: Vec<&Network> = networks.iter().copied().filter(|other| other.name != network.name).collect();
            let way_out = routers.way_out(config, network, worker, nats);
            let made = match leases.make(config, network, &beside, way_out.is_some(), seed::random()?) {
                Ok(made) => made,
                Err(error) => {
                    routers.lacks(&network.name, "no router", &error);
                    None
                }
            };
            let Some(Made { leg, mac, addresses }) = made else { continue };
            let leg = leg.with_service(Box::new(services.add(config, places, network, addresses.clone())?));
            let nic = places.nic(worker);
            nics.push((worker, bridge, nic, mac, addresses));
            routers.all.push(Router {
                network: network.name.to_string(),
                at: (worker, nic),
                name: format!("{}/router", network.name),
            });
            match way_out {
                Some(way_out) => {
                    legs.push(leg.with_way_out(way_out.port, usize::from(way_out.outside.is_some())));
                    outsides.extend(way_out.outside.map(|outside| (worker, network.name.clone(), outside)));
                }
                None => legs.push(leg),
            }
        }
        services.join(first_served);
        let Some((worker, first)) = nics.first().map(|(worker, _, nic, ..)| (*worker, *nic)) else { continue };
        let Some(inbox) = inboxes.get(worker) else { continue };
        let others: Vec<NicId> = nics.iter().skip(1).map(|(_, _, nic, ..)| *nic).collect();
        for (_, bridge, nic, mac, addresses) in nics {
            let spec = NicSpec { guard: Some(mac), addresses, role: Role::Router, ..NicSpec::default() };
            inbox.send(Change::AddNic { nic, bridge, spec });
        }
        inbox.send(Change::Attach { nic: first, lane: 0, port: Box::new(GatewayPort::new(legs)) });
        for nic in others {
            inbox.send(Change::AttachToo { nic, to: first });
        }
        for (worker, network, outside) in outsides {
            routers.all.extend(go_outside(config, places, inbox, (worker, first), &network, outside)?);
        }
    }
    Ok(routers)
}

/// Gives the router whose first NIC is `router` one outside.
fn go_outside(
    config: &Config,
    places: &mut Places,
    inbox: &Changes,
    (worker, router): On<NicId>,
    network: &Name,
    outside: Outside,
) -> io::Result<Vec<Router>> {
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
    if let Some(uplink) = outside.uplink {
        let nic = places.nic(worker);
        inbox.send(Change::AddNic { nic, bridge, spec: NicSpec { role: Role::Host, ..NicSpec::default() } });
        inbox.send(Change::Attach { nic, lane: 0, port: uplink });
        all.push(Router { network: network.to_string(), at: (worker, nic), name: format!("{network}/uplink") });
    }
    Ok(all)
}

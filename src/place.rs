//! [`Places`]: which worker has which network, and where its bridges and NICs are there.
//!
//! Invariant: networks that reach each other over a router are on one worker, for their router is one port, and so are those of one tunnel endpoint with
//! the one that it is in; the others are dealt to the workers
//! in turn. A place, once given, is not given again.

use std::collections::HashMap;

use vswitch::change::BridgeId;
use wire::NicId;

use crate::config::{Config, Name, Nat, NatEngine, Network, Via};

/// Something's worker, and its place there.
pub type On<T> = (usize, T);

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Places {
    /// The bridges of networks, in the order of the configuration.
    pub networks: Vec<On<BridgeId>>,
    /// The NICs of ports, in the order of the configuration.
    pub ports: Vec<On<NicId>>,
    /// Bridges and NICs of each worker.
    used: Vec<(u16, u16)>,
}

impl Places {
    /// Places for everything in `config`, on this many workers.
    pub fn new(config: &Config, workers: usize) -> Places {
        let mut used = vec![(0, 0); workers.max(1)];
        let (beside, beneath) = (beside(&config.networks), beneath(config));
        let together = sets(&config.networks, |network| {
            let vtep = network.overlay.as_ref().map(|overlay| overlay.vtep.as_str());
            let of = |names: &HashMap<&str, _>| vtep.and_then(|vtep| names.get(vtep).copied());
            reached(network).chain(outside(network)).chain(of(&beside)).chain(of(&beneath))
        });
        let mut worker_of: HashMap<usize, usize> = HashMap::new();
        let mut networks = Vec::new();
        for set in together {
            let next = worker_of.len() % used.len();
            let worker = *worker_of.entry(set).or_insert(next);
            networks.push((worker, BridgeId(take(&mut used, worker, |used| &mut used.0))));
        }
        let worker_of: HashMap<&Name, usize> =
            config.networks.iter().zip(&networks).map(|(network, (worker, _))| (&network.name, *worker)).collect();
        let ports = config.ports.iter().map(|port| {
            let worker = worker_of.get(&port.network).copied().unwrap_or(0);
            (worker, NicId(take(&mut used, worker, |used| &mut used.1)))
        });
        let ports = ports.collect();
        Places { networks, ports, used }
    }

    /// One more NIC on a worker.
    pub fn nic(&mut self, worker: usize) -> NicId {
        NicId(take(&mut self.used, worker, |used| &mut used.1))
    }

    /// One more bridge on a worker.
    pub fn bridge(&mut self, worker: usize) -> BridgeId {
        BridgeId(take(&mut self.used, worker, |used| &mut used.0))
    }
}

fn take(used: &mut [(u16, u16)], worker: usize, of: fn(&mut (u16, u16)) -> &mut u16) -> u16 {
    let Some(next) = used.get_mut(worker).map(of) else { return 0 };
    *next += 1;
    *next - 1
}

/// The networks that each router of the configuration has a leg in, by their numbers.
pub fn routers(config: &Config) -> Vec<Vec<usize>> {
    let set_of = sets(&config.networks, reached);
    let mut all: Vec<Vec<usize>> = Vec::new();
    let mut place_of: HashMap<usize, usize> = HashMap::new();
    for (at, (set, network)) in set_of.into_iter().zip(&config.networks).enumerate() {
        if !network.has_router() {
            continue;
        }
        let place = *place_of.entry(set).or_insert(all.len());
        match all.get_mut(place) {
            Some(members) => members.push(at),
            None => all.push(vec![at]),
        }
    }
    all
}

fn reached(network: &Network) -> impl Iterator<Item = &Name> {
    network.route.iter()
}

/// By tunnel endpoint, which is one port, the first of the networks that share it.
fn beside(networks: &[Network]) -> HashMap<&str, &Name> {
    let mut firsts = HashMap::new();
    for network in networks {
        if let Some(overlay) = &network.overlay {
            firsts.entry(overlay.vtep.as_str()).or_insert(&network.name);
        }
    }
    firsts
}

/// By tunnel endpoint the network that it is in.
fn beneath(config: &Config) -> HashMap<&str, &Name> {
    let seats = config.vteps.iter().filter_map(|vtep| Some((vtep.name.as_str(), &vtep.seat.as_ref()?.network)));
    seats.collect()
}

/// The network that is the outside of this one.
pub fn outside(network: &Network) -> Option<&Name> {
    match &network.nat {
        Some(Nat { engine: NatEngine::Packet { via: Via::Network(name), .. }, .. }) => Some(name),
        _ => None,
    }
}

/// For each network the number of its set, where those that name each other, directly or over others, are in one.
fn sets<'a, I: Iterator<Item = &'a Name>>(networks: &'a [Network], names: impl Fn(&'a Network) -> I) -> Vec<usize> {
    let at_of: HashMap<&Name, usize> = networks.iter().zip(0..).map(|(network, at)| (&network.name, at)).collect();
    // A network points to another of its set, or to itself: then it has the set's number.
    let mut to: Vec<usize> = (0..networks.len()).collect();
    for (at, network) in networks.iter().enumerate() {
        for other in names(network).filter_map(|name| at_of.get(name)) {
            let (one, two) = (set(&mut to, at), set(&mut to, *other));
            if let Some(place) = to.get_mut(one.max(two)) {
                *place = one.min(two);
            }
        }
    }
    (0..networks.len()).map(|at| set(&mut to, at)).collect()
}

/// The number of a network's set; ways there become shorter.
fn set(to: &mut [usize], mut at: usize) -> usize {
    while let Some(next) = to.get(at).copied().filter(|next| *next != at) {
        let further = to.get(next).copied().unwrap_or(next);
        if let Some(place) = to.get_mut(at) {
            *place = further;
        }
        at = further;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    fn config(text: &str) -> Config {
        let around = Surroundings { root: true, ..Surroundings::default() };
        config::parse(text, "t.toml".as_ref(), &around).unwrap()
    }

    #[test]
    fn networks_that_are_routed_to_each_other_share_a_worker_and_a_router() {
        let network = |name: &str, n: u8, more: &str| {
            format!("[networks.{name}]\nmode = \"nat\"\nsubnet = \"10.1.{n}.0/24\"\n{more}\n")
        };
        let text = [
            network("a", 1, ""),
            network("b", 2, "route = [\"d\"]"),
            network("c", 3, ""),
            network("d", 4, ""),
            "[networks.e]\n".to_owned(),
            "[guests.g]\nports = [{ network = \"d\" }, { network = \"e\" }, { network = \"b\" }]".to_owned(),
        ];
        let config = config(&text.concat());
        let mut places = Places::new(&config, 2);
        let workers: Vec<usize> = places.networks.iter().map(|(worker, _)| *worker).collect();
        assert_eq!(workers, [0, 1, 0, 1, 1]);
        let bridges: Vec<u16> = places.networks.iter().map(|(_, id)| id.0).collect();
        assert_eq!(bridges, [0, 0, 1, 1, 2]);
        assert_eq!(places.ports, [(1, NicId(0)), (1, NicId(1)), (1, NicId(2))]);
        assert_eq!(routers(&config), [vec![0], vec![1, 3], vec![2]]);
        assert_eq!((places.nic(1), places.nic(1), places.nic(0)), (NicId(3), NicId(4), NicId(0)));
        assert_eq!((places.bridge(0), places.bridge(1)), (BridgeId(2), BridgeId(3)));
    }

    #[test]
    fn networks_of_an_endpoint_share_a_worker_with_the_one_it_is_in() {
        let text = "[networks.a]\n[networks.fabric]\n[networks.t]\noverlay = { vtep = \"main\", vni = 1 }\n[networks.b]\n\
                    [networks.u]\noverlay = { vtep = \"main\", vni = 2 }\n[vteps.main]\nnetwork = \"fabric\"\nlocal = \"10.0.0.1/24\"\n";
        let places = Places::new(&config(text), 2);
        let workers: Vec<usize> = places.networks.iter().map(|(worker, _)| *worker).collect();
        assert_eq!(workers, [0, 1, 1, 0, 1]);
    }
}

//! The engines of networks behind address translation, as control sees them: what they are made of, what they forward, what they remember.
//!
//! Invariant: control speaks to an engine by its `Remote` only, and never waits for it with a lock held that a frame needs. A publication
//! that cannot be made is told once and tried again; the others work.
//!
//! Theory of operation: a publication may lead to a guest by name, whose address is declared or comes by DHCP, and can change. So what is wanted
//! ([`Publish`]) is compared with what is in force once a second, and the difference is sent to the engine.
//! Read first: `nat::control`.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant},
};

use nat::{Command, Line, Prefix, Publication, Remote};
use wire::{Mac, NicId, Port};

use crate::{
    config::{self, Config, Name, Network, Proto, Publish, Segment, Target, Via},
    engines,
    gateways::{Leased, Leases},
    model::NatEntry,
    place::On,
};

/// How long an engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two attempts at a publication that could not be made.
const AGAIN: Duration = Duration::from_secs(5);

/// What lies behind a router.
pub struct WayOut {
    /// The engine.
    pub port: Box<dyn Port>,
    /// What it needs outside.
    pub outside: Option<Outside>,
}

/// The outside of an engine that has a NIC there.
pub struct Outside {
    /// Its address.
    pub mac: Mac,
    /// The addresses of its pool, which nobody else in the network that is outside may speak for; empty where that is the host's business.
    pub addresses: Vec<IpAddr>,
    /// The network of the configuration that it is in; none: a bridge of its own.
    pub network: Option<Name>,
    /// What else is in that bridge: an uplink or a TAP, which may not be there yet.
    pub uplink: Option<Via>,
}

/// The engines of all networks, for any thread.
#[derive(Clone, Default)]
pub struct Nats(Arc<Mutex<Vec<Engine>>>);

struct Engine {
    network: Name,
    worker: usize,
    remote: Remote,
    wanted: Vec<Publish>,
    in_force: Vec<(Publish, Publication)>,
    /// Publications that could not be made: why, and when to try again.
    refused: HashMap<String, (String, Instant)>,
    /// Those that lead to nobody yet, and why.
    waiting: BTreeMap<String, String>,
}

/// Finds out where a guest of a network is.
pub struct Finder<'a> {
    /// The running configuration.
    pub config: &'a Config,
    /// Where its ports are.
    pub places: &'a [On<NicId>],
    /// What its guests have by DHCP.
    pub leases: &'a Leases,
}

impl Nats {
    /// The way out of a network; nothing where it has none.
    ///
    /// # Errors
    /// What the engine needs cannot be had.
    pub fn make(&self, config: &Config, network: &Network, worker: usize) -> io::Result<Option<WayOut>> {
        let Some(nat) = &network.nat else { return Ok(None) };
        let (remote, inbox) = nat::remote();
        let way_out = engines::make(config, network, nat, inbox)?;
        self.lock().push(Engine {
            network: network.name.clone(),
            worker,
            remote,
            wanted: nat.publish.clone(),
            in_force: Vec::new(),
            refused: HashMap::new(),
            waiting: BTreeMap::new(),
        });
        Ok(Some(way_out))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Engine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every engine remembers.
    pub fn list(&self) -> Vec<NatEntry> {
        let ask = |engine: &Engine| {
            let (reply, answer) = sync_channel(1);
            engine.remote.send(Command::Show(reply));
            (engine.network.to_string(), answer)
        };
        let asked: Vec<(String, Receiver<Vec<Line>>)> = self.lock().iter().map(ask).collect();
        let lines = |(network, answer): (String, Receiver<Vec<Line>>)| {
            let lines = answer.recv_timeout(PATIENCE).unwrap_or_default();
            lines.into_iter().map(move |line| entry(&network, &line))
        };
        asked.into_iter().flat_map(lines).collect()
    }

    /// Tells the engines the addresses that are this host's.
    pub fn host_addresses(&self, addresses: &[Prefix]) {
        for engine in self.lock().iter() {
            engine.remote.send(Command::HostAddresses(addresses.to_vec()));
        }
    }

    /// What `network` is to publish from now on.
    pub fn want(&self, network: &Name, wanted: Vec<Publish>) {
        if let Some(engine) = self.lock().iter_mut().find(|engine| engine.network == *network) {
            engine.wanted = wanted;
            engine.refused.clear();
        }
    }

    /// The publications of a network that are not in force, and why.
    pub fn refused(&self, network: &Name) -> Vec<String> {
        let engines = self.lock();
        let own = || engines.iter().filter(|engine| engine.network == *network);
        let refused = own().flat_map(|engine| &engine.refused).map(|(name, (reason, _))| (name, reason));
        let all = refused.chain(own().flat_map(|engine| &engine.waiting));
        let mut all: Vec<String> = all.map(|(name, reason)| format!("not published: {name}: {reason}")).collect();
        all.sort();
        all
    }

    /// Brings what is in force up to what is wanted; what could not be done, in words.
    pub fn settle(&self, finder: &Finder<'_>) -> Vec<String> {
        self.lock().iter_mut().flat_map(|engine| engine.settle(finder)).collect()
    }
}

impl Engine {
    fn settle(&mut self, finder: &Finder<'_>) -> Vec<String> {
        let mut wanted: Vec<(Publish, Publication)> = Vec::new();
        let before = std::mem::take(&mut self.waiting);
        for publish in &self.wanted {
            match finder.find(&self.network, self.worker, publish) {
                Ok(publication) => wanted.push((publish.clone(), publication)),
                Err(reason) => {
                    let name = publish.to_string();
                    if before.get(&name) != Some(&reason) {
                        tracing::info!(network = %self.network, %publish, reason, "a publication leads to nobody yet");
                    }
                    self.waiting.insert(name, reason);
                }
            }
        }
        self.refused.retain(|name, _| wanted.iter().any(|(publish, _)| publish.to_string() == *name));
        let (stay, go): (Vec<_>, Vec<_>) = self.in_force.drain(..).partition(|old| wanted.contains(old));
        self.in_force = stay;
        for (publish, publication) in go {
            let (reply, answer) = sync_channel(1);
            self.remote.send(Command::Withdraw(publication, reply));
            let _ = answer.recv_timeout(PATIENCE);
            tracing::info!(network = %self.network, %publish, "published no more");
        }
        let mut failures = Vec::new();
        for (publish, publication) in wanted {
            if self.in_force.iter().any(|(_, other)| *other == publication) {
                continue;
            }
            let name = publish.to_string();
            if self.refused.get(&name).is_some_and(|(_, again)| Instant::now() < *again) {
                continue;
            }
            let (reply, answer) = sync_channel(1);
            self.remote.send(Command::Publish(publication.clone(), reply));
            match answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Err("the engine does not answer".to_owned())) {
                Ok(()) => {
                    tracing::info!(network = %self.network, %publish, to = %publication.to, "published");
                    self.refused.remove(&name);
                    self.in_force.push((publish, publication));
                }
                Err(reason) => {
                    let told = self.refused.get(&name).is_some_and(|(before, _)| *before == reason);
                    if !told {
                        tracing::error!(network = %self.network, %publish, reason, "not published; it is tried again");
                    }
                    failures.push(format!("network {}: {publish}: {reason}", self.network));
                    self.refused.insert(name, (reason, Instant::now() + AGAIN));
                }
            }
        }
        failures
    }
}

impl Finder<'_> {
    /// What a publication means now, or why it leads to nobody.
    fn find(&self, network: &Name, worker: usize, publish: &Publish) -> Result<Publication, String> {
        let (address, nic) = match &publish.to {
            Target::Address(address) => (*address, self.behind(network, *address)),
            Target::Guest(name) => self.guest(network, name, publish.listen.is_ipv6())?,
        };
        Ok(Publication {
            protocol: match publish.proto {
                Proto::Tcp => nat::Protocol::Tcp,
                Proto::Udp => nat::Protocol::Udp,
            },
            listen: publish.listen,
            to: SocketAddr::new(address, publish.to_port),
            count: publish.count,
            nic: nic.filter(|(on, _)| *on == worker).map(|(_, nic)| nic),
        })
    }

    fn ports<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = (&'a config::Port, On<NicId>)> {
        let all = self.config.ports.iter().zip(self.places.iter().copied());
        all.filter(move |(port, _)| port.network == *network)
    }

    /// Where an address is: what a port declares, or a lease.
    fn behind(&self, network: &Name, address: IpAddr) -> Option<On<NicId>> {
        let declared = self.ports(network).find(|(port, _)| port.addresses.contains(&address)).map(|(_, at)| at);
        declared.or_else(|| {
            let lease = self.leases.of(network.as_str()).into_iter().find(|lease| lease.address == address)?;
            let worker = self.ports(network).next()?.1.0;
            Some((worker, lease.nic?))
        })
    }

    /// The address of a guest: declared, or leased to a NIC of it; of a name that the configuration does not have, leased to who calls itself so.
    /// An address of the version that is listened on comes before others.
    fn guest(&self, network: &Name, guest: &Name, v6: bool) -> Result<(IpAddr, Option<On<NicId>>), String> {
        let leases = self.leases.of(network.as_str());
        let declared = |wanted: bool| {
            let mut own = self.ports(network).filter(|(port, _)| port.guest == *guest);
            own.find_map(|(port, at)| Some((*port.addresses.iter().find(|a| a.is_ipv6() == wanted)?, Some(at))))
        };
        // A MAC address that a port declares is its own in the port's segments.
        let segments = self.config.networks.iter().filter(|other| other.name == *network).flat_map(Network::segments);
        let segments: Vec<Segment<'_>> = segments.collect();
        let is_in = |port: &config::Port, lease: &Leased| {
            segments.iter().any(|segment| segment.vid() == lease.vlan && segment.carries(port))
        };
        let leased = |wanted: bool| {
            let mut own = self.ports(network).filter(|(port, _)| port.guest == *guest);
            own.find_map(|(port, at)| {
                let is_its =
                    |lease: &&Leased| (Some(lease.mac) == port.mac && is_in(port, lease)) || lease.nic == Some(at.1);
                let lease = leases.iter().filter(is_its).find(|lease| lease.address.is_ipv6() == wanted)?;
                Some((lease.address, Some(at)))
            })
        };
        if let Some(found) = [v6, !v6].into_iter().find_map(|wanted| declared(wanted).or_else(|| leased(wanted))) {
            return Ok(found);
        }
        if self.config.guests.iter().any(|known| known.name == *guest) {
            // Whoever else calls itself so is somebody else.
            return Err(format!("guest {guest} has no address yet"));
        }
        let called =
            |lease: &&Leased| lease.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(guest.as_str()));
        let first = leases.iter().find(called).ok_or_else(|| format!("nobody is called {guest}"))?;
        let its = leases.iter().filter(called).filter(|lease| lease.mac == first.mac);
        let lease = its.min_by_key(|lease| lease.address.is_ipv6() != v6).unwrap_or(first);
        Ok((lease.address, self.behind(network, lease.address)))
    }
}

fn entry(network: &str, line: &Line) -> NatEntry {
    NatEntry {
        network: network.to_owned(),
        proto: line.protocol.name().to_owned(),
        inside: line.inside.to_string(),
        outside: line.outside.map(|outside| outside.to_string()),
        remote: line.remote.map(|remote| remote.to_string()),
        state: line.state.to_owned(),
        expires_s: line.expires.map(u64::from),
        packets: line.packets,
        bytes: line.bytes,
    }
}

#[cfg(test)]
mod tests;

//! [`Switch`]: the workers that carry out a configuration, and what is known about its ports.
//!
//! Invariant: every port of the configuration has one NIC on one worker, that of its network; networks are dealt to the workers in turn.
//! Nothing here touches a frame: it sends changes and reads reports. Read first: `vswitch::change`.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError, mpsc::sync_channel},
    time::{Duration, Instant},
};

use vswitch::{
    BridgeSpec, Membership, NicSpec, Role,
    budget::{Budget, Budgets},
    change::{BridgeId, Change, Failure},
    thread::{Changes, Idle, WorkerHandle, WorkerSpec},
};
use wire::{NicId, Sizes};

use crate::{
    config::{self, Config, Name, Port, Station, Tagging},
    gateways::Leases,
    model::PortState,
    nat::Nats,
    place::Places,
    routers::{self, Routers},
    seed,
    service::{NameServers, Networks, Service},
    tunnels::Tunnels,
    uplinks::Uplinks,
    view::View,
};

/// How long a worker may take to answer before its figures are left out.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Where a port is.
#[derive(Clone)]
pub struct Place {
    /// Its worker's inbox.
    pub changes: Changes,
    /// Its NIC there.
    pub nic: NicId,
}

/// How a port is doing.
#[derive(Clone, Debug)]
pub(crate) struct Doing {
    pub(crate) state: PortState,
    pub(crate) reason: Option<String>,
}

/// What is told when a port comes up or does so no longer.
type Watcher = Box<dyn Fn(usize, PortState) + Send>;

/// How every port is doing, written by sessions and workers.
#[derive(Clone)]
pub struct States {
    ports: Arc<Mutex<Vec<Doing>>>,
    watchers: Arc<Mutex<Vec<Watcher>>>,
}

impl States {
    pub(crate) fn new(ports: usize) -> Self {
        let waiting = Doing { state: PortState::Waiting, reason: None };
        States { ports: Arc::new(Mutex::new(vec![waiting; ports])), watchers: Arc::default() }
    }

    /// Port `index` of the configuration is in this state, for this reason.
    pub fn set(&self, index: usize, state: PortState, reason: Option<String>) {
        // Held all the while, so that watchers hear of changes in their order.
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(doing) = self.ports.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            *doing = Doing { state, reason };
        }
        watchers.iter().for_each(|watcher| watcher(index, state));
    }

    /// Has `watcher` told how every port is doing, now and whenever that is set. It must not wait.
    pub fn watch(&self, watcher: impl Fn(usize, PortState) + Send + 'static) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.iter().enumerate().for_each(|(index, doing)| watcher(index, doing.state));
        watchers.push(Box::new(watcher));
    }

    pub(crate) fn get(&self, index: usize) -> Doing {
        let all = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(index).cloned().unwrap_or(Doing { state: PortState::Down, reason: None })
    }
}

/// The workers of a running configuration.
pub struct Switch {
    config: Config,
    started: Instant,
    workers: Vec<WorkerHandle>,
    inboxes: Vec<Changes>,
    places: Vec<(usize, NicId)>,
    states: States,
    routers: Routers,
    leases: Leases,
    nats: Nats,
    uplinks: Uplinks,
    tunnels: Tunnels,
    /// As it was read last.
    file: Arc<Mutex<Config>>,
    /// What routers do that may have to wait; none where there are no routers.
    _service: Option<Service>,
}

impl Switch {
    /// Starts the workers, their bridges and the ports' NICs, all without lanes, and routers. `file` is the configuration as it was read,
    /// before anything in it was chosen.
    ///
    /// # Errors
    /// A thread or its memory cannot be had.
    pub fn start(config: Config, file: Config) -> io::Result<Self> {
        let states = States::new(config.ports.len());
        let count = config.host.worker_cpus.len().max(1);
        let mut places = Places::new(&config, count);
        let (leases, nats, uplinks) = (Leases::default(), Nats::default(), Uplinks::default());
        let mut workers = Vec::new();
        for (index, cpu) in config.host.worker_cpus.iter().enumerate() {
            let spec = WorkerSpec { cpu: cpu.map(|cpu| cpu as usize), idle: idle(&config.host), sizes: sizes(&config) };
            let on_this = places.ports.iter().enumerate().filter(|(_, (worker, _))| *worker == index);
            let ports: HashMap<NicId, usize> = on_this.map(|(port, (_, nic))| (*nic, port)).collect();
            let of_uplinks = uplinks.clone();
            let of_uplinks = move |failure: &Failure| of_uplinks.failed((index, failure.nic), &failure.reason);
            workers.push(WorkerHandle::spawn(spec, failures(ports, states.clone(), &config, of_uplinks))?);
        }
        let inboxes: Vec<Changes> = workers.iter().map(WorkerHandle::changes).collect();
        let mut ports_of: HashMap<&Name, Vec<usize>> = HashMap::new();
        config.ports.iter().enumerate().for_each(|(at, port)| ports_of.entry(&port.network).or_default().push(at));
        let told = config.told();
        for (network, (worker, id)) in config.networks.iter().zip(&places.networks) {
            let Some(inbox) = inboxes.get(*worker) else { continue };
            let ports = ports_of.get(&network.name).map_or([].as_slice(), Vec::as_slice);
            let fixed = ports.iter().filter_map(|index| config.ports.get(*index)).map(|port| port.fdb.len()).sum();
            inbox.send(Change::AddBridge { id: *id, spec: bridge_spec(&config, fixed)? });
            for index in ports {
                if let (Some(port), Some((_, nic))) = (config.ports.get(*index), places.ports.get(*index)) {
                    inbox.send(Change::AddNic { nic: *nic, bridge: *id, spec: nic_spec(port, &told) });
                    add_stations(inbox, *id, *nic, port)?;
                }
            }
        }
        let mut services = Networks::default();
        let routers = routers::start(&config, &mut places, &inboxes, (&leases, &nats, &uplinks), &mut services)?;
        let service = serve(&config, services, &leases)?;
        let (places, file) = (places.ports, Arc::new(Mutex::new(file)));
        Ok(Switch {
            config,
            started: Instant::now(),
            workers,
            inboxes,
            places,
            states,
            routers,
            leases,
            nats,
            uplinks,
            tunnels: Tunnels::default(),
            file,
            _service: service,
        })
    }

    /// What it carries out.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the ports are, in the order of the configuration.
    pub fn places(&self) -> Vec<Place> {
        all_places(&self.inboxes, &self.places)
    }

    /// How the ports are doing.
    pub fn states(&self) -> States {
        self.states.clone()
    }

    /// What can be asked of it from another thread.
    pub fn view(&self) -> View {
        View {
            config: self.config.clone(),
            started: self.started,
            inboxes: self.inboxes.clone(),
            places: self.places.clone(),
            states: self.states.clone(),
            routers: self.routers.clone(),
            leases: self.leases.clone(),
            nats: self.nats.clone(),
            uplinks: self.uplinks.clone(),
            tunnels: self.tunnels.clone(),
            file: Arc::clone(&self.file),
        }
    }

    /// Ends the workers; every port is let go when this returns.
    pub fn stop(&mut self) {
        self.workers.iter_mut().for_each(WorkerHandle::stop);
    }
}

/// Starts the service of those routers, if there are any.
fn serve(config: &Config, networks: Networks, leases: &Leases) -> io::Result<Option<Service>> {
    if networks.len() == 0 {
        return Ok(None);
    }
    let servers = match config.host.resolvers.as_slice() {
        [] => NameServers::File(config.host.resolv_conf.clone()),
        given => NameServers::Given(given.to_vec()),
    };
    let (networks, names) = networks.finish(leases.clone());
    Service::start(networks, servers, names).map(Some)
}

fn idle(host: &config::Host) -> Idle {
    match host.idle {
        config::Idle::Adaptive => Idle::Adaptive(Duration::from_micros(u64::from(host.spin_us))),
        config::Idle::Poll => Idle::Poll,
        config::Idle::Sleep => Idle::Sleep,
    }
}

/// Heads for a burst flooded to every lane.
fn sizes(config: &Config) -> Sizes {
    let lanes: usize = config.ports.iter().map(|port| usize::from(port.queues)).sum();
    Sizes { heads: (wire::BURST * (1 + lanes)).max(Sizes::default().heads), ..Sizes::default() }
}

/// Stations that all networks together remember, where there are many.
const STATIONS: usize = 1 << 21;

/// Where all ports are. Each has a worker that there is.
pub(crate) fn all_places(inboxes: &[Changes], places: &[(usize, NicId)]) -> Vec<Place> {
    let place = |(worker, nic): &(usize, NicId)| Some(Place { changes: inboxes.get(*worker)?.clone(), nic: *nic });
    places.iter().filter_map(place).collect()
}

/// A network remembers as many stations as a bridge does by itself, unless there are so many networks that it would be too much for this host's memory.
/// `fixed` of them are static.
fn bridge_spec(config: &Config, fixed: usize) -> io::Result<BridgeSpec> {
    let spec = BridgeSpec::new(seed::random()?);
    let share = STATIONS / config.networks.len().max(1);
    // Static ones may take half.
    Ok(BridgeSpec { fdb_capacity: share.max(256).max(fixed * 2).min(spec.fdb_capacity), ..spec })
}

/// `told` are the endpoints whose stations are told by BGP.
fn nic_spec(port: &Port, told: &HashSet<&str>) -> NicSpec {
    let tunnel = match &port.attach {
        config::Attach::Tunnel { vtep, .. } => Some(vtep.as_str()),
        _ => None,
    };
    let is_tunnel = tunnel.is_some();
    NicSpec {
        membership: match &port.tagging {
            Tagging::Untagged {} => Membership::Untagged,
            Tagging::Access { vlan } => Membership::Access(*vlan),
            Tagging::Trunk { trunk, native } => Membership::Trunk { vlans: trunk.clone(), native: *native },
        },
        guard: port.mac.filter(|_| port.guard),
        addresses: if port.guard || port.is_host { port.addresses.clone() } else { Vec::new() },
        role: if port.is_host { Role::Host } else { Role::Guest },
        isolated: port.isolated,
        pass_reserved: port.pass_reserved,
        // Behind an uplink are many stations, and what holds their storms is the physical network. Behind a tunnel nothing does.
        budgets: if port.is_uplink && !is_tunnel { unlimited() } else { Budgets::default() },
        budgets_each: is_tunnel,
        told: tunnel.is_some_and(|vtep| told.contains(vtep)),
    }
}

/// Only what goes round a loop ends.
fn unlimited() -> Budgets {
    let all = Budget::UNLIMITED;
    Budgets { broadcast: all, multicast: all, unknown: all, ..Budgets::default() }
}

/// Puts a port's static stations into the forwarding table of its network.
fn add_stations(inbox: &Changes, bridge: BridgeId, nic: NicId, port: &Port) -> io::Result<()> {
    for Station { mac, vlan } in port.fdb.iter().copied() {
        let (reply, answer) = sync_channel(1);
        inbox.send(Change::AddStatic { bridge, vlan, mac, nic, reply });
        let added = answer.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        added.map_err(|error| io::Error::other(format!("static entry {mac} of port {}: {error}", port.name)))?;
    }
    Ok(())
}

/// What a worker calls when it detached a port that failed.
fn failures(
    ports: HashMap<NicId, usize>,
    states: States,
    config: &Config,
    of_uplinks: impl Fn(&Failure) -> bool + Send + 'static,
) -> Box<dyn FnMut(Failure) + Send> {
    let has_session = |port: &Port| matches!(port.attach, config::Attach::VhostUser { .. });
    let names: Vec<(String, bool)> =
        config.ports.iter().map(|port| (port.name.to_string(), has_session(port))).collect();
    Box::new(move |failure| {
        let Some(index) = ports.get(&failure.nic) else {
            if of_uplinks(&failure) {
                return;
            }
            let Failure { nic, reason, .. } = failure;
            return tracing::error!(nic = nic.0, reason, "a router failed: its network goes on without it");
        };
        let Some((name, has_session)) = names.get(*index) else { return };
        tracing::warn!(port = name, lane = failure.lane, reason = failure.reason, "the port failed and is detached");
        // A vhost-user port's session hears of it as well and knows better what follows.
        if !has_session {
            states.set(*index, PortState::Down, Some(failure.reason));
        }
    })
}

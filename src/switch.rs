//! [`Switch`]: the workers that carry out a configuration, and what is known about its ports.
//!
//! Invariant: every port of the configuration has one NIC on one worker, that of its network; networks are dealt to the workers in turn.
//! Nothing here touches a frame: it sends changes and reads reports. Read first: `vswitch::change`.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant},
};

use vswitch::{
    BridgeSpec, Membership, NicSpec,
    budget::{Budget, Budgets},
    change::{BridgeId, Change, Failure, Report},
    thread::{Changes, Idle, WorkerHandle, WorkerSpec},
};
use wire::{Ledger, NicId, Sizes};

use crate::{
    config::{self, Config, Network, Port, Station, Tagging},
    gateways::{Leases, Made},
    model::{DropCount, FdbEntry, NetworkStatus, PortState, PortStatus, Status, WorkerStatus},
};

/// How long a worker may take to answer before its figures are left out.
const PATIENCE: Duration = Duration::from_secs(2);

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
struct Doing {
    state: PortState,
    reason: Option<String>,
}

/// How every port is doing, written by sessions and workers.
#[derive(Clone)]
pub struct States(Arc<Mutex<Vec<Doing>>>);

impl States {
    fn new(ports: usize) -> Self {
        let waiting = Doing { state: PortState::Waiting, reason: None };
        States(Arc::new(Mutex::new(vec![waiting; ports])))
    }

    /// Port `index` of the configuration is in this state, for this reason.
    pub fn set(&self, index: usize, state: PortState, reason: Option<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(doing) = all.get_mut(index) {
            *doing = Doing { state, reason };
        }
    }

    fn get(&self, index: usize) -> Doing {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    routers: Vec<Router>,
    leases: Leases,
}

/// The router of a network, a NIC that no port of the configuration stands for.
#[derive(Clone, Debug)]
struct Router {
    network: String,
    at: (usize, NicId),
}

impl Router {
    /// As tables have it.
    fn name(&self) -> String {
        format!("{}/router", self.network)
    }
}

impl Switch {
    /// Starts the workers, their bridges and the ports' NICs, all without lanes.
    ///
    /// # Errors
    /// A thread or its memory cannot be had.
    pub fn start(config: Config) -> io::Result<Self> {
        let states = States::new(config.ports.len());
        let count = config.host.worker_cpus.len().max(1);
        let (network_places, places) = place(&config, count);
        let (mut routers, leases) = (Vec::new(), Leases::default());
        let mut workers = Vec::new();
        for (index, cpu) in config.host.worker_cpus.iter().enumerate() {
            let spec = WorkerSpec { cpu: cpu.map(|cpu| cpu as usize), idle: idle(&config.host), sizes: sizes(&config) };
            let on_this = places.iter().enumerate().filter(|(_, (worker, _))| *worker == index);
            let ports: HashMap<NicId, usize> = on_this.map(|(port, (_, nic))| (*nic, port)).collect();
            workers.push(WorkerHandle::spawn(spec, failures(ports, states.clone(), &config))?);
        }
        let inboxes: Vec<Changes> = workers.iter().map(WorkerHandle::changes).collect();
        for (network, (worker, id)) in config.networks.iter().zip(&network_places) {
            let Some(inbox) = inboxes.get(*worker) else { continue };
            inbox.send(Change::AddBridge { id: *id, spec: BridgeSpec::new(seed()?) });
            for (index, port) in config.ports.iter().enumerate().filter(|(_, port)| port.network == network.name) {
                if let Some((_, nic)) = places.get(index) {
                    inbox.send(Change::AddNic { nic: *nic, bridge: *id, spec: nic_spec(port) });
                    add_stations(inbox, *id, *nic, port)?;
                }
            }
            if let Some(Made { port, mac }) = leases.make(&config, network, seed()?)? {
                // Behind the NICs of the worker's ports and of its other routers.
                let taken = places.iter().chain(routers.iter().map(|router: &Router| &router.at));
                let nic = NicId(taken.filter(|(on, _)| on == worker).count() as u16);
                let spec = NicSpec { guard: Some(mac), ..NicSpec::default() };
                inbox.send(Change::AddNic { nic, bridge: *id, spec });
                inbox.send(Change::Attach { nic, lane: 0, port: Box::new(port) });
                routers.push(Router { network: network.name.to_string(), at: (*worker, nic) });
            }
        }
        Ok(Switch { config, started: Instant::now(), workers, inboxes, places, states, routers, leases })
    }

    /// What it carries out.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the ports are, in the order of the configuration.
    pub fn places(&self) -> Vec<Place> {
        let place = |(worker, nic): &(usize, NicId)| {
            self.inboxes.get(*worker).map(|changes| Place { changes: changes.clone(), nic: *nic })
        };
        self.places.iter().filter_map(place).collect()
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
        }
    }

    /// Ends the workers; every port is let go when this returns.
    pub fn stop(&mut self) {
        self.workers.iter_mut().for_each(WorkerHandle::stop);
    }
}

/// Answers what the control socket asks. Its methods wait for the workers: call them where waiting is allowed.
#[derive(Clone)]
pub struct View {
    config: Config,
    started: Instant,
    inboxes: Vec<Changes>,
    places: Vec<(usize, NicId)>,
    states: States,
    routers: Vec<Router>,
    leases: Leases,
}

impl View {
    /// The leases of all networks.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// A report of each worker; none for one that does not answer.
    fn reports(&self) -> Vec<Option<Report>> {
        let asked: Vec<Receiver<Report>> = self
            .inboxes
            .iter()
            .map(|inbox| {
                let (reply, answer) = sync_channel(1);
                inbox.send(Change::Show { reply });
                answer
            })
            .collect();
        asked.into_iter().map(|answer| answer.recv_timeout(PATIENCE).ok()).collect()
    }

    /// Everything at a glance.
    pub fn status(&self) -> Status {
        let reports = self.reports();
        let workers = reports.iter().zip(&self.config.host.worker_cpus).map(|(report, cpu)| WorkerStatus {
            cpu: *cpu,
            frames: report.as_ref().map_or(0, |report| report.frames),
            busy_cycles: report.as_ref().map_or(0, |report| report.busy_cycles),
            idle_cycles: report.as_ref().map_or(0, |report| report.idle_cycles),
        });
        Status {
            host: self.config.host.name.clone(),
            uptime_s: self.started.elapsed().as_secs(),
            workers: workers.collect(),
            ports: self.ports_of(&reports),
            networks: self.networks(),
        }
    }

    /// All networks.
    pub fn networks(&self) -> Vec<NetworkStatus> {
        let status = |network: &Network| NetworkStatus {
            name: network.name.to_string(),
            mode: network.mode.to_string(),
            subnet: network.subnet.map(|subnet| subnet.to_string()),
            subnet6: network.subnet6.map(|subnet| subnet.to_string()),
            mtu: network.mtu,
            ports: self.config.ports_of(&network.name).map(|port| port.name.to_string()).collect(),
        };
        self.config.networks.iter().map(status).collect()
    }

    /// The sums of ports and workers, of one moment; nothing when a worker does not answer.
    pub fn sums(&self) -> Option<Sums> {
        let mut sums = Sums::default();
        for report in self.reports() {
            let Report { ledger, counters, .. } = report?;
            sums.ledger.received += ledger.received;
            sums.ledger.copied += ledger.copied;
            sums.ledger.originated += ledger.originated;
            sums.ledger.transmitted += ledger.transmitted;
            sums.ledger.dropped += ledger.dropped;
            sums.ledger.held += ledger.held;
            for (_, counters) in counters {
                sums.rx += counters.rx_frames;
                sums.tx += counters.tx_frames;
                sums.dropped += counters.total_drops();
            }
        }
        Some(sums)
    }

    /// All ports with their counters.
    pub fn ports(&self) -> Vec<PortStatus> {
        self.ports_of(&self.reports())
    }

    fn ports_of(&self, reports: &[Option<Report>]) -> Vec<PortStatus> {
        let ports = self.config.ports.iter().zip(&self.places).enumerate();
        let status = |(index, (port, (worker, nic))): (usize, (&Port, &(usize, NicId)))| {
            let report = reports.get(*worker).and_then(Option::as_ref);
            let counters = report.and_then(|report| report.counters.iter().find(|(id, _)| id == nic));
            let counters = counters.map(|(_, counters)| counters.clone()).unwrap_or_default();
            let Doing { state, reason } = self.states.get(index);
            PortStatus {
                name: port.name.to_string(),
                network: port.network.to_string(),
                guest: port.guest.to_string(),
                attach: port.attach.word().to_owned(),
                state,
                reason,
                rx_frames: counters.rx_frames,
                rx_bytes: counters.rx_bytes,
                tx_frames: counters.tx_frames,
                tx_bytes: counters.tx_bytes,
                drops: counters.all_drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            }
        };
        ports.map(status).collect()
    }

    /// The forwarding table of every network.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        let ports = self.places.iter().copied().zip(&self.config.ports);
        let ports = ports.map(|(at, port)| (at, (port.network.to_string(), port.name.to_string())));
        let routers = self.routers.iter().map(|router| (router.at, (router.network.clone(), router.name())));
        let names: BTreeMap<(usize, NicId), (String, String)> = ports.chain(routers).collect();
        let mut entries = Vec::new();
        for (worker, report) in self.reports().into_iter().enumerate() {
            for (_, stations) in report.into_iter().flat_map(|report| report.fdb) {
                entries.extend(stations.into_iter().filter_map(|station| {
                    let (network, port) = names.get(&(worker, station.nic))?.clone();
                    Some(FdbEntry {
                        network,
                        vlan: station.vlan.map(wire::Vid::get),
                        vni: None,
                        mac: station.mac.to_string(),
                        port,
                        age_s: u64::from(station.age),
                        fixed: station.fixed,
                    })
                }));
            }
        }
        entries.sort_by(|a, b| (&a.network, a.vlan, &a.mac).cmp(&(&b.network, b.vlan, &b.mac)));
        entries
    }

    /// Every drop counter that is not zero.
    pub fn drops(&self) -> Vec<DropCount> {
        let reports = self.reports();
        let ports = self.ports_of(&reports).into_iter().map(|port| (port.name, port.drops));
        let routers = self.routers.iter().filter_map(|router| {
            let (worker, nic) = router.at;
            let report = reports.get(worker)?.as_ref()?;
            let (_, counters) = report.counters.iter().find(|(id, _)| *id == nic)?;
            let drops = counters.all_drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect();
            Some((router.name(), drops))
        });
        let of = |(port, drops): (String, BTreeMap<String, u64>)| {
            drops.into_iter().map(move |(reason, count)| DropCount { port: port.clone(), reason, count })
        };
        ports.chain(routers).flat_map(of).collect()
    }
}

/// What all workers together have moved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// As the workers count it.
    pub ledger: Ledger,
    /// Frames that came in, as ports count them.
    pub rx: u64,
    /// Frames that went out, as ports count them.
    pub tx: u64,
    /// Frames that were dropped, as ports count them.
    pub dropped: u64,
}

/// Something's worker, and its place there.
type On<T> = (usize, T);

/// Where every network and every port goes.
fn place(config: &Config, workers: usize) -> (Vec<On<BridgeId>>, Vec<On<NicId>>) {
    let networks: Vec<(usize, BridgeId)> =
        (0..config.networks.len()).map(|index| (index % workers, BridgeId((index / workers) as u16))).collect();
    let mut next = vec![0u16; workers];
    let port_place = |port: &Port| {
        let network = config.networks.iter().position(|network| network.name == port.network);
        let worker = network.and_then(|index| networks.get(index)).map_or(0, |(worker, _)| *worker);
        let nic = next.get_mut(worker).map_or(0, |next| std::mem::replace(next, *next + 1));
        (worker, NicId(nic))
    };
    let ports = config.ports.iter().map(port_place).collect();
    (networks, ports)
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

fn nic_spec(port: &Port) -> NicSpec {
    NicSpec {
        membership: match &port.tagging {
            Tagging::Untagged {} => Membership::Untagged,
            Tagging::Access { vlan } => Membership::Access(*vlan),
            Tagging::Trunk { trunk, native } => Membership::Trunk { vlans: trunk.clone(), native: *native },
        },
        guard: port.mac.filter(|_| port.guard),
        isolated: port.isolated,
        pass_reserved: port.pass_reserved,
        // Behind an uplink are many stations, and what holds their storms is the physical network.
        budgets: if port.is_uplink { UNLIMITED } else { Budgets::default() },
    }
}

const UNLIMITED: Budgets =
    Budgets { broadcast: Budget::UNLIMITED, multicast: Budget::UNLIMITED, unknown: Budget::UNLIMITED };

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
fn failures(ports: HashMap<NicId, usize>, states: States, config: &Config) -> Box<dyn FnMut(Failure) + Send> {
    let names: Vec<(String, bool)> =
        config.ports.iter().map(|port| (port.name.to_string(), port.attach.word() == "tap")).collect();
    Box::new(move |failure| {
        let Some(index) = ports.get(&failure.nic) else { return };
        let Some((name, is_tap)) = names.get(*index) else { return };
        tracing::warn!(port = name, lane = failure.lane, reason = failure.reason, "the port failed and is detached");
        // A vhost-user port's session hears of it as well and knows better what follows.
        if *is_tap {
            states.set(*index, PortState::Down, Some(failure.reason));
        }
    })
}

/// A number that guests cannot know.
fn seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

//! [`View`]: what the control socket asks of a running switch, and the little that it changes.
//!
//! Invariant: a view is a copy for any thread; asking costs a worker no more than a report between two turns. Read first: [`crate::switch`].

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    time::Instant,
};

use vswitch::{
    change::{Change, Report},
    thread::Changes,
};
use wire::{Ledger, NicId};

use crate::{
    config::{self, Config, Network, Port, Segment, Surroundings},
    gateways::Leases,
    host,
    model::{DropCount, FdbEntry, NetworkStatus, PortStatus, Status, VlanStatus, WorkerStatus},
    nat::{Finder, Nats},
    plan::{Asked, Plan},
    routers::Routers,
    switch::{self, Doing, PATIENCE, States},
    tunnels::{self, Tunnels},
    uplinks::Uplinks,
};

mod flapping;
mod stations;

/// The configuration that somebody asks about.
fn read(asked: &Asked) -> Result<Config, String> {
    config::parse(&asked.text, Path::new(&asked.file), &Surroundings::here()).map_err(|error| error.to_string())
}

/// Answers what the control socket asks. Its methods wait for the workers: call them where waiting is allowed.
#[derive(Clone)]
pub struct View {
    pub(crate) config: Config,
    pub(crate) started: Instant,
    pub(crate) inboxes: Vec<Changes>,
    pub(crate) places: Vec<(usize, NicId)>,
    pub(crate) states: States,
    pub(crate) routers: Routers,
    pub(crate) leases: Leases,
    pub(crate) nats: Nats,
    pub(crate) tunnels: Tunnels,
    pub(crate) uplinks: Uplinks,
    /// As it was read last.
    pub(crate) file: Arc<Mutex<Config>>,
}

impl View {
    /// The leases of all networks.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The engines of networks behind address translation.
    pub fn nats(&self) -> &Nats {
        &self.nats
    }

    /// The tunnel endpoints.
    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// Looks for the uplinks and tries the tunnel endpoints that are not there.
    pub fn look_for_the_missing(&self) {
        self.uplinks.look();
        tunnels::look(&self.config, || switch::all_places(&self.inboxes, &self.places), &self.states, &self.tunnels);
    }

    /// Has engines publish what they are to, at the addresses that guests have now, and tells them those of the host; what could not
    /// be done, in words.
    pub fn settle_nats(&self) -> Vec<String> {
        self.nats.host_addresses(&host::own_prefixes());
        self.nats.settle(&Finder { config: &self.config, places: &self.places, leases: &self.leases })
    }

    /// What another configuration would change; the words why it is none.
    pub fn plan(&self, asked: &Asked) -> Result<Plan, String> {
        Ok(Plan::between(&self.lock_file(), &read(asked)?))
    }

    /// Changes what another configuration changes, if all of it can be changed now; the words why it is none.
    pub fn apply(&self, asked: &Asked) -> Result<Plan, String> {
        let next = read(asked)?;
        let mut file = self.lock_file();
        let mut plan = Plan::between(&file, &next);
        if !plan.restart.is_empty() {
            return Ok(plan);
        }
        for network in &next.networks {
            if let Some(nat) = &network.nat {
                self.nats.want(&network.name, nat.publish.clone());
            }
        }
        *file = next;
        plan.failures = self.settle_nats();
        plan.applied = true;
        Ok(plan)
    }

    fn lock_file(&self) -> MutexGuard<'_, Config> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
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
            networks: self.networks_of(&reports),
            descriptors: host::open_descriptors(),
        }
    }

    /// All networks.
    pub fn networks(&self) -> Vec<NetworkStatus> {
        self.networks_of(&self.reports())
    }

    fn networks_of(&self, reports: &[Option<Report>]) -> Vec<NetworkStatus> {
        let flapping = flapping::all(self, reports);
        let status = |network: &Network| NetworkStatus {
            name: network.name.to_string(),
            mode: network.mode.to_string(),
            subnet: network.subnet.map(|subnet| subnet.to_string()),
            subnet6: network.subnet6.map(|subnet| subnet.to_string()),
            mtu: network.mtu,
            ports: self.config.ports_of(&network.name).map(|port| port.name.to_string()).collect(),
            vlans: network.segments().filter_map(|segment| self.vlan(&segment)).collect(),
            reason: self.lacks(network),
            flapping: flapping
                .iter()
                .filter(|(name, _)| network.name.as_str() == name)
                .map(|(_, one)| one.clone())
                .collect(),
        };
        self.config.networks.iter().map(status).collect()
    }

    fn vlan(&self, segment: &Segment<'_>) -> Option<VlanStatus> {
        let ports = self.config.ports.iter().filter(|port| segment.carries(port));
        Some(VlanStatus {
            vlan: segment.vid()?.get(),
            subnet: segment.subnet().map(|subnet| subnet.to_string()),
            subnet6: segment.subnet6().map(|subnet| subnet.to_string()),
            ports: ports.map(|port| port.name.to_string()).collect(),
        })
    }

    /// What a network lacks of what its file asks for.
    fn lacks(&self, network: &Network) -> Option<String> {
        let name = &network.name;
        let whole = self.routers.lacks.get(name.as_str()).cloned();
        let told = network.overlay.iter().flat_map(|overlay| self.tunnels.lacks(&overlay.vtep));
        let all: Vec<String> =
            whole.into_iter().chain(self.uplinks.lacks(name)).chain(self.nats.refused(name)).chain(told).collect();
        (!all.is_empty()).then(|| all.join("; "))
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

    /// The forwarding table of every network, and who is behind which endpoint of another host.
    pub fn fdb(&self) -> Vec<FdbEntry> {
        stations::all(self)
    }

    /// The network and the name of every port and router, by worker and NIC.
    fn names(&self) -> BTreeMap<(usize, NicId), (String, String)> {
        let ports = self.places.iter().copied().zip(&self.config.ports);
        let ports = ports.map(|(at, port)| (at, (port.network.to_string(), port.name.to_string())));
        let routers = self.routers.all.iter().map(|router| (router.at, (router.network.clone(), router.name.clone())));
        ports.chain(routers).collect()
    }

    /// Every drop counter that is not zero.
    pub fn drops(&self) -> Vec<DropCount> {
        let reports = self.reports();
        let ports = self.ports_of(&reports).into_iter().map(|port| (port.name, port.drops));
        let routers = self.routers.all.iter().filter_map(|router| {
            let (worker, nic) = router.at;
            let report = reports.get(worker)?.as_ref()?;
            let (_, counters) = report.counters.iter().find(|(id, _)| *id == nic)?;
            let drops = counters.all_drops().map(|(reason, n)| (reason.name().to_owned(), n)).collect();
            Some((router.name.clone(), drops))
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

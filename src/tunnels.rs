//! The tunnel endpoints of a configuration: ports that stretch networks to other hosts.
//!
//! Invariant: an endpoint that cannot be made takes down the ports of its networks, with a reason, and nothing else, and is tried again. One endpoint is one port of
//! all its networks, which are on one worker. Read first: `overlay`'s crate page.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use evpn::{Duplicate, Status};
use overlay::{
    NetworkConfig, NetworkId, Seal, StationConfig, TunnelConfig, TunnelPort, VtepConfig,
    control::{Command, FlapLine, PeerLine, Remote, Source, StationLine},
};
use vswitch::{change::Change, fdb::StaticError, thread::Changes};
use wire::{NicId, Vni};

use crate::{
    config::{Attach, Config, Name, Network, Port, Sealing, Seat, Tagging, Vtep},
    gateways::MTU,
    model::{PeerEntry, PortState},
    seed,
    speaking::{self, Speaking},
    switch::{PATIENCE, Place, States},
    underlay::{self, path_mtu},
};

mod late;
mod ways;

use late::Lacking;
pub use late::look;
use ways::Ways;

/// Stations that an endpoint remembers at most, over all its networks: as many as a bridge.
const STATIONS: usize = vswitch::fdb::DEFAULT_CAPACITY;
/// Stations of this host that are announced at most for having been heard; those that the file declares come on top.
const LOCALS: usize = 16_384;
const AGEING: Duration = vswitch::fdb::DEFAULT_AGEING;

/// How long an endpoint may be silent and count as up: guests that know each other ask again within it (RFC 4861 section 10, arp(7)).
const SILENT: Duration = Duration::from_secs(120);

/// How long a station that was held is told of.
const LATELY: Duration = Duration::from_secs(600);

/// The endpoints that run, to be asked, and those that are not there. A copy is the same.
#[derive(Clone, Default)]
pub struct Tunnels {
    running: Arc<Mutex<Vec<Running>>>,
    lacking: Arc<Mutex<Lacking>>,
    /// What was seen of their ways to other hosts.
    pub ways: Ways,
}

/// An endpoint that runs.
struct Running {
    name: String,
    remote: Remote,
    /// The worker that has its port.
    worker: Changes,
    /// Where stations are told by BGP.
    speaking: Option<Speaking>,
}

impl Tunnels {
    /// What is known of the endpoints of other hosts. An endpoint that does not answer is left out.
    pub fn peers(&self) -> Vec<PeerEntry> {
        let entry = |(vtep, line): (String, PeerLine)| PeerEntry {
            path: self.ways.word(&vtep, line.address).to_owned(),
            vtep,
            vni: line.vni.get(),
            address: line.address.to_string(),
            macs: line.macs as u64,
            mtu: line.mtu,
            state: if line.silent.is_some_and(|silent| silent < SILENT) { "up" } else { "silent" }.to_owned(),
            silent_s: line.silent.map(|silent| silent.as_secs()),
            sealed: line.sealed,
            session_s: line.session.map(|session| session.as_secs()),
            source: match line.source {
                Source::Configured => "static",
                Source::Control => "evpn",
                Source::Heard => "heard",
            }
            .to_owned(),
        };
        self.ask(Command::Show).into_iter().map(entry).collect()
    }

    /// Stations that move to and fro between endpoints, each with the name of ours.
    pub fn flapping(&self) -> Vec<(String, FlapLine)> {
        self.ask(Command::Flapping)
    }

    /// Stations behind other hosts' endpoints, each with the name of ours.
    pub fn stations(&self) -> Vec<(String, StationLine)> {
        self.ask(Command::Stations)
    }

    /// Stations that BGP said were in two places at once, now or within the last ten minutes, each with the name of our endpoint.
    pub fn duplicates(&self) -> Vec<(String, Duplicate)> {
        let tunnels = self.lock();
        let status = tunnels.iter().filter_map(|one| Some((&one.name, one.speaking.as_ref()?.status())));
        status.flat_map(|(name, status)| lately(status).map(|one| (name.clone(), one))).collect()
    }

    /// The endpoints of other hosts that one of ours is told of, by the file or by control.
    pub fn remotes(&self, vtep: &str) -> Vec<IpAddr> {
        let (reply, answer) = sync_channel(1);
        match self.tell(vtep, Command::Remotes(reply)) {
            true => answer.recv_timeout(PATIENCE).unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// Tells one of ours the longest IP packet of the underlay that reaches another.
    pub fn path(&self, vtep: &str, peer: IpAddr, mtu: u16) {
        self.tell(vtep, Command::Path(peer, mtu));
    }

    fn tell(&self, vtep: &str, command: Command) -> bool {
        let tunnels = self.lock();
        let Some(running) = tunnels.iter().find(|running| running.name == vtep) else { return false };
        let sent = running.remote.send(command);
        running.worker.wake();
        sent
    }

    /// Asks every endpoint of ours.
    fn ask<T>(&self, command: impl Fn(SyncSender<Vec<T>>) -> Command) -> Vec<(String, T)> {
        let all = self.lock();
        let tunnels: Vec<(String, Remote, Changes)> =
            all.iter().map(|one| (one.name.clone(), one.remote.clone(), one.worker.clone())).collect();
        drop(all);
        let mut all = Vec::new();
        for (vtep, remote, worker) in tunnels {
            let (reply, answer) = sync_channel(1);
            if remote.send(command(reply)) {
                worker.wake();
                let lines = answer.recv_timeout(PATIENCE).unwrap_or_default();
                all.extend(lines.into_iter().map(|line| (vtep.clone(), line)));
            }
        }
        all
    }

    /// What is wrong with what tells an endpoint's stations, in words.
    pub fn lacks(&self, vtep: &str) -> Vec<String> {
        let tunnels = self.lock();
        let status = tunnels.iter().find(|running| running.name == vtep).and_then(|running| running.speaking.as_ref());
        let Some(status) = status.map(Speaking::status) else { return Vec::new() };
        let mut all = Vec::new();
        if let Some(reason) = &status.reason {
            all.push(format!("no BGP speaker, the tunnel keeps what it knows: {reason}"));
        }
        if let Some(refusal) = &status.refusal {
            let count = status.refused;
            all.push(format!("routes of other hosts that are not believed: {count}, the last: {refusal}"));
        }
        let twice: Vec<String> = lately(status).map(|one| format!("{} in VNI {}", one.mac, one.vni)).collect();
        if !twice.is_empty() {
            all.push(format!("stations that were in two places at once: {}", twice.join(", ")));
        }
        all
    }

    /// What was told to other hosts is taken back.
    pub fn stop(&self) {
        let mut speaking: Vec<Speaking> =
            self.lock().iter_mut().filter_map(|running| running.speaking.take()).collect();
        // All at once, and then each is waited for.
        speaking.iter_mut().for_each(|one| _ = one.end());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lacking(&self) -> MutexGuard<'_, Lacking> {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the stations that were in two places at once, those that are to be told of.
fn lately(status: Status) -> impl Iterator<Item = Duplicate> {
    status.duplicates.into_iter().filter(|one| one.seen.elapsed() < evpn::decide::HOLD + LATELY)
}

/// An endpoint and its ports, by their places in the file: those of its networks, and the one in the network that it is in.
struct Own<'a> {
    vtep: &'a Vtep,
    ports: Vec<usize>,
    seat: Option<usize>,
}

fn own_ports(config: &Config) -> Vec<Own<'_>> {
    let mut ports_of: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut seats: HashMap<&str, usize> = HashMap::new();
    for (at, port) in config.ports.iter().enumerate() {
        match &port.attach {
            Attach::Tunnel { vtep, .. } => ports_of.entry(vtep).or_default().push(at),
            Attach::Endpoint { vtep } => _ = seats.insert(vtep, at),
            _ => {}
        }
    }
    let all = config.vteps.iter().map(|vtep| {
        let name = vtep.name.as_str();
        Own { vtep, ports: ports_of.remove(name).unwrap_or_default(), seat: seats.get(name).copied() }
    });
    all.collect()
}

/// Makes every endpoint and attaches it to its networks. Those that cannot be made now are tried again by [`look`].
pub fn start(config: &Config, places: &[Place], states: &States, tunnels: &Tunnels) {
    for own in own_ports(config) {
        if own.ports.is_empty() {
            let reason = || Some(format!("no network is stretched by tunnel endpoint {}", own.vtep.name));
            own.seat.into_iter().for_each(|at| states.set(at, PortState::Down, reason()));
        } else if let Err(error) = begin(config, &own, places, states, tunnels) {
            late::lacks(&own, error.to_string(), states, tunnels);
        }
    }
}

/// Makes an endpoint and attaches it.
fn begin(config: &Config, own: &Own<'_>, places: &[Place], states: &States, tunnels: &Tunnels) -> io::Result<()> {
    let Own { vtep, ports, seat } = own;
    let Some((first, others)) = ports.split_first() else { return Ok(()) };
    let Some(first) = places.get(*first) else { return Ok(()) };
    let (port, remote, speaking) = make(config, vtep, (ports, places), states)?;
    first.changes.send(Change::Attach { nic: first.nic, lane: 0, port: Box::new(port) });
    // In the order in which it is attached: the network that it is in is the last.
    for other in others.iter().chain(seat).filter_map(|at| places.get(*at)) {
        first.changes.send(Change::AttachToo { nic: other.nic, to: first.nic });
    }
    tracing::info!(vtep = vtep.name, local = %vtep.local, port = vtep.udp(), sealed = vtep.seal.is_some(), networks = ports.len(), "a tunnel endpoint listens");
    ports.iter().chain(seat).for_each(|at| states.set(*at, PortState::Up, None));
    let (name, worker) = (vtep.name.clone(), first.changes.clone());
    tunnels.lock().push(Running { name, remote, worker, speaking });
    Ok(())
}

/// Has an endpoint forget what was said of addresses at a port that goes; `nics` are those of all ports.
fn forget_the_gone(config: &Config, vtep: &Vtep, nics: impl Iterator<Item = NicId>, states: &States, remote: &Remote) {
    let looks = |network: &&Network| {
        let overlay = network.overlay.as_ref().filter(|overlay| overlay.vtep == vtep.name);
        overlay.is_some_and(|overlay| overlay.suppress)
    };
    let looking: HashSet<&Name> = config.networks.iter().filter(looks).map(|network| &network.name).collect();
    let nics = config.ports.iter().zip(nics);
    let nics: Vec<Option<NicId>> = nics.map(|(port, nic)| looking.contains(&port.network).then_some(nic)).collect();
    let remote = remote.clone();
    let up = RefCell::new(HashSet::new());
    states.watch(move |index, state| {
        let Some(Some(nic)) = nics.get(index) else { return };
        if state == PortState::Up {
            up.borrow_mut().insert(index);
        } else if up.borrow_mut().remove(&index) {
            // One that was never up has nothing to be forgotten.
            remote.send(Command::ForgetNic(*nic));
        }
    });
}

/// An endpoint's port, not attached yet, what it is told by, and what tells its stations.
fn make(
    config: &Config,
    vtep: &Vtep,
    (ports, places): (&[usize], &[Place]),
    states: &States,
) -> io::Result<(TunnelPort, Remote, Option<Speaking>)> {
    let seed = seed::random()?;
    let (remote, inbox) = wire::inbox::remote();
    let port = open(config, vtep, ports, seed)?.with_inbox(inbox);
    if vtep.evpn.is_none() {
        forget_the_gone(config, vtep, places.iter().map(|place| place.nic), states, &remote);
        return Ok((port, remote, None));
    }
    let (locals, heard) = overlay::locals::locals(LOCALS, AGEING, seed)?;
    let speaking = speaking::start(config, vtep, (ports, places), (remote.clone(), heard), states)?;
    Ok((port.with_locals(locals), remote, speaking))
}

fn open(config: &Config, vtep: &Vtep, ports: &[usize], seed: u64) -> io::Result<TunnelPort> {
    let by_name: HashMap<&Name, &Network> = config.networks.iter().map(|network| (&network.name, network)).collect();
    let network = |at: &usize| {
        let port = config.ports.get(*at)?;
        let Attach::Tunnel { vni, .. } = port.attach else { return None };
        let network = by_name.get(&port.network)?;
        let overlay = network.overlay.as_ref()?;
        let (peers, anyone, suppress) = (overlay.peers.clone(), overlay.anyone, overlay.suppress);
        let (group, learning) = (overlay.group, vtep.evpn.is_none());
        Some(NetworkConfig { vni: Vni::new(vni)?, peers, group, learning, anyone, suppress })
    };
    let made = VtepConfig {
        local: vtep.local,
        port: vtep.udp(),
        sealed: vtep.seal.is_some(),
        encapsulation: vtep.encapsulation,
        networks: ports.iter().filter_map(network).collect(),
        mtu: vtep.seat.as_ref().map_or_else(|| underlay::mtu(vtep), |seat| mtu_of(&config.networks, &seat.network)),
        stations: STATIONS,
        ageing: AGEING,
        seed,
    };
    let mut made = overlay::Vtep::new(made).map_err(io::Error::other)?;
    let known: Vec<_> = made.remotes.iter().map(|(_, remote)| remote.address).collect();
    // In a network of ours all paths are as wide as it is, until somebody says otherwise.
    for address in known.into_iter().filter(|_| vtep.seat.is_none()) {
        if let Ok(mtu) = path_mtu(vtep.local, vtep.port, address) {
            made.remotes.set_path(address, mtu);
        }
    }
    for (at, id) in ports.iter().zip(0..) {
        if let Some(port) = config.ports.get(*at)
            && let Some(network) = by_name.get(&port.network)
        {
            place_stations(network, port, &mut made, NetworkId(id)).map_err(io::Error::other)?;
        }
    }
    let how = TunnelConfig { dscp: vtep.dscp.fixed(), ..TunnelConfig::default() };
    if let Some(Seat { prefix, gateway, mac, checksum, .. }) = vtep.seat {
        let station = StationConfig { mac, prefix, gateway, checksum };
        return Ok(TunnelPort::on(made, how, station));
    }
    let opened = match &vtep.seal {
        Some(Sealing { key, peers, .. }) => {
            let peers = peers.iter().map(|(peer, key)| (*peer, *key)).collect();
            TunnelPort::sealed(made, how, Seal { key: key.clone(), port: vtep.port, peers })
        }
        None => TunnelPort::open(made, how),
    };
    opened.map_err(|error| explained(vtep, error))
}

/// Puts the stations that the file names behind their endpoints.
fn place_stations(network: &Network, port: &Port, vtep: &mut overlay::Vtep, id: NetworkId) -> Result<(), StaticError> {
    let vlan = match port.tagging {
        Tagging::Access { vlan } => Some(vlan),
        _ => None,
    };
    let stations = network.overlay.iter().flat_map(|overlay| &overlay.stations).filter(|station| station.vlan == vlan);
    for station in stations {
        if let Some(remote) = vtep.remotes.find(station.address) {
            vtep.place(id, station.mac, remote)?;
        }
        for address in &station.ip {
            vtep.neighbours.place(id, *address, station.mac);
        }
    }
    Ok(())
}

/// The longest IP packet of a network.
pub fn mtu_of(networks: &[Network], name: &Name) -> u16 {
    networks.iter().find(|network| network.name == *name).and_then(|network| network.mtu).unwrap_or(MTU)
}

/// Fills in the MTU of networks that stretch over hosts where the file gives none: what the narrowest route to a peer leaves. Where peers are told later, or
/// are a group, or anybody, it is what the endpoint's interface leaves.
pub fn work_out_mtu(config: &mut Config) {
    // Networks have many peers in common, and each is asked about once.
    let mut known: HashMap<(IpAddr, IpAddr), u16> = HashMap::new();
    let mut own: HashMap<&str, u16> = HashMap::new();
    let Config { vteps, networks, .. } = config;
    let seats: Vec<Option<u16>> =
        vteps.iter().map(|vtep| vtep.seat.as_ref().map(|seat| mtu_of(networks, &seat.network))).collect();
    for network in networks.iter_mut().filter(|network| network.mtu.is_none()) {
        let Some(overlay) = &network.overlay else { continue };
        let Some((vtep, seat)) = vteps.iter().zip(&seats).find(|(vtep, _)| vtep.name == overlay.vtep) else { continue };
        let mut of = |peer: IpAddr| {
            *known.entry((vtep.local, peer)).or_insert_with(|| path_mtu(vtep.local, vtep.port, peer).unwrap_or(MTU))
        };
        let paths = overlay.peers.iter().map(|peer| of(*peer)).min();
        let narrowest = seat.or(paths).unwrap_or_else(|| *own.entry(&vtep.name).or_insert_with(|| underlay::mtu(vtep)));
        network.mtu = Some(narrowest.saturating_sub(vtep.around()));
    }
}

/// What is to be done about it.
fn explained(vtep: &Vtep, error: io::Error) -> io::Error {
    let (local, port) = (vtep.local, vtep.udp());
    let key = if vtep.seal.is_some() { "wireguard_port" } else { "port" };
    let what = match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            format!("{local} is not an address of this host; give one of those that `ip address` lists")
        }
        io::ErrorKind::AddrInUse => {
            format!(
                "UDP port {port} of {local} is taken by another program: end it (`ss -ulnp` names it), or give another `{key}` here and on the other hosts"
            )
        }
        io::ErrorKind::PermissionDenied => format!("UDP port {port} may be used by root only; give one above 1023"),
        _ => return error,
    };
    io::Error::new(error.kind(), what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Surroundings};

    #[test]
    fn what_was_said_at_a_port_that_goes_is_forgotten_where_addresses_are_looked_at() {
        let network = |name: &str, vni: u32, more: &str| {
            format!(
                "[networks.{name}]\noverlay = {{ vtep = \"main\", vni = {vni}{more} }}\n\
                 [guests.{name}]\nports = [{{ network = \"{name}\" }}]\n"
            )
        };
        let (looks, other) = (network("looks", 1, ", suppress = true"), network("other", 2, ""));
        let text = format!("[vteps.main]\nlocal = \"192.0.2.1\"\n{looks}{other}");
        let around = Surroundings { root: true, ..Surroundings::default() };
        let config = config::parse(&text, "t.toml".as_ref(), &around).unwrap();
        let states = States::new(config.ports.len());
        let (remote, inbox) = wire::inbox::remote();
        let nics = (0..config.ports.len() as u16).map(NicId);
        forget_the_gone(&config, &config.vteps[0], nics, &states, &remote);
        let of_looking = config.ports.iter().filter(|port| port.network.as_str() == "looks").count();
        for (state, expected) in [(PortState::Up, 0), (PortState::Down, of_looking)] {
            while inbox.next().is_some() {}
            (0..config.ports.len()).for_each(|at| states.set(at, state, None));
            let mut forgotten = Vec::new();
            while let Some(command) = inbox.next() {
                let Command::ForgetNic(nic) = command else { panic!("{command:?}") };
                forgotten.push(config.ports[nic.index()].network.to_string());
            }
            assert_eq!(forgotten, vec!["looks"; expected], "{state:?}");
        }
    }
}

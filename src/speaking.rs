//! Tunnel endpoints whose stations are told by BGP: a thread for each, which holds the tunnel, the ports of its networks and `evpn` together.
//!
//! Invariant: nothing here is waited for when networks start, and a speaker that is not there, hangs or lies is in nobody's way. Read first: the crate page of `evpn`,
//! `overlay::locals`.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self as wait, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use evpn::{Action, Input, Shared, Status};
use overlay::{
    NetworkId,
    control::{Command, Remote},
    locals::{Listener, News, Present},
};
use tokio::sync::mpsc;
use vswitch::{change::Change, thread::Changes};
use wire::{Mac, NicId, Vid, Vni};

use crate::{
    config::{self, Attach, Config, Port, Station, Tagging},
    gateways::MTU,
    model::PortState,
    switch::{PATIENCE, Place, States},
    tunnels, underlay,
};

/// Pieces of news that wait for the loop, at most; more wait in the tunnel.
const WAITING: usize = 1024;
/// How often at most the tunnel is asked for everything.
const ASKING: Duration = Duration::from_secs(1);
/// How long the end may take: the last calls to a speaker, or one that hangs.
const ENDING: Duration = Duration::from_secs(6);

/// One segment that an endpoint stretches.
struct Segment {
    network: config::Name,
    vlan: Option<Vid>,
    vni: Vni,
    /// The tunnel's NIC in its bridge.
    nic: NicId,
    /// What tells its routes from those of other networks of this host.
    number: u16,
}

/// An endpoint whose stations are told by BGP, and that runs.
pub struct Speaking {
    status: Shared,
    ports: mpsc::UnboundedSender<Input>,
    /// Hangs up when the loop has ended.
    ended: wait::Receiver<()>,
    ending: Option<Instant>,
}

impl Speaking {
    /// How it goes.
    pub fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// Begins the end: what was announced is withdrawn. It is waited for when this is dropped, until the time that comes back.
    pub fn end(&mut self) -> Instant {
        *self.ending.get_or_insert_with(|| {
            let _ = self.ports.send(Input::End);
            Instant::now() + ENDING
        })
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        let left = self.end().saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "the BGP speaker does not take back in time what was announced; it is done when this program runs again"
            );
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What acts on the switch: the endpoint's port, and the worker that has it.
#[derive(Clone)]
struct Hands {
    tunnel: Remote,
    worker: Changes,
    segments: Arc<[Segment]>,
    /// By VNI, which segment it is.
    by_vni: Arc<HashMap<Vni, NetworkId>>,
    local: IpAddr,
    port: u16,
    /// What packets may have in the network of ours that the endpoint is in.
    mtu: Option<u16>,
}

impl Hands {
    fn network(&self, vni: Vni) -> Option<(NetworkId, &Segment)> {
        let id = *self.by_vni.get(&vni)?;
        Some((id, self.segment(id)?))
    }

    fn segment(&self, network: NetworkId) -> Option<&Segment> {
        self.segments.get(usize::from(network.0))
    }

    fn act(&self, actions: &[Action]) {
        // What the bridge of one segment is told in a row is told at once.
        let mut told: Option<(NetworkId, Vec<(Mac, bool)>)> = None;
        for action in actions {
            let place = match action {
                Action::Place(vni, mac, _) => self.network(*vni).map(|(id, _)| (id, (*mac, true))),
                Action::Forget(vni, mac) => self.network(*vni).map(|(id, _)| (id, (*mac, false))),
                _ => None,
            };
            match (place, &mut told) {
                (Some((id, station)), Some((of, stations))) if *of == id => stations.push(station),
                (Some((id, station)), _) => self.tell(told.replace((id, vec![station]))),
                (None, _) => self.tell(told.take()),
            }
            self.one(action);
        }
        self.tell(told);
        self.worker.wake();
    }

    /// Tells the bridge of a segment which stations are behind the tunnel, and which are so no longer.
    fn tell(&self, told: Option<(NetworkId, Vec<(Mac, bool)>)>) {
        if let Some((id, stations)) = told
            && let Some(Segment { nic, vlan, .. }) = self.segment(id)
        {
            self.worker.send(Change::Tell { nic: *nic, vlan: *vlan, stations });
        }
    }

    fn one(&self, action: &Action) -> Option<()> {
        let id = |vni: &Vni| self.network(*vni).map(|(id, _)| id);
        let command = match action {
            Action::Join(vni, at) => {
                // What the kernel does not know now it says when a packet is too long.
                let route = || underlay::path_mtu(self.local, self.port, *at).unwrap_or(MTU);
                let mtu = self.mtu.unwrap_or_else(route);
                Command::Join(id(vni)?, *at, mtu)
            }
            Action::Part(vni, at) => Command::Part(id(vni)?, *at),
            Action::Place(vni, mac, at) => Command::Place(id(vni)?, *mac, *at),
            Action::Forget(vni, mac) => Command::Forget(id(vni)?, *mac),
            Action::PlaceNeighbour(vni, ip, mac) => Command::PlaceNeighbour(id(vni)?, *ip, *mac),
            Action::ForgetNeighbour(vni, ip) => Command::ForgetNeighbour(id(vni)?, *ip),
            Action::ForgetLocal(vni, mac) => {
                let (id, segment) = self.network(*vni)?;
                // The bridge would go on sending its frames to where it was.
                let (nic, vlan, mac) = (segment.nic, segment.vlan, *mac);
                self.worker.send(Change::Forget { nic, vlan, mac });
                Command::ForgetLocal(id, mac)
            }
            Action::Announce(_) | Action::Withdraw(_) | Action::Duplicate(..) | Action::Sticky(..) => return None,
        };
        self.tunnel.send(command).then_some(())
    }

    fn input(&self, news: News) -> Option<Input> {
        Some(match news {
            News::Heard(network, mac, nic) => Input::Heard(self.segment(network)?.vni, mac, nic.0.into()),
            News::Addressed(network, mac, ip) => Input::Addressed(self.segment(network)?.vni, mac, ip),
        })
    }

    /// All stations that spoke into the tunnel; asked on a thread that may wait.
    fn present(&self) -> Option<Present> {
        let (reply, answer) = sync_channel(1);
        self.tunnel.send(Command::Locals(reply));
        self.worker.wake();
        answer.recv_timeout(PATIENCE).ok()
    }
}

/// Starts what tells an endpoint's stations. `ports` are those of the tunnel, in the order of its networks.
///
/// # Errors
/// The system has no thread or descriptor for it.
pub fn start(
    config: &Config,
    vtep: &config::Vtep,
    (ports, places): (&[usize], &[Place]),
    (tunnel, listener): (Remote, Listener),
    states: &States,
) -> io::Result<Option<Speaking>> {
    let Some(speaker) = &vtep.evpn else { return Ok(None) };
    let numbers = numbers(config);
    let segments = ports.iter().filter_map(|at| segment(config.ports.get(*at)?, *numbers.get(at)?, places.get(*at)?));
    let segments: Arc<[Segment]> = segments.collect();
    let Some(worker) = ports.first().and_then(|at| places.get(*at)).map(|place| place.changes.clone()) else {
        return Ok(None);
    };
    let mtu = vtep.seat.as_ref().map(|seat| tunnels::mtu_of(&config.networks, &seat.network));
    let by_vni = segments.iter().zip(0..).map(|(segment, at)| (segment.vni, NetworkId(at))).collect();
    let hands = Hands { tunnel, worker, segments, by_vni: Arc::new(by_vni), local: vtep.local, port: vtep.port, mtu };
    let asked = evpn::Config {
        speaker: speaker.speaker.clone(),
        asn: speaker.asn,
        local: vtep.local,
        networks: hands.segments.iter().map(|segment| (segment.vni, segment.number)).collect(),
        others: others(config, vtep, &numbers),
    };
    let (tell_ports, from_ports) = mpsc::unbounded_channel();
    let status = Shared::default();
    let (tell, inputs) = mpsc::channel(WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (acting, shared) = (hands.clone(), Arc::clone(&status));
    let (running, ended) = sync_channel(0);
    let serving = move || {
        runtime.block_on(evpn::run(asked, inputs, from_ports, |actions| acting.act(actions), shared));
        // Of one that panicked it hangs up as well.
        drop::<wait::SyncSender<()>>(running);
    };
    std::thread::Builder::new().name("evpn".to_owned()).spawn(serving)?;
    let hearing = hands.clone();
    let listening = move || listen(listener, &tell, &hearing);
    std::thread::Builder::new().name("evpn-stations".to_owned()).spawn(listening)?;
    watch(config, &hands, places, states, tell_ports.clone());
    Ok(Some(Speaking { status, ports: tell_ports, ended, ending: None }))
}

/// The ports of tunnels, each with the number of its segment, by their places in the file.
fn numbers(config: &Config) -> HashMap<usize, u16> {
    let is_tunnel = |(_, port): &(usize, &Port)| matches!(port.attach, Attach::Tunnel { .. });
    // More than a route distinguisher can tell apart are left out.
    let number = |((at, _), number): ((usize, &Port), u32)| Some((at, u16::try_from(number).ok()?));
    config.ports.iter().enumerate().filter(is_tunnel).zip(1..).filter_map(number).collect()
}

/// The numbers of segments whose routes have the same address in the same speaker, and are another endpoint's.
fn others(config: &Config, own: &config::Vtep, numbers: &HashMap<usize, u16>) -> HashSet<u16> {
    fn speaker(vtep: &config::Vtep) -> Option<&Path> {
        vtep.evpn.as_ref().map(|evpn| evpn.speaker.as_path())
    }
    let alike = config.vteps.iter().filter(|vtep| vtep.local == own.local && speaker(vtep) == speaker(own));
    let alike: HashSet<&str> = alike.map(|vtep| vtep.name.as_str()).filter(|name| *name != own.name).collect();
    let is_theirs = |at: usize| match config.ports.get(at).map(|port| &port.attach) {
        Some(Attach::Tunnel { vtep, .. }) => alike.contains(vtep.as_str()),
        _ => false,
    };
    numbers.iter().filter(|(at, _)| is_theirs(**at)).map(|(_, number)| *number).collect()
}

fn segment(port: &Port, number: u16, place: &Place) -> Option<Segment> {
    let Attach::Tunnel { vni, .. } = &port.attach else { return None };
    let vlan = match port.tagging {
        Tagging::Access { vlan } => Some(vlan),
        _ => None,
    };
    Some(Segment { network: port.network.clone(), vlan, vni: Vni::new(*vni)?, nic: place.nic, number })
}

/// Whether a port's frames are in a segment, which is one of its network.
fn is_in(port: &Port, segment: &Segment) -> bool {
    let vlan = segment.vlan.or(Vid::new(1));
    match &port.tagging {
        Tagging::Untagged {} => segment.vlan.is_none_or(|vlan| vlan.get() == 1),
        Tagging::Access { vlan: own } => Some(*own) == vlan,
        Tagging::Trunk { trunk, native } => *native == vlan || vlan.is_some_and(|vlan| trunk.contains(&vlan)),
    }
}

/// Stations that the file names at a port, and that are announced while it is up.
struct Declared {
    nic: NicId,
    /// The network, the station, and whether it is there for good.
    stations: Vec<(Vni, Mac, bool)>,
    addresses: Vec<IpAddr>,
}

/// `segments` are those of the port's network.
fn declared(port: &Port, nic: NicId, segments: &[&Segment]) -> Option<Declared> {
    let own: Vec<&Segment> = segments.iter().copied().filter(|segment| is_in(port, segment)).collect();
    let mac = port.mac.iter().flat_map(|mac| own.iter().map(|segment| (segment.vni, *mac, false)));
    let fixed = port.fdb.iter().flat_map(|Station { mac, vlan }| {
        let of = own.iter().filter(move |segment| vlan.is_none() || segment.vlan == *vlan);
        of.map(|segment| (segment.vni, *mac, true))
    });
    let is_tunnel = matches!(port.attach, Attach::Tunnel { .. });
    (!own.is_empty() && !is_tunnel).then(|| Declared {
        nic,
        stations: mac.chain(fixed).collect(),
        addresses: port.addresses.clone(),
    })
}

/// Has the loop told of ports that come and go.
fn watch(config: &Config, hands: &Hands, places: &[Place], states: &States, tell: mpsc::UnboundedSender<Input>) {
    let mut by_network: HashMap<&config::Name, Vec<&Segment>> = HashMap::new();
    hands.segments.iter().for_each(|segment| by_network.entry(&segment.network).or_default().push(segment));
    let of = |port: &Port| by_network.get(&port.network).map_or([].as_slice(), Vec::as_slice);
    let ports: Vec<Option<Declared>> =
        config.ports.iter().zip(places).map(|(port, place)| declared(port, place.nic, of(port))).collect();
    let hands = hands.clone();
    let up = RefCell::new(HashSet::new());
    // The loop may have ended; then nobody is told any more.
    states.watch(move |index, state| {
        let Some(Some(port)) = ports.get(index) else { return };
        let number = u32::from(port.nic.0);
        if state != PortState::Up {
            // One that was never up has nothing to be forgotten.
            if up.borrow_mut().remove(&index) {
                hands.tunnel.send(Command::ForgetNic(port.nic));
                let _ = tell.send(Input::Down(number));
            }
            return;
        }
        up.borrow_mut().insert(index);
        for (vni, mac, sticky) in port.stations.iter().copied() {
            let _ = tell.send(Input::Declared { vni, mac, port: number, sticky });
            if !sticky {
                port.addresses.iter().for_each(|ip| _ = tell.send(Input::Addressed(vni, mac, *ip)));
            }
        }
    });
}

/// Passes on what the tunnel hears of this host's stations, until nobody takes it any more.
fn listen(mut listener: Listener, tell: &mpsc::Sender<Input>, hands: &Hands) {
    let (mut sleep, mut owed, mut not_before) = (sys::poll::Sleep::default(), false, Instant::now());
    while !tell.is_closed() {
        while let Some(news) = listener.pop() {
            if let Some(input) = hands.input(news) {
                let _ = tell.blocking_send(input);
            }
        }
        owed |= listener.must_ask();
        if owed && Instant::now() >= not_before {
            // A tunnel that does not answer in time is asked again.
            owed = !ask(&mut listener, tell, hands);
            not_before = Instant::now() + ASKING;
        }
        if listener.arm() {
            // A sleep that fails is a shorter one.
            let _ = sleep.wait([listener.as_fd().as_raw_fd()].into_iter(), Some(ASKING));
        }
        listener.disarm();
    }
}

/// Asks for everything; false when there is no answer. What was told before the answer comes before it, what was told later after it.
fn ask(listener: &mut Listener, tell: &mpsc::Sender<Input>, hands: &Hands) -> bool {
    let Some(present) = hands.present() else { return false };
    while listener.count() < present.after
        && let Some(news) = listener.pop()
    {
        if let Some(input) = hands.input(news) {
            let _ = tell.blocking_send(input);
        }
    }
    let known = present.stations.into_iter();
    let known = known.filter_map(|(id, mac, nic)| Some((hands.segment(id)?.vni, mac, u32::from(nic.0))));
    let _ = tell.blocking_send(Input::Present(known.collect()));
    true
}

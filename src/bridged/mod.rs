//! Bridged networks: the uplink port of a network is a TAP in a Linux bridge, together with a NIC of the host.
//!
//! Invariant: what this makes on the host ends with the daemon; a NIC that somebody manages, or that is part of something, is not
//! touched; a network that cannot be joined takes down its own uplink port, with a reason, and nothing else.
//!
//! Theory of operation. With `bridge = "..."` the bridge is somebody's: our TAP joins it, and leaves it when the TAP ends with the process.
//! With `uplink = "..."` a bridge is made that takes the NIC's place: its MAC, its addresses, its routes ([`moving`]). What the NIC had is
//! written to `state_dir` first ([`saved`]). A process of its own, the [`keeper`], does it, watches whether the gateway still answers, and
//! undoes it when the daemon ends or is killed. Should both be killed, the next `up` or `trunkline doctor --repair` undoes it ([`recover`]).
//!
//! ```text
//!   guests -- ports -- [ our bridge ] -- uplink port -- TAP -- [ Linux bridge: the host's addresses ] -- NIC -- the physical network
//! ```
//!
//! With `mac_nat` there is no Linux bridge, and the NIC stays as it is ([`mac_nat`]).
//!
//! Read first: [`join`].

use std::{
    fs,
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::config::{Config, Host, Mode, Name, Network};

pub mod address;
pub mod host_side;
pub mod keeper;
pub mod link;
pub mod mac_nat;
pub mod managed;
mod moving;
pub mod netlink;
mod probe;
pub mod saved;
mod site;

use link::Link;
use managed::Records;
use netlink::Netlink;
use saved::{Item, Saved};

/// How long a keeper may take to say that the bridge has taken over: it waits for neighbours twice before, and once after.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network that is joined. Undone when this goes.
#[derive(Debug)]
pub struct Joined {
    _ours: Option<Ours>,
}

/// The process that holds a NIC for us.
#[derive(Debug)]
struct Ours {
    network: String,
    keeper: Arc<Mutex<Keeper>>,
    ending: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Keeper {
    child: Child,
    /// Its end tells the keeper to end.
    pipe: Option<ChildStdin>,
}

/// What a keeper says.
enum Word {
    Up(String),
    Down(String),
}

/// Joins a network with its physical one by the TAP, which is up. `down` is called when it comes apart later, with the reason.
///
/// # Errors
/// Why it is not joined, and what to do.
pub fn join(
    host: &Host,
    network: &Network,
    tap: &str,
    down: impl Fn(String) + Send + 'static,
) -> Result<Joined, String> {
    let mut netlink = Netlink::open().map_err(|error| format!("the kernel's routing socket: {error}"))?;
    match (&network.bridge, &network.uplink) {
        (Some(bridge), uplink) => {
            join_existing(&mut netlink, bridge.as_str(), uplink.as_ref().map(|nic| nic.as_str()), tap)?;
            Ok(Joined { _ours: None })
        }
        (None, Some(nic)) => {
            let saved = survey(&mut netlink, network.name.as_str(), nic.as_str(), tap)?;
            let file = saved::file(&host.state_dir, network.name.as_str());
            let store = || {
                let _lock = saved::lock(&file, saved::INSTANT)?;
                if file.exists() {
                    return Err(io::Error::other("what an earlier daemon left is still there; see `trunkline doctor`"));
                }
                saved::store(&file, &saved)
            };
            store().map_err(|error| format!("what {nic} has cannot be saved in {}: {error}", file.display()))?;
            let ours = Ours::start(&saved, file, down)?;
            Ok(Joined { _ours: Some(ours) })
        }
        (None, None) => Err("the network has neither uplink nor bridge".to_owned()),
    }
}

/// Whether a network could be joined now, or is; nothing is changed.
///
/// # Errors
/// Why not, and what to do.
pub fn look(host: &Host, network: &Network) -> Result<String, String> {
    if let Some(nic) = network.uplink.as_ref().filter(|_| network.mac_nat) {
        return mac_nat::look(nic.as_str());
    }
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    let file = saved::file(&host.state_dir, network.name.as_str());
    match (&network.bridge, &network.uplink) {
        (Some(bridge), uplink) => {
            existing(&mut netlink, bridge.as_str(), uplink.as_ref().map(|nic| nic.as_str()))?;
            Ok(format!("{bridge} is a bridge"))
        }
        (None, Some(nic)) if file.exists() => Ok(format!("{nic} is joined")),
        (None, Some(nic)) => {
            let saved = survey(&mut netlink, network.name.as_str(), nic.as_str(), "")?;
            Ok(format!("{nic} is free, with {} addresses and {} routes", saved.addresses.len(), saved.routes.len()))
        }
        (None, None) => Err("the network has neither uplink nor bridge".to_owned()),
    }
}

/// Puts our TAP into somebody's bridge.
fn join_existing(netlink: &mut Netlink, bridge: &str, nic: Option<&str>, tap: &str) -> Result<(), String> {
    let found = existing(netlink, bridge, nic)?;
    let own = link::named(netlink, tap).ok().flatten().ok_or_else(|| format!("the TAP {tap} is gone"))?;
    link::set_master(netlink, own.index, found.index).map_err(|error| match error.raw_os_error() {
        Some(1 | 13) => format!("joining {bridge} needs CAP_NET_ADMIN: run as root, or grant it"),
        _ => format!("{tap} cannot join {bridge}: {error}"),
    })?;
    if !found.up {
        tracing::warn!("the bridge {bridge} is down; `ip link set {bridge} up`");
    }
    Ok(())
}

/// Somebody's bridge, in which the NIC is, where one is named.
fn existing(netlink: &mut Netlink, bridge: &str, nic: Option<&str>) -> Result<Link, String> {
    let links = link::all(netlink).map_err(|error| error.to_string())?;
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let found = find(bridge).ok_or_else(|| {
        format!("there is no bridge {bridge}: make it, or give uplink = \"NIC\" without bridge and one is made")
    })?;
    if !found.bridge {
        return Err(format!("{bridge} is no bridge: name it by uplink = \"{bridge}\", and one is made for it"));
    }
    if let Some(nic) = nic {
        let link = find(nic).ok_or_else(|| missing(nic, &links))?;
        if link.master != Some(found.index) {
            return Err(format!(
                "{nic} is not in the bridge {bridge}: `ip link set {nic} master {bridge}` puts it there; or leave uplink out, or bridge"
            ));
        }
    }
    Ok(found.clone())
}

fn missing(nic: &str, links: &[Link]) -> String {
    let names: Vec<&str> = links.iter().filter(|link| link.ethernet).map(|link| link.name.as_str()).collect();
    let has = if names.is_empty() { "no Ethernet interface".to_owned() } else { names.join(", ") };
    format!("there is no interface {nic} on this host; it has {has}")
}

/// What the NIC has, if it may be joined.
fn survey(netlink: &mut Netlink, network: &str, nic: &str, tap: &str) -> Result<Saved, String> {
    let text = |error: io::Error| format!("what {nic} has cannot be seen: {error}");
    let links = link::all(netlink).map_err(text)?;
    let link = links.iter().find(|link| link.name == nic).ok_or_else(|| missing(nic, &links))?;
    obstacle(link, &links)?;
    if let Some(manager) = Records::here().manager(nic, link.index) {
        return Err(manager.refusal(nic));
    }
    let bridge = bridge_name(network);
    if links.iter().any(|link| link.name == bridge) {
        return Err(format!("an interface {bridge} exists that is not ours; remove it (`ip link del {bridge}`)"));
    }
    let addresses = address::addresses(netlink, link.index).map_err(text)?;
    let routes = address::routes(netlink, link.index).map_err(text)?;
    if let Some(route) = routes.iter().find(|route| address::is_shared(route)) {
        return Err(format!(
            "the route {} goes over several interfaces or by a nexthop object and cannot be moved from {nic}; \
             make a bridge yourself and name it by bridge, or write mac_nat = true",
            address::route_text(route)
        ));
    }
    if fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok_and(|text| text.trim() == "1") {
        tracing::warn!(
            "the host's firewall sees bridged frames (net.bridge.bridge-nf-call-iptables) and may drop guests'"
        );
    }
    Ok(Saved {
        boot: saved::boot(),
        netns: saved::netns(),
        network: network.to_owned(),
        nic: nic.to_owned(),
        index: link.index,
        up: link.up,
        bridge,
        tap: tap.to_owned(),
        addresses: addresses.iter().map(Item::of_address).collect(),
        routes: routes.iter().map(Item::of_route).collect(),
        uptime_s: saved::uptime_s(),
        switched: false,
    })
}

/// Why an interface cannot be the uplink of a bridged network, managers apart.
fn obstacle(link: &Link, links: &[Link]) -> Result<(), String> {
    let nic = &link.name;
    if link.bridge {
        return Err(format!("{nic} is a bridge: write bridge = \"{nic}\" in place of uplink"));
    }
    if !link.ethernet {
        return Err(format!(
            "{nic} is not an Ethernet interface and cannot join a bridge; nat reaches the outside by it"
        ));
    }
    if let Some(index) = link.master {
        let master = links.iter().find(|other| other.index == index);
        let name = master.map_or("another device", |master| master.name.as_str());
        return Err(match master.is_some_and(|master| master.bridge) {
            true => format!("{nic} is in the bridge {name} already: write bridge = \"{name}\" in place of uplink"),
            false => format!("{nic} is part of {name}: name that one by uplink"),
        });
    }
    if link.is_wireless() {
        return Err(format!(
            "{nic} is a radio interface: access points take frames from its own address only, so it cannot join a bridge; write mac_nat = true"
        ));
    }
    Ok(())
}

/// The bridge that is made for a network: its name, or what fits of it and a number that tells it from others.
pub fn bridge_name(network: &str) -> String {
    interface_name("tlb-", network)
}

/// `PREFIX` and the network's name, or what fits of it and a number that tells it from others: an interface's name has room for 15 bytes.
pub fn interface_name(prefix: &str, network: &str) -> String {
    let name = format!("{prefix}{network}");
    if name.len() <= 15 {
        return name;
    }
    let number = crate::hash::of(network) & 0xffff;
    let room = 10_usize.saturating_sub(prefix.len());
    let begin: String = network.chars().take(room).collect();
    format!("{prefix}{begin}-{number:04x}")
}

impl Ours {
    fn start(saved: &Saved, file: PathBuf, down: impl Fn(String) + Send + 'static) -> Result<Ours, String> {
        let network = saved.network.clone();
        let (keeper, words) = Keeper::spawn(&file).map_err(|error| {
            let _ = saved::remove(&file);
            format!("the keeper of {} cannot be started: {error}", saved.nic)
        })?;
        let told = words.recv_timeout(PATIENCE);
        let keeper = Arc::new(Mutex::new(keeper));
        let ending = Arc::new(AtomicBool::new(false));
        let mut ours = Ours { network: network.clone(), keeper, ending, reader: None };
        match told {
            Ok(Word::Up(how)) => tracing::info!(network, bridge = saved.bridge, "joined {}: {how}", saved.nic),
            Ok(Word::Down(reason)) => return Err(reason),
            Err(_) => return Err(format!("the keeper of {} ended or does not answer; see the log", saved.nic)),
        }
        let (keeper, ending) = (ours.keeper.clone(), ours.ending.clone());
        ours.reader = Some(thread::spawn(move || listen(words, &keeper, &ending, &file, &network, down)));
        Ok(ours)
    }
}

/// Listens to a keeper; starts another one where it is killed.
fn listen(
    mut words: Receiver<Word>,
    keeper: &Mutex<Keeper>,
    ending: &AtomicBool,
    file: &Path,
    network: &str,
    down: impl Fn(String),
) {
    loop {
        match words.recv() {
            Ok(Word::Up(_)) => continue,
            Ok(Word::Down(reason)) => return down(reason),
            Err(_) if ending.load(Ordering::Acquire) => return,
            Err(_) => {}
        }
        let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = keeper.child.wait();
        if ending.load(Ordering::Acquire) || !file.exists() {
            return;
        }
        tracing::warn!(network, "the keeper was killed; another one takes over");
        match Keeper::spawn(file) {
            Ok((next, next_words)) => (*keeper, words) = (next, next_words),
            Err(error) => {
                tracing::error!(network, %error, "no keeper; `trunkline doctor --repair` after the end restores the NIC");
                return;
            }
        }
    }
}

impl Keeper {
    /// Starts one, in a process group of its own: what ends us from a terminal does not reach it.
    fn spawn(file: &Path) -> io::Result<(Keeper, Receiver<Word>)> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("keeper").arg(file).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        tracing::info!(process = child.id(), file = %file.display(), "started a keeper");
        let (tell, words) = channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || tell_words(BufReader::new(output), &tell));
        }
        let pipe = child.stdin.take();
        Ok((Keeper { child, pipe }, words))
    }
}

fn tell_words(output: impl BufRead, tell: &Sender<Word>) {
    for line in output.lines().map_while(Result::ok) {
        let word = match line.split_once(' ') {
            Some(("up", rest)) => Word::Up(rest.to_owned()),
            Some(("down", rest)) => Word::Down(rest.to_owned()),
            _ => continue,
        };
        if tell.send(word).is_err() {
            return;
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        {
            let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
            drop(keeper.pipe.take());
            match keeper.child.wait() {
                Ok(status) if status.success() => {}
                ended => tracing::error!(network = self.network, ?ended, "the keeper did not put everything back"),
            }
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What was found of networks that were joined by those who are no more.
#[derive(Debug)]
pub struct Left {
    /// The file.
    pub file: PathBuf,
    /// What became of it: notes for people when all is as it was, else why not.
    pub outcome: io::Result<Vec<String>>,
}

/// Puts back what killed daemons and keepers left. `WouldBlock` stands for a network that a keeper looks after.
pub fn recover(state_dir: &Path, patience: Duration) -> Vec<Left> {
    let one = |file: PathBuf| {
        let outcome = (|| {
            let _lock = saved::lock(&file, patience)?;
            let Some(saved) = saved::load(&file)? else { return Ok(Vec::new()) };
            let mut notes = moving::back(&mut Netlink::open()?, &file, &saved)?;
            notes.insert(0, format!("{} of network {} is as it was before a crash", saved.nic, saved.network));
            Ok(notes)
        })();
        Left { file, outcome }
    };
    saved::files(state_dir).into_iter().map(one).collect()
}

/// The MTU of the bridge or NIC that a bridged network is joined to; nothing where that is not there.
pub fn mtu_underneath(network: &Network) -> Option<u32> {
    let name = network.bridge.as_ref().or(network.uplink.as_ref()).filter(|_| network.mode == Mode::Bridged)?;
    let mut netlink = Netlink::open().ok()?;
    link::named(&mut netlink, name.as_str()).ok().flatten().map(|link| link.mtu)
}

/// At the start of a daemon: puts back what others left, and takes the MTU of bridged networks from what is underneath, and the host's addresses
/// where guests share its NIC.
pub fn prepare(config: &mut Config) {
    for Left { file, outcome } in recover(&config.host.state_dir, Duration::from_secs(10)) {
        match outcome {
            Ok(notes) => notes.iter().for_each(|note| tracing::warn!("{note}")),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "what a killed daemon left cannot be put back")
            }
        }
    }
    for network in config.networks.iter_mut().filter(|network| network.mode == Mode::Bridged && network.mtu.is_none()) {
        // What is not there is told when the network is joined.
        network.mtu = mtu_underneath(network).and_then(|mtu| u16::try_from(mtu).ok());
    }
    let with_mac_nat: Vec<Name> =
        config.networks.iter().filter(|network| network.mac_nat).map(|network| network.name.clone()).collect();
    for port in config.ports.iter_mut().filter(|port| port.is_host && with_mac_nat.contains(&port.network)) {
        port.addresses = mac_nat::host_addresses();
    }
}

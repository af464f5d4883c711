//! Reads `[guests.*]` and their ports.
//!
//! Invariant: each port is in a network that exists, has a unique name, socket or TAP, a unicast MAC that nobody else in
//! its network has, and one way of carrying VLANs. Read first: IEEE 802.1Q clause 6.9 (access, trunk, native).

use super::{
    Reading,
    claims::{absolute_path, short_enough, socket_path},
    error::Fault,
    names::{Interface, Name, NameError, PortName},
    reader::{Entry, Section, nearest},
    station,
    types::{Attach, Engine, Guest, Host, Network, Port, Role, Tagging},
    units::Rate,
    vlan,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};
use wire::{Mac, Vid};

const GUEST_KEYS: &[&str] = &["engine", "ports"];
const PORT_KEYS: &[&str] = &[
    "name",
    "network",
    "mac",
    "addresses",
    "attach",
    "socket",
    "role",
    "tap",
    "netns",
    "vlan",
    "trunk",
    "native",
    "queues",
    "guard",
    "fdb",
    "isolated",
    "rate",
    "pass_reserved",
];

/// Most queue pairs of a port.
const QUEUES_MAX: u16 = 128;
/// Most addresses that a port may declare.
const ADDRESSES_MAX: usize = 64;

/// The words for `attach`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    VhostUser,
    Tap,
    Stream,
}

pub(super) fn read(
    root: &Section<'_>,
    host: &Host,
    networks: &[Network],
    reading: &mut Reading,
) -> Result<(Vec<Guest>, Vec<Port>), Fault> {
    let (mut guests, mut ports, mut stations) = (Vec::new(), Vec::new(), Vec::new());
    let Some(tables) = root.get("guests") else { return Ok((guests, ports)) };
    let by_name: HashMap<&str, &Network> = networks.iter().map(|network| (network.name.as_str(), network)).collect();
    for (name, entry) in tables.named()? {
        let guest: Name = name.parse().map_err(|error: NameError| entry.key_fault(error.to_string()))?;
        let section = entry.section(GUEST_KEYS)?;
        // QEMU is known by name.
        let choices = [("external", Some(Engine::External)), ("machine", Some(Engine::Machine)), ("qemu", None)];
        let engine = section.map("engine", |entry| entry.choice(&choices))?.unwrap_or(Some(Engine::External));
        if let (Some(entry), None) = (section.get("engine"), engine) {
            let instead = "write engine = \"external\" and start the guest yourself";
            reading.refuse(&entry, "engine \"qemu\"", instead);
        }
        let engine = engine.unwrap_or(Engine::External);
        let first = ports.len();
        let list = section.map("ports", Entry::list)?.unwrap_or_default();
        for (index, entry) in list.iter().enumerate() {
            let (port, fdb) = Reader { guest: &guest, index, host, networks: &by_name }.port(entry, reading)?;
            stations.extend(fdb.map(|fdb| (ports.len(), fdb)));
            ports.push(port);
        }
        if engine == Engine::Machine {
            one_plain_port(ports.get(first..).unwrap_or_default(), &section)?;
        }
        guests.push(Guest { name: guest, engine });
    }
    station::check(&ports, &stations, reading)?;
    Ok((guests, ports))
}

/// The built-in guest has one NIC with one queue pair, and connects to our socket.
fn one_plain_port(ports: &[Port], guest: &Section<'_>) -> Result<(), Fault> {
    match ports {
        [Port { queues: 1, attach: Attach::VhostUser { role: Role::Server, .. }, .. }] => Ok(()),
        _ => {
            let what =
                "a guest with engine = \"machine\" has one port, by vhost-user, with role \"server\" and queues = 1";
            Err(guest.fault(what))
        }
    }
}

/// What a port's defaults follow from.
struct Reader<'a> {
    guest: &'a Name,
    index: usize,
    host: &'a Host,
    networks: &'a HashMap<&'a str, &'a Network>,
}

impl Reader<'_> {
    /// The port, and the place of its static stations for [`station::check`].
    fn port<'a>(&self, entry: &Entry<'a>, reading: &mut Reading) -> Result<(Port, Option<Entry<'a>>), Fault> {
        let section = entry.section(PORT_KEYS)?;
        let given = section.get("name");
        let name = match &given {
            Some(given) => given.parse()?,
            None => PortName::of(self.guest, self.index),
        };
        reading.claims.claim("port name", &name, &entry.key, given.as_ref().unwrap_or(entry))?;
        let owner = format!("port {name}");
        let network = self.network(&section)?;
        let mac = section.map("mac", mac)?;
        if let (Some(entry), Some(mac)) = (section.get("mac"), mac) {
            reading.claims.claim("MAC address", format!("{mac} in network {network}"), &owner, &entry)?;
        }
        let attach = self.attach(&section, entry, &owner, reading)?;
        let tagging = tagging(&section)?;
        let guard = section.map("guard", Entry::boolean)?;
        if let Some(entry) = section.get("guard").filter(|_| guard == Some(true) && mac.is_none()) {
            return Err(entry.key_fault("there is nothing to guard; give the port's `mac` too"));
        }
        if let Some(entry) = section.get("rate") {
            rate(&entry)?;
            reading.refuse(&entry, "a rate limit", "leave the key out");
        }
        let stations = section.get("fdb");
        let port = Port {
            name,
            guest: self.guest.clone(),
            network,
            attach,
            fdb: stations.as_ref().map(|entry| station::read(entry, &tagging)).transpose()?.unwrap_or_default(),
            tagging,
            mac,
            addresses: section.map("addresses", addresses)?.unwrap_or_default(),
            queues: section.map("queues", |entry| entry.integer(1, QUEUES_MAX))?.unwrap_or(1),
            guard: guard.unwrap_or(mac.is_some()),
            isolated: section.map("isolated", Entry::boolean)?.unwrap_or(false),
            pass_reserved: section.map("pass_reserved", Entry::boolean)?.unwrap_or(false),
            is_host: false,
            is_uplink: false,
        };
        if let (Some(network), Some(entry)) = (self.networks.get(port.network.as_str()), section.get("addresses")) {
            vlan::check_addresses(network, &port, &entry)?;
        }
        Ok((port, stations))
    }

    fn network(&self, section: &Section<'_>) -> Result<Name, Fault> {
        let entry = section.need("network", "a port is in one network; name one of [networks]")?;
        let text = entry.text()?;
        self.networks.get(text).map(|network| network.name.clone()).ok_or_else(|| {
            let fault = entry.fault(format!("there is no network `{text}`"));
            // In one order, so that of several that are as near always the same is named.
            let names: BTreeSet<&str> = self.networks.keys().copied().collect();
            match nearest(text, names) {
                Some(near) => fault.help(format!("the nearest network is `{near}`")),
                None => fault.help(format!("the file has no networks; add [networks.{text}]")),
            }
        })
    }

    fn attach(
        &self,
        section: &Section<'_>,
        port: &Entry<'_>,
        owner: &str,
        reading: &mut Reading,
    ) -> Result<Attach, Fault> {
        let choices = [("vhost-user", Kind::VhostUser), ("tap", Kind::Tap), ("stream", Kind::Stream)];
        let kind = section.map("attach", |entry| entry.choice(&choices))?.unwrap_or(Kind::VhostUser);
        let (foreign, needs): (&[&'static str], &str) = match kind {
            Kind::Tap => (&["socket", "role"], "attach = \"vhost-user\""),
            Kind::VhostUser | Kind::Stream => (&["tap", "netns"], "attach = \"tap\""),
        };
        if let Some(entry) = foreign.iter().find_map(|key| section.get(key)) {
            return Err(entry.key_fault(format!("this belongs to {needs}, and the port is attached otherwise")));
        }
        if kind == Kind::Tap {
            let entry = section.need("tap", "attach = \"tap\" needs tap, the name of the interface")?;
            let tap: Interface = entry.parse()?;
            let netns: Option<Name> = section.map("netns", Entry::parse)?;
            let place = netns.as_ref().map_or_else(String::new, |netns| format!(" in namespace {netns}"));
            reading.claims.claim("TAP", format!("{tap}{place}"), owner, &entry)?;
            return Ok(Attach::Tap { tap, netns });
        }
        let role = section.map("role", |entry| entry.choice(&[("server", Role::Server), ("client", Role::Client)]))?;
        let given = section.get("socket");
        if let Some(entry) = section.get("attach").filter(|_| kind == Kind::Stream) {
            given.as_ref().map(absolute_path).transpose()?;
            reading.refuse(&entry, "attach = \"stream\"", "write \"vhost-user\" or \"tap\"");
        }
        let socket = match &given {
            Some(given) => socket_path(given)?,
            None => {
                let socket = self.host.run_dir.join(format!("{}-{}.sock", self.guest, self.index));
                short_enough(&socket).map_err(|what| {
                    port.fault(what).help("shorten run_dir or the name of the guest, or give the port a socket")
                })?;
                socket
            }
        };
        reading.claims.claim("socket", socket.display(), owner, given.as_ref().unwrap_or(port))?;
        Ok(Attach::VhostUser { socket, role: role.unwrap_or(Role::Server) })
    }
}

pub(super) fn mac(entry: &Entry<'_>) -> Result<Mac, Fault> {
    let mac: Mac = entry.parse()?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    let what = format!("{mac} is a group address or all zero and cannot belong to a port");
    Err(entry.fault(what).help("allowed are unicast addresses: the first byte is even, for example 02:00:00:00:00:01"))
}

fn addresses(entry: &Entry<'_>) -> Result<Vec<IpAddr>, Fault> {
    let list = entry.list()?;
    if list.len() > ADDRESSES_MAX {
        return Err(entry.fault(format!("{} addresses are given; allowed are {ADDRESSES_MAX}", list.len())));
    }
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(list.len());
    for element in &list {
        let text = element.text()?;
        let address: IpAddr = text.parse().map_err(|_| {
            element.fault(format!("`{text}` is not an IP address; write for example \"10.77.1.10\" or \"fd77:1::10\""))
        })?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(element.fault(format!("{address} cannot be the address of a guest; unicast is allowed")));
        }
        if addresses.contains(&address) {
            return Err(element.fault(format!("{address} is listed twice; each is allowed once")));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

pub(super) fn vid(entry: &Entry<'_>) -> Result<Vid, Fault> {
    let number = entry.integer(1u16, 4094)?;
    Vid::new(number).ok_or_else(|| entry.fault(format!("{number} is out of range; allowed are 1 to 4094")))
}

fn tagging(section: &Section<'_>) -> Result<Tagging, Fault> {
    let vlan = section.map("vlan", vid)?;
    let native = section.map("native", vid)?;
    let trunk = section.map("trunk", |entry| {
        let list = entry.list()?;
        let mut trunk: Vec<Vid> = Vec::with_capacity(list.len());
        for element in &list {
            let vid = vid(element)?;
            if trunk.contains(&vid) {
                return Err(element.fault(format!("VLAN {vid} is listed twice; each is allowed once")));
            }
            trunk.push(vid);
        }
        if trunk.is_empty() {
            return Err(entry.fault("the list is empty; a trunk carries at least one VLAN"));
        }
        trunk.sort_unstable();
        Ok(trunk)
    })?;
    match (vlan, trunk) {
        (Some(_), Some(_)) => {
            Err(section.fault("`vlan` and `trunk` exclude each other; a port is an access port or a trunk"))
        }
        (None, Some(mut trunk)) => {
            trunk.retain(|vid| Some(*vid) != native);
            Ok(Tagging::Trunk { trunk, native })
        }
        (vlan, None) => match (section.get("native"), vlan) {
            (Some(entry), _) => Err(entry.key_fault("`native` belongs to a trunk; give `trunk` too")),
            (None, Some(vlan)) => Ok(Tagging::Access { vlan }),
            (None, None) => Ok(Tagging::Untagged {}),
        },
    }
}

fn rate(entry: &Entry<'_>) -> Result<(), Fault> {
    let section = entry.section(&["in", "out"])?;
    let (inward, outward) = (section.map("in", Entry::parse::<Rate>)?, section.map("out", Entry::parse::<Rate>)?);
    match (inward, outward) {
        (None, None) => Err(section.fault("neither `in` nor `out` is given; give one or both")),
        _ => Ok(()),
    }
}

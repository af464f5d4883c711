//! The validated configuration as plain data.
//!
//! Invariant: values of these types come from [`super::parse`] only, apart from tests; their fields are what the file
//! says, or the default that is documented on the field. `check --json` prints them with the key names of the file.

use super::{
    claims::plain,
    names::{Interface, Name, PortName},
    nat::Nat,
    overlay::{Overlay, Vtep},
    segment::Vlan,
    units::{SocketMode, Subnet},
};
use serde::{Serialize, Serializer};
use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use wire::{Mac, Vid};

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// `[host]`.
    pub host: Host,
    /// `[vteps.*]`, and those that networks give along the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vteps: Vec<Vtep>,
    /// `[networks.*]`, in the order of the file.
    pub networks: Vec<Network>,
    /// `[guests.*]`, in the order of the file.
    pub guests: Vec<Guest>,
    /// The ports of `[guests.*]`, in the order of the file.
    pub ports: Vec<Port>,
}

impl Config {
    /// The names of the tunnel endpoints whose stations are told by BGP.
    pub fn told(&self) -> HashSet<&str> {
        self.vteps.iter().filter(|vtep| vtep.evpn.is_some()).map(|vtep| vtep.name.as_str()).collect()
    }

    /// Puts the control socket elsewhere than `<run_dir>/control.sock`.
    ///
    /// # Errors
    /// A message when the path is not absolute after joining the current directory, is too long, or belongs to a port.
    pub fn set_control_socket(&mut self, path: &Path) -> Result<(), String> {
        let path = std::path::absolute(path).map_err(|error| format!("--socket {}: {error}", path.display()))?;
        let path = plain(&path);
        if path.as_os_str().len() > super::SOCKET_PATH_MAX {
            return Err(format!("--socket {}: longer than {} bytes", path.display(), super::SOCKET_PATH_MAX));
        }
        let taken =
            self.ports.iter().find(|port| matches!(&port.attach, Attach::VhostUser { socket, .. } if *socket == path));
        if let Some(port) = taken {
            return Err(format!("--socket {}: this is the socket of port {}", path.display(), port.name));
        }
        self.host.control_socket = path;
        Ok(())
    }

    /// The ports of one network, in the order of the file.
    pub fn ports_of<'a>(&'a self, network: &'a Name) -> impl Iterator<Item = &'a Port> {
        self.ports.iter().filter(move |port| port.network == *network)
    }
}

/// `[host]`: the process and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Name of this host in tables and overlays. Default: the host name.
    pub name: String,
    /// Directory of sockets and of the lock. Default: /run/trunkline for root, else `$XDG_RUNTIME_DIR/trunkline`.
    pub run_dir: PathBuf,
    /// Directory of what is remembered over restarts. Default: /var/lib/trunkline for root, else
    /// `$XDG_STATE_HOME/trunkline`.
    pub state_dir: PathBuf,
    /// One worker per element: the CPU it is pinned to, or none. Default: one worker, not pinned.
    pub worker_cpus: Vec<Option<u32>>,
    /// What a worker without work does. Default: [`Idle::Adaptive`].
    pub idle: Idle,
    /// Microseconds that an adaptive worker polls on before it sleeps. Default: 50.
    pub spin_us: u32,
    /// Group that owns the sockets. Default: the daemon's own.
    pub socket_group: Option<Group>,
    /// Permissions of the sockets. Default: 0660.
    pub socket_mode: SocketMode,
    /// Name servers that guests' queries are forwarded to. Default: those of `resolv_conf`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<SocketAddr>,
    /// The file that names them, as it changes. Default: /etc/resolv.conf.
    pub resolv_conf: PathBuf,
    /// The control socket. Default: `<run_dir>/control.sock`; `--socket` overrides it.
    pub control_socket: PathBuf,
}

impl Host {
    /// The file whose lock makes this daemon the only one of its run directory.
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir.join("lock")
    }
}

/// A group of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// As the file names it.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// What a worker does when no port has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Polls for `spin_us`, then sleeps until notified.
    Adaptive,
    /// Polls for ever.
    Poll,
    /// Sleeps at once.
    Sleep,
}

/// How a network meets the world outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all: only its ports.
    Isolated,
    /// The host has an address in it.
    HostOnly,
    /// Through address translation.
    Nat,
    /// Joined to a physical network.
    Bridged,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Isolated => "isolated",
            Mode::HostOnly => "host-only",
            Mode::Nat => "nat",
            Mode::Bridged => "bridged",
        })
    }
}

/// What a router does by DHCPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dhcp6 {
    /// Guests make their addresses themselves, and may ask for name servers.
    #[default]
    Stateless,
    /// It gives out addresses, too.
    Stateful,
    /// Nothing.
    Off,
}

/// `[networks.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// Default: isolated, the mode that connects the least.
    pub mode: Mode,
    /// IPv4 prefix of the guests. Default: none.
    pub subnet: Option<Subnet>,
    /// IPv6 prefix of the guests. Default: none.
    pub subnet6: Option<Subnet>,
    /// A router in the segment gives out addresses of `subnet` by DHCP and, with `subnet6`, tells the prefix to guests. Default: false.
    pub dhcp: bool,
    /// What the router does by DHCPv6, where there is `dhcp` and `subnet6`. Default: stateless.
    pub dhcp6: Dhcp6,
    /// Host-only: the host's interface. Default: tl-NETWORK. Bridged: tlp-NETWORK; with MAC-NAT the host's, tl-NETWORK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<Interface>,
    /// There is to be no IPv6. Default: false.
    #[serde(skip)]
    pub without6: bool,
    /// Mode nat: how it reaches the outside.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
    /// Other networks whose guests its own reach over their routers, and the other way round. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Name>,
    /// The guests' search domain. Default: NETWORK.internal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Time servers that guests are told of, by DHCP. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<IpAddr>,
    /// Largest IP packet in bytes that guests are told of, 68 to 65521. Default: not told, for nothing lies underneath
    /// an isolated network that would limit it; in mode nat `up` works it out.
    pub mtu: Option<u16>,
    /// Bridged: the NIC of this host that the network is joined to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Interface>,
    /// Bridged: an existing bridge of this host that is joined instead of making one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Interface>,
    /// Bridged: the NIC is not joined to a bridge; guests go out by its address. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mac_nat: bool,
    /// How it stretches to other hosts. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// Another host of the overlay runs its router, or is in it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gateway_elsewhere: bool,
    /// The host that runs the network's router, or is in it, where it stretches over several. Default: none, it is this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_host: Option<String>,
    /// VLANs that its router is in, by their numbers. Default: none; ports may be in any.
    #[serde(serialize_with = "by_number", skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<Vlan>,
}

impl Network {
    /// Whether it needs a subnet and has none: `up` chooses one.
    pub fn needs_subnet(&self) -> bool {
        self.subnet.is_none()
            && !self.gateway_elsewhere
            && (self.dhcp || matches!(self.mode, Mode::HostOnly | Mode::Nat))
    }

    /// Whether it is to have an IPv6 prefix and has none: `up` chooses one.
    pub fn needs_subnet6(&self) -> bool {
        self.subnet6.is_none() && !self.without6 && !self.gateway_elsewhere && self.mode == Mode::Nat
    }

    /// Whether there is a router in it.
    pub fn has_router(&self) -> bool {
        (self.dhcp || self.mode == Mode::Nat) && !self.gateway_elsewhere
    }

    /// Whether its router, or the host in it, reaches more than the network itself.
    pub fn reaches_out(&self) -> bool {
        self.mode != Mode::Isolated || !self.route.is_empty()
    }

    /// The domain that its guests search.
    pub fn search_domain(&self) -> String {
        self.domain.clone().unwrap_or_else(|| format!("{}.internal", self.name).to_ascii_lowercase())
    }

    /// Which address of the subnet its router has: the first that the host has not.
    pub fn router_number(&self) -> u32 {
        if self.mode == Mode::HostOnly { 2 } else { 1 }
    }
}

/// `[guests.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// Its name.
    pub name: Name,
    /// Who runs it. Default: external.
    pub engine: Engine,
}

/// Who runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Somebody else.
    External,
    /// We do: the built-in guest in a machine of its own, started by `up` or `guest start`. It has one port.
    Machine,
}

impl Engine {
    /// The word that the file has for it.
    pub fn word(self) -> &'static str {
        match self {
            Engine::External => "external",
            Engine::Machine => "machine",
        }
    }
}

/// One port: a NIC of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Unique. Default: `<guest>/<index>`.
    pub name: PortName,
    /// The guest it belongs to.
    pub guest: Name,
    /// The network it is in; it exists.
    pub network: Name,
    /// How the guest reaches it. Default: vhost-user.
    #[serde(flatten)]
    pub attach: Attach,
    /// Which VLANs it carries. Default: untagged frames only.
    #[serde(flatten)]
    pub tagging: Tagging,
    /// The guest's declared address, unique in its network. Default: not declared.
    #[serde(serialize_with = "maybe_text")]
    pub mac: Option<Mac>,
    /// The guest's declared IP addresses. Default: none declared.
    pub addresses: Vec<IpAddr>,
    /// Queue pairs, 1 to 128. Default: 1.
    pub queues: u16,
    /// Stations that are behind this port for good: known from the start, never aged, and nobody else's. Default: none, the switch learns.
    pub fdb: Vec<Station>,
    /// Frames from the guest are checked against what is declared. Default: on when `mac` is set.
    pub guard: bool,
    /// Ports with this set do not reach each other. Default: false.
    pub isolated: bool,
    /// Frames to 01:80:C2:00:00:00 to :0F are forwarded and not eaten (IEEE 802.1Q table 8-1). Default: false.
    pub pass_reserved: bool,
    /// It is the host's own.
    #[serde(skip)]
    pub is_host: bool,
    /// It leads from a bridged network to the physical one.
    #[serde(skip)]
    pub is_uplink: bool,
}

/// A static entry of the forwarding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Station {
    /// Its address, unicast.
    #[serde(serialize_with = "as_text")]
    pub mac: Mac,
    /// The VLAN it is in. Default: that of the port's untagged frames, which is none where the port has no VLANs.
    #[serde(serialize_with = "maybe_number")]
    pub vlan: Option<Vid>,
}

/// How a guest reaches its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "attach", rename_all = "kebab-case")]
pub enum Attach {
    /// Guest memory and rings, over a vhost-user socket.
    VhostUser {
        /// The socket, unique. Default: `<run_dir>/<guest>-<index>.sock`.
        socket: PathBuf,
        /// Default: [`Role::Server`].
        role: Role,
    },
    /// A TAP of the host, with virtio headers.
    Tap {
        /// Interface name, unique in its namespace.
        tap: Interface,
        /// Network namespace, by its name in /run/netns, that it is moved into. Default: left where the daemon runs.
        netns: Option<Name>,
    },
    /// A tunnel to other hosts.
    Tunnel {
        /// Its endpoint on this host.
        vtep: String,
        /// The number of the segment in the underlay.
        vni: u32,
    },
    /// A tunnel endpoint of this host that is in the network.
    Endpoint {
        /// Its name.
        vtep: String,
    },
    /// An interface of the host, as it is, whose MAC address all guests of the network go out by.
    Uplink {
        /// Interface name.
        uplink: Interface,
    },
}

impl Attach {
    /// The word that the file and the tables have for it.
    pub fn word(&self) -> &'static str {
        match self {
            Attach::VhostUser { .. } => "vhost-user",
            Attach::Tap { .. } => "tap",
            Attach::Tunnel { .. } => "tunnel",
            Attach::Endpoint { .. } => "endpoint",
            Attach::Uplink { .. } => "uplink",
        }
    }
}

/// Who listens on a vhost-user socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// We listen, the guest's process connects.
    Server,
    /// We connect, again and again.
    Client,
}

/// Which VLANs a port carries (IEEE 802.1Q clause 6.9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Tagging {
    /// Frames without a tag, in the network's untagged segment.
    Untagged {},
    /// Frames without a tag, in the segment of one VLAN.
    Access {
        /// The VLAN.
        #[serde(serialize_with = "number")]
        vlan: Vid,
    },
    /// Tagged frames of some VLANs.
    Trunk {
        /// VLANs that are carried with a tag: not empty unless `native` is set, ascending, without `native`.
        #[serde(serialize_with = "numbers")]
        trunk: Vec<Vid>,
        /// VLAN that is carried without a tag. Default: none, untagged frames are dropped.
        #[serde(serialize_with = "maybe_number")]
        native: Option<Vid>,
    },
}

impl fmt::Display for Tagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tagging::Untagged {} => f.write_str("untagged"),
            Tagging::Access { vlan } => write!(f, "access {vlan}"),
            Tagging::Trunk { trunk, native } => {
                let list: Vec<String> = trunk.iter().map(Vid::to_string).collect();
                write!(f, "trunk {}", list.join(","))?;
                native.map_or(Ok(()), |native| write!(f, " native {native}"))
            }
        }
    }
}

fn as_text<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

fn maybe_text<S: Serializer>(mac: &Option<Mac>, serializer: S) -> Result<S::Ok, S::Error> {
    mac.map(|mac| mac.to_string()).serialize(serializer)
}

fn number<S: Serializer>(vid: &Vid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(vid.get())
}

fn numbers<S: Serializer>(vids: &[Vid], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(vids.iter().map(|vid| vid.get()))
}

fn by_number<S: Serializer>(vlans: &[Vlan], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(vlans.iter().map(|vlan| (vlan.id.to_string(), vlan)))
}

fn maybe_number<S: Serializer>(vid: &Option<Vid>, serializer: S) -> Result<S::Ok, S::Error> {
    vid.map(Vid::get).serialize(serializer)
}

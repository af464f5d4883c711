//! The world of a guest: the host that it is on, a router, and a host far away, each a network namespace.
//!
//! `guest 10.9.0.0/24 | host 192.0.2.1 -- 192.0.2.2 router 198.51.100.1 -- 198.51.100.2 far`. Bridged, the guest is in 192.0.2.0/24, where
//! the router gives out addresses. Far away are a web server, a name server and two more services; in a host-only network the host has them.
//!
//! A network may stretch: `guest 10.9.0.0/24 | other host 203.0.113.2 -- 203.0.113.1 host`, where the host runs its router, and both have one file.

use crate::lab::daemon::Daemon;
use crate::lab::netns::NetNs;
use crate::lab::process::{Job, Place};
use crate::lab::{Lab, Unable, need_program, wait_for};
use std::fs;
use std::time::Duration;

/// For what takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The host far away.
pub const FAR: &str = "198.51.100.2";
pub const FAR6: &str = "2001:db8:2::2";
/// What a tunnel leaves of 1,500 bytes.
pub const STRETCHED_MTU: &str = "1450";
/// Says how long a stream was and what its MD5 sum is.
pub const SUM_PORT: u16 = 5000;

/// How the guest's network is joined to the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// NAT by sockets.
    Sockets,
    /// NAT by headers, on an uplink.
    Packet,
    /// With the host alone.
    HostOnly,
    /// By a NIC that a bridge takes the place of.
    BridgedNic,
    /// By a bridge that is there.
    Bridged,
    /// By a NIC that sends with no address but its own.
    MacNat,
}

impl Mode {
    /// Whether the guest is in the network of the host's NIC.
    pub fn is_bridged(self) -> bool {
        matches!(self, Mode::BridgedNic | Mode::Bridged | Mode::MacNat)
    }

    fn keys(self) -> &'static str {
        match self {
            Mode::Sockets => {
                "mode = \"nat\"\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n\
                 publish = [\"tcp 192.0.2.1:8080 g:80\", \"tcp [2001:db8:1::1]:8080 g:80\"]\n"
            }
            Mode::Packet => {
                "mode = \"nat\"\nengine = \"packet\"\nuplink = \"up0\"\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n\
                 outside = [\"192.0.2.9\"]\nnext_hop = [\"192.0.2.2\", \"2001:db8:1::2\"]\nprefix6 = \"2001:db8:9::/64\"\n\
                 publish = [\"tcp 192.0.2.9:8080 g:80\"]\n"
            }
            Mode::HostOnly => "mode = \"host-only\"\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n",
            Mode::BridgedNic => "mode = \"bridged\"\nuplink = \"up0\"\n",
            Mode::Bridged => "mode = \"bridged\"\nbridge = \"br0\"\n",
            Mode::MacNat => "mode = \"bridged\"\nuplink = \"up0\"\nmac_nat = true\n",
        }
    }
}

/// See the module's documentation.
pub struct World {
    pub mode: Mode,
    pub daemon: Daemon,
    host: NetNs,
    router: NetNs,
    far: NetNs,
    /// The host that the guest is on where that is another one, and its daemon.
    other: Option<(NetNs, Daemon)>,
    _servers: Vec<Job>,
}

impl World {
    /// The world, with a daemon in which port `g/0` waits for a guest on the laboratory's `g.sock`.
    pub fn new(lab: &Lab, mode: Mode) -> Result<World, Unable> {
        World::of(lab, mode, None)
    }

    /// The same with the guest on another host, to which the network stretches.
    pub fn stretched(lab: &Lab, mode: Mode) -> Result<World, Unable> {
        World::of(lab, mode, Some(NetNs::new(lab, "other")?))
    }

    fn of(lab: &Lab, mode: Mode, other: Option<NetNs>) -> Result<World, Unable> {
        need_program("busybox", "busybox-static")?;
        need_program("dnsmasq", "dnsmasq-base")?;
        need_program("nginx", "nginx-light")?;
        let [host, router, far] = ["host", "router", "far"].map(|name| NetNs::new(lab, name));
        let (host, router, far) = (host?, router?, far?);
        // What the router tells guests is not for the host.
        host.sh("sysctl -q -w net.ipv6.conf.default.accept_ra=0 'net.ipv4.ping_group_range=0 2147483647'");
        host.veth("up0", &router, "down0");
        router.veth("up0", &far, "down0");
        let nic = if mode == Mode::Bridged { "br0" } else { "up0" };
        if mode == Mode::Bridged {
            let made = host.run("ip link add br0 type bridge && ip link set up0 master br0", PATIENCE);
            if !made.ok() {
                return Err(Unable(format!("this kernel makes no bridges: {}", made.output.trim())));
            }
        }
        for (ns, interface, v4, v6) in [
            (&host, nic, "192.0.2.1/24", "2001:db8:1::1/64"),
            (&router, "down0", "192.0.2.2/24", "2001:db8:1::2/64"),
            (&router, "up0", "198.51.100.1/24", "2001:db8:2::1/64"),
            (&far, "down0", "198.51.100.2/24", "2001:db8:2::2/64"),
        ] {
            ns.address(interface, v4);
            ns.ip(&format!("-6 addr add {v6} dev {interface} nodad"));
        }
        router.sh(
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0",
        );
        router.ip("-6 route add 2001:db8:9::/64 dev down0");
        host.ip(&format!("route add default via 192.0.2.2 dev {nic}"));
        host.ip(&format!("-6 route add default via 2001:db8:1::2 dev {nic}"));
        far.ip("route add default via 198.51.100.1");
        far.ip("-6 route add default via 2001:db8:2::1");
        fs::write(lab.path("resolv.conf"), format!("nameserver {FAR}\n")).unwrap();
        let resolv = "resolv_conf = \"$DIR/resolv.conf\"\n";
        let network = format!("[networks.lan]\n{}", mode.keys());
        let guest = "[guests.g]\nports = [{ network = \"lan\", socket = \"$DIR/g.sock\" }]\n";
        let (daemon, other) = match other {
            None => (Daemon::start_in(lab, &host, &format!("[host]\n{resolv}{network}{guest}")), None),
            Some(other) => {
                host.veth("un0", &other, "un0");
                host.address("un0", "203.0.113.1/24");
                other.address("un0", "203.0.113.2/24");
                let network = |n: u8| {
                    let (local, peer) = (format!("203.0.113.{n}"), format!("203.0.113.{}", 3 - n));
                    format!(
                        "{network}gateway_host = \"first\"\noverlay = {{ vni = 7, local = \"{local}\", peers = [\"{peer}\"] }}\n"
                    )
                };
                let first = format!("[host]\nname = \"first\"\n{resolv}{}", network(1));
                let second = Daemon::start_beside(lab, &other, "second", &format!("{}{guest}", network(2)));
                (Daemon::start_in(lab, &host, &first), Some((other, second)))
            }
        };
        let mut world = World { mode, daemon, host, router, far, other, _servers: Vec::new() };
        world._servers = world.servers(lab);
        Ok(world)
    }

    /// Who has the services: the host far away, or the host itself.
    pub fn server(&self) -> &NetNs {
        if self.mode == Mode::HostOnly { &self.host } else { &self.far }
    }

    /// Its address.
    pub fn server_address(&self) -> &'static str {
        if self.mode == Mode::HostOnly { "10.9.0.1" } else { FAR }
    }

    /// Where a page of the guest is found from there, if the guest has `address`.
    pub fn published(&self, address: &str) -> String {
        match self.mode {
            Mode::Sockets => "192.0.2.1:8080".to_owned(),
            Mode::Packet => "192.0.2.9:8080".to_owned(),
            _ => address.to_owned(),
        }
    }

    /// The daemon that the guest is with, where it is not the router's.
    pub fn other(&self) -> Option<&Daemon> {
        self.other.as_ref().map(|(_, daemon)| daemon)
    }

    /// What is known on our side, for messages.
    pub fn story(&self) -> String {
        let story = |daemon: &Daemon| format!("{}\n{}", daemon.ctl(&["show", "drops"]).output, daemon.log());
        format!("{}\n{}", story(&self.daemon), self.other().map(story).unwrap_or_default())
    }

    fn servers(&self, lab: &Lab) -> Vec<Job> {
        let server = self.server();
        let root = lab.path("www");
        fs::create_dir(&root).unwrap();
        server.sh(&format!("head -c 1048576 /dev/urandom > {}/random", root.display()));
        let dir = lab.dir().display();
        let conf = format!(
            "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\nevents {{ }}\nhttp {{\n\
             access_log off;\nclient_body_temp_path {dir}/body;\nproxy_temp_path {dir}/proxy;\nfastcgi_temp_path {dir}/fastcgi;\n\
             uwsgi_temp_path {dir}/uwsgi;\nscgi_temp_path {dir}/scgi;\n\
             server {{ listen 80; listen [::]:80; root {dir}/www; }}\n}}\n"
        );
        let file = lab.path("nginx.conf");
        fs::write(&file, conf).unwrap();
        let mut all = vec![
            server.spawn(&format!("exec nginx -e stderr -c {}", file.display())),
            server.spawn(&format!("exec busybox nc -ll -p {SUM_PORT} -e md5sum")),
        ];
        if self.mode != Mode::HostOnly {
            all.push(self.far.spawn(&format!(
                "exec dnsmasq -k -C /dev/null --no-resolv --no-hosts --bind-interfaces -a {FAR} --user=root --pid-file= \
                 --local=/example.test/ --host-record=www.example.test,{FAR},{FAR6}"
            )));
        }
        if self.mode.is_bridged() {
            all.push(self.router.spawn(&format!(
                "exec dnsmasq -k -C /dev/null --port=0 --no-ping --bind-interfaces -i down0 --user=root --pid-file= --dhcp-leasefile={dir}/leases \
                 --dhcp-range=192.0.2.100,192.0.2.150,1h --dhcp-option=option:router,192.0.2.2 \
                 --dhcp-option=option:dns-server,{FAR} --enable-ra --dhcp-range=2001:db8:1::,ra-only"
            )));
        }
        for port in [80, SUM_PORT] {
            let hex = format!("{port:04X}");
            wait_for("a server to listen", PATIENCE, || {
                server.run(&format!("grep -q ':{hex} .* 0A ' /proc/net/tcp /proc/net/tcp6"), PATIENCE).ok()
            });
        }
        all
    }
}

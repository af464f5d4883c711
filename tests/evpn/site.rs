//! Hosts of an EVPN fabric: one of ours beside gobgpd, one of the kernel's tunnel beside FRR, each with a guest, on one link.

use std::time::Duration;
use std::{collections::BTreeSet, fs};

use super::lab::daemon::Daemon;
use super::lab::iperf::{Iperf, iperf};
use super::lab::netns::NetNs;
use super::lab::process::{Job, Place, signal};
use super::lab::site::{broadcasts, stream};
use super::lab::{Lab, Unable, holds_within, need_program, wait_for};

pub const PATIENCE: Duration = Duration::from_secs(15);
/// A session of BGP takes its time to come up.
pub const SESSION: Duration = Duration::from_secs(60);

/// gobgpd on a host.
pub struct Speaker<'s> {
    pub job: Job,
    host: &'s NetNs,
    socket: String,
    config: String,
}

impl<'s> Speaker<'s> {
    /// Starts it; `neighbours` are addresses of other speakers.
    pub fn start(lab: &Lab, host: &'s NetNs, name: &str, router: &str, neighbours: &[&str]) -> Result<Self, Unable> {
        need_program("gobgpd", "gobgpd")?;
        let mut text = format!("[global.config]\nas = 65000\nrouter-id = \"{router}\"\n");
        for neighbour in neighbours {
            text += &format!(
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{neighbour}\"\npeer-as = 65000\n\
                 [neighbors.timers.config]\nconnect-retry = 5\nhold-time = 9\nkeepalive-interval = 3\n\
                 [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"l2vpn-evpn\"\n"
            );
        }
        let config = lab.path(&format!("{name}.toml"));
        fs::write(&config, text).expect("gobgpd's configuration");
        let socket = Self::socket(lab, name);
        let config = config.display().to_string();
        let job = Self::spawn(host, &config, &socket);
        Ok(Speaker { job, host, socket, config })
    }

    /// Where its API is.
    pub fn socket(lab: &Lab, name: &str) -> String {
        lab.path(&format!("{name}.sock")).display().to_string()
    }

    fn spawn(host: &NetNs, config: &str, socket: &str) -> Job {
        let _ = fs::remove_file(socket);
        host.spawn(&format!("exec gobgpd -f {config} --pprof-disable --api-hosts unix://{socket}"))
    }

    /// It hangs from here on: each of its threads has stopped.
    pub fn hang(&self) {
        let told = std::process::Command::new("ip").args(["netns", "pids", self.host.netns_name()]).output();
        let pids = String::from_utf8_lossy(&told.expect("ip").stdout).into_owned();
        let is_speaker =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "gobgpd\n");
        let pid: u32 = pids.lines().find(is_speaker).and_then(|pid| pid.parse().ok()).expect("gobgpd");
        signal(pid, "STOP");
        let stopped = |task: fs::DirEntry| {
            fs::read_to_string(task.path().join("status")).is_ok_and(|it| it.contains("State:\tT"))
        };
        let threads = || fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        wait_for("gobgpd to stop", PATIENCE, || threads().flatten().all(stopped));
    }

    /// Starts it again, after it was killed.
    pub fn restart(&mut self) {
        self.job = Self::spawn(self.host, &self.config, &self.socket);
    }

    /// Runs the speaker's own client, which gives up after a second: then again, a few times.
    pub fn ctl(&self, arguments: &str) -> String {
        let once = || self.host.run(&format!("gobgp --target unix://{} {arguments}", self.socket), PATIENCE).output;
        let mut said = once();
        for _ in 0..5 {
            if said.trim() != "context deadline exceeded" {
                break;
            }
            said = once();
        }
        said
    }

    /// Routes with this text in them.
    pub fn routes(&self, text: &str) -> usize {
        self.ctl("global rib -a evpn").lines().filter(|line| line.contains(text)).count()
    }

    /// What is said of the end with this address: the routes that lead there.
    pub fn routes_by(&self, next_hop: &str) -> BTreeSet<String> {
        let told = self.ctl("global rib -a evpn");
        let lines = told.lines().filter(|line| line.split_whitespace().any(|word| word == next_hop));
        lines
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("[type:")))
            .map(str::to_owned)
            .collect()
    }
}

/// A host of the kernel's tunnel with FRR, and a guest behind its bridge.
pub struct Frr {
    pub host: NetNs,
    pub guest: NetNs,
    _zebra: Job,
    _bgpd: Job,
    dir: String,
}

/// A program of FRR: the first in the search path, else the distribution's.
fn of_frr(name: &str) -> Result<String, Unable> {
    need_program("vtysh", "frr")?;
    let found = need_program(name, "frr").map(|path| path.display().to_string());
    let usual = format!("/usr/lib/frr/{name}");
    found.or_else(|unable| if std::path::Path::new(&usual).exists() { Ok(usual) } else { Err(unable) })
}

impl Frr {
    /// `address` is the endpoint's, on `u0`, which is up; `neighbour` that of the speaker it talks to.
    pub fn start(
        lab: &Lab,
        (host, guest): (NetNs, NetNs),
        (address, neighbour): (&str, &str),
        router: &str,
        vni: u32,
    ) -> Result<Frr, Unable> {
        let programs = (of_frr("zebra")?, of_frr("bgpd")?);
        let link = format!("ip link add vx100 type vxlan id {vni} local {address} dstport 4789 nolearning");
        let made = host.run(&link, PATIENCE);
        if !made.ok() {
            return Err(Unable(format!("this kernel makes no VXLAN interfaces: {}", made.output.trim())));
        }
        host.ip("link add br100 type bridge stp_state 0");
        host.ip("link set br100 addrgenmode none");
        host.ip("link set vx100 master br100 addrgenmode none");
        host.sh("bridge link set dev vx100 learning off neigh_suppress on");
        host.veth("h0", &guest, "eth0");
        host.ip("link set h0 master br100");
        for interface in ["h0", "vx100", "br100"] {
            host.ip(&format!("link set {interface} up"));
        }
        guest.ip("link set eth0 mtu 1400");
        let dir = lab.path("frr");
        fs::create_dir_all(&dir).expect("a directory");
        let text = format!(
            "frr defaults datacenter\nrouter bgp 65000\n bgp router-id {router}\n no bgp default ipv4-unicast\n \
             neighbor {neighbour} remote-as 65000\n neighbor {neighbour} timers 3 9\n neighbor {neighbour} timers connect 2\n \
             address-family l2vpn evpn\n  neighbor {neighbour} activate\n  advertise-all-vni\n exit-address-family\n"
        );
        fs::write(dir.join("bgpd.conf"), text).expect("FRR's configuration");
        fs::write(dir.join("zebra.conf"), "").expect("FRR's configuration");
        let dir = dir.display().to_string();
        host.sh(&format!("chown -R frr:frr {dir}; chmod 755 {} {dir}", lab.dir().display()));
        let daemon = |program: &str, name: &str| {
            host.spawn(&format!(
                "exec {program} -u frr -g frr -f {dir}/{name}.conf -i {dir}/{name}.pid --vty_socket {dir} -z {dir}/zserv.api"
            ))
        };
        let zebra = daemon(&programs.0, "zebra");
        wait_for("zebra", PATIENCE, || std::path::Path::new(&format!("{dir}/zserv.api")).exists());
        let bgpd = daemon(&programs.1, "bgpd");
        wait_for("bgpd", PATIENCE, || std::path::Path::new(&format!("{dir}/bgpd.vty")).exists());
        Ok(Frr { host, guest, _zebra: zebra, _bgpd: bgpd, dir })
    }

    /// Asks it.
    pub fn ctl(&self, command: &str) -> String {
        self.host.run(&format!("vtysh --vty_socket {} -c '{command}'", self.dir), PATIENCE).output
    }

    /// What the kernel knows of stations behind the tunnel.
    pub fn fdb(&self) -> String {
        self.host.sh("bridge fdb show dev vx100")
    }
}

/// Two hosts on one link, with addresses of one version of IP or of both.
pub fn hosts(lab: &Lab, (v4, v6): (bool, bool)) -> Result<[NetNs; 2], Unable> {
    let hosts = [NetNs::new(lab, "h1")?, NetNs::new(lab, "h2")?];
    hosts[0].veth("u0", &hosts[1], "u0");
    for (n, host) in hosts.iter().enumerate() {
        if v4 {
            host.ip(&format!("address add 192.0.2.{}/24 dev u0", n + 1));
        }
        if v6 {
            host.ip(&format!("address add 2001:db8::{}/64 dev u0 nodad", n + 1));
        }
    }
    Ok(hosts)
}

/// Has two guests, which are given 10.7.0.1 and 10.7.0.2, do everything with each other that guests do.
pub fn everything(a: &NetNs, b: &NetNs, told: impl Fn() -> String) {
    for (n, guest) in [a, b].into_iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
        guest.ip(&format!("address add fd07::{}/64 dev eth0 nodad", n + 1));
    }
    for (from, to, number) in [(a, b, 2), (b, a, 1)] {
        let (v4, v6) = (format!("10.7.0.{number}"), format!("fd07::{number}"));
        for address in [&v4, &v6] {
            assert!(from.reaches(address, PATIENCE).is_some(), "{} does not reach {address}: {}", from.name(), told());
        }
        let before = broadcasts(to);
        let heard = holds_within(PATIENCE, || {
            // Nobody has to answer it.
            drop(from.run("ping -b -c 1 -W 0.2 10.7.0.255", PATIENCE));
            broadcasts(to) > before
        });
        assert!(heard, "{} hears no broadcast: {}", to.name(), told());
        let rate = iperf(to, from, &v4, &Iperf { seconds: 1, ..Iperf::default() }).map(|report| report.bits_per_second);
        assert!(rate.as_ref().is_ok_and(|rate| *rate > 0.0), "iperf3 to {}: {rate:?}: {}", to.name(), told());
        println!("iperf3 to {}: {:.2} Gbit/s", to.name(), rate.unwrap_or(0.0) / 1e9);
        stream(from, to, &v4, to.name(), &told);
    }
}

/// The file of a host of ours.
pub fn ours(lab: &Lab, local: &str, speaker: &str, vni: u32, guest: &NetNs) -> String {
    format!(
        "[vteps.main]\nlocal = \"{local}\"\ncontrol = \"evpn\"\nspeaker = \"unix://{}\"\nas = 65000\n\
         [networks.tenant]\noverlay = {{ vtep = \"main\", vni = {vni} }}\n\
         [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
        Speaker::socket(lab, speaker),
        guest.netns_name()
    )
}

/// Stations that a daemon of ours knows behind another endpoint.
pub fn macs(daemon: &Daemon, address: &str) -> u64 {
    let peers = daemon.json(&["show", "peers", "--json"]);
    let peers = peers.as_array().cloned().unwrap_or_default();
    peers.iter().filter(|peer| peer["address"] == address).filter_map(|peer| peer["macs"].as_u64()).sum()
}

/// Sends a gratuitous ARP of station `02:00:00:00:AA:BB` with 10.7.AA.BB, and says when it did (seconds since 1970).
pub fn speak(guest: &NetNs, station: u16) -> f64 {
    speak_in(guest, station, None)
}

/// The same with the tag of a VLAN.
pub fn speak_in(guest: &NetNs, station: u16, vlan: Option<u8>) -> f64 {
    let [high, low] = station.to_be_bytes();
    let tag = vlan.map_or_else(String::new, |vlan| format!("129,0,0,{vlan},"));
    let program = format!(
        "import socket,time\n\
         s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW);s.bind((\"eth0\",0))\n\
         m=bytes([2,0,0,0,{high},{low}]);i=bytes([10,7,{high},{low}])\n\
         f=b\"\\xff\"*6+m+bytes([{tag}8,6,0,1,8,0,6,4,0,1])+m+i+bytes(6)+i+bytes(18)\n\
         print(repr(time.time()));s.send(f)"
    );
    guest.sh(&format!("python3 -c '{program}'")).trim().parse().expect("a time")
}

/// Now, in seconds since 1970.
pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Waits until a daemon of ours knows its speaker.
pub fn connected(daemon: &Daemon) {
    let done = holds_within(SESSION, || daemon.log().contains("the BGP speaker knows our stations"));
    assert!(done, "{}", daemon.log());
}

/// Milliseconds, sorted: the median and the ends.
pub fn spread(what: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    if let (Some(first), Some(last), Some(middle)) = (ms.first(), ms.last(), ms.get(ms.len() / 2)) {
        println!("{what}: median {middle:.1} ms ({first:.1} to {last:.1}, n = {})", ms.len());
    }
}

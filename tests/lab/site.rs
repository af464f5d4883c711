//! Two hosts on one link, each with a guest; what stretches between them is ours or the kernel's.

use super::daemon::Daemon;
use super::iperf::{Iperf, iperf};
use super::netns::NetNs;
use super::process::Place;
use super::{Lab, Unable, holds_within, need_program, wait_for};
use std::sync::OnceLock;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const BYTES: usize = 50_000_000;
const STREAM: Duration = Duration::from_secs(120);
/// Of what a stream is: the same each time.
static SUM: OnceLock<String> = OnceLock::new();

/// Two hosts on one link, each with a guest.
pub struct Site {
    /// The hosts.
    pub hosts: [NetNs; 2],
    /// Their guests.
    pub guests: [NetNs; 2],
    /// The hosts speak IPv6.
    pub v6: bool,
}

impl Site {
    /// Two hosts that reach each other.
    pub fn new(lab: &Lab, v6: bool) -> Result<Site, Unable> {
        need_program("busybox", "busybox-static")?;
        let ns = |label: &str| NetNs::new(lab, label);
        let site = Site { hosts: [ns("h1")?, ns("h2")?], guests: [ns("g1")?, ns("g2")?], v6 };
        let [one, two] = &site.hosts;
        one.veth("u0", two, "u0");
        for (n, host) in site.hosts.iter().enumerate() {
            host.ip(&format!("address add 192.0.2.{}/24 dev u0", n + 1));
            host.ip(&format!("address add 2001:db8::{}/64 dev u0 nodad", n + 1));
            host.ip("link set u0 up");
        }
        Ok(site)
    }

    /// Of a host.
    pub fn address(&self, host: usize) -> String {
        if self.v6 { format!("2001:db8::{}", host + 1) } else { format!("192.0.2.{}", host + 1) }
    }

    /// Our daemon on a host, with its guest.
    pub fn ours(&self, lab: &Lab, host: usize) -> Daemon {
        self.ours_with(lab, host, "")
    }

    /// The same, with more keys of the overlay.
    pub fn ours_with(&self, lab: &Lab, host: usize, more: &str) -> Daemon {
        let (local, peer) = (self.address(host), self.address(1 - host));
        let netns = self.guests[host].netns_name();
        let text = format!(
            "[networks.tenant]\noverlay = {{ vni = 5001, local = \"{local}\", peers = [\"{peer}\"]{more} }}\n\
             [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        );
        Daemon::start_beside(lab, &self.hosts[host], &format!("hv{}", host + 1), &text)
    }

    /// Our daemon on a host, whose endpoint is in a network of ours that a TAP joins to the link; `to` says who the peers are.
    pub fn ours_in_a_network(&self, lab: &Lab, host: usize, to: &str) -> Daemon {
        self.ours_in_a_network_with(lab, host, to, "")
    }

    /// The same, with more keys of the endpoint, a line each.
    pub fn ours_in_a_network_with(&self, lab: &Lab, host: usize, to: &str, more: &str) -> Daemon {
        let (ns, local) = (&self.hosts[host], self.address(host));
        let (prefix, netns) = (if self.v6 { 64 } else { 24 }, self.guests[host].netns_name());
        let text = format!(
            "[networks.fabric]\n[networks.tenant]\noverlay = {{ vni = 5001, vtep = \"main\", {to} }}\n\
             [vteps.main]\nnetwork = \"fabric\"\nlocal = \"{local}/{prefix}\"\n{more}\
             [guests.up]\nports = [{{ network = \"fabric\", attach = \"tap\", tap = \"f0\" }}]\n\
             [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        );
        let daemon = Daemon::start_beside(lab, ns, &format!("hv{}", host + 1), &text);
        ns.ip("address flush dev u0");
        ns.ip("link add brf type bridge mcast_snooping 0");
        for interface in ["u0", "f0", "brf"] {
            let master = if interface == "brf" { "" } else { "master brf" };
            ns.ip(&format!("link set {interface} {master} up"));
        }
        daemon
    }

    /// The kernel's tunnel on a host, bridged to its guest.
    pub fn kernel(&self, host: usize) -> Result<(), Unable> {
        self.kernel_to(host, &format!("remote {}", self.address(1 - host)))
    }

    /// The same, to a peer or a group.
    pub fn kernel_to(&self, host: usize, to: &str) -> Result<(), Unable> {
        let (ns, guest) = (&self.hosts[host], &self.guests[host]);
        let local = self.address(host);
        let link = format!("ip link add vx0 type vxlan id 5001 dev u0 local {local} {to} dstport 4789");
        let made = ns.run(&link, PATIENCE);
        if !made.ok() {
            return Err(Unable(format!("this kernel makes no VXLAN interfaces: {}", made.output.trim())));
        }
        ns.veth("g0", guest, "eth0");
        ns.ip("link add br0 type bridge");
        for interface in ["vx0", "g0"] {
            ns.ip(&format!("link set {interface} master br0 up"));
        }
        ns.ip("link set br0 up");
        let mtu = if self.v6 { 1430 } else { 1450 };
        guest.ip(&format!("link set eth0 mtu {mtu}"));
        Ok(())
    }

    /// Gives the guests addresses, and has them do everything with each other.
    pub fn everything(&self, what: &str, log: impl Fn() -> String) {
        for (n, guest) in self.guests.iter().enumerate() {
            guest.ip(&format!("address add 10.7.0.{}/24 dev eth0", n + 1));
            guest.ip(&format!("address add fd07::{}/64 dev eth0 nodad", n + 1));
            guest.ip("link set eth0 up");
        }
        let [a, b] = &self.guests;
        assert!(a.reaches("10.7.0.2", PATIENCE).is_some(), "{what}: {}", log());
        assert!(b.reaches("10.7.0.1", PATIENCE).is_some(), "{what}: {}", log());
        assert!(a.reaches("fd07::2", PATIENCE).is_some(), "{what}: {}", log());
        // Broadcasts that are not ARP; nobody has to answer them.
        let before = broadcasts(b);
        let sent = a.run("ping -b -c 3 -i 0.2 -W 0.2 10.7.0.255", PATIENCE).output;
        let heard = broadcasts(b) - before;
        assert!(heard >= 3, "{what}: {heard} broadcasts of {sent} {}", log());
        for (from, to, address) in [(a, b, "10.7.0.2"), (b, a, "10.7.0.1"), (a, b, "fd07::2")] {
            stream(from, to, address, what, &log);
        }
        for reverse in [false, true] {
            let load = Iperf { seconds: 1, reverse, ..Iperf::default() };
            let got = iperf(b, a, "10.7.0.2", &load).unwrap_or_else(|why| panic!("{what}: {why}: {}", log()));
            println!("{what}, reverse {reverse}: {:.2} Gbit/s", got.bits_per_second / 1e9);
            assert!(got.bits_per_second > 0.0, "{what}: {}", log());
        }
    }
}

/// Broadcasts that a guest's kernel has heard so far.
pub fn broadcasts(guest: &NetNs) -> u64 {
    let told = guest.sh("nstat -asz IpExtInBcastPkts");
    let line = told.lines().find(|line| line.starts_with("IpExtInBcastPkts ")).expect("a line of it");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Sends a stream whose every part is another, 1 GB behind `TRUNKLINE_SLOW`, and asserts that it arrives as it was.
pub fn stream(from: &NetNs, to: &NetNs, address: &str, what: &str, log: impl Fn() -> String) {
    let bytes = if std::env::var_os("TRUNKLINE_SLOW").is_some() { 1_000_000_000 } else { BYTES };
    let sum = SUM.get_or_init(|| sum_of(from, bytes));
    stream_of((bytes, sum.as_str()), (from, to, address), what, log);
}

/// The sum of so many bytes of a stream.
pub fn sum_of(place: &NetNs, bytes: usize) -> String {
    place.run(&format!("seq 1 200000000 | head -c {bytes} | md5sum"), STREAM).output
}

/// The same, so many bytes that have this sum.
pub fn stream_of(
    (bytes, sum): (usize, &str),
    (from, to, address): (&NetNs, &NetNs, &str),
    what: &str,
    log: impl Fn() -> String,
) {
    let mut server = to.spawn("exec busybox nc -l -p 5000 -e md5sum");
    wait_for("nc to listen", PATIENCE, || to.run("grep -q ':1388 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok());
    let sent = format!("seq 1 200000000 | head -c {bytes}");
    let there = from.run(&format!("{sent} | busybox nc {address} 5000"), STREAM).output;
    assert!(there.trim() == sum.trim() && sum.contains("  -"), "{what}: {there} for {sum}: {}", log());
    server.kill();
}

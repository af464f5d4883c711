//! What is wrong with a network behind address translation is said, costs that network alone, and leaves nothing behind: uplinks that are not
//! there, ports that somebody else has, subnets that overlap, tables that are full, a guest that takes all it can.
//!
//! The host is a namespace in which the daemon runs: `guests | host 192.0.2.1 -- 192.0.2.2 far`. 192.0.2.66 is there and silent.
//! That a name server which is down is told of is in `dns.rs`, a DHCP pool that one guest empties in `dhcp.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program, trunkline};
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, need_program, require, wait_for};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a flood may take at most.
const FLOOD_ENDS: Duration = Duration::from_secs(300);
const FAR: &str = "192.0.2.2";
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip -4 addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\nip route add default via $router\necho \"took $ip \"\n";

/// The host, who is outside, and two guests, each with a TAP `eth0` when a daemon runs.
struct Site {
    host: NetNs,
    far: NetNs,
    one: NetNs,
    two: NetNs,
}

impl Site {
    fn new(lab: &Lab) -> Result<Site, Unable> {
        need_program("busybox", "busybox-static")?;
        let [host, far, one, two] = ["host", "far", "one", "two"].map(|name| NetNs::new(lab, name));
        let site = Site { host: host?, far: far?, one: one?, two: two? };
        site.host.veth("up0", &site.far, "down0");
        site.host.address("up0", "192.0.2.1/24");
        site.far.address("down0", "192.0.2.2/24");
        // What is sent to this one arrives, and is never answered.
        site.far.address("down0", "192.0.2.66/24");
        site.far.ip("rule add blackhole from 192.0.2.66");
        site.host.sh("sysctl -q -w 'net.ipv4.ping_group_range=0 2147483647'");
        fs::write(lab.path("script"), SCRIPT).unwrap();
        site.host.sh(&format!("chmod +x {}", lab.path("script").display()));
        Ok(site)
    }

    /// The guests' part of a configuration: each in a network of this name.
    fn guests(&self, one: &str, two: &str) -> String {
        let guest = |name: &str, network: &str, ns: &NetNs| {
            let netns = ns.netns_name();
            format!(
                "[guests.{name}]\nports = [{{ network = \"{network}\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
            )
        };
        guest("one", one, &self.one) + &guest("two", two, &self.two)
    }

    /// A server far away that answers each connection on this port with a word.
    fn serve(&self, port: u16) -> Job {
        let server = self.far.spawn(&format!("exec busybox nc -ll -p {port} -e echo welcome"));
        listens(&self.far, port);
        server
    }
}

fn listens(place: &NetNs, port: u16) {
    let hex = format!("{port:04X}");
    wait_for("a server to listen", PATIENCE, || {
        place.run(&format!("grep -q ':{hex} .* 0A ' /proc/net/tcp /proc/net/tcp6"), PATIENCE).ok()
    });
}

/// Asks for an address and takes it, with the route.
fn lease(lab: &Lab, guest: &NetNs, daemon: &Daemon) -> String {
    guest.ip("link set eth0 up");
    let script = lab.path("script");
    let told = guest
        .run(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {} 2>&1", script.display()), PATIENCE)
        .output;
    let address = told.split("took ").nth(1).and_then(|rest| rest.split(' ').next());
    address.unwrap_or_else(|| panic!("no lease: {told}\n{}", daemon.log())).to_owned()
}

/// What a network lacks, as `show networks` has it.
fn lacks(daemon: &Daemon, network: &str) -> Option<String> {
    let all = daemon.json(&["show", "networks", "--json"]);
    let found = all.as_array().unwrap().iter().find(|entry| entry["name"] == network).unwrap();
    match &found["reason"] {
        Value::Null => None,
        reason => Some(reason.as_str().unwrap().to_owned()),
    }
}

fn fetches(guest: &NetNs, port: u16) -> bool {
    guest.run(&format!("timeout 5 busybox nc {FAR} {port} </dev/null"), PATIENCE).output.contains("welcome")
}

/// A network whose way out cannot be made, by these keys, beside one that is right: its reason.
fn beside(lab: &Lab, site: &Site, keys: &str) -> String {
    let text = format!(
        "[networks.good]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\n[networks.bad]\nmode = \"nat\"\nsubnet = \"10.8.0.0/24\"\n\
         engine = \"packet\"\noutside = [\"192.0.2.9\"]\n{keys}\npublish = [\"tcp 192.0.2.9:80 two:80\"]\n{}",
        site.guests("good", "bad")
    );
    let mut daemon = Daemon::start_in(lab, &site.host, &text);
    lease(lab, &site.one, &daemon);
    assert!(site.one.reaches(FAR, PATIENCE).is_some(), "{}", daemon.log());
    assert_eq!(lacks(&daemon, "good"), None);
    // The other has its router, which says that nothing leads out.
    lease(lab, &site.two, &daemon);
    let pings = site.two.run(&format!("ping -c 2 -i 0.3 -W 2 {FAR}"), PATIENCE);
    assert!(!pings.ok() && pings.output.contains("Net Unreachable"), "{}\n{}", pings.output, daemon.log());
    let reason = lacks(&daemon, "bad").unwrap_or_else(|| panic!("{}", daemon.log()));
    assert!(daemon.log().contains("the other networks run"), "{}", daemon.log());
    assert!(daemon.ctl(&["show", "networks"]).output.contains("no way out: "));
    if keys.starts_with("uplink") {
        let (program, file) = (program().display().to_string(), daemon.config().display().to_string());
        let report = site.host.exec(&[&program, "--config", &file, "doctor"]).output;
        assert!(report.contains("uplink of bad: interface nosuch0") && report.contains("`ip link` lists"), "{report}");
    }
    daemon.terminate();
    reason
}

#[test]
fn an_uplink_that_is_not_there_costs_its_own_network_alone() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    let reason = beside(&lab, &site, "uplink = \"nosuch0\"");
    assert!(reason.contains("nosuch0") && reason.contains("no such interface"), "{reason}");
    let reason = beside(&lab, &site, "tap = \"up0\"");
    assert!(reason.starts_with("no way out: ") && reason.contains("up0"), "{reason}");
}

#[test]
fn an_uplink_that_comes_later_is_found_and_so_is_one_that_went() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    site.host.ip("link set up0 name other0");
    let text = format!(
        "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\nengine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\n\
         publish = [\"tcp 192.0.2.9:80 one:80\"]\n{}[networks.b]\n",
        site.guests("lan", "b")
    );
    let daemon = Daemon::start_in(&lab, &site.host, &text);
    lease(&lab, &site.one, &daemon);
    // One packet at a time: a ping that goes on ends with the first error.
    let reached = || site.one.run(&format!("ping -c 1 -W 1 {FAR}"), PATIENCE).ok();
    let unreachable = || site.one.run(&format!("ping -c 1 -W 2 {FAR}"), PATIENCE).output.contains("Net Unreachable");
    assert!(unreachable(), "{}", daemon.log());
    assert!(lacks(&daemon, "lan").unwrap().contains("no such interface"), "{}", daemon.log());
    site.host.ip("link set other0 down");
    site.host.ip("link set other0 name up0");
    site.host.ip("link set up0 up");
    wait_for("the uplink to be found", PATIENCE, reached);
    assert_eq!(lacks(&daemon, "lan"), None);
    assert!(daemon.log().contains("the way out is there"), "{}", daemon.log());
    assert_eq!(daemon.log().matches("no way out").count(), 1, "told once: {}", daemon.log());
    // It goes, which is noticed by the next packet, and another takes its place.
    let far = site.far.mac("down0");
    site.host.ip("link del up0");
    wait_for("the router to say so", PATIENCE, unreachable);
    site.host.veth("up0", &site.far, "down0");
    site.far.ip(&format!("link set down0 address {far}"));
    site.host.address("up0", "192.0.2.1/24");
    site.far.address("down0", "192.0.2.2/24");
    wait_for("the uplink to be found again", PATIENCE, || reached() && lacks(&daemon, "lan").is_none());
}

#[test]
fn files_that_contradict_themselves_or_the_host_are_told_of() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    let packet = "mode = \"nat\"\nengine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\n";
    let check = |text: &str| {
        let file = lab.path("wrong.toml");
        fs::write(&file, format!("[host]\nrun_dir = \"{0}/r\"\nstate_dir = \"{0}/s\"\n{text}", lab.dir().display()))
            .unwrap();
        let done = trunkline(&["check", &file.display().to_string()]);
        assert_eq!(done.status, 2, "{}", done.output);
        done.output
    };
    let told = check(
        "[networks.a]\nmode = \"nat\"\nsubnet = \"10.9.0.0/16\"\n[networks.b]\nmode = \"nat\"\nsubnet = \"10.9.7.0/24\"\n",
    );
    assert!(told.contains("10.9.7.0/24 overlaps 10.9.0.0/16 of network a"), "{told}");
    let told = check(&format!("[networks.a]\n{packet}[networks.b]\n{packet}"));
    assert!(told.contains("uplink up0 is taken by network a"), "{told}");
    let told = check(&format!("[networks.a]\n{packet}subnet = \"192.0.2.0/24\"\n"));
    assert!(told.contains("192.0.2.9") && told.contains("inside"), "{told}");

    // A subnet that the host routes elsewhere: guests run, and whoever asks is told.
    let text = format!("[networks.a]\nmode = \"nat\"\nsubnet = \"192.0.2.128/25\"\n{}", site.guests("a", "a"));
    let daemon = Daemon::start_in(&lab, &site.host, &text);
    let log = daemon.log();
    assert!(log.contains("192.0.2.128/25") && log.contains("192.0.2.0/24"), "{log}");
    lease(&lab, &site.one, &daemon);
    let report = site.host.exec(&[
        &program().display().to_string(),
        "--config",
        &daemon.config().display().to_string(),
        "doctor",
    ]);
    assert!(report.output.contains("192.0.2.128/25 overlaps with 192.0.2.0/24"), "{}", report.output);
}

#[test]
fn a_port_of_another_program_is_published_once_it_is_free() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    let mut other = site.host.spawn("exec busybox nc -ll -p 8080 -e echo another");
    listens(&site.host, 8080);
    let text = format!(
        "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\n\
         publish = [\"tcp 192.0.2.1:8080 one:80\", \"tcp 192.0.2.1:8081 one:80\"]\n{}",
        site.guests("lan", "lan")
    );
    let daemon = Daemon::start_in(&lab, &site.host, &text);
    lease(&lab, &site.one, &daemon);
    let _server = site.one.spawn("exec busybox nc -ll -p 80 -e echo guest");
    let fetch = |port: u16| {
        let done = site.far.run(&format!("timeout 5 busybox nc -w 3 192.0.2.1 {port} </dev/null"), PATIENCE);
        done.output.trim().to_owned()
    };
    wait_for("the other publication", PATIENCE, || fetch(8081) == "guest");
    wait_for("the other program", PATIENCE, || fetch(8080) == "another");
    let reason = lacks(&daemon, "lan").unwrap_or_else(|| panic!("{}", daemon.log()));
    assert!(reason.contains("not published: tcp 192.0.2.1:8080 one:80") && reason.contains("use"), "{reason}");
    assert_eq!(daemon.log().matches("not published").count(), 1, "told once: {}", daemon.log());
    other.kill();
    wait_for("the port to be published", PATIENCE, || fetch(8080) == "guest");
    assert_eq!(lacks(&daemon, "lan"), None);
}

/// Sends datagrams and opens connections, as headers that nobody stands behind, as fast as it can: this many flows of each.
const FLOOD: &str = r#"
import socket, struct, sys
mine, router = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
source, there = socket.inet_aton(sys.argv[3]), socket.inet_aton(sys.argv[4])
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
line.bind(('eth0', 0))
def total(data):
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return n ^ 0xffff
def packet(protocol, body):
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0, source, there)
    return router + mine + b'\x08\x00' + head[:10] + struct.pack('!H', total(head)) + head[12:] + body
pseudo = lambda protocol, n: source + there + struct.pack('!BBH', 0, protocol, n)
print('flooding', flush=True)
for n in range(int(sys.argv[5])):
    port, to = 1024 + n % 50000, 2000 + n // 50000
    syn = struct.pack('!HHIIBBHHH', port, to, n, 0, 0x50, 2, 65535, 0, 0)
    syn = syn[:16] + struct.pack('!H', total(pseudo(6, 20) + syn)) + syn[18:]
    for data in (packet(17, struct.pack('!HHHH', port, to, 8, 0)), packet(6, syn)):
        try: line.send(data)
        except OSError: pass
print('done', flush=True)
"#;

/// `quota` is what one of two guests may have.
fn flood(lab: &Lab, keys: &str, quota: usize, flows: usize) -> Result<(), Unable> {
    need_program("python3", "python3")?;
    let site = Site::new(lab)?;
    let text =
        format!("[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\n{keys}\n{}", site.guests("lan", "lan"));
    let daemon = Daemon::start_in(lab, &site.host, &text);
    let (one, two) = (lease(lab, &site.one, &daemon), lease(lab, &site.two, &daemon));
    let _server = site.serve(5000);
    for guest in [&site.one, &site.two] {
        assert!(guest.reaches(FAR, PATIENCE).is_some() && fetches(guest, 5000), "{}", daemon.log());
    }
    // One that goes on for as long as the flood does.
    let lasting = site.far.spawn("exec busybox nc -ll -p 5001 -e cat");
    listens(&site.far, 5001);
    let over = lab.path("over");
    let until = format!("while [ ! -e {} ]; do sleep 0.1; done", over.display());
    let mut held = site.two.spawn(&format!("(echo begin; {until}; echo end) | busybox nc {FAR} 5001"));
    held.wait_for_output("begin", PATIENCE);

    fs::write(lab.path("flood.py"), FLOOD).unwrap();
    let mac = |ns: &NetNs, interface: &str| ns.mac(interface).replace(':', "");
    let router = site.one.sh("ip neigh show 10.9.0.1 | grep -o 'lladdr [^ ]*' | cut -d' ' -f2").trim().replace(':', "");
    let script = lab.path("flood.py");
    let mut job = site.one.spawn(&format!(
        "exec python3 {} {} {router} {one} 192.0.2.66 {flows}",
        script.display(),
        mac(&site.one, "eth0")
    ));
    job.wait_for_output("flooding", PATIENCE);
    let (mut rounds, began) = (0, Instant::now());
    while job.running() || rounds < 5 {
        rounds += 1;
        assert!(
            fetches(&site.two, 5000),
            "round {rounds}\n{}\n{}",
            daemon.ctl(&["show", "drops"]).output,
            daemon.log()
        );
        let pings = site.two.run(&format!("ping -c 3 -i 0.2 -W 5 {FAR}"), PATIENCE);
        assert!(pings.ok(), "round {rounds}: {}", pings.output);
        assert!(began.elapsed() < FLOOD_ENDS, "the flood does not end");
    }
    assert!(job.output().contains("done"), "{}", job.output());
    let mut mappings = serde_json::Value::Null;
    wait_for("the engine to tell", PATIENCE, || {
        mappings = daemon.json(&["show", "nat", "--json"]);
        mappings.as_array().is_some_and(|all| !all.is_empty())
    });
    let of = |address: &str| {
        let inside =
            |line: &&Value| line["inside"].as_str().is_some_and(|inside| inside.starts_with(&format!("{address}:")));
        mappings.as_array().unwrap().iter().filter(inside).count()
    };
    println!("{rounds} rounds; {} mappings of the one, {} of the other", of(&one), of(&two));
    assert!((quota.min(4096) / 2..=quota).contains(&of(&one)) && of(&two) >= 1, "{} and {}", of(&one), of(&two));
    // The connection of before is there yet.
    fs::write(&over, "").unwrap();
    held.wait_for_output("end", Duration::from_secs(40));
    drop(lasting);
    if keys.contains("packet") {
        // Its endpoints of UDP have their five minutes, and it is told that there is no room for more.
        let told = site.one.run(&format!("timeout 5 busybox nc {FAR} 5000 </dev/null"), PATIENCE).output;
        assert!(told.contains("No route to host"), "{told}");
        let drops = daemon.json(&["show", "drops", "--json"]);
        let refused = |entry: &Value| entry["port"] == "one/0" && entry["reason"] == "nat_quota";
        assert!(drops.as_array().unwrap().iter().any(refused), "{drops}");
    } else {
        wait_for("the one who flooded", Duration::from_secs(60), || fetches(&site.one, 5000));
    }
    Ok(())
}

#[test]
fn sockets_one_guest_with_100_000_flows_takes_nothing_from_another() {
    let lab = require!(Lab::new());
    // Half of the descriptors that a process may have, without those of the process itself.
    let limit = std::process::Command::new("sh").args(["-c", "ulimit -Hn"]).output().unwrap();
    let limit: usize = String::from_utf8_lossy(&limit.stdout).trim().parse().unwrap_or(1 << 20);
    require!(flood(&lab, "", limit.min(1 << 20) / 2, 100_000));
}

#[test]
fn packet_one_guest_with_100_000_flows_takes_nothing_from_another() {
    let lab = require!(Lab::new());
    require!(flood(
        &lab,
        "engine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\nmappings = 8192\n",
        4096,
        100_000
    ));
}

#[test]
fn packet_a_pool_that_is_exhausted_by_one_has_room_for_another() {
    let lab = require!(Lab::new());
    require!(flood(
        &lab,
        "engine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\nmappings = 64\n",
        32,
        10_000
    ));
}

#[test]
fn packet_an_outside_address_that_a_guest_there_uses_stays_the_engines() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab));
    // A third in the network that is the outside: the thief.
    let thief = &site.far;
    let text = format!(
        "[networks.wan]\n[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\nengine = \"packet\"\nvia = \"wan\"\n\
         outside = [\"198.51.100.9\"]\n{}[guests.thief]\n\
         ports = [{{ network = \"wan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
        site.guests("lan", "wan"),
        thief.netns_name()
    );
    let daemon = Daemon::start_in(&lab, &site.host, &text);
    lease(&lab, &site.one, &daemon);
    site.two.address("eth0", "198.51.100.2/24");
    thief.address("eth0", "198.51.100.9/24");
    // It says whose the address is, asks as if it were its own, and sends from it.
    for _ in 0..3 {
        thief.run("busybox arping -U -c 1 -w 1 -I eth0 198.51.100.9; ping -c 1 -W 1 198.51.100.2", PATIENCE);
        let pings = site.one.run("ping -c 2 -i 0.2 -W 2 198.51.100.2", PATIENCE);
        assert!(pings.output.contains(" 2 received"), "{}\n{}", pings.output, daemon.ctl(&["show", "drops"]).output);
    }
    let drops = daemon.json(&["show", "drops", "--json"]);
    let spoofed =
        |entry: &Value| entry["port"] == "thief/0" && entry["reason"].as_str().unwrap().starts_with("spoofed");
    assert!(drops.as_array().unwrap().iter().any(spoofed), "{drops}");
    let heard = site.two.sh("ip neigh show 198.51.100.9");
    assert!(!heard.contains(&thief.mac("eth0")), "{heard}");
}

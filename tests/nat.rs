//! Networks behind address translation: a guest gets its address, reaches the world and is told the truth about it, by both engines.
//!
//! The host is a namespace in which the daemon runs, with one interface to a router, behind which there is one more host:
//! `guest 10.9.0.0/24 | host 192.0.2.1 -- 192.0.2.2 router 198.51.100.1 -- 198.51.100.2 far`.
//! Nobody outside knows a way to the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::{Lab, Unable, need_program, require, wait_for};
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const FAR: &str = "198.51.100.2";
const FAR6: &str = "2001:db8:2::2";
const MEGABYTES: usize = 100;
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip -4 addr flush dev $interface scope global\n\
                      ip addr add $ip/$mask dev $interface\nip route add default via $router\n\
                      echo \"took $ip router=$router\"\n";

/// Who translates, as the configuration has it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Engine {
    Sockets,
    Packet,
}

impl Engine {
    fn keys(self) -> &'static str {
        match self {
            Engine::Sockets => "engine = \"sockets\"\n",
            Engine::Packet => {
                "engine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\"]\nnext_hop = \"192.0.2.2\"\n"
            }
        }
    }

    /// Where published ports are.
    fn outside(self) -> &'static str {
        match self {
            Engine::Sockets => "192.0.2.1",
            Engine::Packet => "192.0.2.9",
        }
    }
}

/// The world of a test.
struct World {
    guest: NetNs,
    host: NetNs,
    router: NetNs,
    far: NetNs,
    daemon: Daemon,
    address: String,
}

impl World {
    /// With a guest that has its address by DHCP; `more` are further keys of its network.
    fn new(lab: &Lab, engine: Engine, more: &str) -> Result<World, Unable> {
        World::with(lab, &format!("{}{more}", engine.keys()))
    }

    /// The same; `keys` are all of its network but the mode and the subnets.
    fn with(lab: &Lab, keys: &str) -> Result<World, Unable> {
        need_program("busybox", "busybox-static")?;
        let names = ["guest", "host", "router", "far"];
        let [guest, host, router, far] = names.map(|name| NetNs::new(lab, name));
        let (guest, host, router, far) = (guest?, host?, router?, far?);
        host.veth("up0", &router, "down0");
        router.veth("up0", &far, "down0");
        for (ns, interface, v4, v6) in [
            (&host, "up0", "192.0.2.1/24", "2001:db8:1::1/64"),
            (&router, "down0", "192.0.2.2/24", "2001:db8:1::2/64"),
            (&router, "up0", "198.51.100.1/24", "2001:db8:2::1/64"),
            (&far, "down0", "198.51.100.2/24", "2001:db8:2::2/64"),
        ] {
            ns.address(interface, v4);
            ns.ip(&format!("-6 addr add {v6} dev {interface} nodad"));
        }
        router.sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
        host.ip("route add default via 192.0.2.2");
        host.ip("-6 route add default via 2001:db8:1::2");
        far.ip("route add default via 198.51.100.1");
        far.ip("-6 route add default via 2001:db8:2::1");
        host.sh("sysctl -q -w 'net.ipv4.ping_group_range=0 2147483647'");
        let text = format!(
            "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n{keys}\n[guests.g]\n\
             ports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
            guest.netns_name()
        );
        let daemon = Daemon::start_in(lab, &host, &text);
        let script = lab.path("script");
        fs::write(&script, SCRIPT).unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
        guest.ip("link set eth0 up");
        let script = script.display();
        let told =
            guest.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -x hostname:g -s {script} 2>&1"));
        assert!(told.contains("router=10.9.0.1"), "{told}\n{}", daemon.log());
        let address = told.split("took ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        Ok(World { guest, host, router, far, daemon, address })
    }

    /// Whether a command in the guest succeeds; what it printed.
    fn guest(&self, command: &str) -> (bool, String) {
        let done = self.guest.run(command, Duration::from_secs(120));
        (done.ok(), done.output)
    }

    /// What was dropped, for messages.
    fn drops(&self) -> String {
        self.daemon.ctl(&["show", "drops"]).output
    }
}

/// A server at the far end that answers every connection on port 5000 with the output of `command`, which reads what the client sends.
fn serve(place: &NetNs, port: u16, command: &str) -> Job {
    let server = place.spawn(&format!("exec busybox nc -ll -p {port} -e sh -c '{command}'"));
    let hex = format!("{port:04X}");
    wait_for("a server to listen", PATIENCE, || {
        place.run(&format!("grep -q ':{hex} .* 0A ' /proc/net/tcp /proc/net/tcp6"), PATIENCE).ok()
    });
    server
}

fn transfers(lab: &Lab, engine: Engine) -> Result<(), Unable> {
    let world = World::new(lab, engine, "")?;
    // What a guest sends in a burst waits for a worker that does not run just then.
    assert!(world.guest.ip("link show eth0").contains("qlen 4096"));
    let pattern = format!("yes trunkline | head -c {}", MEGABYTES << 20);
    let sum = world.host.sh(&format!("{pattern} | md5sum"));
    let _up = serve(&world.far, 5000, "md5sum");
    let _down = serve(&world.far, 5001, &pattern);
    let (ok, there) = world.guest(&format!("{pattern} | busybox nc {FAR} 5000"));
    assert!(ok && there == sum, "up: {there}\n{}{}", world.drops(), world.daemon.log());
    let (ok, here) = world.guest(&format!("busybox nc {FAR} 5001 </dev/null | md5sum"));
    assert!(ok && here == sum, "down: {here}\n{}{}", world.drops(), world.daemon.log());
    if engine == Engine::Sockets {
        wait_for("an IPv6 address", PATIENCE, || {
            world.guest.ip("-6 addr show dev eth0 scope global").contains("fd09:")
        });
        let (ok, there) = world.guest(&format!("{pattern} | busybox nc {FAR6} 5000"));
        assert!(ok && there == sum, "up over IPv6: {there}\n{}", world.drops());
        let (ok, here) = world.guest(&format!("busybox nc {FAR6} 5001 </dev/null | md5sum"));
        assert!(ok && here == sum, "down over IPv6: {here}\n{}", world.drops());
    }
    Ok(())
}

#[test]
fn sockets_transfers_arrive_intact_both_ways() {
    let lab = require!(Lab::new());
    require!(transfers(&lab, Engine::Sockets));
}

#[test]
fn packet_transfers_arrive_intact_both_ways() {
    let lab = require!(Lab::new());
    require!(transfers(&lab, Engine::Packet));
}

/// Pings and errors: what a guest is told is what is so.
fn truths(lab: &Lab, engine: Engine) -> Result<(), Unable> {
    let world = World::new(lab, engine, "")?;
    let World { guest, .. } = &world;
    assert!(guest.reaches(FAR, PATIENCE).is_some(), "{}{}", world.drops(), world.daemon.log());
    let ttl = guest.sh(&format!("ping -c 3 -i 0.2 -W 5 {FAR}"));
    assert!(ttl.contains(&format!("from {FAR}")), "{ttl}");
    // Not there: the router outside says so, not we.
    let (ok, told) = world.guest("ping -c 1 -W 5 198.51.100.77");
    assert!(!ok && told.contains("Unreachable"), "{told}\n{}", world.drops());
    // No hop further than the router outside.
    let (ok, told) = world.guest(&format!("ping -c 1 -W 2 -t 2 {FAR}"));
    assert!(
        !ok && told.contains("From 192.0.2.2") && told.contains("Time to live exceeded"),
        "{told}\n{}",
        world.drops()
    );
    // Closed: refused, at once.
    let (ok, told) = world.guest(&format!("timeout 5 busybox nc -w 4 {FAR} 9 </dev/null"));
    assert!(!ok && told.contains("refused"), "{told}\n{}", world.drops());
    if need_program("traceroute", "traceroute").is_ok() {
        let (ok, told) = world.guest(&format!("traceroute -n -q 1 -w 2 -m 5 {FAR}"));
        let hops: Vec<&str> = told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert!(ok && hops == ["10.9.0.1", "192.0.2.2", FAR], "{told}\n{}", world.drops());
    }
    Ok(())
}

#[test]
fn sockets_a_guest_is_told_the_truth_about_the_world() {
    let lab = require!(Lab::new());
    require!(truths(&lab, Engine::Sockets));
}

#[test]
fn packet_a_guest_is_told_the_truth_about_the_world() {
    let lab = require!(Lab::new());
    require!(truths(&lab, Engine::Packet));
}

/// Published ports, and their change while the daemon runs.
fn publications(lab: &Lab, engine: Engine) -> Result<(), Unable> {
    let outside = engine.outside();
    let publish = |ports: &[&str]| {
        let all: Vec<String> = ports.iter().map(|port| format!("\"tcp {outside}:{port} g:{port}\"")).collect();
        format!("publish = [{}]", all.join(", "))
    };
    let world = World::new(lab, engine, &publish(&["8080"]))?;
    let _web = serve(&world.guest, 8080, "echo eighty");
    let _range = serve(&world.guest, 8091, "echo ninety-one");
    let fetch = |port: u16| {
        let done = world.far.run(&format!("timeout 5 busybox nc -w 3 {outside} {port} </dev/null"), PATIENCE);
        done.output.trim().to_owned()
    };
    wait_for("the publication to follow the lease", PATIENCE, || fetch(8080) == "eighty");
    assert_ne!(fetch(8091), "ninety-one", "not published yet");
    // Another file, taken over live.
    let text = fs::read_to_string(world.daemon.config()).unwrap();
    fs::write(world.daemon.config(), text.replace(&publish(&["8080"]), &publish(&["8090-8092"]))).unwrap();
    let file = world.daemon.config().display().to_string();
    let planned = world.daemon.ctl(&["plan", &file]);
    assert!(planned.ok() && planned.output.contains("+ network lan: publish tcp"), "{}", planned.output);
    wait_for("what a plan does not change", PATIENCE, || fetch(8080) == "eighty");
    let applied = world.daemon.ctl(&["apply", &file]);
    assert!(applied.ok() && applied.output.contains("applied"), "{}\n{}", applied.output, world.daemon.log());
    wait_for("the new publication", PATIENCE, || fetch(8091) == "ninety-one");
    assert_ne!(fetch(8080), "eighty", "published no more");
    // What takes a restart changes nothing.
    let text = fs::read_to_string(world.daemon.config()).unwrap();
    fs::write(world.daemon.config(), text.replace("8090-8092", "8095").replace("10.9.0.0/24", "10.9.9.0/24")).unwrap();
    let applied = world.daemon.ctl(&["apply", &file]);
    assert!(!applied.ok(), "{}", applied.output);
    wait_for("what was not changed", PATIENCE, || fetch(8091) == "ninety-one");
    let shown = world.daemon.ctl(&["show", "nat"]);
    assert!(shown.ok() && shown.output.contains(&world.address), "{}", shown.output);
    Ok(())
}

#[test]
fn sockets_published_ports_lead_to_guests_and_change_live() {
    let lab = require!(Lab::new());
    require!(publications(&lab, Engine::Sockets));
}

#[test]
fn packet_published_ports_lead_to_guests_and_change_live() {
    let lab = require!(Lab::new());
    require!(publications(&lab, Engine::Packet));
}

/// The way out takes less than usual: guests are told, and what fits arrives.
fn narrow(lab: &Lab, engine: Engine) -> Result<(), Unable> {
    let mut world = World::new(lab, engine, "")?;
    let mtu = |world: &World| world.daemon.json(&["show", "networks", "--json"])[0]["mtu"].clone();
    assert_eq!(mtu(&world), serde_json::Value::Null, "as usual");
    world.daemon.terminate();
    world.host.ip("link set up0 mtu 1400");
    world.router.ip("link set down0 mtu 1400");
    world.daemon.restart();
    assert_eq!(mtu(&world), 1400, "{}", world.daemon.log());
    let script = lab.path("mtu");
    fs::write(&script, format!("{SCRIPT}ip link set $interface mtu $mtu\necho \"mtu=$mtu\"\n")).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&script).status().unwrap().success());
    world.guest.ip("link set eth0 up");
    let script = script.display();
    let told = world.guest.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -O mtu -s {script} 2>&1"));
    assert!(told.contains("mtu=1400"), "{told}\n{}", world.daemon.log());
    let pattern = "yes trunkline | head -c 5000000";
    let sum = world.host.sh(&format!("{pattern} | md5sum"));
    let _up = serve(&world.far, 5000, "md5sum");
    let (ok, there) = world.guest(&format!("{pattern} | busybox nc {FAR} 5000"));
    assert!(ok && there == sum, "{there}\n{}", world.drops());
    let (ok, told) = world.guest(&format!("ping -c 3 -i 0.2 -W 5 -M do -s 1372 {FAR}"));
    assert!(ok, "what fits goes whole: {told}\n{}", world.drops());
    Ok(())
}

/// The addresses that guests of [`BOTH`] share.
const SHARED6: &str = "2001:db8:1::9";
const BOTH: &str = "engine = \"packet\"\nuplink = \"up0\"\noutside = [\"192.0.2.9\", \"2001:db8:1::9\"]\n\
                    next_hop = [\"192.0.2.2\", \"2001:db8:1::2\"]\npublish = [\"tcp [2001:db8:1::9]:8080 [fd09::77]:80\"]\n";
const ECHO: &str = "import socket, sys\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
                    if sys.argv[1] == \"serve\":\n    s.bind((\"::\", 6000))\n    print(\"bound\", flush=True)\n    \
                    while True:\n        data, peer = s.recvfrom(2048)\n        s.sendto(peer[0].encode() + b\" \" + data, peer)\n\
                    s.settimeout(5)\ns.sendto(b\"hello\", (sys.argv[1], 6000))\nprint(s.recv(2048).decode())\n";

/// IPv6 by addresses that guests share: what a guest sends arrives from them, and what is not published does not arrive at it.
fn shared6(lab: &Lab) -> Result<(), Unable> {
    need_program("python3", "python3")?;
    let world = World::with(lab, BOTH)?;
    let World { guest, far, .. } = &world;
    let why = || format!("{}{}", world.drops(), world.daemon.log());
    wait_for("an IPv6 address", PATIENCE, || guest.ip("-6 addr show dev eth0 scope global").contains("fd09:"));
    guest.ip("-6 addr add fd09::77/64 dev eth0 nodad preferred_lft 0");
    assert!(guest.reaches(FAR, PATIENCE).is_some() && guest.reaches(FAR6, PATIENCE).is_some(), "{}", why());
    // TCP, both ways, whole.
    let pattern = "yes trunkline | head -c 20000000";
    let sum = world.host.sh(&format!("{pattern} | md5sum"));
    let _up = serve(far, 5000, "md5sum");
    let _down = serve(far, 5001, pattern);
    let (ok, there) = world.guest(&format!("{pattern} | busybox nc {FAR6} 5000"));
    assert!(ok && there == sum, "up: {there}\n{}", why());
    let (ok, here) = world.guest(&format!("busybox nc {FAR6} 5001 </dev/null | md5sum"));
    assert!(ok && here == sum, "down: {here}\n{}", why());
    // UDP; the server sees the address that is shared.
    let script = lab.path("echo.py");
    fs::write(&script, ECHO).unwrap();
    let script = script.display();
    let mut echo = far.spawn(&format!("exec python3 {script} serve"));
    echo.wait_for_output("bound", PATIENCE);
    wait_for("a datagram to come back", PATIENCE, || {
        world.guest(&format!("python3 {script} {FAR6} 2>&1")).1.trim() == format!("{SHARED6} hello")
    });
    // Closed, and too far.
    let (ok, told) = world.guest(&format!("timeout 5 busybox nc -w 4 {FAR6} 9 </dev/null"));
    assert!(!ok && told.contains("refused"), "{told}\n{}", why());
    let (ok, told) = world.guest(&format!("ping -6 -c 1 -W 2 -t 2 {FAR6}"));
    assert!(!ok && told.contains("From 2001:db8:1::2") && told.contains("Hop limit"), "{told}\n{}", why());
    if need_program("traceroute", "traceroute").is_ok() {
        // It ends with the answer that nobody is at the port.
        let (ok, told) = world.guest(&format!("traceroute -6 -n -q 1 -w 2 -m 5 {FAR6}"));
        let hops: Vec<&str> = told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert!(ok && hops.len() == 3 && hops.ends_with(&["2001:db8:1::2", FAR6]), "{told}\n{}", why());
    }
    // From outside: the address answers pings itself, and leads to the guest by what is published only.
    assert!(far.reaches(SHARED6, PATIENCE).is_some(), "{}", why());
    let _web = serve(guest, 80, "echo from the guest");
    let _other = serve(guest, 81, "echo never");
    let fetch = |port: u16| {
        let done = far.run(&format!("timeout 5 busybox nc -w 3 {SHARED6} {port} </dev/null"), PATIENCE);
        done.output.trim().to_owned()
    };
    // Whose the address is the engine learns from a packet.
    assert!(guest.run(&format!("ping -6 -c 3 -i 0.2 -W 5 -I fd09::77 {FAR6}"), PATIENCE).ok(), "{}", why());
    wait_for("the publication", PATIENCE, || fetch(8080) == "from the guest");
    // Nobody answers there, so they are tried at once.
    let each = format!("timeout 5 busybox nc -w 3 {SHARED6} $port </dev/null &");
    let fetched = far.run(&format!("for port in 80 81 8081; do {each} done; wait"), PATIENCE).output;
    assert!(!["never", "from the guest"].iter().any(|page| fetched.contains(page)), "not published: {fetched}");
    let shown = world.daemon.ctl(&["show", "nat", "--json"]);
    assert!(
        shown.ok() && shown.output.contains("\"[2001:db8:1::9]:8080\"") && shown.output.contains("\"[fd09::77]:80\""),
        "{}",
        shown.output
    );
    // Withdrawn while it runs.
    let text = fs::read_to_string(world.daemon.config()).unwrap();
    fs::write(world.daemon.config(), text.replace("[2001:db8:1::9]:8080", "[2001:db8:1::9]:8081")).unwrap();
    let applied = world.daemon.ctl(&["apply", &world.daemon.config().display().to_string()]);
    assert!(applied.ok() && applied.output.contains("applied"), "{}\n{}", applied.output, world.daemon.log());
    wait_for("the publication's other port", PATIENCE, || fetch(8081) == "from the guest");
    assert_ne!(fetch(8080), "from the guest", "published no more");
    Ok(())
}

#[test]
fn sockets_guests_are_told_the_mtu_of_a_narrow_way_out() {
    let lab = require!(Lab::new());
    require!(narrow(&lab, Engine::Sockets));
}

#[test]
fn packet_guests_are_told_the_mtu_of_a_narrow_way_out() {
    let lab = require!(Lab::new());
    require!(narrow(&lab, Engine::Packet));
}

#[test]
fn packet_guests_share_an_ipv6_address_outside() {
    let lab = require!(Lab::new());
    require!(shared6(&lab));
}

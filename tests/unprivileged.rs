//! NAT by sockets as an ordinary user: user nobody, in no group but its own, without any capability and without a way to one.
//!
//! The host is a namespace in which the daemon runs, with one interface to a host outside. The guest is a built-in one that joins by
//! vhost-user: in a machine of KVM, else User-mode Linux.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::netns::NetNs;
use lab::process::{Job, Place};
use lab::uml::Uml;
use lab::{Lab, Unable, need_program, require, wait_for};
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const OUTSIDE: &str = "192.0.2.2";
const SCRIPT: &str =
    "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\n";

struct World {
    host: NetNs,
    outside: NetNs,
    daemon: Daemon,
    _web: Job,
}

/// With this ping_group_range on the host.
fn world(lab: &Lab, range: &str) -> Result<World, Unable> {
    need_program("busybox", "busybox-static")?;
    let (host, outside) = (NetNs::new(lab, "host")?, NetNs::new(lab, "outside")?);
    host.veth("up0", &outside, "up0");
    host.address("up0", "192.0.2.1/24");
    outside.address("up0", "192.0.2.2/24");
    host.sh(&format!("sysctl -q -w 'net.ipv4.ping_group_range={range}'"));
    let www = lab.path("www");
    fs::create_dir(&www).unwrap();
    fs::write(www.join("index.html"), "x".repeat(100_000)).unwrap();
    let web = outside.spawn(&format!("exec busybox httpd -f -p 80 -h {}", www.display()));
    wait_for("a server to listen", PATIENCE, || {
        outside.run("grep -q ':0050 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
    });
    let text = "[networks.lan]\nmode = \"nat\"\nsubnet = \"10.9.0.0/24\"\npublish = [\"tcp 192.0.2.1:8080 g:7\"]\n\
                [guests.g]\nports = [{ network = \"lan\" }]\n";
    let daemon = Daemon::start_as_nobody(lab, &host, text);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    for line in ["Uid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    Ok(World { host, outside, daemon, _web: web })
}

/// What a built-in guest answers to each command; nothing where there is no KVM for it.
fn machine(lab: &Lab, commands: &[&str]) -> Option<String> {
    machine_at(lab, "run/g-0.sock", commands)
}

/// The same at this socket of the laboratory.
fn machine_at(lab: &Lab, socket: &str, commands: &[&str]) -> Option<String> {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").ok()?;
    let mut toy = Command::new("timeout");
    toy.arg("60").arg(program()).arg("machine").arg("--port").arg(lab.path(socket));
    for command in commands.iter().chain(&["off"]) {
        toy.args(["--run", command]);
    }
    let output = toy.output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// A User-mode Linux with an address.
fn linux(lab: &Lab) -> Result<Uml, Unable> {
    let guest = Uml::boot(lab, "g", &[lab.path("run/g-0.sock")])?;
    guest.sh(&format!("cat >/tmp/script <<'END'\n{SCRIPT}END\nchmod +x /tmp/script; ip link set eth0 up"));
    guest.sh("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s /tmp/script 2>&1");
    Ok(guest)
}

#[test]
fn a_built_in_guest_gets_an_address_pings_and_fetches() {
    let lab = require!(Lab::new());
    let world = require!(world(&lab, "0 2147483647"));
    let fetch = format!("fetch {OUTSIDE}:80 path=/index.html ms=10000");
    let Some(told) = machine(&lab, &["dhcp", &format!("ping {OUTSIDE} count=3 ms=3000"), &fetch]) else {
        lab::skip!("/dev/kvm cannot be used");
    };
    assert_eq!(
        told.lines().filter(|line| line.split(' ').next() == Some("ok")).count(),
        4,
        "{told}\n{}",
        world.daemon.log()
    );
    assert!(told.contains("10.9.0.") && told.contains("bytes=100000"), "{told}");
}

#[test]
fn a_linux_guest_gets_an_address_pings_fetches_and_is_reached() {
    let lab = require!(Lab::new());
    let world = require!(world(&lab, "0 2147483647"));
    let guest = require!(linux(&lab));
    assert!(guest.reaches(OUTSIDE, PATIENCE).is_some(), "{}", world.daemon.log());
    assert_eq!(guest.sh(&format!("wget -q -O - http://{OUTSIDE}/ | wc -c")).trim(), "100000");
    let refused = guest.run(&format!("timeout 5 nc {OUTSIDE} 9 </dev/null"), PATIENCE);
    assert!(refused.output.contains("refused"), "{}", refused.output);
    let _server = guest.spawn("exec nc -ll -p 7 -e echo from the guest");
    wait_for("the published port", PATIENCE, || {
        world.outside.run("timeout 3 busybox nc 192.0.2.1 8080 </dev/null", PATIENCE).output.contains("from the guest")
    });
}

#[test]
fn where_ping_is_not_permitted_doctor_says_so_and_nothing_is_faked() {
    let lab = require!(Lab::new());
    let world = require!(world(&lab, "1 0"));
    let guest = require!(linux(&lab));
    let pings = guest.run(&format!("ping -c 2 -W 2 {OUTSIDE}"), PATIENCE);
    assert!(!pings.ok() && pings.output.contains(" 0 packets received"), "{}", pings.output);
    let drops = world.daemon.ctl(&["show", "drops"]).output;
    assert!(drops.contains("ping_not_permitted"), "{drops}\n{}", world.daemon.log());
    assert_eq!(guest.sh(&format!("wget -q -O - http://{OUTSIDE}/ | wc -c")).trim(), "100000", "all else works");
    let (program, file) = (program().display(), world.daemon.config().display());
    let as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all";
    let report = world.host.run(&format!("{as_nobody} {program} --config {file} --json doctor"), PATIENCE).output;
    let report: serde_json::Value =
        serde_json::from_str(report.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let ping = checks.iter().find(|check| check["name"] == "ping_group_range").unwrap();
    assert_eq!(ping["state"], "warning", "{ping}");
    assert!(ping["remedy"].as_str().unwrap().contains("net.ipv4.ping_group_range"), "{ping}");
}

#[test]
fn built_in_guests_of_two_hosts_are_on_one_segment_without_privilege() {
    let lab = require!(Lab::new());
    let hosts = require!(NetNs::new(&lab, "h1").and_then(|one| Ok([one, NetNs::new(&lab, "h2")?])));
    hosts[0].veth("u0", &hosts[1], "u0");
    let daemons = [1, 2].map(|n| {
        hosts[n - 1].address("u0", &format!("192.0.2.{n}/24"));
        let text = format!(
            "[networks.lan]\noverlay = {{ vni = 7, local = \"192.0.2.{n}\", peers = [\"192.0.2.{}\"] }}\n[guests.g]\nports = [{{ network = \"lan\" }}]\n",
            3 - n
        );
        Daemon::start_as_nobody_beside(&lab, &hosts[n - 1], &format!("hv{n}"), &text)
    });
    for daemon in &daemons {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(status.contains("Uid:\t65534\t") && status.contains("CapBnd:\t0000000000000000"), "{status}");
    }
    // The second guest is there for as long as it asks for nobody.
    let (program, socket) = (program().display(), lab.path("hv2/g-0.sock"));
    let _second = hosts[1].spawn(&format!(
        "exec {program} machine --port {} --mac 02:74:6c:00:00:02 --run 'address 10.7.0.2/24' --run 'ping 10.7.0.99 count=60 ms=1000'",
        socket.display()
    ));
    let asks = ["address 10.7.0.1/24", "ping 10.7.0.2 count=20 ms=500", "tcp 10.7.0.2:7 bytes=1000000"];
    let Some(told) = machine_at(&lab, "hv1/g-0.sock", &asks) else { lab::skip!("/dev/kvm cannot be used") };
    assert!(told.contains("bytes=1000000 us="), "{told}\n{}", daemons[0].log());
}

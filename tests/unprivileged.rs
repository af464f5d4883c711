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
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").ok()?;
    let mut toy = Command::new("timeout");
    toy.arg("60").arg(program()).arg("machine").arg("--port").arg(lab.path("run/g-0.sock"));
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

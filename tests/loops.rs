//! A loop outside: two ports of a network that are joined behind the switch, and two hosts of an overlay that are joined beside the tunnel, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, trunkline};
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_loop_is_held_and_doctor_names_the_station_and_the_ports() {
    let lab = require!(Lab::new());
    let [guest, other, outside] = ["g", "o", "loop"].map(|label| NetNs::new(&lab, label));
    let (guest, other, outside) = (require!(guest), require!(other), require!(outside));
    let port = |ns: &NetNs, tap: &str| {
        format!("{{ network = \"lan\", attach = \"tap\", tap = \"{tap}\", netns = \"{}\" }}", ns.netns_name())
    };
    let daemon = Daemon::start(
        &lab,
        &format!(
            "[networks.lan]\n[guests.g]\nports = [{}]\n[guests.o]\nports = [{}]\n[guests.x]\nports = [{}, {}]\n",
            port(&guest, "eth0"),
            port(&other, "eth0"),
            port(&outside, "x0"),
            port(&outside, "x1")
        ),
    );
    guest.address("eth0", "10.7.0.1/24");
    other.address("eth0", "10.7.0.2/24");
    let mac = guest.sh("cat /sys/class/net/eth0/address").trim().to_owned();
    assert!(guest.reaches("10.7.0.2", PATIENCE).is_some());
    outside.sh("ip link add br0 type bridge && ip link set x0 master br0 up && ip link set x1 master br0 up && ip link set br0 up");
    // What the guest sends to everybody goes round: in by one port, out by the other.
    let flapping = || {
        let _ = guest.run("ping -b -c 3 -i 0.2 -W 1 10.7.0.255", PATIENCE);
        let networks = daemon.json(&["show", "networks", "--json"]);
        networks[0]["flapping"].as_array().cloned().unwrap_or_default()
    };
    let mut seen = Vec::new();
    wait_for("the loop to be seen", PATIENCE, || {
        seen = flapping();
        seen.iter().any(|one| one["mac"] == mac.as_str())
    });
    let drops = daemon.json(&["show", "drops", "--json"]);
    assert!(drops.as_array().unwrap().iter().any(|drop| drop["reason"] == "flapping"), "{drops}");
    let doctor = trunkline(&["--config", daemon.config().to_str().unwrap(), "--json", "doctor"]);
    let report: serde_json::Value = serde_json::from_str(doctor.output.lines().next().unwrap()).expect("JSON");
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "loops of lan").expect("a check of loops");
    assert_eq!(check["state"], "problem", "{check}");
    assert!(
        ["g/0", "o/0", "x/0", "x/1"].iter().filter(|port| check["detail"].as_str().unwrap().contains(**port)).count()
            >= 2,
        "{check}"
    );
    // Held where it was first, it is reached.
    assert!(other.reaches("10.7.0.1", PATIENCE).is_some(), "{seen:?}");
}

#[test]
fn two_hosts_joined_beside_their_tunnel_hold_a_station_and_doctor_names_the_port_and_the_other_host() {
    let lab = require!(Lab::new());
    let [h1, h2, g1, g2, outside] = ["h1", "h2", "g1", "g2", "join"].map(|label| NetNs::new(&lab, label));
    let hosts = [require!(h1), require!(h2)];
    let (guests, outside) = ([require!(g1), require!(g2)], require!(outside));
    // What joins them speaks when the ring is closed, by both of its ends (it joins a group). Before, its frames would go one way round, and move nobody.
    outside.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    hosts[0].veth("u0", &hosts[1], "u0");
    let start = |n: usize| {
        hosts[n].address("u0", &format!("192.0.2.{}/24", n + 1));
        let port = |ns: &NetNs, tap: &str| {
            format!("{{ network = \"tenant\", attach = \"tap\", tap = \"{tap}\", netns = \"{}\" }}", ns.netns_name())
        };
        let text = format!(
            "[networks.tenant]\noverlay = {{ vni = 77, local = \"192.0.2.{}\", peers = [\"192.0.2.{}\"] }}\n\
             [guests.g]\nports = [{}]\n[guests.x]\nports = [{}]\n",
            n + 1,
            2 - n,
            port(&guests[n], "eth0"),
            port(&outside, &format!("x{n}"))
        );
        Daemon::start_beside(&lab, &hosts[n], &format!("hv{}", n + 1), &text)
    };
    let daemons = [start(0), start(1)];
    for (n, guest) in guests.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    let mac = guests[0].sh("cat /sys/class/net/eth0/address").trim().to_owned();
    assert!(guests[0].reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemons[0].log());
    // Without a loop nobody moves, and the station is where its host is.
    let stations = daemons[1].json(&["show", "fdb", "--json"]);
    let station = stations.as_array().unwrap().iter().find(|one| one["mac"] == mac.as_str()).expect("the guest");
    assert_eq!((&station["vni"], &station["peer"]), (&77.into(), &"192.0.2.1".into()), "{station}");
    assert_eq!((&station["port"], &station["static"]), (&"tenant/overlay".into(), &false.into()), "{station}");
    outside.sh("ip link add br0 type bridge && ip link set x0 master br0 up && ip link set x1 master br0 up && ip link set br0 up");
    let mut seen = serde_json::Value::Null;
    // On the guest's own host its frames come back by both; the other host has them from both.
    for daemon in &daemons {
        wait_for("the loop to be seen", PATIENCE, || {
            let _ = guests[0].run("ping -b -c 3 -i 0.2 -W 1 10.7.0.255", PATIENCE);
            seen = daemon.json(&["show", "networks", "--json"])[0]["flapping"].clone();
            seen.as_array().is_some_and(|all| all.iter().any(|one| one["mac"] == mac.as_str()))
        });
    }
    // What it sends to everybody does not go round any more.
    let received = || {
        let ports = daemons[0].json(&["show", "ports", "--json"]);
        let ports = ports.as_array().unwrap().iter().filter(|port| port["name"] != "g/0");
        ports.filter_map(|port| port["rx_frames"].as_u64()).sum::<u64>()
    };
    let before = received();
    let _ = guests[0].run("ping -b -c 10 -i 0.1 -W 1 10.7.0.255", PATIENCE);
    let more = received() - before;
    assert!(more < 1000, "10 frames came back {more} times");
    let drops = daemons[1].json(&["show", "drops", "--json"]);
    assert!(drops.as_array().unwrap().iter().any(|drop| drop["reason"] == "flapping"), "{drops}");
    let doctor = trunkline(&["--config", daemons[1].config().to_str().unwrap(), "--json", "doctor"]);
    let report: serde_json::Value = serde_json::from_str(doctor.output.lines().next().unwrap()).expect("JSON");
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "loops of tenant").expect("a check of loops");
    assert_eq!(check["state"], "problem", "{check}");
    let detail = check["detail"].as_str().unwrap();
    assert!(detail.contains("x/0") && detail.contains("192.0.2.1"), "{check}");
}

//! A loop outside: two ports of a network that are joined behind the switch.

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
    outside.sh("ip link add br0 type bridge && ip link set br0 up && ip link set x0 master br0 up && ip link set x1 master br0 up");
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
        ["g/0", "x/0", "x/1"].iter().filter(|port| check["detail"].as_str().unwrap().contains(**port)).count() >= 2,
        "{check}"
    );
    // Held where it was first, it is reached.
    assert!(other.reaches("10.7.0.1", PATIENCE).is_some(), "{seen:?}");
}

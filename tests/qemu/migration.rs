//! Live migration: a guest moves to another QEMU, on another port, while frames are written into its memory.
//!
//! What the daemon writes behind the guest's back must be in the log of dirtied pages, or the guest would find old bytes in
//! its buffers where it arrives: so it compares frames byte for byte all the way.

use super::lab::daemon::Daemon;
use super::lab::frames::{Flow, FrameReport};
use super::lab::netns::NetNs;
use super::lab::pings::Pings;
use super::lab::process::Place;
use super::lab::qemu::{GuestSpec, NicSpec, Qemu};
use super::lab::{Lab, Unable, holds_within, require, skip, wait_for};
use super::{address, everything_intact, mac};
use std::time::Duration;

#[test]
fn a_guest_with_split_rings_migrates_under_load() {
    let lab = require!(Lab::new());
    migrates_at_last(&lab, |lab| migrates(lab, false));
}

#[test]
fn a_guest_with_packed_rings_migrates_under_load() {
    let lab = require!(Lab::new());
    migrates_at_last(&lab, |lab| migrates(lab, true));
}

#[test]
fn a_guest_that_moves_to_another_host_is_found_there_at_once() {
    let lab = require!(Lab::new());
    migrates_at_last(&lab, to_another_host);
}

/// Tries anew when emulation has lost the guest's kernel on the way, which is no affair of ours unless it is always so.
fn migrates_at_last(lab: &Lab, migrates: impl Fn(&Lab) -> Result<bool, Unable>) {
    const TRIES: usize = 3;
    for attempt in 1..=TRIES {
        match migrates(lab) {
            Ok(true) => return,
            Ok(false) => {}
            Err(why) => skip!("{why}"),
        }
        eprintln!("the guest's kernel died in its migration, attempt {attempt} of {TRIES}");
    }
    panic!("the guest's kernel died in each of {TRIES} migrations");
}

/// False: the guest's kernel died on the way.
fn migrates(lab: &Lab, packed: bool) -> Result<bool, Unable> {
    let x = NetNs::new(lab, "x")?;
    let daemon = Daemon::start(
        lab,
        &format!(
            r#"
            [networks.lan]
            [guests.here]
            ports = [{{ network = "lan", socket = "$DIR/here.sock" }}]
            [guests.there]
            ports = [{{ network = "lan", socket = "$DIR/there.sock" }}]
            [guests.x]
            ports = [{{ network = "lan", attach = "tap", tap = "eth0", netns = "{}" }}]
            "#,
            x.netns_name()
        ),
    );
    let uri = format!("unix:{}", lab.path("migration").display());
    let spec = |name: &str| {
        let nic = NicSpec { packed, ..NicSpec::new(lab.path(&format!("{name}.sock")), &mac(1, 0)) };
        GuestSpec::new(name, vec![nic])
    };
    let here = Qemu::boot(lab, spec("here"))?;
    let there = Qemu::boot(lab, GuestSpec { incoming: Some(uri.clone()), ..spec("there") })?;
    address(&here, "eth0", "10.0.0.1/24");
    address(&x, "eth0", "10.0.0.3/24");
    let pings = Pings::start(&x, "10.0.0.1");
    assert_eq!(port_of(&daemon, &mac(1, 0)), "here/0");

    // Two thousand frames a second for two minutes; the report is of what came until the sender is ended.
    let traffic = "--sizes 60,1514 --count 120000 --seed 9";
    let report = "frames receive eth0 --timeout-ms 15000";
    let _receiver = here.spawn(&format!("exec setsid {report} {traffic} >/tmp/report"));
    wait_for("the guest to listen", Duration::from_secs(10), || here.sh("cat /tmp/report || true").contains("ready"));
    let mut sender = x.spawn(&format!("exec frames send eth0 --dst {} --gap-us 500 {traffic}", mac(1, 0)));
    if !here.migrate(&uri, &there) {
        return Ok(false);
    }
    assert!(sender.running(), "the migration took longer than the load");
    let moved = || port_of(&daemon, &mac(1, 0)) == "there/0";
    wait_for("the address to be behind the other port", Duration::from_secs(20), || moved() || there.has_died());
    let before = pings.answered();
    let go_on = || pings.answered() > before + 20;
    wait_for("the pings to go on", Duration::from_secs(20), || go_on() || there.has_died());
    if there.has_died() {
        return Ok(false);
    }
    let mut text = String::new();
    wait_for("the guest's report", Duration::from_secs(30), || {
        text = there.sh("cat /tmp/report");
        text.contains("damaged")
    });
    sender.kill();
    let seen: FrameReport = serde_json::from_str(text.lines().last().expect("a line")).expect("a report");
    let wrong = seen.damaged + seen.wrong_length + seen.reordered;
    assert!(wrong == 0 && seen.received > 2000, "{seen:?}\n{}", daemon.log());

    everything_intact(&x, &there, &Flow::to_mac(&mac(1, 0)));
    everything_intact(&there, &x, &Flow::to_mac(&x.mac("eth0")));
    assert_eq!(daemon.port("there/0")["state"], "up");
    Ok(true)
}

/// Three hosts on one overlay: the guest moves from the first to the second, a station of the third goes on reaching it. The guest neither announces itself nor
/// speaks unless it is spoken to, and nobody declares its address: only QEMU's message (`SEND_RARP`) tells where it is.
fn to_another_host(lab: &Lab) -> Result<bool, Unable> {
    let (link, x) = (NetNs::new(lab, "link")?, NetNs::new(lab, "x")?);
    link.ip("link add br0 type bridge");
    link.ip("link set br0 up");
    let mut daemons = Vec::new();
    for n in 1..=3 {
        let host = NetNs::new(lab, &format!("h{n}"))?;
        link.veth(&format!("p{n}"), &host, "u0");
        link.ip(&format!("link set p{n} master br0"));
        host.address("u0", &format!("192.0.2.{n}/24"));
        let peers: Vec<String> = (1..=3).filter(|m| *m != n).map(|m| format!("\"192.0.2.{m}\"")).collect();
        let port = match n {
            3 => format!("attach = \"tap\", tap = \"eth0\", netns = \"{}\"", x.netns_name()),
            _ => format!("socket = \"$DIR/g{n}.sock\""),
        };
        let text = format!(
            "[networks.tenant]\noverlay = {{ vni = 5001, local = \"192.0.2.{n}\", peers = [{}] }}\n\
             [guests.g]\nports = [{{ network = \"tenant\", {port} }}]\n",
            peers.join(", ")
        );
        daemons.push((Daemon::start_beside(lab, &host, &format!("hv{n}"), &text), host));
    }
    let uri = format!("unix:{}", lab.path("migration").display());
    let spec = |n: usize| {
        let properties = "guest_announce=off,host_mtu=1450".to_owned();
        let nic = NicSpec { properties, ..NicSpec::new(lab.path(&format!("g{n}.sock")), &mac(1, 0)) };
        GuestSpec::new(&format!("g{n}"), vec![nic])
    };
    let here = Qemu::boot(lab, spec(1))?;
    let there = Qemu::boot(lab, GuestSpec { incoming: Some(uri.clone()), ..spec(2) })?;
    assert_eq!(here.sh("cat /sys/class/net/eth0/mtu").trim(), "1450", "as the documentation has users tell QEMU");
    address(&here, "eth0", "10.0.0.1/24");
    address(&x, "eth0", "10.0.0.3/24");
    let pings = Pings::start(&x, "10.0.0.1");
    // No question for the address may give it away.
    x.ip(&format!("neigh replace 10.0.0.1 lladdr {} dev eth0 nud permanent", mac(1, 0)));
    let behind = |n: usize| {
        let peers = daemons[2].0.json(&["show", "peers", "--json"]);
        let peers = peers.as_array().cloned().unwrap_or_default();
        peers.iter().any(|peer| peer["address"] == format!("192.0.2.{n}") && peer["macs"].as_u64() > Some(0))
    };
    assert!(behind(1) && !behind(2), "{}", daemons[2].0.json(&["show", "peers", "--json"]));
    let before = pings.answered();
    if !here.migrate(&uri, &there) {
        return Ok(false);
    }
    let told = || daemons.iter().map(|(daemon, _)| daemon.log()).collect::<String>();
    let announced = || daemons[1].0.log().contains("the guest has moved here and is announced");
    assert!(holds_within(Duration::from_secs(20), announced), "{}", told());
    let moved = holds_within(Duration::from_secs(20), || behind(2) && !behind(1));
    assert!(moved, "{}\n{}", daemons[2].0.json(&["show", "peers", "--json"]), told());
    let after = pings.answered();
    let go_on = || pings.answered() > after + 10;
    wait_for("the pings to go on", Duration::from_secs(20), || go_on() || there.has_died());
    if there.has_died() {
        return Ok(false);
    }
    println!("pings answered: {before} before, {} while it moved", after - before);
    Ok(true)
}

/// The port that `show fdb` names for a MAC address.
fn port_of(daemon: &Daemon, mac: &str) -> String {
    let fdb = daemon.json(&["show", "fdb", "--json"]);
    let entry = fdb.as_array().expect("a list").iter().find(|entry| entry["mac"] == mac);
    entry.map(|entry| entry["port"].as_str().expect("a name").to_owned()).unwrap_or_default()
}

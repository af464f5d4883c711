//! Addresses by DHCP and by router advertisements, with clients that somebody else wrote: udhcpc in namespaces and in a Linux guest, the kernel's
//! own IPv6 configuration, smoltcp in a built-in guest.
//!
//! Read first: the crate page of `gateway`, `src/gateways.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::netns::NetNs;
use lab::process::Place;
use lab::qemu::{GuestSpec, NicSpec, Qemu};
use lab::{Lab, need_program, require, wait_for};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A network whose router gives out addresses, with TAPs in these namespaces and places for two other guests.
fn config(one: &NetNs, two: &NetNs) -> String {
    let (one, two) = (one.netns_name(), two.netns_name());
    format!(
        "[networks.lan]\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\ndhcp = true\nmtu = 1400\n\
         [guests.one]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{one}\" }}]\n\
         [guests.two]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{two}\", \
         mac = \"02:00:00:00:00:02\", addresses = [\"10.9.0.77\"] }}]\n\
         [guests.linux]\nports = [{{ network = \"lan\", socket = \"$DIR/linux.sock\" }}]\n\
         [guests.toy]\nports = [{{ network = \"lan\", socket = \"$DIR/toy.sock\" }}]\n"
    )
}

/// What udhcpc runs at every change: the address and the MTU are taken.
const SCRIPT: &str = "#!/bin/sh\n[ \"$1\" = bound ] || [ \"$1\" = renew ] || exit 0\n\
                      ip addr flush dev $interface scope global\nip addr add $ip/$mask dev $interface\n\
                      [ -z \"$mtu\" ] || ip link set $interface mtu $mtu\necho \"took $ip router=$router mtu=$mtu lease=$lease\"\n";

/// Asks for an address once; what the script said.
fn udhcpc(place: &dyn Place, script: &str, more: &str) -> String {
    place.sh(&format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {script} -O mtu {more} 2>&1"))
}

fn leases(daemon: &Daemon) -> Vec<Value> {
    daemon.json(&["show", "leases", "--json"]).as_array().unwrap().clone()
}

fn lease_of<'a>(leases: &'a [Value], mac: &str) -> Option<&'a Value> {
    leases.iter().find(|lease| lease["mac"] == mac)
}

#[test]
fn clients_get_addresses_and_keep_them_over_a_restart() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let mut daemon = Daemon::start(&lab, &config(&one, &two));
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let script = script.display().to_string();
    for ns in [&one, &two] {
        ns.ip("link set lo up");
        ns.ip("link set eth0 up");
    }

    let told = udhcpc(&one, &script, "-x hostname:first");
    assert!(
        told.contains("took 10.9.0.") && told.contains("mtu=1400") && told.contains("router= "),
        "{told}\n{}",
        daemon.log()
    );
    let told = udhcpc(&two, &script, "");
    assert!(told.contains("took 10.9.0.77 "), "the declared address is kept for its guest: {told}");
    for ns in [&one, &two] {
        assert!(ns.reaches("10.9.0.1", PATIENCE).is_some(), "the router answers\n{}", daemon.log());
    }
    assert!(one.reaches("10.9.0.77", PATIENCE).is_some());
    let mac = one.mac("eth0");
    let before = leases(&daemon);
    let first = lease_of(&before, &mac).unwrap_or_else(|| panic!("{before:?}"));
    assert_eq!((&first["network"], &first["hostname"]), (&"lan".into(), &"first".into()), "{first}");
    assert!(first["expires_s"].as_u64().is_some_and(|seconds| (80_000..=86_400).contains(&seconds)), "{first}");
    assert_eq!(lease_of(&before, "02:00:00:00:00:02").unwrap()["address"], "10.9.0.77");

    // By router advertisements, without asking anybody.
    wait_for("an address in fd09::/64", PATIENCE, || one.ip("-6 addr show dev eth0 scope global").contains("fd09::"));
    assert!(!one.ip("-6 route").contains("default"), "nothing leads out of an isolated network");
    assert!(one.run("ping -6 -c 3 -i 0.2 -W 2 fd09::1", PATIENCE).ok(), "{}", daemon.log());
    // What goes elsewhere is answered with an error, and nothing else.
    one.ip("route add default via 10.9.0.1");
    let elsewhere = one.run("ping -c 2 -i 0.2 -W 2 192.0.2.1", PATIENCE);
    assert!(!elsewhere.ok() && elsewhere.output.contains("Unreachable"), "{}", elsewhere.output);

    // A Linux guest and a built-in one.
    let linux = require!(Qemu::boot(
        &lab,
        GuestSpec::new("linux", vec![NicSpec::new(lab.path("linux.sock"), "52:54:00:00:00:01")])
    ));
    linux.sh("ip link set eth0 up");
    linux.sh(&format!("cat >/tmp/script <<'END'\n{SCRIPT}END\nchmod +x /tmp/script"));
    let told = udhcpc(&linux, "/tmp/script", "");
    assert!(told.contains("took 10.9.0."), "{told}");
    assert!(linux.reaches("10.9.0.77", PATIENCE).is_some());
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        let mut toy = Command::new(program());
        toy.arg("machine").arg("--port").arg(lab.path("toy.sock"));
        let output = toy.args(["--run", "dhcp", "--run", "ping 10.9.0.77", "--run", "off"]).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && told.contains("ok 10.9.0."),
            "{told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let linux_has = lease_of(&leases(&daemon), "52:54:00:00:00:01").unwrap()["address"].as_str().unwrap().to_owned();
    let addresses: std::collections::BTreeSet<String> =
        leases(&daemon).iter().map(|lease| lease["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!(addresses.len(), leases(&daemon).len(), "no address twice: {:?}", leases(&daemon));

    // Killed and started again, the daemon knows its leases, and gives everybody what they had.
    let address = first["address"].as_str().unwrap().to_owned();
    wait_for("the leases to be written", PATIENCE, || {
        let file = fs::read_to_string(lab.path("state/leases-lan.json")).unwrap_or_default();
        file.contains(&address) && file.contains("52:54:00:00:00:01")
    });
    daemon.kill9();
    daemon.restart();
    assert!(
        lease_of(&leases(&daemon), &mac).is_some_and(|lease| lease["address"] == address.as_str()),
        "{:?}",
        leases(&daemon)
    );
    wait_for("the guest to be back", PATIENCE, || daemon.port("linux/0")["state"] == "up");
    let told = udhcpc(&linux, "/tmp/script", "");
    assert!(told.contains(&format!("took {linux_has} ")), "{told}");
}

#[test]
fn a_guest_that_asks_for_everything_leaves_something_for_others() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let text = config(&one, &two).replace("10.9.0.0/24", "10.9.0.0/28").replace("10.9.0.77", "10.9.0.14");
    let daemon = Daemon::start(&lab, &text);
    for ns in [&one, &two] {
        ns.ip("link set eth0 up");
    }
    // As many clients as it likes, by their identifiers: the pool has 13 addresses, one of them reserved.
    for client in 0..20 {
        one.run(
            &format!("timeout 5 busybox udhcpc -i eth0 -n -q -f -t 1 -T 1 -s /bin/true -x 61:01aabbccddee{client:02x}"),
            PATIENCE,
        );
    }
    let held = leases(&daemon).len();
    assert!((1..=6).contains(&held), "half the pool at most: {:?}", leases(&daemon));
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let told = udhcpc(&two, &script.display().to_string(), "");
    assert!(told.contains("took 10.9.0.14 "), "{told}\n{}", daemon.log());
    let table = daemon.ctl(&["show", "leases"]);
    assert!(table.ok() && table.output.contains("10.9.0.14"), "{}", table.output);
}

#[test]
fn an_address_that_somebody_uses_without_a_lease_is_not_given_away() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    // The second port is declared with nothing here, so its guest takes what it likes.
    let text = config(&one, &two).replace(", mac = \"02:00:00:00:00:02\", addresses = [\"10.9.0.77\"]", "");
    assert!(!text.contains("10.9.0.77"));
    let daemon = Daemon::start(&lab, &text);
    let script = lab.path("script");
    fs::write(&script, SCRIPT).unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    one.ip("link set eth0 up");
    two.address("eth0", "10.9.0.60/24");
    let told = udhcpc(&one, &script.display().to_string(), "-r 10.9.0.60");
    assert!(told.contains("took 10.9.0.") && !told.contains("took 10.9.0.60 "), "{told}\n{}", daemon.log());
    // Who uses it may have it; and when nobody does, anybody.
    let told = udhcpc(&two, &script.display().to_string(), "-r 10.9.0.60");
    assert!(told.contains("took 10.9.0.60 "), "{told}\n{}", daemon.log());
    let told = udhcpc(&one, &script.display().to_string(), "-r 10.9.0.61");
    assert!(told.contains("took 10.9.0."), "{told}\n{}", daemon.log());
}

#[test]
fn dhclient_is_told_all_that_is_configured() {
    let lab = require!(Lab::new());
    require!(need_program("dhclient", "isc-dhcp-client"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let more =
        "mtu = 1400\nntp = [\"10.9.0.9\", \"192.0.2.7\", \"fd09::9\"]\ndomain = \"lab.example\"\nroute = [\"dmz\"]\n";
    let dmz = "[networks.dmz]\nsubnet = \"10.10.0.0/20\"\ndhcp = true\n";
    let daemon = Daemon::start(&lab, &(config(&one, &two).replace("mtu = 1400\n", more) + dmz));
    let (script, asks) = (lab.path("script"), lab.path("dhclient.conf"));
    fs::write(&script, "#!/bin/sh\n[ \"$reason\" = BOUND ] && env | grep ^new_ | sort\nexit 0\n").unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let asked = "option classless code 121 = array of unsigned integer 8;\nsend host-name \"lab-one\";\nrequest subnet-mask, \
                 broadcast-address, routers, domain-name-servers, domain-name, domain-search, host-name, interface-mtu, ntp-servers, \
                 classless, dhcp-lease-time, dhcp-server-identifier;\n";
    fs::write(&asks, asked).unwrap();
    one.ip("link set eth0 up");
    let (script, asks, memory) = (script.display(), asks.display(), lab.path("one.leases").display().to_string());
    let told = one
        .sh(&format!("timeout 20 dhclient -4 -1 -v -cf {asks} -pf {memory}.pid -lf {memory} -sf {script} eth0 2>&1"));
    for expected in [
        "new_subnet_mask=255.255.255.0",
        "new_broadcast_address=10.9.0.255",
        "new_domain_name_servers=10.9.0.1",
        "new_domain_name=lab.example",
        "new_domain_search=lab.example. dmz.internal.",
        "new_host_name=lab-one",
        "new_interface_mtu=1400",
        "new_ntp_servers=10.9.0.9 192.0.2.7",
        "new_classless=20 10 10 0 10 9 0 1",
        "new_dhcp_lease_time=86400",
        "new_dhcp_server_identifier=10.9.0.1",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}\n{}", daemon.log());
    }
    assert!(!told.contains("new_routers"), "an isolated network has no way out: {told}");
}

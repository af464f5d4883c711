//! DHCPv6 with a client that somebody else wrote: ISC dhclient in namespaces, and the kernel's own view of router advertisements beside it.
//!
//! Read first: the crate page of `gateway`, `gateway/src/dhcp6`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, need_program, require, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// A network with DHCPv6 of a kind, and two TAPs in these namespaces; the second has its addresses declared.
fn config(kind: &str, one: &NetNs, two: &NetNs) -> String {
    let (one, two) = (one.netns_name(), two.netns_name());
    format!(
        "[networks.lan]\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\ndhcp = true\ndhcp6 = \"{kind}\"\n\
         [guests.one]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{one}\" }}]\n\
         [guests.two]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{two}\", \
         mac = \"02:00:00:00:00:02\", addresses = [\"10.9.0.77\", \"fd09::77\"] }}]\n"
    )
}

/// What dhclient runs at every change: the address is taken, and all is told.
const SCRIPT: &str = "#!/bin/sh\n\
    [ -z \"$new_ip6_address\" ] || ip -6 addr replace $new_ip6_address/128 dev $interface\n\
    echo \"told $reason address=$new_ip6_address dns=$new_dhcp6_name_servers search=$new_dhcp6_domain_search life=$new_max_life\"\n";

/// A client in a namespace, with a memory of its own.
struct Client<'a> {
    ns: &'a NetNs,
    script: String,
    memory: String,
}

impl<'a> Client<'a> {
    fn new(lab: &Lab, ns: &'a NetNs, name: &str) -> Self {
        let script = lab.path("dhclient-script");
        fs::write(&script, SCRIPT).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        ns.ip("link set eth0 up");
        // Without a link-local address there is nothing to ask from.
        wait_for("a link-local address", PATIENCE, || ns.ip("-6 addr show dev eth0 scope link").contains("fe80::"));
        let memory = lab.path(&format!("{name}.leases")).display().to_string();
        Client { ns, script: script.display().to_string(), memory }
    }

    /// Runs it once with these arguments; what it said.
    fn run(&self, arguments: &str) -> String {
        let (memory, script) = (&self.memory, &self.script);
        let command = format!(
            "dhclient -6 -1 -v -D LL -cf /dev/null -pf {memory}.pid -lf {memory} -sf {script} {arguments} eth0 2>&1"
        );
        self.ns.run(&format!("timeout 20 {command}"), Duration::from_secs(30)).output
    }
}

/// The lease of an address within the prefix that a MAC has.
fn lease(daemon: &Daemon, mac: &str) -> Option<Value> {
    let leases = daemon.json(&["show", "leases", "--json"]);
    let is_of = |lease: &&Value| lease["mac"] == mac && lease["address"].as_str().unwrap().starts_with("fd09::");
    leases.as_array().unwrap().iter().find(is_of).cloned()
}

#[test]
fn dhclient_gets_an_address_keeps_it_over_a_restart_and_gives_it_back() {
    let lab = require!(Lab::new());
    require!(need_program("dhclient", "isc-dhcp-client"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let mut daemon = Daemon::start(&lab, &config("stateful", &one, &two));
    let client = Client::new(&lab, &one, "one");
    let declared = Client::new(&lab, &two, "two");

    let told = client.run("");
    assert!(told.contains("told BOUND6 address=fd09::1"), "{told}\n{}", daemon.log());
    assert!(told.contains("dns=fd09::1 search=lan.internal. life=86400"), "{told}");
    let told = declared.run("");
    assert!(told.contains("told BOUND6 address=fd09::77 "), "the declared one is kept for its guest: {told}");
    let mac = one.mac("eth0");
    let first = lease(&daemon, &mac).unwrap_or_else(|| panic!("no lease\n{}", daemon.log()));
    assert!(first["expires_s"].as_u64().is_some_and(|seconds| (80_000..=86_400).contains(&seconds)), "{first}");
    let address = first["address"].as_str().unwrap().to_owned();
    assert_eq!(lease(&daemon, "02:00:00:00:00:02").unwrap()["address"], "fd09::77");

    // The prefix is on the link, and nobody makes addresses of it.
    wait_for("the prefix to be on the link", PATIENCE, || one.ip("-6 route").contains("fd09::/64 dev eth0"));
    let addresses = one.ip("-6 addr show dev eth0 scope global");
    assert_eq!(addresses.matches("inet6").count(), 1, "{addresses}");
    for to in ["fd09::1", "fd09::77"] {
        let pings = one.run(&format!("ping -6 -c 3 -i 0.2 -W 2 {to}"), PATIENCE);
        assert!(pings.ok(), "{to}: {}\n{}", pings.output, daemon.log());
    }

    wait_for("the leases to be written", PATIENCE, || {
        let written = fs::read_to_string(lab.path("state/leases-lan.json")).unwrap_or_default();
        written.contains(&address) && written.contains("fd09::77")
    });
    daemon.kill9();
    daemon.restart();
    assert_eq!(lease(&daemon, &mac).map(|lease| lease["address"].clone()), Some(address.as_str().into()));
    // With its own memory it asks whether all is right (CONFIRM); without one it is known by its DUID.
    wait_for("the link", PATIENCE, || one.has_link("eth0"));
    // The TAP is a new one, its guest the same.
    one.ip(&format!("link set eth0 address {mac}"));
    let again = Client::new(&lab, &one, "one");
    let told = again.run("");
    assert!(told.contains(&format!("address={address} ")), "{told}\n{}", daemon.log());
    let told = Client::new(&lab, &one, "fresh").run("");
    assert!(told.contains(&format!("told BOUND6 address={address} ")), "{told}\n{}", daemon.log());

    let told = client.run("-r");
    wait_for("the lease to end", PATIENCE, || lease(&daemon, &mac).is_none());
    assert!(told.contains("XMT: Release"), "{told}");
    let table = daemon.ctl(&["show", "leases"]);
    assert!(table.ok() && table.output.contains("fd09::77"), "{}", table.output);
}

#[test]
fn stateless_guests_make_their_addresses_and_ask_for_the_rest() {
    let lab = require!(Lab::new());
    require!(need_program("dhclient", "isc-dhcp-client"));
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let daemon = Daemon::start(&lab, &config("stateless", &one, &two));
    let client = Client::new(&lab, &one, "one");
    let told = client.run("-S");
    assert!(told.contains("dns=fd09::1 search=lan.internal."), "{told}\n{}", daemon.log());
    assert!(lease(&daemon, &one.mac("eth0")).is_none());
    wait_for("an address in fd09::/64", PATIENCE, || one.ip("-6 addr show dev eth0 scope global").contains("fd09::"));

    // A guarded port with another address declared may use the one that its MAC makes, and none that hides it.
    two.ip("link set eth0 up");
    let own = "fd09::ff:fe00:2";
    wait_for("the address of its MAC", PATIENCE, || two.ip("-6 addr show dev eth0 scope global").contains(own));
    let from = |source: &str| two.run(&format!("ping -6 -c 2 -i 0.2 -W 2 -I {source} fd09::1"), PATIENCE);
    assert!(from(own).ok(), "{}\n{}", from(own).output, daemon.log());
    two.ip("addr add fd09::abcd:1234:5678:9abc/64 dev eth0 nodad");
    assert!(!from("fd09::abcd:1234:5678:9abc").ok());
    assert!(daemon.ctl(&["show", "drops"]).output.contains("spoofed"), "{}", daemon.ctl(&["show", "drops"]).output);
}

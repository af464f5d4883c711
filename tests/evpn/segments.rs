//! Two hosts of ours, told by their speakers, whose networks stretch in more ways than one: a VNI for each VLAN, and an endpoint that is in a network itself.

use super::lab::daemon::Daemon;
use super::lab::netns::NetNs;
use super::lab::process::Place;
use super::lab::{Lab, holds_within, need_program, require, wait_for};
use super::site::{PATIENCE, SESSION, Speaker, connected, everything, hosts, speak_in};

/// The file of an endpoint told by a speaker; `where_to` are its other keys.
fn endpoint(lab: &Lab, speaker: &str, where_to: &str) -> String {
    let socket = Speaker::socket(lab, speaker);
    format!("[vteps.main]\n{where_to}\ncontrol = \"evpn\"\nspeaker = \"unix://{socket}\"\nas = 65000\n")
}

/// A guest by a TAP in a namespace of its own; `tagging` says which VLANs it is in.
fn guest(name: &str, tagging: &str, ns: &NetNs) -> String {
    let netns = ns.netns_name();
    format!(
        "[guests.{name}]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\", {tagging} }}]\n"
    )
}

#[test]
fn each_vlan_has_a_vni_of_its_own_and_stations_are_told_in_theirs() {
    let lab = require!(Lab::new());
    require!(need_program("tcpdump", "tcpdump"));
    require!(need_program("python3", "python3"));
    let at = require!(hosts(&lab, (true, false)));
    let names = ["a1", "b1", "t1", "a2", "b2"];
    let [a1, b1, t1, a2, b2] = names.map(|name| NetNs::new(&lab, name));
    let [a1, b1, t1, a2, b2] = [require!(a1), require!(b1), require!(t1), require!(a2), require!(b2)];
    let here = guest("a", "vlan = 100", &a1) + &guest("b", "vlan = 200", &b1) + &guest("t", "trunk = [100, 200]", &t1);
    let there = guest("a", "vlan = 100", &a2) + &guest("b", "vlan = 200", &b2);
    let start = |n: usize, guests: &str| {
        let (name, local) = (format!("bgp{n}"), format!("192.0.2.{n}"));
        let tenant = "[networks.tenant]\noverlay = { vtep = \"main\" }\nvlan_vni = { 100 = 5100, 200 = 5200 }\n";
        let text = endpoint(&lab, &name, &format!("local = \"{local}\"")) + tenant + guests;
        let daemon = Daemon::start_beside(&lab, &at[n - 1], &format!("hv{n}"), &text);
        Speaker::start(&lab, &at[n - 1], &name, &local, &[&format!("192.0.2.{}", 3 - n)])
            .map(|speaker| (speaker, daemon))
    };
    let (one, two) = (require!(start(1, &here)), require!(start(2, &there)));
    let told = || format!("{}\n{}\n{}", one.1.log(), two.1.log(), two.0.ctl("global rib -a evpn"));
    connected(&one.1);
    connected(&two.1);
    // The same addresses in both VLANs: who answers says which of them a frame went to.
    for guest in [&a1, &b1] {
        guest.address("eth0", "10.7.0.1/24");
    }
    for guest in [&a2, &b2] {
        guest.address("eth0", "10.7.0.2/24");
    }
    t1.ip("link set eth0 up");
    for vni in ["5100", "5200"] {
        let known = || {
            two.0.ctl("global rib -a evpn").lines().any(|line| {
                line.contains("multicast") && line.contains("192.0.2.1") && line.contains(&format!("65000:{vni}"))
            })
        };
        assert!(holds_within(SESSION, known), "{}", told());
    }
    for (from, right, wrong) in [(&a1, &a2, &b2), (&b1, &b2, &a2)] {
        assert!(from.reaches("10.7.0.2", SESSION).is_some(), "{}", told());
        let neighbour = from.ip("neigh show 10.7.0.2");
        assert!(
            neighbour.contains(&right.mac("eth0")) && !neighbour.contains(&wrong.mac("eth0")),
            "{neighbour}\n{}",
            told()
        );
    }
    // Of a trunk, one station is in both.
    let (station, number) = ("02:00:00:00:0c:01", 0x0c01);
    for vlan in [100, 200] {
        speak_in(&t1, number, Some(vlan));
    }
    let mut heard = t1.spawn("exec tcpdump -l -e -n -Z root -i eth0 icmp or \\(vlan and icmp\\)");
    heard.wait_for_output("listening on", PATIENCE);
    for (from, vlan) in [(&a2, "vlan 100"), (&b2, "vlan 200")] {
        from.ip(&format!("neigh replace 10.7.0.3 lladdr {station} dev eth0"));
        let mac = from.mac("eth0");
        let arrives = || {
            drop(from.run("ping -c 1 -W 0.1 10.7.0.3", PATIENCE));
            heard.output().lines().any(|line| line.contains(&mac) && line.contains(vlan))
        };
        assert!(holds_within(PATIENCE, arrives), "{vlan}: {}\n{}", heard.output(), told());
    }
    let crossed = |line: &str, from: &NetNs, vlan: &str| line.contains(&from.mac("eth0")) && line.contains(vlan);
    let said = heard.output();
    assert!(!said.lines().any(|line| crossed(line, &a2, "vlan 200") || crossed(line, &b2, "vlan 100")), "{said}");
    let routes = |mac: &str, vni: &str| {
        let rib = two.0.ctl("global rib -a evpn");
        rib.lines().filter(|line| line.contains(mac) && line.contains(&format!("[{vni}]"))).count()
    };
    let of = |mac: &str| (routes(mac, "5100") > 0, routes(mac, "5200") > 0);
    let [a1, b1, a2, b2] = [&a1, &b1, &a2, &b2].map(|guest| guest.mac("eth0"));
    let expected = [
        (&*a1, (true, false)),
        (&b1, (false, true)),
        (station, (true, true)),
        (&a2, (true, false)),
        (&b2, (false, true)),
    ];
    for (mac, vnis) in expected {
        assert!(holds_within(PATIENCE, || of(mac) == vnis), "{mac}: {:?}\n{}", of(mac), told());
    }
    // The other host's table has them in their VLANs, behind the tunnel.
    let vlans = |mac: &str| {
        let table = two.1.json(&["show", "fdb", "--json"]);
        let table = table.as_array().cloned().unwrap_or_default();
        let mut vlans: Vec<u64> =
            table.iter().filter(|entry| entry["mac"] == mac).filter_map(|entry| entry["vlan"].as_u64()).collect();
        vlans.sort_unstable();
        vlans
    };
    for (mac, expected) in [(&*a1, &[100][..]), (&b1, &[200]), (station, &[100, 200])] {
        let known = holds_within(PATIENCE, || vlans(mac) == expected);
        assert!(known, "{mac}: {}\n{}", two.1.json(&["show", "fdb", "--json"]), told());
    }
    assert!(![&one, &two].into_iter().any(|(_, daemon)| daemon.log().contains("not believed")), "{}", told());
}

#[test]
fn an_endpoint_in_a_network_of_ours_is_told_by_bgp_too() {
    let lab = require!(Lab::new());
    let at = require!(hosts(&lab, (false, false)));
    let guests = [require!(NetNs::new(&lab, "g1")), require!(NetNs::new(&lab, "g2"))];
    let mut both = Vec::new();
    for (n, (host, ns)) in at.iter().zip(&guests).enumerate() {
        let name = format!("bgp{n}");
        // The hosts' own addresses, which the speakers have, are others than those of the endpoints.
        let seat = format!("network = \"fabric\"\nlocal = \"192.0.2.{}/24\"", n + 1);
        let text = endpoint(&lab, &name, &seat)
            + "[networks.fabric]\n[networks.tenant]\noverlay = { vtep = \"main\", vni = 5001 }\n\
               [guests.up]\nports = [{ network = \"fabric\", attach = \"tap\", tap = \"f0\" }]\n"
            + &guest("g", "isolated = false", ns);
        let daemon = Daemon::start_beside(&lab, host, &format!("hv{n}"), &text);
        host.ip("link add brf type bridge mcast_snooping 0");
        for interface in ["u0", "f0"] {
            host.ip(&format!("link set {interface} master brf up"));
        }
        host.address("brf", &format!("192.0.2.{}/24", 11 + n));
        let speaker = require!(Speaker::start(
            &lab,
            host,
            &name,
            &format!("192.0.2.{}", 11 + n),
            &[&format!("192.0.2.{}", 12 - n)]
        ));
        both.push((speaker, daemon));
    }
    let told =
        || both.iter().map(|(speaker, daemon)| daemon.log() + &speaker.ctl("global rib -a evpn")).collect::<String>();
    for (n, (speaker, daemon)) in both.iter().enumerate() {
        connected(daemon);
        let other = format!("192.0.2.{}", 2 - n);
        let known = || {
            let peers = daemon.json(&["show", "peers", "--json"]);
            peers[0]["address"] == *other && peers[0]["source"] == "evpn"
        };
        assert!(holds_within(SESSION, known), "{}", told());
        assert!(speaker.routes("multicast") == 2, "{}", told());
    }
    everything(&guests[0], &guests[1], told);
    // What is over is withdrawn.
    both[1].1.terminate();
    wait_for("the endpoint to go", PATIENCE, || {
        both[0].1.json(&["show", "peers", "--json"]).as_array().is_some_and(Vec::is_empty)
    });
}

//! The MTU of networks that stretch over hosts, where the file gives none: guests are told what every way takes.
//!
//! Read first: `src/mtu.rs`, `src/underlay.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, need_program, require};

/// Where an endpoint is told of its peers by a speaker that is not there yet.
const EVPN: &str =
    "[vteps.v]\nlocal = \"192.0.2.1\"\ncontrol = \"evpn\"\nspeaker = \"unix:///nonexistent/sock\"\nas = 65000\n";

/// What guests are told on a host whose link takes packets of `mtu` bytes: a network's MTU, that of a TAP, and the option of DHCP.
fn told(lab: &Lab, name: &str, mtu: u32, endpoint: &str, network: &str) -> (u64, u64, String) {
    let (host, guest) = (NetNs::new(lab, "host").unwrap(), NetNs::new(lab, "guest").unwrap());
    let beyond = NetNs::new(lab, "beyond").unwrap();
    host.veth("u0", &beyond, "u0");
    host.ip(&format!("link set u0 mtu {mtu}"));
    host.address("u0", "192.0.2.1/24");
    let text = format!(
        "{endpoint}[networks.tenant]\n{network}\ngateway_host = \"{name}\"\n\
         [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
        guest.netns_name()
    );
    let daemon = Daemon::start_beside(lab, &host, name, &text);
    let network = daemon.json(&["show", "networks", "--json"])[0]["mtu"].as_u64();
    let tap = guest.sh("cat /sys/class/net/eth0/mtu").trim().parse().unwrap();
    guest.ip("link set eth0 up");
    let script = lab.path("script");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && echo \"took mtu=$mtu\"\nexit 0\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let asked = format!("timeout 20 busybox udhcpc -i eth0 -n -q -f -t 5 -T 1 -O mtu -s {} 2>&1", script.display());
    let lease = guest.sh(&asked);
    let lease = lease
        .lines()
        .find_map(|line| line.strip_prefix("took mtu="))
        .unwrap_or_else(|| panic!("{lease}\n{}", daemon.log()));
    (network.unwrap_or_default(), tap, lease.to_owned())
}

#[test]
fn without_peers_the_interface_of_the_endpoint_says_what_fits() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    require!(NetNs::new(&lab, "any"));
    let dhcp = "dhcp = true\nsubnet = \"10.9.0.0/24\"\n";
    let ways = [
        ("evpn", EVPN, "overlay = { vtep = \"v\", vni = 7 }"),
        ("anyone", "", "overlay = { vni = 7, local = \"192.0.2.1\", anyone = true }"),
        ("group", "", "overlay = { vni = 7, local = \"192.0.2.1\", group = \"239.1.1.1\" }"),
    ];
    for (name, endpoint, overlay) in ways {
        for mtu in [9000, 1420] {
            let inner = u64::from(mtu) - 50;
            let seen = told(&lab, &format!("{name}{mtu}"), mtu, endpoint, &format!("{dhcp}{overlay}"));
            assert_eq!(seen, (inner, inner, inner.to_string()), "{name} over {mtu}");
        }
    }
}

#[test]
fn a_way_out_that_is_narrower_than_the_underlay_counts() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    require!(NetNs::new(&lab, "any"));
    let overlay = "overlay = { vni = 7, local = \"192.0.2.1\", anyone = true }\nmode = \"nat\"";
    // By sockets there is no default route, by packets no uplink; both count as usual.
    let packet = format!("{overlay}\nengine = \"packet\"\nuplink = \"u1\"\noutside = [\"198.51.100.9\"]");
    for (name, network) in [("sockets", overlay), ("packets", packet.as_str())] {
        assert_eq!(told(&lab, name, 9000, "", network), (1500, 1500, "1500".to_owned()), "{name}");
    }
    // IPv6 takes 1280 at least; without it what fits counts.
    assert_eq!(told(&lab, "least", 1300, "", overlay), (1280, 1280, "1280".to_owned()));
    let four = format!("{overlay}\nsubnet6 = false");
    assert_eq!(told(&lab, "four", 1300, "", &four), (1250, 1250, "1250".to_owned()));
}

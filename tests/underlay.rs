//! What lies beneath overlays: its MTU, where the file gives none, addresses and UDP ports that are there late, routers that narrow the way while it is used.
//!
//! Read first: `src/mtu.rs`, `src/underlay.rs`, `src/tunnels/late.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::site::{Site, stream};
use lab::{Lab, need_program, require, wait_for};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Where an endpoint is told of its peers by a speaker that is not there yet.
const EVPN: &str =
    "[vteps.v]\nlocal = \"192.0.2.1\"\ncontrol = \"evpn\"\nspeaker = \"unix:///nonexistent/sock\"\nas = 65000\n";

/// What guests are told on a host whose link takes packets of `mtu` bytes: a network's MTU, that of a TAP, and the option
/// of DHCP; with `subnet6` what is advertised is that of the network, too.
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
    // Wider than it was made, so that what is advertised from now on is seen.
    guest.ip("link set eth0 down mtu 9001");
    guest.ip("link set eth0 up");
    if text.contains("subnet6 = \"") {
        let advertised = || guest.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").trim().parse().ok();
        wait_for("the MTU to be advertised", PATIENCE, || advertised() == network);
    }
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
    let dhcp = "dhcp = true\nsubnet = \"10.9.0.0/24\"\nsubnet6 = \"fd09::/64\"\n";
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

/// What a daemon has to say of its tunnel: the port's state, and why.
fn tunnel(daemon: &Daemon) -> (String, String) {
    let port = daemon.port("tenant/overlay");
    (port["state"].as_str().unwrap_or_default().to_owned(), port["reason"].to_string())
}

/// A configuration with the tunnel of a site's host to the other, and a network beside it with guests in two namespaces.
fn with_another(site: &Site, host: usize, others: &[NetNs; 2]) -> String {
    let guest = |name: &str, network: &str, netns: &NetNs| {
        let netns = netns.netns_name();
        format!(
            "[guests.{name}]\nports = [{{ network = \"{network}\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
        )
    };
    let (local, peer) = (site.address(host), site.address(1 - host));
    format!(
        "[networks.tenant]\noverlay = {{ vni = 5001, local = \"{local}\", peers = [\"{peer}\"] }}\n[networks.beside]\n{}{}{}",
        guest("g", "tenant", &site.guests[host]),
        guest("a", "beside", &others[0]),
        guest("b", "beside", &others[1])
    )
}

/// Gives both guests of a site, or of a network beside it, their addresses.
fn addresses(guests: &[NetNs; 2], net: &str) {
    for (n, guest) in guests.iter().enumerate() {
        guest.address("eth0", &format!("{net}.{}/24", n + 1));
    }
}

#[test]
fn an_endpoint_whose_address_comes_late_is_up_then_and_others_are_not_disturbed() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let others = [NetNs::new(&lab, "a").unwrap(), NetNs::new(&lab, "b").unwrap()];
        let own = format!("{}/{}", site.address(0), if v6 { 64 } else { 24 });
        site.hosts[0].ip(&format!("address del {own} dev u0"));
        let daemon = Daemon::start_beside(&lab, &site.hosts[0], "late", &with_another(&site, 0, &others));
        let _other = site.ours(&lab, 1);
        let (state, reason) = tunnel(&daemon);
        assert_eq!(state, "down", "{reason}");
        let why = format!("{} is not an address of this host", site.address(0));
        assert!(reason.contains(&why) && reason.contains("tried again"), "{reason}");
        assert!(daemon.log().contains(&why), "{}", daemon.log());
        addresses(&others, "10.8.0");
        assert!(others[0].reaches("10.8.0.2", PATIENCE).is_some(), "{}", daemon.log());

        site.hosts[0].ip(&format!("address add {own} dev u0 nodad"));
        wait_for("the endpoint to be up", PATIENCE, || tunnel(&daemon).0 == "up");
        addresses(&site.guests, "10.7.0");
        assert!(site.guests[0].reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemon.log());
        let said = daemon.log().matches("networks do not reach other hosts").count();
        assert_eq!(said, 1, "it is said once: {}", daemon.log());
    }
}

#[test]
fn an_endpoint_whose_udp_port_is_taken_is_up_when_it_is_free() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let others = [NetNs::new(&lab, "a").unwrap(), NetNs::new(&lab, "b").unwrap()];
    let taken = "[networks.t]\noverlay = { vni = 1, local = \"192.0.2.1\" }\n";
    let mut holder = Daemon::start_beside(&lab, &site.hosts[0], "holder", taken);
    let daemon = Daemon::start_beside(&lab, &site.hosts[0], "late", &with_another(&site, 0, &others));
    let _other = site.ours(&lab, 1);
    let (state, reason) = tunnel(&daemon);
    let why = "UDP port 4789 of 192.0.2.1 is taken by another program";
    assert!(state == "down" && reason.contains(why), "{state} {reason}");
    addresses(&others, "10.8.0");
    assert!(others[0].reaches("10.8.0.2", PATIENCE).is_some(), "{}", daemon.log());

    holder.terminate();
    wait_for("the endpoint to be up", PATIENCE, || tunnel(&daemon).0 == "up");
    addresses(&site.guests, "10.7.0");
    assert!(site.guests[0].reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemon.log());
}

/// Two hosts of a site with a router between them, which has `r1` and `r2`.
fn routed(lab: &Lab, v6: bool) -> Result<(Site, NetNs), lab::Unable> {
    let site = Site::new(lab, v6)?;
    let router = NetNs::new(lab, "router")?;
    router.sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    site.hosts[0].ip("link del u0");
    for (n, host) in site.hosts.iter().enumerate() {
        let (own, end) = (n + 1, format!("r{}", n + 1));
        host.veth("u0", &router, &end);
        // Each thinks of the other as behind the router.
        let (local, length) = if v6 { (format!("2001:db8::{own}"), 128) } else { (format!("192.0.2.{own}"), 32) };
        let (near, far) = if v6 {
            (format!("2001:db8:{own}::2"), format!("2001:db8:{own}::1"))
        } else {
            (format!("198.51.{own}.2"), format!("198.51.{own}.1"))
        };
        let link = if v6 { 64 } else { 24 };
        let nodad = if v6 { "nodad" } else { "" };
        host.ip(&format!("address add {near}/{link} dev u0 {nodad}"));
        host.ip(&format!("address add {local}/{length} dev u0 {nodad}"));
        router.ip(&format!("address add {far}/{link} dev {end} {nodad}"));
        let all = if v6 { "2001:db8::/64" } else { "192.0.2.0/24" };
        host.ip(&format!("route add {all} via {far} src {local}"));
        router.ip(&format!("route add {local}/{length} via {near}"));
    }
    Ok((site, router))
}

#[test]
fn a_router_that_narrows_the_way_while_it_is_used_is_heard_and_streams_go_on() {
    let lab = require!(Lab::new());
    require!(need_program("busybox", "busybox-static"));
    for v6 in [false, true] {
        let (site, router) = require!(routed(&lab, v6));
        let daemons = [site.ours(&lab, 0), site.ours(&lab, 1)];
        addresses(&site.guests, "10.7.0");
        let [a, b] = &site.guests;
        let around = if v6 { 70 } else { 50 };
        let whole = 1500 - around;
        assert!(a.reaches("10.7.0.2", PATIENCE).is_some(), "{}", daemons[0].log());
        let longest = |mtu: i32| format!("ping -M do -c 3 -i 0.2 -W 5 -s {} 10.7.0.2", mtu - 28);
        assert!(a.run(&longest(whole), PATIENCE).ok(), "v6 {v6}: {}", daemons[0].log());
        let peer = || daemons[0].json(&["show", "peers", "--json"])[0].clone();
        assert_eq!(peer()["mtu"], whole);

        // A stream that is on its way while the link behind the router becomes narrow; what it is sent with is paced so that it lasts.
        let mut server = b.spawn("exec busybox nc -l -p 5001 -e md5sum");
        wait_for("nc to listen", PATIENCE, || {
            b.run("grep -q ':1389 .* 0A ' /proc/net/tcp /proc/net/tcp6", PATIENCE).ok()
        });
        let parts = "for part in $(seq 20); do seq 1 100000; echo; sleep 0.3; done";
        let sent = a.spawn(&format!("({parts}) | busybox nc 10.7.0.2 5001"));
        let counted = || a.sh("cat /sys/class/net/eth0/statistics/tx_bytes").trim().parse::<u64>().unwrap_or(0);
        wait_for("the stream to be on its way", PATIENCE, || counted() > 2_000_000);
        router.ip("link set r2 mtu 1400");
        wait_for("the router to be heard", PATIENCE, || peer()["mtu"] == 1400 - around);
        let there = sent.wait(Duration::from_secs(60)).output;
        let sum = a.sh("(for part in $(seq 20); do seq 1 100000; echo; done) | md5sum");
        assert!(there.trim() == sum.trim() && sum.contains("  -"), "v6 {v6}: {there} for {sum}: {}", daemons[0].log());
        server.kill();

        let told = a.run(&longest(whole), PATIENCE).output;
        let expected = 1400 - around;
        assert!(
            told.contains(&format!("mtu = {expected}")) || told.contains(&format!("mtu={expected}")),
            "v6 {v6}: {told}"
        );
        assert!(a.run(&longest(expected), PATIENCE).ok(), "as long as the way takes arrives: {}", daemons[0].log());
        stream(a, b, "10.7.0.2", "a way that has become narrow", || daemons[0].log());
    }
}

#[test]
fn two_hosts_that_both_run_a_gateway_are_found() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let start = |host: usize, gateway: &str| {
        let (n, peer) = (host + 1, site.address(1 - host));
        let text = format!(
            "[networks.tenant]\ndhcp = true\nsubnet = \"10.7.0.0/24\"\ngateway_host = \"{gateway}\"\n\
             overlay = {{ vni = 7, local = \"{}\", peers = [\"{peer}\"] }}\n\
             [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{}\" }}]\n",
            site.address(host),
            site.guests[host].netns_name()
        );
        Daemon::start_beside(&lab, &site.hosts[host], &format!("hv{n}"), &text)
    };
    let run = |daemon: &Daemon, verb: &str| {
        let (program, config) = (lab::daemon::program().display().to_string(), daemon.config().display().to_string());
        site.hosts[0].exec(&[&program, "--config", &config, "--json", verb]).output
    };
    let gateway = |daemon: &Daemon| {
        let report = run(daemon, "doctor");
        let report: serde_json::Value = serde_json::from_str(report.lines().next().unwrap_or_default()).unwrap();
        let all = report["checks"].as_array().unwrap().clone();
        let check = all.into_iter().find(|check| check["name"] == "gateway of tenant").expect("a check of the gateway");
        (check["state"].as_str().unwrap().to_owned(), check["detail"].to_string())
    };
    let [a, b] = &site.guests;
    let first = start(0, "hv1");
    let mut second = start(1, "hv9");
    let (state, detail) = gateway(&second);
    assert!(state == "ok" && detail.contains("hv9 is to run it; none was heard lately"), "{state} {detail}");
    second.terminate();
    let mut second = start(1, "hv1");
    a.address("eth0", "10.7.0.11/24");
    b.address("eth0", "10.7.0.12/24");
    assert!(b.reaches("10.7.0.1", PATIENCE).is_some(), "the other host's guest reaches the one gateway");
    let (here, there) = (gateway(&first), gateway(&second));
    assert!(here.0 == "ok" && here.1.contains("no other host speaks for it"), "{here:?}");
    let heard = format!("hv1 is to run it; a gateway was heard behind {}", site.address(0));
    assert!(there.0 == "ok" && there.1.contains(&heard), "{there:?}");
    let (here, there) = (run(&first, "check"), run(&second, "check"));
    assert!(here.contains("this host, hv1, runs its gateway"), "{here}");
    assert!(there.contains("calls itself hv1 runs its gateway, not this one, which is hv2"), "{there}");

    second.terminate();
    let _second = start(1, "hv2");
    b.address("eth0", "10.7.0.12/24");
    a.ip("neigh flush all");
    assert!(a.reaches("10.7.0.1", PATIENCE).is_some(), "{}", first.log());
    wait_for("the second gateway to be found", PATIENCE, || gateway(&first).0 == "warning");
}

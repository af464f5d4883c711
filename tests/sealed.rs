//! Sealed overlays: nothing in the clear on the link between hosts, with ours and with WireGuard at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::{Daemon, program};
use lab::process::{Job, Place};
use lab::site::Site;
use lab::{Lab, Unable, need_program, require, wait_for};
use std::{collections::BTreeSet, time::Duration};

const PATIENCE: Duration = Duration::from_secs(15);

/// A pair of keys, as the program makes them.
fn keys(site: &Site) -> (String, String) {
    let made = site.hosts[0].run(&format!("{} keys --json", program().display()), PATIENCE);
    let pair: serde_json::Value = serde_json::from_str(&made.output).expect("a pair of keys");
    (pair["private_key"].as_str().unwrap().to_owned(), pair["public_key"].as_str().unwrap().to_owned())
}

/// Our daemon on a host, whose endpoint has this key and knows the other by that one.
fn ours(lab: &Lab, site: &Site, host: usize, own: &str, other: &str) -> Daemon {
    let file = lab.path(&format!("key{host}"));
    std::fs::write(&file, format!("{own}\n")).unwrap();
    let (local, peer) = (site.address(host), site.address(1 - host));
    let netns = site.guests[host].netns_name();
    let text = format!(
        "[vteps.main]\nlocal = \"{local}\"\nkey_file = \"{}\"\npeers = [{{ host = \"{peer}\", key = \"{other}\" }}]\n\
         [networks.tenant]\noverlay = {{ vni = 5001, vtep = \"main\" }}\n\
         [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n",
        file.display()
    );
    Daemon::start_beside(lab, &site.hosts[host], &format!("hv{}", host + 1), &text)
}

fn doctor(site: &Site, daemon: &Daemon) -> String {
    let (program, config) = (program().display().to_string(), daemon.config().display().to_string());
    site.hosts[0].exec(&[&program, "--config", &config, "doctor"]).output
}

/// WireGuard of another make on a host, and the kernel's tunnel through it to a bridge with the guest.
fn wireguard(lab: &Lab, site: &Site, host: usize, own: &str, other: &str) -> Result<Job, Unable> {
    need_program("wireguard-go", "wireguard-go")?;
    need_program("wg", "wireguard-tools")?;
    let ns = &site.hosts[host];
    let (local, peer) = (site.address(host), site.address(1 - host));
    let (bits, at) = if site.v6 { (128, format!("[{peer}]")) } else { (32, peer.clone()) };
    let file = lab.path("wg");
    std::fs::write(&file, own).unwrap();
    // Its control socket has a fixed place, which is of this one alone.
    let script = format!(
        "mount -t tmpfs none /run && mkdir /run/wireguard || exit 1; wireguard-go -f wg0 & \
         until [ -S /run/wireguard/wg0.sock ]; do sleep 0.05; done; \
         wg set wg0 listen-port 51820 private-key {} peer {other} endpoint {at}:51820 allowed-ips {peer}/{bits} && echo it is set; wait",
        file.display()
    );
    let running = ns.spawn(&format!("exec unshare -m sh -c '{script}'"));
    wait_for("wireguard-go", PATIENCE, || running.output().contains("it is set"));
    let family = if site.v6 { "-6" } else { "-4" };
    let mtu = if site.v6 { 1420 } else { 1440 };
    ns.ip(&format!("link set wg0 mtu {mtu} up"));
    // The tunnel's packets for the other host go through it, and nothing else does.
    ns.ip(&format!("{family} route add {peer}/{bits} dev wg0 src {local} table 100"));
    ns.ip(&format!("{family} rule add to {peer} ipproto udp dport 4789 lookup 100 pref 100"));
    let zero = if site.v6 { "udp6zerocsumrx" } else { "" };
    ns.ip(&format!("link add vx0 type vxlan id 5001 local {local} remote {peer} dstport 4789 {zero}"));
    let guest = &site.guests[host];
    ns.veth("g0", guest, "eth0");
    ns.ip("link add br0 type bridge");
    for interface in ["vx0", "g0"] {
        ns.ip(&format!("link set {interface} master br0 up"));
    }
    ns.ip("link set br0 up");
    guest.ip(&format!("link set eth0 mtu {}", if site.v6 { 1350 } else { 1390 }));
    Ok(running)
}

#[test]
fn guests_of_two_hosts_are_on_one_segment_and_nothing_of_it_is_seen_between() {
    let lab = require!(Lab::new());
    require!(need_program("tshark", "tshark"));
    require!(need_program("tcpdump", "tcpdump"));
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let file = lab.path(&format!("link{}.pcap", u8::from(v6)));
        let mut capture =
            site.hosts[0].spawn(&format!("exec tcpdump -U -Z root -i u0 -s 96 -w {} udp", file.display()));
        wait_for("tcpdump to listen", PATIENCE, || capture.output().contains("listening on"));
        let [one, two] = [keys(&site), keys(&site)];
        let daemons = [ours(&lab, &site, 0, &one.0, &two.1), ours(&lab, &site, 1, &two.0, &one.1)];
        let mtu = if v6 { 1350 } else { 1390 };
        assert_eq!(daemons[0].json(&["show", "networks", "--json"])[0]["mtu"], mtu);
        site.everything(&format!("v6 {v6}"), || daemons[0].ctl(&["show", "drops"]).output);
        capture.kill();
        let read_with = |filter: &str, field: &str| {
            let command = format!("tshark -r {} -Y \"{filter}\" -T fields -e {field} 2>/dev/null", file.display());
            site.hosts[0].sh(&command)
        };
        let read = |filter: &str| read_with(filter, "wg.type").lines().map(str::to_owned).collect::<Vec<_>>();
        let all = read("udp");
        assert!(all.len() > 1000, "{}", all.len());
        let others: BTreeSet<&String> = all.iter().filter(|kind| !["1", "2", "4"].contains(&kind.as_str())).collect();
        assert!(
            others.is_empty(),
            "WireGuard's packets and no others: {others:?}\n{}",
            read_with("!(wg.type)", "frame.protocols")
        );
        assert_eq!(read("_ws.malformed || vxlan"), [""; 0]);
        wait_for("a session to be told", PATIENCE, || {
            daemons.iter().all(|daemon| daemon.json(&["show", "peers", "--json"])[0]["session_s"].is_u64())
        });
        let table = daemons[0].ctl(&["show", "peers"]).output;
        assert!(table.contains("for ") && table.contains("SEAL"), "{table}");
        let looked = doctor(&site, &daemons[0]);
        assert!(looked.contains("a session with each of 1 endpoints"), "{looked}");
        assert!(looked.contains("may be read or written by others"), "the key: {looked}");
        assert!(!daemons[0].log().contains(&one.0), "its key is nowhere told");
    }
}

#[test]
fn a_guest_of_ours_is_on_one_segment_with_one_behind_wireguard_and_the_kernels_tunnel() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let [one, two] = [keys(&site), keys(&site)];
        let daemon = ours(&lab, &site, 0, &one.0, &two.1);
        let _other = require!(wireguard(&lab, &site, 1, &two.0, &one.1));
        site.everything(&format!("v6 {v6}"), || daemon.ctl(&["show", "drops"]).output);
    }
}

#[test]
fn a_guest_that_was_told_too_long_an_mtu_gets_a_proper_error() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let [one, two] = [keys(&site), keys(&site)];
    let daemon = ours(&lab, &site, 0, &one.0, &two.1);
    let _other = ours(&lab, &site, 1, &two.0, &one.1);
    site.guests.iter().for_each(|guest| drop(guest.ip("link set eth0 mtu 1500")));
    site.everything("MTU 1500", || daemon.ctl(&["show", "drops"]).output);
    let told = site.guests[0].run("ping -M do -c 2 -W 2 -s 1472 10.7.0.2", PATIENCE).output;
    assert!(told.contains("mtu = 1390") || told.contains("mtu=1390"), "{told}");
}

#[test]
fn a_host_with_another_key_is_named_and_comes_in_by_nothing() {
    let lab = require!(Lab::new());
    let site = require!(Site::new(&lab, false));
    let [one, two, other] = [keys(&site), keys(&site), keys(&site)];
    let daemons = [ours(&lab, &site, 0, &one.0, &two.1), ours(&lab, &site, 1, &other.0, &one.1)];
    for (n, guest) in site.guests.iter().enumerate() {
        guest.address("eth0", &format!("10.7.0.{}/24", n + 1));
    }
    assert!(!site.guests[1].run("ping -c 3 -i 0.2 -W 1 10.7.0.1", PATIENCE).ok());
    wait_for("handshakes to be refused", PATIENCE, || daemons[0].ctl(&["show", "drops"]).output.contains("bad_seal"));
    assert_eq!(daemons[0].json(&["show", "peers", "--json"])[0]["session_s"], serde_json::Value::Null);
    let looked = doctor(&site, &daemons[0]);
    assert!(looked.contains("no session with 192.0.2.2"), "{looked}");
}

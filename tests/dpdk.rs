//! DPDK's virtio-user ports on our vhost-user sockets: every set of features its driver has, each frame compared byte for byte.
//!
//! DPDK keeps the control queue for itself and chooses its receive and transmit paths by the features it asks for: `mrg_rxbuf`,
//! `in_order`, `packed_vq`, `vectorized`. Read first: DPDK's guide to the poll mode driver virtio.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::dpdk::{DpdkFrames, DpdkReport, Testpmd};
use lab::frames::{Proto, Traffic, Vlan};
use lab::pings::Pings;
use lab::site::Site;
use lab::{Lab, netns::NetNs, require, wait_for};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
/// Around the head of a frame, the smallest and the largest without jumbo frames.
const SMALL: [usize; 9] = [60, 61, 64, 127, 128, 129, 512, 1500, 1514];

/// Two vhost-user ports of one network with these further keys each.
fn config(network: &str, more: [&str; 2]) -> String {
    let port = |name: &str, more: &str| {
        format!("[guests.{name}]\nports = [{{ network = \"{network}\", socket = \"$DIR/{name}.sock\"{more} }}]\n")
    };
    let [first, second] = more;
    format!(
        "[networks.{network}]\nmode = \"isolated\"\n{}{}",
        port(&format!("{network}-a"), first),
        port(&format!("{network}-b"), second)
    )
}

fn sockets(lab: &Lab, network: &str) -> [PathBuf; 2] {
    ["a", "b"].map(|end| lab.path(&format!("{network}-{end}.sock")))
}

/// All drops but of what a port sends before the other one is there.
fn drops(daemon: &Daemon) -> Value {
    let mut drops = daemon.json(&["show", "drops", "--json"]);
    drops.as_array_mut().unwrap().retain(|drop| drop["reason"] != "no_destination");
    drops
}

/// Runs and checks that everything arrived as it was sent, in both directions.
fn pass(lab: &Lab, daemon: &Daemon, run: &DpdkFrames) -> Result<DpdkReport, lab::Unable> {
    let report = run.run(lab)?;
    let about = format!("{} {:?} {:?}", run.devargs, run.traffic, run.vlans);
    assert!(report.clean, "{about}: {report:?}\ndrops {}\n{}", drops(daemon), daemon.log());
    wait_for("the ports to be free again", PATIENCE, || {
        let ports = daemon.json(&["show", "ports", "--json"]);
        ports.as_array().is_some_and(|all| all.iter().all(|port| port["state"] != "up"))
    });
    Ok(report)
}

/// Every set of features of the driver, with whether buffers can be merged.
fn feature_sets() -> impl Iterator<Item = (String, bool, bool)> {
    (0..16).map(|set| {
        let on = |bit: u32| (set >> bit) & 1;
        let (packed, in_order, mergeable, vectorized) = (on(3), on(2), on(1), on(0));
        let text = format!("mrg_rxbuf={mergeable},in_order={in_order},packed_vq={packed},vectorized={vectorized}");
        (text, mergeable == 1, vectorized == 1)
    })
}

#[test]
fn every_feature_set_passes_frames_intact() {
    let lab = require!(Lab::new());
    let daemon = Daemon::start(&lab, &config("lan", ["", ""]));
    for (set, mergeable, vectorized) in feature_sets() {
        let run = DpdkFrames {
            devargs: format!("queues=1,queue_size=256,{set}"),
            ..DpdkFrames::new(sockets(&lab, "lan"), Traffic::plain(&SMALL, 60))
        };
        require!(pass(&lab, &daemon, &run));
        if !mergeable && !vectorized {
            // Whole jumbo frames in large buffers.
            let traffic = Traffic::plain(&[60, 1515, 4000, 9000], 20);
            require!(pass(&lab, &daemon, &DpdkFrames { traffic, mbuf: 9300, ..run }));
        } else if mergeable {
            let traffic = Traffic::plain(&[60, 1515, 4000, 9000], 20);
            require!(pass(&lab, &daemon, &DpdkFrames { traffic, ..run }));
        }
    }
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

/// Super-frames through rings of these kinds: whole where the driver takes them, segmented and summed up where it does not.
fn super_frames(lab: &Lab, rings: &[&str]) -> Result<(), lab::Unable> {
    let daemon = Daemon::start(lab, &config("lan", ["", ""]));
    for set in rings {
        for proto in [Proto::Tcp4, Proto::Tcp6] {
            let traffic = Traffic { proto, sizes: vec![80, 1514, 3000, 20000, 65535], count: 10, seed: 5 };
            let plain = DpdkFrames::new(sockets(lab, "lan"), traffic);
            // See `DpdkFrames::segment`: no chain of this run has more than four pieces.
            let segment = if set.contains("in_order=0,packed_vq=1") { 16_384 } else { plain.segment };
            let devargs = format!("queues=1,queue_size=256,{set}");
            let run = DpdkFrames { devargs, lro: true, segment, ..plain };
            let whole = pass(lab, &daemon, &run)?;
            assert!(whole.directions.iter().all(|way| way.largest == 65535), "{whole:?}");
            for rx_checksum in [true, false] {
                let cut = pass(lab, &daemon, &DpdkFrames { lro: false, rx_checksum, ..run.clone() })?;
                assert!(cut.directions.iter().all(|way| way.largest <= 1522), "{cut:?}");
            }
        }
    }
    assert_eq!(drops(&daemon), Value::Array(vec![]));
    Ok(())
}

#[test]
fn super_frames_arrive_whole_or_segmented() {
    let lab = require!(Lab::new());
    require!(super_frames(&lab, &["mrg_rxbuf=1,in_order=0,packed_vq=0", "mrg_rxbuf=1,in_order=1,packed_vq=1"]));
}

#[test]
fn super_frames_in_the_other_rings() {
    if std::env::var_os("TRUNKLINE_SLOW").is_none() {
        lab::skip!("it repeats others with further rings; set TRUNKLINE_SLOW=1 to run it");
    }
    let lab = require!(Lab::new());
    require!(super_frames(&lab, &["mrg_rxbuf=1,in_order=1,packed_vq=0", "mrg_rxbuf=1,in_order=0,packed_vq=1"]));
}

#[test]
fn tags_are_pushed_and_popped() {
    let lab = require!(Lab::new());
    let daemon = Daemon::start(&lab, &config("lan", [", vlan = 100", ", trunk = [100]"]));
    let rings = [
        "mrg_rxbuf=1,in_order=1,packed_vq=0",
        "mrg_rxbuf=0,in_order=0,packed_vq=0",
        "mrg_rxbuf=1,in_order=0,packed_vq=1",
    ];
    for set in rings {
        let run = DpdkFrames {
            devargs: format!("queues=1,queue_size=256,{set}"),
            vlans: [Vlan::Untagged, Vlan::Id(100)],
            ..DpdkFrames::new(sockets(&lab, "lan"), Traffic::plain(&SMALL, 40))
        };
        let report = require!(pass(&lab, &daemon, &run));
        let [at_trunk, at_access] = &report.directions;
        assert!(at_trunk.tagged == at_trunk.frames && at_access.tagged == 0, "{report:?}");
        if set.starts_with("mrg_rxbuf=1") {
            let traffic = Traffic { proto: Proto::Tcp4, sizes: vec![80, 1514, 20000, 65535], count: 10, seed: 6 };
            let whole =
                require!(pass(&lab, &daemon, &DpdkFrames { traffic: traffic.clone(), lro: true, ..run.clone() }));
            assert!(whole.directions.iter().all(|way| way.largest == 65535), "{whole:?}");
            require!(pass(&lab, &daemon, &DpdkFrames { traffic, ..run }));
        }
    }
    assert_eq!(drops(&daemon), Value::Array(vec![]));
}

/// A network of two namespaces, besides: its configuration.
fn bystanders(one: &NetNs, two: &NetNs) -> String {
    [one, two].iter().enumerate().map(|(number, ns)| {
        let netns = ns.netns_name();
        format!("[guests.tap{number}]\nports = [{{ network = \"lan\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n")
    }).collect()
}

#[test]
fn a_killed_process_leaves_others_alone_and_its_successor_attaches() {
    let lab = require!(Lab::new());
    let (one, two) = (require!(NetNs::new(&lab, "one")), require!(NetNs::new(&lab, "two")));
    let daemon = Daemon::start(&lab, &(config("lan", ["", ""]) + &bystanders(&one, &two)));
    one.address("eth0", "10.0.0.1/24");
    two.address("eth0", "10.0.0.2/24");
    let pings = Pings::start(&one, "10.0.0.2");
    for packed in 0..2 {
        let endless = DpdkFrames {
            devargs: format!("queues=1,queue_size=256,mrg_rxbuf=1,in_order=1,packed_vq={packed}"),
            window: 64,
            ..DpdkFrames::new(sockets(&lab, "lan"), Traffic::plain(&[60, 1514], 4_000_000))
        };
        for _ in 0..3 {
            let before = daemon.port("lan-a/0")["rx_frames"].as_u64();
            let mut run = require!(endless.start(&lab));
            wait_for("frames", PATIENCE, || daemon.port("lan-a/0")["rx_frames"].as_u64() > before.map(|n| n + 2000));
            run.kill();
            wait_for("the ports to be free again", PATIENCE, || {
                ["lan-a/0", "lan-b/0"].iter().all(|name| daemon.port(name)["state"] == "waiting")
            });
        }
        let finite = DpdkFrames { traffic: Traffic::plain(&SMALL, 20), ..endless };
        let report = require!(finite.run(&lab));
        assert!(report.clean, "{report:?}\n{}", daemon.log());
    }
    println!("{} pings meanwhile", pings.none_lost());
}

#[test]
fn a_killed_daemon_comes_back_to_a_driver_that_listens() {
    let lab = require!(Lab::new());
    let client = ", role = \"client\"";
    let mut daemon = Daemon::start(&lab, &config("lan", [client, client]));
    for packed in 0..2 {
        let run = DpdkFrames {
            devargs: format!("queues=1,queue_size=256,mrg_rxbuf=1,in_order=0,packed_vq={packed},server=1"),
            reconnect: true,
            timeout: Duration::from_secs(40),
            ..DpdkFrames::new(sockets(&lab, "lan"), Traffic::plain(&[60, 1514], 4_000_000))
        };
        let mut running = require!(run.start(&lab));
        let frames = |daemon: &Daemon| daemon.port("lan-a/0")["rx_frames"].as_u64();
        let before = frames(&daemon).map(|n| n + 2000);
        wait_for("frames", PATIENCE, || frames(&daemon) > before);
        daemon.kill9();
        daemon.restart();
        wait_for("frames after a restart", PATIENCE, || frames(&daemon) > Some(2000));
        // No report is asked for: some time after a reconnection DPDK 22.11 was seen to break in its own interrupt thread.
        running.kill();
        sockets(&lab, "lan").iter().for_each(|left| std::fs::remove_file(left).unwrap());
        wait_for("the ports to be free again", PATIENCE, || daemon.port("lan-b/0")["state"] != "up");
    }
}

#[test]
fn endpoints_whose_uplinks_are_ports_of_dpdks_join_their_guests() {
    let lab = require!(Lab::new());
    for v6 in [false, true] {
        let site = require!(Site::new(&lab, v6));
        let daemons = [0, 1].map(|host| {
            let (local, peer) = (site.address(host), site.address(1 - host));
            let (prefix, netns) = (if v6 { 64 } else { 24 }, site.guests[host].netns_name());
            let text = format!(
                "[networks.fabric]\n[networks.tenant]\noverlay = {{ vni = 5001, vtep = \"main\", peers = [\"{peer}\"] }}\n\
                 [vteps.main]\nnetwork = \"fabric\"\nlocal = \"{local}/{prefix}\"\n\
                 [guests.up]\nports = [{{ network = \"fabric\", socket = \"$DIR/up{host}.sock\" }}]\n\
                 [guests.g]\nports = [{{ network = \"tenant\", attach = \"tap\", tap = \"eth0\", netns = \"{netns}\" }}]\n"
            );
            Daemon::start_beside(&lab, &site.hosts[host], &format!("hv{host}"), &text)
        });
        let cable = require!(Testpmd::cable(&lab, &lab::dpdk::sockets(&lab, "up")));
        let story = || {
            let drops = daemons.iter().map(|daemon| daemon.ctl(&["show", "drops"]).output).collect::<String>();
            format!("{drops}\n{}", cable.log())
        };
        site.everything(&format!("DPDK, v6 {v6}"), story);
        // Nothing has come by the hosts' own network.
        for daemon in &daemons {
            let up = daemon.port("up/0");
            assert!(up["rx_bytes"].as_u64().unwrap() > 50_000_000, "{up}");
        }
    }
}

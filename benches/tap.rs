//! TAP to TAP between two namespaces, against the kernel's bridge over veth, in one run.
//!
//! `cargo bench --bench tap` prints TCP throughput of both, alternated, as medians with their spread, their ratio, the frames that the
//! switch moved, and the segments that were sent again. Needs root.

#![allow(clippy::expect_used, reason = "a benchmark that cannot measure ends")]

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::Lab;
use lab::daemon::Daemon;
use lab::iperf::{Iperf, iperf};
use lab::netns::{KernelBridge, NetNs};
use lab::process::Place;
use std::time::Duration;

const SECONDS: u32 = 3;
const ROUNDS: usize = 7;

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Gbit/s and segments sent again.
fn tcp(server: &dyn Place, client: &dyn Place) -> (f64, u64) {
    let report = iperf(server, client, "10.0.0.2", &Iperf { seconds: SECONDS, ..Iperf::default() }).expect("iperf3");
    (report.bits_per_second / 1e9, report.retransmits)
}

fn frames(daemon: &Daemon) -> u64 {
    let ports = daemon.json(&["show", "ports", "--json"]);
    ports.as_array().map_or(0, |ports| ports.iter().filter_map(|port| port["rx_frames"].as_u64()).sum())
}

fn main() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return println!("cannot run here: {why}"),
    };
    let (Ok(a), Ok(b), Ok(bridge)) = (NetNs::new(&lab, "a"), NetNs::new(&lab, "b"), KernelBridge::new(&lab)) else {
        return println!("cannot run here: network namespaces cannot be made");
    };
    let port = |ns: &NetNs| {
        format!("{{ network = \"lan\", attach = \"tap\", tap = \"t0\", netns = \"{}\" }}", ns.netns_name())
    };
    let text = format!("[networks.lan]\n[guests.g]\nports = [{}, {}]\n", port(&a), port(&b));
    let daemon = Daemon::start(&lab, &text);
    a.sh("ip addr add 10.0.0.1/24 dev t0");
    b.sh("ip addr add 10.0.0.2/24 dev t0");
    assert!(a.reaches("10.0.0.2", Duration::from_secs(10)).is_some(), "no answer through the switch");
    let (mut ours, mut kernel, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    println!(
        "{:>5}  {:>16}  {:>16}  {:>14}  {:>11}  {:>6}",
        "round", "trunkline Gbit/s", "bridge Gbit/s", "frames/s", "sent again", "ratio"
    );
    for round in 0..ROUNDS {
        let before = frames(&daemon);
        let (speed, again) = tcp(&b, &a);
        let rate = (frames(&daemon) - before) / u64::from(SECONDS);
        let (peer, _) = tcp(&bridge.b, &bridge.a);
        println!("{round:>5}  {speed:>16.2}  {peer:>16.2}  {rate:>14}  {again:>11}  {:>6.2}", speed / peer);
        ours.push(speed);
        kernel.push(peer);
        ratios.push(speed / peer);
    }
    for list in [&mut ours, &mut kernel, &mut ratios] {
        list.sort_by(f64::total_cmp);
    }
    for (name, list) in [("trunkline", &ours), ("kernel bridge", &kernel), ("ratio", &ratios)] {
        println!("{name:>14}: median {:.2} ({:.2} to {:.2})", median(list), list[0], list[list.len() - 1]);
    }
}

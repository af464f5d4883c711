//! Several workers: networks are dealt to them in turn, and each forwards its own.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod lab;

use lab::daemon::Daemon;
use lab::netns::NetNs;
use lab::process::Place;
use lab::{Lab, require};
use std::time::Duration;

#[test]
fn two_networks_run_on_two_workers_and_do_not_meet() {
    let lab = require!(Lab::new());
    let spaces = ["a", "b", "c", "d"].map(|label| NetNs::new(&lab, label));
    let [a, b, c, d] = spaces;
    let (a, b, c, d) = (require!(a), require!(b), require!(c), require!(d));
    let port = |network: &str, ns: &NetNs| {
        format!("{{ network = \"{network}\", attach = \"tap\", tap = \"t0\", netns = \"{}\" }}", ns.netns_name())
    };
    let config = format!(
        "[host]\nrun_dir = \"$DIR/run\"\nstate_dir = \"$DIR/state\"\nworker_cpus = [0, 1]\n\
         [networks.one]\n[networks.two]\n[guests.g]\nports = [{}, {}, {}, {}]\n",
        port("one", &a),
        port("one", &b),
        port("two", &c),
        port("two", &d)
    );
    let daemon = Daemon::start(&lab, &config);
    for (ns, host) in [(&a, 1), (&b, 2), (&c, 3), (&d, 4)] {
        ns.sh(&format!("ip addr add 10.0.0.{host}/24 dev t0"));
    }
    assert!(a.reaches("10.0.0.2", Duration::from_secs(10)).is_some(), "within the first network");
    assert!(c.reaches("10.0.0.4", Duration::from_secs(10)).is_some(), "within the second network");
    assert!(a.reaches("10.0.0.3", Duration::from_secs(1)).is_none(), "between the networks");
    let status = daemon.json(&["status", "--json"]);
    let workers = status["workers"].as_array().unwrap();
    assert_eq!(workers.iter().map(|worker| worker["cpu"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert!(workers.iter().all(|worker| worker["frames"].as_u64() > Some(0)), "both moved frames: {status}");
}

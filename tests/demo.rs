//! The demonstration: three Linux guests and a namespace on one switch, one check after the other, while a person watches.
//!
//! Run it with `./demo`. It is a test of its own kind as well: every check is counted, and the program ends with 1 if one did not hold.

mod lab;

use lab::Lab;
use lab::daemon::Daemon;
use lab::iperf::{Iperf, iperf};
use lab::netns::NetNs;
use lab::process::Place;
use lab::qemu::{ChardevRole, GuestSpec, NicSpec, Qemu};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// One network with VLANs: two guests on VLAN 100, one on VLAN 200, a trunk in a namespace.
fn configuration(lab: &Lab, ns: &NetNs) -> String {
    let dir = lab.dir().display();
    let guest = |name: &str, vlan: u16| {
        format!(
            "[guests.{name}]\nports = [{{ network = \"lan\", vlan = {vlan}, socket = \"{dir}/{name}.sock\", role = \"client\" }}]\n"
        )
    };
    format!(
        "[networks.lan]\nmode = \"isolated\"\n{}{}{}[guests.trunk]\n\
         ports = [{{ network = \"lan\", attach = \"tap\", tap = \"t0\", netns = \"{}\", trunk = [200], native = 100 }}]\n",
        guest("a", 100),
        guest("b", 100),
        guest("c", 200),
        ns.netns_name(),
    )
}

/// The table of checks.
#[derive(Default)]
struct Checks {
    held: usize,
    failed: usize,
}

impl Checks {
    /// Says what is checked, checks it, and says how it went. `Ok` carries what there is to tell.
    fn check(&mut self, what: &str, run: impl FnOnce() -> Result<String, String>) {
        print!("  {what:<66} ");
        // A person watches: what is going on must be seen before it is over.
        let _ = std::io::stdout().flush();
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("panicked (see above)".to_owned()));
        match outcome {
            Ok(told) => {
                self.held += 1;
                println!("ok    {told}");
            }
            Err(why) => {
                self.failed += 1;
                println!("FAILED {why}");
            }
        }
    }
}

fn pings(from: &dyn Place, to: &str) -> Result<String, String> {
    let done = from.run(&format!("ping -c 3 -i 0.2 -W 2 {to}"), Duration::from_secs(20));
    match done.output.lines().find(|line| line.contains("min/avg/max")) {
        Some(times) if done.status == 0 => Ok(times.trim().to_owned()),
        _ => Err(done.output),
    }
}

fn does_not_reach(from: &dyn Place, to: &str) -> Result<String, String> {
    match from.run(&format!("ping -c 2 -i 0.2 -W 1 {to}"), Duration::from_secs(20)).status {
        0 => Err(format!("{to} answered")),
        _ => Ok(String::new()),
    }
}

fn throughput(server: &dyn Place, client: &dyn Place, to: &str) -> Result<String, String> {
    let report = iperf(server, client, to, &Iperf { seconds: 3, ..Iperf::default() })?;
    Ok(format!("{:.2} Gbit/s, {} segments sent again", report.bits_per_second / 1e9, report.retransmits))
}

fn main() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return lab::announce_skip("demo", &why.to_string()),
    };
    let ns = match NetNs::new(&lab, "trunk") {
        Ok(ns) => ns,
        Err(why) => return lab::announce_skip("demo", &why.to_string()),
    };
    println!("Trunkline: one switch, three Linux guests in QEMU, one network namespace\n");
    let mut daemon = Daemon::start(&lab, &configuration(&lab, &ns));
    let boot = |name: &str, mac: &str| {
        let nic = NicSpec { role: ChardevRole::Server, ..NicSpec::new(lab.path(&format!("{name}.sock")), mac) };
        Qemu::boot(&lab, GuestSpec::new(name, vec![nic]))
    };
    let start = Instant::now();
    println!("  booting guests a and b (VLAN 100) and c (VLAN 200) ...");
    let guests = [("a", "52:54:00:00:00:0a"), ("b", "52:54:00:00:00:0b"), ("c", "52:54:00:00:00:0c")]
        .map(|(name, mac)| boot(name, mac));
    let [Ok(a), Ok(b), Ok(c)] = guests else {
        let why = guests.into_iter().find_map(Result::err).map_or_else(String::new, |why| why.to_string());
        return lab::announce_skip("demo", &why);
    };
    println!("  ... in {:.1} s\n", start.elapsed().as_secs_f64());
    for (guest, address) in [(&a, "10.1.0.1/24"), (&b, "10.1.0.2/24"), (&c, "10.2.0.3/24")] {
        guest.sh(&format!("ip addr add {address} dev eth0; ip link set eth0 up"));
    }
    ns.sh("ip addr add 10.1.0.9/24 dev t0; ip link set t0 up");
    // The first packet may meet a link that is still coming up.
    let _ = a.reaches("10.1.0.2", Duration::from_secs(15));

    let mut checks = Checks::default();
    checks.check("a pings b, both on VLAN 100", || pings(&a, "10.1.0.2"));
    checks.check("a to b, TCP by iperf3", || throughput(&b, &a, "10.1.0.2"));
    checks.check("the namespace, native VLAN 100 of a trunk, pings a", || pings(&ns, "10.1.0.1"));
    checks.check("the namespace to a, TCP through a TAP", || throughput(&a, &ns, "10.1.0.1"));
    c.sh("ip addr add 10.1.0.3/24 dev eth0");
    checks.check("c, on VLAN 200, with an address of VLAN 100, does not reach a", || does_not_reach(&c, "10.1.0.1"));
    checks.check("the daemon is killed (-9) and started again; the guests are back", || {
        daemon.kill9();
        let begun = Instant::now();
        daemon.restart();
        a.reaches("10.1.0.2", Duration::from_secs(10)).ok_or("a does not reach b any more")?;
        Ok(format!("after {:.1} s", begun.elapsed().as_secs_f64()))
    });
    checks.check("the switch counted what it moved", || {
        let ports = daemon.json(&["show", "ports", "--json"]);
        let sum = |field: &str| -> u64 {
            ports.as_array().map_or(0, |ports| ports.iter().filter_map(|port| port[field].as_u64()).sum())
        };
        let (rx, tx) = (sum("rx_frames"), sum("tx_frames"));
        if rx > 0 && tx > 0 { Ok(format!("{rx} frames in, {tx} out")) } else { Err(ports.to_string()) }
    });
    // In the words of the test runner, so that one script counts both.
    let word = if checks.failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {} passed; {} failed", checks.held, checks.failed);
    drop((a, b, c, daemon));
    std::process::exit(i32::from(checks.failed > 0));
}

//! Simulates many hosts with many guests and prints what it came to, with ARP suppression and without.
//!
//! `cargo run --release -p trunkline-overlay --example simulation -- HOSTS GUESTS NETWORKS TALK STATIONS SEED`; what is left out is 1000, 100, 1000, 4, 65536, 1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout, missing_docs)]

mod simulation;

use std::time::Instant;

use simulation::{Plan, Simulation};

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|word| word.parse().expect("numbers")).collect();
    let number = |at: usize, default: u64| given.get(at).copied().unwrap_or(default);
    for suppress in [false, true] {
        let plan = Plan {
            hosts: number(0, 1000) as usize,
            guests: number(1, 100) as usize,
            networks: number(2, 1000) as usize,
            talk: number(3, 4) as usize,
            suppress,
            stations: number(4, 65_536) as usize,
            seed: number(5, 1),
        };
        let before = resident();
        let start = Instant::now();
        let simulation = Simulation::new(plan);
        let each = resident().saturating_sub(before) / plan.hosts as u64;
        println!("{plan:?}");
        let outcome = simulation.run();
        print!("{outcome}");
        println!(
            "memory of a host      {each:>12} KiB when made; {} MiB for the whole simulation at most; {:.1} s\n",
            peak() / 1024,
            start.elapsed().as_secs_f64()
        );
    }
}

/// A line of what the kernel says of this process's memory, in KiB.
fn status(line: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = text.lines().find_map(|one| one.strip_prefix(line));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn resident() -> u64 {
    status("VmRSS:")
}

fn peak() -> u64 {
    status("VmHWM:")
}

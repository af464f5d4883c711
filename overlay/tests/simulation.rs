//! The simulation of many hosts, scaled down, and what it must show.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

#[path = "../examples/simulation/simulation.rs"]
mod simulation;

use simulation::{Outcome, Plan, Simulation};
use std::time::Duration;

fn run(suppress: bool, seed: u64) -> Outcome {
    Simulation::new(Plan { hosts: 40, guests: 10, networks: 20, talk: 3, suppress, stations: 1024, seed }).run()
}

/// A packet there and one back, each of the longest delay, in steps of time.
const THERE_AND_BACK: Duration = Duration::from_micros(1000);

#[test]
fn all_that_talk_know_each_other_after_one_exchange_and_moves_are_followed() {
    for suppress in [false, true] {
        let outcome = run(suppress, 1);
        let [first, again, moves] = outcome.parts;
        assert!(first.asked > 1000 && first.asked == again.asked, "{outcome}");
        assert_eq!([first.open, again.open, moves.open], [0; 3], "{outcome}");
        assert!(first.longest <= THERE_AND_BACK && moves.longest <= THERE_AND_BACK / 2, "{outcome}");
        assert_eq!((first.unknown, again.unknown), (0, 0), "who was asked for is known: {outcome}");
        // Ten guests of each host in ten networks, each of which has ten guests on hosts besides it.
        assert!(outcome.stations[2] <= 1024 && outcome.stations[0] > 100, "{outcome}");
    }
}

#[test]
fn suppression_spares_most_copies_at_first_and_all_of_them_later() {
    let (without, with) = (run(false, 2), run(true, 2));
    assert_eq!(without.parts[0].flooded, without.parts[1].flooded, "{without}");
    assert!(with.parts[0].flooded * 2 < without.parts[0].flooded, "{with}");
    assert_eq!((with.parts[1].flooded, with.parts[1].answered), (0, with.parts[1].asked), "{with}");
    assert_eq!(without.neighbours[2], 0);
    assert_eq!(with.stations[0], without.stations[0].min(with.stations[0]));
}

#[test]
fn the_same_seed_comes_to_the_same() {
    assert_eq!(run(true, 3), run(true, 3));
    assert_ne!(run(true, 3).parts, run(true, 4).parts);
}

//! Pings that go on in the background while something else is shaken: every single one must be answered.

use super::process::{Job, Place};
use super::wait_for;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

static IDENTIFIERS: AtomicU16 = AtomicU16::new(30_000);

const PATIENCE: Duration = Duration::from_secs(20);
/// Further answers that show that it goes on.
const MORE: usize = 10;

/// An endless ping, fifty times a second.
#[derive(Debug)]
pub struct Pings {
    job: Job,
    what: String,
}

impl Pings {
    /// Begins to ping an address; returns with the first answer.
    pub fn start(from: &dyn Place, address: &str) -> Self {
        assert!(from.reaches(address, PATIENCE).is_some(), "{} does not reach {address}", from.name());
        // Commands of a namespace run in process namespaces of their own, where two pings have the same process id, which would make each
        // of them take the other's answers for its own.
        let identifier = IDENTIFIERS.fetch_add(1, Ordering::Relaxed);
        let named = format!("if ping -V 2>&1 | grep -q iputils; then exec ping -e {identifier} -i 0.02 {address}; fi");
        let mut job = from.spawn(&format!("{named}; exec ping -i 0.02 {address}"));
        job.wait_for_output(" bytes from ", PATIENCE);
        Self { job, what: format!("{} to {address}", from.name()) }
    }

    /// How many have been answered.
    pub fn answered(&self) -> usize {
        self.sequence().len()
    }

    /// Waits until some more have been answered.
    pub fn go_on(&self) {
        let so_far = self.answered();
        wait_for("further answers to pings", PATIENCE, || self.answered() >= so_far + MORE);
    }

    /// Ends it; panics if any ping in between has no answer. Returns how many there were.
    pub fn none_lost(mut self) -> usize {
        self.go_on();
        self.job.kill();
        let all = self.sequence();
        // The ping of iputils counts from 1, that of busybox from 0.
        let (first, last) = (usize::from(!all.contains(&0)), all.iter().copied().max().unwrap_or(0));
        let missing: Vec<usize> = (first..=last).filter(|number| !all.contains(number)).collect();
        assert!(missing.is_empty(), "pings from {} without an answer: {missing:?}", self.what);
        all.len()
    }

    fn sequence(&self) -> Vec<usize> {
        let output = self.job.output();
        // The last line may be cut short.
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let answers = whole.lines().filter(|line| line.contains(" bytes from ") && !line.contains("DUP!"));
        let number = |line: &str| line.split("seq=").nth(1)?.split_whitespace().next()?.parse().ok();
        answers.filter_map(number).collect()
    }
}

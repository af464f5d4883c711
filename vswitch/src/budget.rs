//! [`Budget`] and its pacer: how many frames a second a port may have copied to everybody.
//!
//! Invariant: over any time `t` a pacer lets through at most `burst + t * per_second` frames. Read first: ITU-T I.371 annex A, the generic
//! cell rate algorithm: one number, the time at which the next frame would be due at the exact rate, is all the state; a frame conforms
//! unless it is more than the burst tolerance early.

use wire::{DropReason, Instant};

/// Frames a second, and how many of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Frames a second in the long run; zero lets none through, [`u32::MAX`] all.
    pub per_second: u32,
    /// Frames that may come at once after silence; at least one, unless `per_second` is zero.
    pub burst: u32,
}

impl Budget {
    /// Everything.
    pub const UNLIMITED: Budget = Budget { per_second: u32::MAX, burst: u32::MAX };

    /// So many frames a second, and a second's worth at once.
    pub const fn per_second(frames: u32) -> Budget {
        Budget { per_second: frames, burst: frames }
    }
}

/// The frames of a port that are copied to every other port, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// To ff:ff:ff:ff:ff:ff.
    Broadcast,
    /// To another group address.
    Multicast,
    /// To an address that nobody was heard with.
    Unknown,
    /// Any of these from a station that moved to and fro, and is held.
    Held,
}

impl Traffic {
    /// Why a frame over the budget was dropped.
    pub const fn over_budget(self) -> DropReason {
        match self {
            Traffic::Broadcast => DropReason::BroadcastBudget,
            Traffic::Multicast => DropReason::MulticastBudget,
            Traffic::Unknown => DropReason::UnknownBudget,
            Traffic::Held => DropReason::Flapping,
        }
    }
}

/// The budgets of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Default 10,000 a second: ARP and DHCP of the busiest guest stay below a tenth of it, and a loop's storm of millions ends at it.
    pub broadcast: Budget,
    /// Default 50,000 a second: half a gigabit of multicast video.
    pub multicast: Budget,
    /// Default 20,000 a second: what is sent before the first answer, of thousands of connections at once. Not charged when only one other
    /// port is in the segment, and no tunnel: that is no copy, and no more than a known address would cost.
    pub unknown: Budget,
    /// Default 100 a second, of all stations behind the port that are held together: enough for one whose address another has, too, and an end to
    /// frames that go round a loop.
    pub held: Budget,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets {
            broadcast: Budget::per_second(10_000),
            multicast: Budget::per_second(50_000),
            unknown: Budget::per_second(20_000),
            held: Budget::per_second(100),
        }
    }
}

/// A budget and how much of it is used up.
#[derive(Clone, Copy, Debug)]
struct Pacer {
    /// Nanoseconds from one frame to the next at the exact rate.
    interval: u64,
    /// How early a frame may be, in nanoseconds.
    tolerance: u64,
    /// When the next frame would be due, in nanoseconds of the clock.
    due: u64,
}

impl Pacer {
    fn new(budget: Budget) -> Pacer {
        match budget.per_second {
            0 => Pacer { interval: 0, tolerance: 0, due: u64::MAX },
            u32::MAX => Pacer { interval: 0, tolerance: 0, due: 0 },
            rate => {
                let interval = 1_000_000_000 / u64::from(rate);
                let tolerance = interval * u64::from(budget.burst.saturating_sub(1));
                Pacer { interval, tolerance, due: 0 }
            }
        }
    }

    fn allows(&self, now: Instant) -> bool {
        self.due <= now.nanos().saturating_add(self.tolerance)
    }

    fn charge(&mut self, now: Instant) {
        self.due = self.due.max(now.nanos()).saturating_add(self.interval);
    }
}

/// The budgets of one port and how much of them is used up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacers {
    broadcast: Pacer,
    multicast: Pacer,
    unknown: Pacer,
    held: Pacer,
}

impl Pacers {
    pub(crate) fn new(budgets: Budgets) -> Pacers {
        Pacers {
            broadcast: Pacer::new(budgets.broadcast),
            multicast: Pacer::new(budgets.multicast),
            unknown: Pacer::new(budgets.unknown),
            held: Pacer::new(budgets.held),
        }
    }

    /// Whether one more frame of this kind is within its budget.
    pub(crate) fn allows(&self, traffic: Traffic, now: Instant) -> bool {
        match traffic {
            Traffic::Broadcast => self.broadcast.allows(now),
            Traffic::Multicast => self.multicast.allows(now),
            Traffic::Unknown => self.unknown.allows(now),
            Traffic::Held => self.held.allows(now),
        }
    }

    /// One frame of this kind was let through.
    pub(crate) fn charge(&mut self, traffic: Traffic, now: Instant) {
        match traffic {
            Traffic::Broadcast => self.broadcast.charge(now),
            Traffic::Multicast => self.multicast.charge(now),
            Traffic::Unknown => self.unknown.charge(now),
            Traffic::Held => self.held.charge(now),
        }
    }
}

/// Budgets of each of the endpoints behind a port at most; beyond, endpoints whose numbers have the same remainder have one in common.
const EACH: usize = 64;

/// Who pays for what a port has copied: all of its lanes together, or each of the endpoints behind it, whose number is the lane of what it sends.
#[derive(Clone, Debug)]
pub(crate) struct Payers(Box<[Pacers]>);

impl Payers {
    pub(crate) fn new(budgets: Budgets, each: bool) -> Payers {
        Payers(vec![Pacers::new(budgets); if each { EACH } else { 1 }].into())
    }

    /// Whether each endpoint behind the port pays for itself.
    pub(crate) fn is_each(&self) -> bool {
        self.0.len() > 1
    }

    /// Whether one more frame of this kind, from this lane, is within its budget.
    pub(crate) fn allows(&self, lane: u16, traffic: Traffic, now: Instant) -> bool {
        self.0.get(usize::from(lane) % self.0.len()).is_some_and(|pacers| pacers.allows(traffic, now))
    }

    /// One frame of this kind, from this lane, was let through.
    pub(crate) fn charge(&mut self, lane: u16, traffic: Traffic, now: Instant) {
        let payers = self.0.len();
        if let Some(pacers) = self.0.get_mut(usize::from(lane) % payers) {
            pacers.charge(traffic, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn through(pacer: &mut Pacer, now: Instant, frames: u32) -> u32 {
        (0..frames)
            .filter(|_| {
                let allowed = pacer.allows(now);
                if allowed {
                    pacer.charge(now);
                }
                allowed
            })
            .count() as u32
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut pacer = Pacer::new(Budget { per_second: 1000, burst: 50 });
        assert_eq!(through(&mut pacer, Instant::START, 200), 50);
        assert_eq!(through(&mut pacer, Instant::START + Duration::from_millis(10), 200), 10);
        assert_eq!(
            through(&mut pacer, Instant::START + Duration::from_secs(10), 200),
            50,
            "silence earns no more than a burst"
        );
    }

    #[test]
    fn the_long_run_keeps_the_rate() {
        let mut pacer = Pacer::new(Budget::per_second(10_000));
        let mut sum = 0;
        for ms in 0..5000 {
            sum += through(&mut pacer, Instant::START + Duration::from_millis(ms), 64);
        }
        assert!((59_990..=60_010).contains(&sum), "{sum}");
    }

    #[test]
    fn none_and_all() {
        let late = Instant::START + Duration::from_secs(1 << 32);
        assert_eq!(through(&mut Pacer::new(Budget { per_second: 0, burst: 9 }), late, 9), 0);
        assert_eq!(through(&mut Pacer::new(Budget::UNLIMITED), Instant::START, 9999), 9999);
        assert_eq!(through(&mut Pacer::new(Budget { per_second: 1, burst: 0 }), Instant::START, 9), 1);
    }
}

//! [`Timers`]: when each of many flows is to be looked at again.
//!
//! Invariant: a flow's entry comes up no later than one tick after its time and no flow is searched for. Putting a time off costs nothing: the entry that
//! comes up too early is for its owner to put back.
//!
//! Theory of operation: a wheel of buckets, one for each tick. A time beyond the wheel's end goes into its last bucket and is put back
//! from there. Read first: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 4.

use std::time::Duration;

use wire::Instant;

use crate::sockets::mappings::Slot;

/// Time between two buckets.
pub(super) const TICK: Duration = Duration::from_millis(50);
const BUCKETS: u64 = 1024;
const WORDS: usize = BUCKETS as usize / 64;

/// See the module's documentation.
pub(super) struct Timers {
    wheel: Vec<Vec<Slot>>,
    /// A bit for each bucket that has entries.
    filled: [u64; WORDS],
    /// The tick whose bucket comes up next.
    next: u64,
    entries: usize,
}

fn tick(at: Instant) -> u64 {
    at.nanos() / TICK.as_nanos() as u64
}

impl Timers {
    pub(super) fn new() -> Timers {
        Timers { wheel: (0..BUCKETS).map(|_| Vec::new()).collect(), filled: [0; WORDS], next: 0, entries: 0 }
    }

    fn bucket(&self, at: Instant) -> u64 {
        (tick(at) + 1).clamp(self.next, self.next + BUCKETS - 1)
    }

    /// When an entry for `at` would come up: all times of one bucket are as one, and an entry for each would be one too many.
    pub(super) fn due(&self, at: Instant) -> Instant {
        Instant::from_nanos(self.bucket(at) * TICK.as_nanos() as u64)
    }

    /// Has `slot` come up at `at`, or before when that is far away; the time at which it will.
    pub(super) fn put(&mut self, slot: Slot, at: Instant) -> Instant {
        let due = self.bucket(at);
        if let Some(bucket) = self.wheel.get_mut((due % BUCKETS) as usize) {
            bucket.push(slot);
            self.entries += 1;
            self.mark(due, true);
        }
        Instant::from_nanos(due * TICK.as_nanos() as u64)
    }

    /// Moves what is due at `now` into `due`.
    pub(super) fn take(&mut self, now: Instant, due: &mut Vec<Slot>) {
        let now = tick(now);
        if self.entries == 0 {
            self.next = self.next.max(now + 1);
            return;
        }
        let until = now.min(self.next + BUCKETS - 1);
        while self.next <= until {
            if let Some(bucket) = self.wheel.get_mut((self.next % BUCKETS) as usize) {
                self.entries -= bucket.len();
                due.append(bucket);
                self.mark(self.next, false);
            }
            self.next += 1;
        }
        self.next = self.next.max(now + 1);
    }

    fn mark(&mut self, tick: u64, filled: bool) {
        let at = tick % BUCKETS;
        if let Some(word) = self.filled.get_mut(at as usize / 64) {
            let bit = 1 << (at % 64);
            *word = if filled { *word | bit } else { *word & !bit };
        }
    }

    /// Whether a bucket's time has come since the last look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.entries > 0 && tick(now) >= self.next
    }

    /// When the next entry comes up; nothing when nobody waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.entries == 0 {
            return None;
        }
        let mut tick = self.next;
        while tick < self.next + BUCKETS {
            let at = tick % BUCKETS;
            let rest = self.filled.get(at as usize / 64)? >> (at % 64);
            if rest > 0 {
                return Some(Instant::from_nanos((tick + u64::from(rest.trailing_zeros())) * TICK.as_nanos() as u64));
            }
            // The rest of the word is empty.
            tick += 64 - at % 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(place: u32) -> Slot {
        Slot { place, generation: 0 }
    }

    #[test]
    fn entries_come_up_in_their_time_and_far_ones_to_be_put_back() {
        let mut timers = Timers::new();
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut due = Vec::new();
        assert_eq!(timers.deadline(), None);
        timers.put(slot(1), at(120));
        timers.put(slot(2), at(10));
        let far = timers.put(slot(3), at(10_000_000));
        assert!(far < at(60_000));
        timers.take(at(9), &mut due);
        assert!(due.is_empty());
        timers.take(at(60), &mut due);
        assert_eq!(due, [slot(2)]);
        timers.take(at(149), &mut due);
        assert_eq!(due.len(), 1, "not yet");
        timers.take(at(150), &mut due);
        assert_eq!(due, [slot(2), slot(1)]);
        timers.take(at(100_000), &mut due);
        assert_eq!(due.last(), Some(&slot(3)));
        assert_eq!(timers.deadline(), None);
        // Time that passed without anything in the wheel does not have to be walked through.
        timers.take(at(1_000_000_000), &mut due);
        timers.put(slot(4), at(1_000_000_010));
        timers.take(at(1_000_000_100), &mut due);
        assert_eq!(due.last(), Some(&slot(4)));
    }

    #[test]
    fn nothing_is_to_be_done_before_the_next_entry() {
        let mut timers = Timers::new();
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        let mut due = Vec::new();
        // All round the wheel, and over its end.
        for round in 1..200 {
            let now = round * 50_000;
            timers.take(at(now), &mut due);
            let up = timers.put(slot(1), at(now + 40_000));
            assert_eq!(timers.deadline(), Some(up));
            let sooner = timers.put(slot(2), at(now + 130 * (round % 40)));
            assert_eq!(timers.deadline(), Some(sooner.min(up)));
            assert!(!timers.is_due(at(now)));
            timers.take(sooner, &mut due);
            assert_eq!((due.last(), timers.deadline()), (Some(&slot(2)), Some(up)));
            timers.take(up, &mut due);
            assert_eq!((due.last(), timers.deadline()), (Some(&slot(1)), None));
        }
    }
}

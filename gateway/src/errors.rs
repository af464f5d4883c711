//! [`ErrorBudget`]: how many ICMP errors each NIC may cause.
//!
//! Invariant: in any stretch of time a NIC causes at most `rate` errors and `rate` more for each second of it. The table has a fixed size.
//! NICs are numbered from zero in a worker's table, so two share a place only where there are more than [`PLACES`].
//! Read first: RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f).

use wire::{Instant, NicId};

const PLACES: usize = 1024;
const SECOND: u64 = 1_000_000_000;

/// A token bucket for each NIC.
#[derive(Debug)]
pub(crate) struct ErrorBudget {
    /// Nanoseconds that one error costs; zero: no errors at all.
    cost: u64,
    /// When each bucket is full again.
    full_at: Box<[Instant]>,
}

impl ErrorBudget {
    pub(crate) fn new(rate: u32) -> Self {
        let cost = SECOND.checked_div(u64::from(rate)).unwrap_or(0);
        ErrorBudget { cost, full_at: vec![Instant::START; PLACES].into() }
    }

    /// Whether `nic` may cause one more.
    pub(crate) fn allows(&self, nic: NicId, now: Instant) -> bool {
        let full_at = self.full_at.get(nic.index() % PLACES).copied().unwrap_or_default();
        // A bucket holds one second's worth.
        self.cost != 0 && full_at.nanos().saturating_sub(now.nanos()) + self.cost <= SECOND
    }

    /// Takes one.
    pub(crate) fn take(&mut self, nic: NicId, now: Instant) {
        if let Some(full_at) = self.full_at.get_mut(nic.index() % PLACES) {
            *full_at = Instant::from_nanos(full_at.nanos().max(now.nanos()).saturating_add(self.cost));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_holds_the_rate_and_others_are_not_touched() {
        let mut budget = ErrorBudget::new(5);
        let mut now = Instant::START + Duration::from_secs(3);
        let spend = |budget: &mut ErrorBudget, nic, now| {
            let mut n = 0;
            while budget.allows(nic, now) {
                budget.take(nic, now);
                n += 1;
            }
            n
        };
        assert_eq!(spend(&mut budget, NicId(1), now), 5);
        assert_eq!(spend(&mut budget, NicId(2), now), 5);
        now = now + Duration::from_millis(399);
        assert_eq!(spend(&mut budget, NicId(1), now), 1);
        assert_eq!(spend(&mut ErrorBudget::new(0), NicId(0), now), 0);
    }
}

//! Time: [`Instant`], and the two [`Clock`]s it comes from.
//!
//! Invariant: within one clock, time never goes back. Cores never ask a clock themselves; they are told the time.

use std::{
    ops::{Add, Sub},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Nanoseconds since the start of a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the clock.
    pub const START: Instant = Instant(0);

    /// The instant `ns` nanoseconds after the start.
    pub const fn from_nanos(ns: u64) -> Self {
        Instant(ns)
    }

    /// Nanoseconds since the start.
    #[inline]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds since the start.
    #[inline]
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Time since `earlier`; zero when that is later.
    #[inline]
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, by: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, by: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// The time.
    fn now(&self) -> Instant;
}

/// The monotonic clock of the host, from the moment it was made.
#[derive(Debug)]
pub struct SystemClock(std::time::Instant);

impl SystemClock {
    /// A clock that starts at zero.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        SystemClock(std::time::Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct VirtualClock(AtomicU64);

impl VirtualClock {
    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        Instant(self.0.load(Ordering::Relaxed))
    }
}

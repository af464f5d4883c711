//! The highest rate at which a device loses nothing, by halving (RFC 2544 section 26.1).
//!
//! Invariant: the rate returned is one at which a trial lost nothing, or zero when there was none; the search ends after a fixed number of
//! trials, whatever the device does.
//!
//! Theory of operation: where RFC 2544 asks for trials of a minute on a quiet bench, ours are short and on a machine with other work; so a
//! rate counts as too high only when two trials in a row fail at it.

/// How far above the rate of a flat-out load the search begins.
pub const HEADROOM: f64 = 1.1;
/// Halvings: the result is known to a hundred-and-twenty-eighth of the highest rate.
const HALVINGS: u32 = 7;

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The load could be offered at that rate.
    pub offered: bool,
    /// Something was lost.
    pub lost: bool,
}

/// What is searched: a switch, or a model of one.
pub trait Device {
    /// Why a trial cannot be made.
    type Error;

    /// Offers `rate` frames a second for some time.
    fn offer(&mut self, rate: f64) -> Result<Trial, Self::Error>;
}

/// The highest rate up to `highest` at which `device` takes and loses nothing, in the unit of `highest`.
pub fn no_loss<D: Device>(device: &mut D, highest: f64) -> Result<f64, D::Error> {
    let (mut good, mut bad) = (0.0, highest);
    for _ in 0..HALVINGS {
        let rate = (good + bad) / 2.0;
        if passes(device, rate)? || passes(device, rate)? {
            good = rate;
        } else {
            bad = rate;
        }
    }
    Ok(good)
}

fn passes<D: Device>(device: &mut D, rate: f64) -> Result<bool, D::Error> {
    let trial = device.offer(rate)?;
    Ok(trial.offered && !trial.lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// A queue in virtual time: serves `capacity` a second, holds `room`, and is away now and then.
    struct Queue {
        capacity: f64,
        room: f64,
        /// Every so many trials are spoilt.
        spoilt: Option<u32>,
        trials: u32,
    }

    impl Device for Queue {
        type Error = Infallible;

        fn offer(&mut self, rate: f64) -> Result<Trial, Infallible> {
            self.trials += 1;
            let spoilt = self.spoilt.is_some_and(|every| self.trials.is_multiple_of(every));
            let (mut waiting, mut lost) = (0.0f64, false);
            for millisecond in 0..1000 {
                waiting += rate / 1000.0;
                lost |= waiting > self.room;
                let away = spoilt && millisecond == 500;
                let served = if away { 0.0 } else { self.capacity / 1000.0 };
                waiting = (waiting.min(self.room) - served).max(0.0);
                lost |= away;
            }
            Ok(Trial { offered: true, lost })
        }
    }

    fn queue(capacity: f64) -> Queue {
        Queue { capacity, room: capacity / 500.0, spoilt: None, trials: 0 }
    }

    proptest! {
        #[test]
        fn the_capacity_is_found(capacity in 1e3..1e8f64, above in 1.0..3.0f64) {
            let highest = capacity * above;
            let Ok(found) = no_loss(&mut queue(capacity), highest);
            // A second's worth of what a queue holds may be offered on top.
            prop_assert!(found <= capacity * 1.003, "{found} of {capacity}");
            prop_assert!(found >= capacity.min(highest) - highest / 64.0, "{found} of {capacity}");
        }
    }

    #[test]
    fn one_spoilt_trial_does_not_decide() {
        let mut device = Queue { spoilt: Some(3), ..queue(1e6) };
        let Ok(found) = no_loss(&mut device, 1.1e6);
        assert!(found > 0.97e6, "{found}");
        assert!(device.trials <= 2 * HALVINGS);
    }

    #[test]
    fn a_device_that_always_loses_has_no_rate() {
        let mut device = Queue { room: 0.0, ..queue(1e6) };
        assert_eq!(no_loss(&mut device, 1e6), Ok(0.0));
    }

    #[test]
    fn what_cannot_be_offered_does_not_count() {
        struct Slow;
        impl Device for Slow {
            type Error = Infallible;
            fn offer(&mut self, rate: f64) -> Result<Trial, Infallible> {
                Ok(Trial { offered: rate <= 500.0, lost: false })
            }
        }
        let Ok(found) = no_loss(&mut Slow, 1000.0);
        assert!((490.0..=500.0).contains(&found), "{found}");
    }
}

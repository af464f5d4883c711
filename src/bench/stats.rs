//! Medians and spread.
//!
//! Invariant: a statistic of nothing is zero, and what is not a number is left out.

use serde::Serialize;

/// Some repeats of one figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these figures.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Spread::default() };
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        let middle = sorted.get(lower..=upper).unwrap_or_default();
        Spread { median: middle.iter().sum::<f64>() / middle.len().max(1) as f64, min: *min, max: *max }
    }
}

/// `part` of `whole`; zero of nothing.
pub fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians_of_few() {
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(Spread::of([3.0]), Spread { median: 3.0, min: 3.0, max: 3.0 });
        assert_eq!(Spread::of([9.0, 1.0]), Spread { median: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of([f64::NAN, 4.0, f64::INFINITY]), Spread { median: 4.0, min: 4.0, max: 4.0 });
        assert_eq!((share(1.0, 4.0), share(1.0, 0.0)), (0.25, 0.0));
    }

    proptest! {
        #[test]
        fn half_lie_on_either_side(figures in prop::collection::vec(-1e9f64..1e9, 1..50)) {
            let spread = Spread::of(figures.iter().copied());
            let half = figures.len().div_ceil(2);
            prop_assert!(figures.iter().filter(|figure| **figure <= spread.median).count() >= figures.len() - half);
            prop_assert!(figures.iter().filter(|figure| **figure >= spread.median).count() >= figures.len() - half);
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            prop_assert!(figures.contains(&spread.min) && figures.contains(&spread.max));
        }
    }
}

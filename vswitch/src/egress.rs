//! [`Egress`]: the frames of a turn, sorted by the lane they leave by.
//!
//! Invariant: a lane is in the list of touched ones exactly when something was put into its burst since it was last taken from the list.
//! Nothing is allocated but in [`Egress::resize`].

use wire::{Burst, Frame};

#[derive(Default)]
struct Lane {
    burst: Burst,
    listed: bool,
}

/// One burst for every lane of a worker.
#[derive(Default)]
pub struct Egress {
    lanes: Vec<Lane>,
    touched: Vec<u16>,
    /// Stands for lanes that there are not.
    void: Burst,
}

impl Egress {
    /// There are `lanes` lanes from here on (65,536 at most). What lies in the bursts of lanes that end is forgotten: called between turns.
    pub fn resize(&mut self, lanes: usize) {
        self.lanes.resize_with(lanes, Lane::default);
        self.touched.retain(|lane| usize::from(*lane) < lanes);
        self.touched.reserve(lanes.saturating_sub(self.touched.len()));
    }

    /// Puts a frame into the burst of a lane; gives it back when that is full or there is no such lane.
    #[inline]
    pub fn push(&mut self, lane: u16, frame: Frame) -> Result<(), Frame> {
        let Some(place) = self.lanes.get_mut(usize::from(lane)) else { return Err(frame) };
        if !place.listed {
            place.listed = true;
            self.touched.push(lane);
        }
        place.burst.push(frame)
    }

    /// Takes a lane that something was put into from the list, in no order; its burst is at [`Egress::burst`].
    #[inline]
    pub fn next_touched(&mut self) -> Option<u16> {
        let lane = self.touched.pop()?;
        if let Some(place) = self.lanes.get_mut(usize::from(lane)) {
            place.listed = false;
        }
        Some(lane)
    }

    /// Whether something waits to be taken.
    #[inline]
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// The burst of a lane; an empty one when there is no such lane.
    #[inline]
    pub fn burst(&mut self, lane: u16) -> &mut Burst {
        match self.lanes.get_mut(usize::from(lane)) {
            Some(lane) => &mut lane.burst,
            None => {
                self.void = Burst::default();
                &mut self.void
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::{BURST, Context, Origin, Sizes};

    use super::*;

    #[test]
    fn lanes_are_listed_once_and_taken_once() {
        let mut cx = Context::new(Sizes { heads: 100, pieces: 8, pool: 4096 }).unwrap();
        let mut frame = || cx.originate(Origin::default(), &[0; 60]).unwrap();
        let mut egress = Egress::default();
        egress.resize(3);
        for _ in 0..BURST {
            egress.push(2, frame()).unwrap();
        }
        assert!(egress.push(2, frame()).is_err(), "full");
        assert!(egress.push(3, frame()).is_err(), "no such lane");
        egress.push(0, frame()).unwrap();
        assert!(egress.is_touched());
        let mut taken = [egress.next_touched().unwrap(), egress.next_touched().unwrap()];
        taken.sort_unstable();
        assert_eq!((taken, egress.next_touched()), ([0, 2], None));
        assert_eq!((egress.burst(0).len(), egress.burst(2).len(), egress.burst(9).len()), (1, BURST, 0));
        assert_eq!(egress.burst(2).drain().count(), BURST);
        egress.push(2, frame()).unwrap();
        assert_eq!((egress.next_touched(), egress.is_touched()), (Some(2), false));
    }
}

//! [`Held`]: frames that wait, for the first fragment of their packet or for their next hop to say where it is.
//!
//! Invariant: bounded, and all memory is taken at creation; a NIC has [`SHARE`] places, of which it gives up the oldest for another. When all places
//! are taken, whoever holds most gives up theirs, and nobody does for a frame that cannot be kept. What is held has left the turn: in the ledger
//! it counts as transmitted, and as originated when it goes on.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use wire::{Context, Frame, Instant, MAX_FRAME, NicId, Offload, Origin};

use crate::{fragments::Which, record::Side};

/// Frames of everybody.
const PLACES: usize = 128;
/// Frames of one NIC.
const SHARE: usize = 16;
/// How long a later fragment waits for the first.
const FRAGMENT: Duration = Duration::from_secs(5);

/// What a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// The first fragment of its packet.
    First(Which),
    /// The same of IPv6.
    First6(Which<Ipv6Addr>),
    /// Its next hop; it is as it came in and is to be asked about again.
    Hop(IpAddr),
    /// Its next hop; it is the NAT's own and ready to go.
    OwnHop(IpAddr),
}

impl For {
    pub(super) fn hop(self) -> Option<IpAddr> {
        match self {
            For::Hop(hop) | For::OwnHop(hop) => Some(hop),
            For::First(_) | For::First6(_) => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Place {
    waits: For,
    side: Side,
    origin: Origin,
    since: Instant,
    offload: Offload,
    len: usize,
    /// Where in the bytes it is.
    row: usize,
}

/// See the module's documentation.
pub(super) struct Held {
    places: Box<[Option<Place>]>,
    /// Rows as long as the longest frame of either side: one for each place, and a spare one that the next frame is read into.
    bytes: Box<[u8]>,
    room: usize,
    /// Rows that no place has.
    spare: Vec<usize>,
    len: usize,
}

impl Held {
    /// For frames of up to `room` bytes.
    pub(super) fn new(room: usize) -> Held {
        let room = room.min(MAX_FRAME);
        Held {
            places: vec![None; PLACES].into(),
            bytes: vec![0; (PLACES + 1) * room].into(),
            room,
            spare: (0..=PLACES).collect(),
            len: 0,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a frame, which has then been taken over; gives it back when it is too long or its memory is gone.
    pub(super) fn keep(&mut self, cx: &mut Context, frame: Frame, side: Side, waits: For) -> Result<(), Frame> {
        let head = cx.heads.get(&frame);
        let (origin, offload, since) = (head.origin, head.offload, cx.now);
        let Some(row) = self.spare.last().copied() else { return Err(frame) };
        let read = self.bytes.get_mut(row * self.room..(row + 1) * self.room).and_then(|row| cx.read_all(&frame, row));
        let (Some(len), Some(at)) = (read, self.place_for(origin.nic)) else { return Err(frame) };
        self.free(at);
        if let Some(place) = self.places.get_mut(at) {
            self.spare.retain(|spare| *spare != row);
            *place = Some(Place { waits, side, origin, since, offload, len, row });
            self.len += 1;
            cx.transmitted(1, len as u64);
        }
        Ok(())
    }

    /// The place that a NIC's next frame gets: at its share the NIC's own oldest, else a free one, else the oldest of whoever holds most.
    fn place_for(&self, nic: NicId) -> Option<usize> {
        let held = |nic: NicId| self.places.iter().flatten().filter(|place| place.origin.nic == nic).count();
        let oldest = |nic: NicId| {
            let places = self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)));
            let own = places.filter(|(_, place)| place.origin.nic == nic);
            own.min_by_key(|(_, place)| place.since).map(|(at, _)| at)
        };
        if held(nic) >= SHARE {
            return oldest(nic);
        }
        let free = self.places.iter().position(Option::is_none);
        free.or_else(|| {
            oldest(self.places.iter().flatten().map(|place| place.origin.nic).max_by_key(|nic| held(*nic))?)
        })
    }

    /// One frame that waits for what `is` said, made a frame of this turn again.
    pub(super) fn take(&mut self, cx: &mut Context, is: impl Fn(For) -> bool) -> Option<(Frame, Side, For)> {
        if self.len == 0 {
            return None;
        }
        // In the order in which they came.
        let places = self.places.iter().enumerate();
        let waiting = places.filter_map(|(at, place)| place.filter(|place| is(place.waits)).map(|place| (at, place)));
        let (at, place) = waiting.min_by_key(|(_, place)| place.since)?;
        let bytes = self.bytes.get(place.row * self.room..place.row * self.room + place.len)?;
        // Where the turn has no room for it, it waits on.
        let frame = cx.originate(place.origin, bytes)?;
        self.free(at);
        cx.heads.get_mut(&frame).offload = place.offload;
        Some((frame, place.side, place.waits))
    }

    /// Forgets later fragments whose first did not come in time.
    pub(super) fn sweep(&mut self, now: Instant) {
        for at in 0..self.places.len() {
            let late = |place: &Place| {
                matches!(place.waits, For::First(_) | For::First6(_)) && now.since(place.since) >= FRAGMENT
            };
            if self.places.get(at).copied().flatten().is_some_and(|place| late(&place)) {
                self.free(at);
            }
        }
    }

    /// What somebody waits for, by place: a next hop, and whose frame it is.
    pub(super) fn hop(&self, at: usize) -> Option<(IpAddr, NicId)> {
        let place = self.places.get(at).copied().flatten()?;
        Some((place.waits.hop()?, place.origin.nic))
    }

    /// Places there are.
    pub(super) const fn places() -> usize {
        PLACES
    }

    fn free(&mut self, at: usize) {
        if let Some(place) = self.places.get_mut(at).and_then(Option::take) {
            self.spare.push(place.row);
            self.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use wire::Sizes;

    fn keep(held: &mut Held, cx: &mut Context, nic: u16, len: usize) -> bool {
        let frame = cx.originate(Origin { nic: NicId(nic), lane: 0 }, &vec![nic as u8; len]).unwrap();
        let waits = For::Hop(Ipv4Addr::new(10, 0, 0, 1).into());
        match held.keep(cx, frame, Side::Inside, waits) {
            Ok(()) => true,
            Err(frame) => {
                cx.drop(frame, wire::DropReason::TooBig);
                false
            }
        }
    }

    fn count(held: &Held, nic: u16) -> usize {
        (0..PLACES).filter_map(|at| held.hop(at)).filter(|(_, of)| *of == NicId(nic)).count()
    }

    #[test]
    fn a_nic_takes_from_itself_and_all_together_from_whoever_holds_most() {
        let mut cx = Context::new(Sizes { heads: 1024, pieces: 1024, pool: 1 << 20 }).unwrap();
        (0..200).for_each(|nic| cx.add_nic(NicId(nic)));
        let mut held = Held::new(2000);
        cx.begin_turn(Instant::START);
        // The one that holds least was first.
        assert!(keep(&mut held, &mut cx, 0, 100));
        for nic in 1..=7 {
            (0..SHARE + 3).for_each(|_| assert!(keep(&mut held, &mut cx, nic, 100)));
            assert_eq!(count(&held, nic), SHARE);
        }
        (0..PLACES - 7 * SHARE - 1).for_each(|_| assert!(keep(&mut held, &mut cx, 8, 100)));
        assert!(!keep(&mut held, &mut cx, 9, 2001), "longer than any");
        let before: Vec<usize> = (0..=8).map(|nic| count(&held, nic)).collect();
        assert_eq!((before[0], before.iter().sum::<usize>()), (1, PLACES), "and nobody has lost anything by it");
        assert!((10..20).all(|nic| keep(&mut held, &mut cx, nic, 100)));
        assert_eq!((count(&held, 0), (10..20).map(|nic| count(&held, nic)).sum::<usize>()), (1, 10));
        // Each comes back as it was, in a turn that has room for it.
        let mut tight = Context::new(Sizes { heads: 20, pieces: 20, pool: 4096 }).unwrap();
        (0..200).for_each(|nic| tight.add_nic(NicId(nic)));
        let (mut seen, mut turns) = (0, 0);
        while !held.is_empty() {
            tight.begin_turn(Instant::START);
            turns += 1;
            while let Some((frame, side, _)) = held.take(&mut tight, |_| true) {
                let mut bytes = [0; 100];
                assert_eq!((tight.read_all(&frame, &mut bytes), side), (Some(100), Side::Inside));
                let NicId(nic) = tight.heads.get(&frame).origin.nic;
                assert_eq!(bytes, [nic as u8; 100]);
                tight.transmitted(1, 100);
                seen += 1;
            }
            assert!(tight.ledger.balances());
        }
        assert!(seen == PLACES && turns > 1, "{seen} in {turns}");
    }
}

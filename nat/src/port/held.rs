//! [`Held`]: frames that wait, for the first fragment of their packet or for their next hop to say where it is.
//!
//! Invariant: bounded, and all memory is taken at creation; a NIC has [`SHARE`] places, of which it gives up the oldest for another. What is
//! held has left the turn: in the ledger it counts as transmitted, and as originated when it goes on.

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
}

/// See the module's documentation.
pub(super) struct Held {
    places: Box<[Option<Place>]>,
    /// As many bytes for each place as the longest frame of either side has.
    bytes: Box<[u8]>,
    room: usize,
    len: usize,
}

impl Held {
    /// For frames of up to `room` bytes.
    pub(super) fn new(room: usize) -> Held {
        let room = room.min(MAX_FRAME);
        Held { places: vec![None; PLACES].into(), bytes: vec![0; PLACES * room].into(), room, len: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a frame, which has then been taken over; gives it back when it is too long or its memory is gone.
    pub(super) fn keep(&mut self, cx: &mut Context, frame: Frame, side: Side, waits: For) -> Result<(), Frame> {
        let head = cx.heads.get(&frame);
        let (origin, offload, since) = (head.origin, head.offload, cx.now);
        let of = |place: &Option<Place>| place.is_some_and(|place| place.origin.nic == origin.nic);
        let full = self.places.iter().filter(|place| of(place)).count() >= SHARE;
        // At its share a NIC gives up its own oldest; when all places are taken, the oldest of all goes.
        let candidates = self.places.iter().enumerate().filter(|(_, place)| if full { of(place) } else { true });
        let place = candidates.min_by_key(|(_, place)| place.map_or((0, Instant::START), |place| (1, place.since)));
        let Some(at) = place.map(|(at, _)| at) else { return Err(frame) };
        let Some(bytes) = self.bytes.get_mut(at * self.room..(at + 1) * self.room) else { return Err(frame) };
        let read = cx.read_all(&frame, bytes);
        if let Some(place) = self.places.get_mut(at) {
            self.len -= usize::from(place.take().is_some());
            let Some(len) = read else { return Err(frame) };
            *place = Some(Place { waits, side, origin, since, offload, len });
            self.len += 1;
            cx.transmitted(1, len as u64);
        }
        Ok(())
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
        self.free(at);
        let bytes = self.bytes.get(at * self.room..at * self.room + place.len)?;
        let frame = cx.originate(place.origin, bytes)?;
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
        if let Some(place) = self.places.get_mut(at) {
            self.len -= usize::from(place.take().is_some());
        }
    }
}

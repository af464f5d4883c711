//! [`Unsolicited`]: SYNs from outside that nobody inside has asked for, waiting for a SYN the other way.
//!
//! Invariant: bounded and taken at creation; each ends once: a SYN from inside between the same endpoints takes it away silently
//! (simultaneous open), else [`Unsolicited::due`] gives it out when its time is up. When there is no room the oldest ends silently.
//! Read first: RFC 5382 REQ-4.

use crate::record::Endpoint;

const ROOM: usize = 64;
/// Bytes of a SYN's packet that its ICMP error quotes: an IPv4 header without options and eight bytes (RFC 792).
const QUOTE: usize = 28;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who sent it.
    pub remote: Endpoint,
    /// Where to.
    pub outside: Endpoint,
    /// The first bytes of its packet, for the quote in an ICMP error.
    pub quote: [u8; QUOTE],
    pub(crate) since: u32,
}

/// See the module's documentation.
pub(crate) struct Unsolicited {
    places: Box<[Option<Waiting>]>,
    len: usize,
    wait: u32,
}

impl Unsolicited {
    pub(crate) fn new(wait: u32) -> Unsolicited {
        Unsolicited { places: vec![None; ROOM].into(), len: 0, wait }
    }

    pub(crate) fn add(&mut self, new: Waiting) {
        let known = |waiting: &Waiting| (waiting.remote, waiting.outside) == (new.remote, new.outside);
        if self.places.iter().flatten().any(known) {
            return;
        }
        let place = self.places.iter_mut().min_by_key(|place| place.map_or(0, |waiting| u64::from(waiting.since) + 1));
        if let Some(place) = place {
            self.len += usize::from(place.is_none());
            *place = Some(new);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A SYN goes the other way.
    #[inline]
    pub(crate) fn answer(&mut self, outside: Endpoint, remote: Endpoint) {
        if self.len > 0 {
            self.take(|waiting| (waiting.remote, waiting.outside) == (remote, outside));
        }
    }

    /// One whose time is up.
    pub(crate) fn due(&mut self, now: u32) -> Option<Waiting> {
        let wait = self.wait;
        // Seconds are cut off on both ends: one more makes sure that it was at least that long.
        self.take(|waiting| now.saturating_sub(waiting.since) > wait)
    }

    fn take(&mut self, is: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let place = self.places.iter_mut().find(|place| place.as_ref().is_some_and(&is))?;
        self.len -= 1;
        place.take()
    }
}

//! [`Unsolicited`]: SYNs from outside that nobody inside has asked for, waiting for a SYN the other way.
//!
//! Invariant: bounded and taken at creation; each ends once: a SYN from inside between the same endpoints takes it away silently
//! (simultaneous open), else [`Unsolicited::due`] gives it out when its time is up. When there is no room the oldest ends silently.
//! Read first: RFC 5382 REQ-4.

use std::net::Ipv4Addr;

use crate::{family::Family, record::Endpoint};

const ROOM: usize = 64;
/// Bytes of a SYN's packet that are kept at most: an IPv6 header and eight bytes.
const QUOTE: usize = 48;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<A = Ipv4Addr> {
    /// Who sent it.
    pub remote: Endpoint<A>,
    /// Where to.
    pub outside: Endpoint<A>,
    pub(crate) quote: [u8; QUOTE],
    pub(crate) since: u32,
}

impl<A: Family> Waiting<A> {
    /// The first bytes of its packet, for the quote in an ICMP error: an IP header without options and eight bytes (RFC 792).
    pub fn quote(&self) -> &[u8] {
        self.quote.get(..A::HEADER + 8).unwrap_or_default()
    }
}

/// See the module's documentation.
pub(crate) struct Unsolicited<A = Ipv4Addr> {
    places: Box<[Option<Waiting<A>>]>,
    len: usize,
    wait: u32,
}

impl<A: Family> Unsolicited<A> {
    pub(crate) fn new(wait: u32) -> Unsolicited<A> {
        Unsolicited { places: vec![None; ROOM].into(), len: 0, wait }
    }

    pub(crate) fn add(&mut self, new: Waiting<A>) {
        let known = |waiting: &Waiting<A>| (waiting.remote, waiting.outside) == (new.remote, new.outside);
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
    pub(crate) fn answer(&mut self, outside: Endpoint<A>, remote: Endpoint<A>) {
        if self.len > 0 {
            self.take(|waiting| (waiting.remote, waiting.outside) == (remote, outside));
        }
    }

    /// One whose time is up.
    pub(crate) fn due(&mut self, now: u32) -> Option<Waiting<A>> {
        let wait = self.wait;
        // Seconds are cut off on both ends: one more makes sure that it was at least that long.
        self.take(|waiting| now.saturating_sub(waiting.since) > wait)
    }

    fn take(&mut self, is: impl Fn(&Waiting<A>) -> bool) -> Option<Waiting<A>> {
        let place = self.places.iter_mut().find(|place| place.as_ref().is_some_and(&is))?;
        self.len -= 1;
        place.take()
    }
}

//! [`Hops`]: the MAC addresses of those in the endpoint's network that its packets go to next: other endpoints, and the gateway.
//!
//! Invariant: bounded, and an address is in it only because a packet is to go there, so that nobody fills it from outside. Nothing is allocated but in
//! [`Hops::make_room`]. Questions are paced: one a second for an address, and after [`TRIES`] without an answer
//! after two, four and eight seconds and then every ten: the way to everybody may only just come up.
//!
//! Theory of operation: who was heard of longer ago than [`FRESH`] is asked again, itself alone, when the next packet goes there; packets go on meanwhile,
//! and only if nothing is heard is the address forgotten. `changes` counts whenever a MAC address changes, so that whoever keeps one can see it.
//! Read first: RFC 826, RFC 1122 section 2.3.2.1 (unicast poll), RFC 4861 section 7.3.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use wire::{Instant, Mac};

/// Addresses at most.
const MOST: usize = 16_384;
/// Questions before an address counts as nobody's.
const TRIES: u8 = 3;
/// Time between two questions for one address, and at most where they are in vain.
const AGAIN: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);
/// How long one is believed in that was heard of.
const FRESH: Duration = Duration::from_secs(30);
/// What no packet went to for so long is forgotten.
const UNUSED: Duration = Duration::from_secs(600);

struct Hop {
    mac: Option<Mac>,
    heard: Instant,
    asked: Option<Instant>,
    tries: u8,
    used: Instant,
}

/// Who is to be asked for an address now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Nobody,
    Everybody,
    Only(Mac),
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Hops {
    all: HashMap<IpAddr, Hop>,
    /// How many find room.
    room: usize,
    changes: u64,
}

impl Hops {
    /// There is room for `room` addresses from here on, or [`MOST`]. May allocate.
    pub(super) fn make_room(&mut self, room: usize) {
        self.room = self.room.max(room.min(MOST));
        // At most half full, a table makes room for new keys in its own place.
        self.all.reserve((2 * self.room).saturating_sub(self.all.len()));
    }

    /// How often a MAC address has changed.
    #[inline]
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// A packet is to go to `address`: its MAC address, if it is known, and who is asked for it, which counts as done.
    pub(super) fn find(&mut self, address: IpAddr, now: Instant) -> (Option<Mac>, Ask) {
        if !self.all.contains_key(&address) && self.all.len() >= self.room {
            return (None, Ask::Nobody);
        }
        let new = || Hop { mac: None, heard: now, asked: None, tries: 0, used: now };
        let hop = self.all.entry(address).or_insert_with(new);
        hop.used = now;
        if hop.mac.is_some() && now < hop.heard + FRESH {
            return (hop.mac, Ask::Nobody);
        }
        let vain = if hop.mac.is_none() { u32::from(hop.tries.saturating_sub(TRIES - 1)) } else { 0 };
        let pause = (AGAIN * (1 << vain.min(4))).min(LATER);
        if hop.asked.is_some_and(|asked| now < asked + pause) {
            return (hop.mac, Ask::Nobody);
        }
        if hop.mac.is_some() && hop.tries >= TRIES {
            (hop.mac, hop.tries) = (None, 0);
            self.changes += 1;
        }
        hop.asked = Some(now);
        hop.tries = hop.tries.saturating_add(1);
        (hop.mac, hop.mac.map_or(Ask::Everybody, Ask::Only))
    }

    /// Somebody has shown that `address` is at `mac`.
    pub(super) fn heard(&mut self, address: IpAddr, mac: Mac, now: Instant) {
        let Some(hop) = self.all.get_mut(&address) else { return };
        if hop.mac != Some(mac) {
            self.changes += 1;
        }
        (hop.mac, hop.heard, hop.tries) = (Some(mac), now, 0);
    }

    /// Forgets what no packet goes to.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.all.retain(|_, hop| now < hop.used + UNUSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 7]);

    fn at(millis: u64) -> Instant {
        Instant::START + Duration::from_millis(millis)
    }

    fn roomy() -> Hops {
        let mut hops = Hops::default();
        hops.make_room(usize::MAX);
        hops
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn questions_are_paced_and_become_rare() {
        let mut hops = roomy();
        let asked = (0..40_000u64).filter(|ms| hops.find(address(1), at(*ms)).1 == Ask::Everybody);
        assert_eq!(asked.collect::<Vec<_>>(), [0, 1000, 2000, 4000, 8000, 16_000, 26_000, 36_000]);
        hops.heard(address(2), MAC, at(0));
        assert_eq!(
            hops.find(address(2), at(40_000)),
            (None, Ask::Everybody),
            "what nobody wanted to know was not kept"
        );
    }

    #[test]
    fn who_was_heard_long_ago_is_asked_and_packets_go_on_meanwhile() {
        let mut hops = roomy();
        hops.find(address(1), at(0));
        hops.heard(address(1), MAC, at(5));
        assert_eq!((hops.find(address(1), at(29_000)), hops.changes()), ((Some(MAC), Ask::Nobody), 1));
        for second in [100, 101, 102] {
            assert_eq!(hops.find(address(1), at(second * 1000)), (Some(MAC), Ask::Only(MAC)));
            assert_eq!(hops.find(address(1), at(second * 1000 + 999)), (Some(MAC), Ask::Nobody));
        }
        hops.heard(address(1), MAC, at(102_500));
        assert_eq!((hops.find(address(1), at(103_000)), hops.changes()), ((Some(MAC), Ask::Nobody), 1));
        for second in [200, 201, 202] {
            hops.find(address(1), at(second * 1000));
        }
        assert_eq!((hops.find(address(1), at(203_000)), hops.changes()), ((None, Ask::Everybody), 2), "gone");
    }

    #[test]
    fn it_is_bounded_and_what_is_not_used_goes() {
        let mut hops = roomy();
        for n in 0..MOST as u32 {
            assert_eq!(hops.find(address(n), at(0)).1, Ask::Everybody);
        }
        assert_eq!(hops.find(address(MOST as u32), at(0)), (None, Ask::Nobody));
        hops.find(address(5), at(300_000));
        hops.sweep(at(600_000));
        assert_eq!(hops.all.len(), 1);
    }
}

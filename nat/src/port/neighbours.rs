//! [`Neighbours`]: who is where on the link outside.
//!
//! Invariant: bounded and taken at creation. An address is asked for once a second at most and three times in a row; a NIC has at most
//! [`SHARE`] addresses asked for at a time, so that a guest that looks for addresses that nobody has keeps others from nothing. Only answers
//! to what was asked are believed.
//! Read first: RFC 826; RFC 4861 section 7.3, of which this is the part that a sender needs.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use wire::{Instant, Mac, NicId, keyed::fold};

const SETS: usize = 64;
const WAYS: usize = 8;
/// Addresses asked for by one NIC at a time.
const SHARE: usize = 16;
/// Times that an address is asked for in a row.
const TRIES: u8 = 3;
/// Time between two questions.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// Time for which an answer is good without another.
const GOOD: Duration = Duration::from_secs(30);
/// Time for which an address that did not answer is not asked for again.
const SILENT: Duration = Duration::from_secs(3);

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// It is there.
    Known(Mac),
    /// It was there; ask whether it still is.
    Doubtful(Mac),
    /// Ask.
    Ask,
    /// It was asked for.
    Waiting,
    /// It does not answer.
    Silent,
}

#[derive(Clone, Copy)]
struct Entry {
    address: IpAddr,
    mac: Option<Mac>,
    heard: Instant,
    asked: Instant,
    tries: u8,
    by: NicId,
}

/// See the module's documentation.
pub(super) struct Neighbours {
    sets: Box<[[Option<Entry>; WAYS]]>,
    seed: u64,
    /// What was found last, while it is good: most packets go to one router.
    last: Option<(Ipv4Addr, Mac)>,
}

impl Neighbours {
    pub(super) fn new(seed: u64) -> Neighbours {
        Neighbours { sets: vec![[None; WAYS]; SETS].into(), seed: seed | 1, last: None }
    }

    /// Where an address was found last.
    #[inline]
    pub(super) fn last(&self, address: Ipv4Addr) -> Option<Mac> {
        self.last.filter(|(of, _)| *of == address).map(|(_, mac)| mac)
    }

    /// Time has passed: what was found last may not be good any more.
    pub(super) fn doubt(&mut self) {
        self.last = None;
    }

    /// Where an address is; what the answer says to ask must be asked.
    pub(super) fn find(&mut self, address: IpAddr, by: NicId, now: Instant) -> Hop {
        let home = self.home(address);
        let known =
            self.sets.get_mut(home).and_then(|set| set.iter_mut().flatten().find(|entry| entry.address == address));
        let Some(entry) = known else { return self.begin(home, address, by, now) };
        let rested = now.since(entry.asked) >= AGAIN;
        match entry.mac {
            Some(mac) if now.since(entry.heard) < GOOD => {
                if let IpAddr::V4(address) = address {
                    self.last = Some((address, mac));
                }
                Hop::Known(mac)
            }
            Some(mac) if !rested => Hop::Known(mac),
            Some(mac) if entry.tries < TRIES => {
                (entry.tries, entry.asked) = (entry.tries + 1, now);
                Hop::Doubtful(mac)
            }
            Some(_) => {
                (entry.mac, entry.tries, entry.asked) = (None, 1, now);
                Hop::Ask
            }
            None if entry.tries < TRIES && !rested => Hop::Waiting,
            None if entry.tries < TRIES => {
                (entry.tries, entry.asked) = (entry.tries + 1, now);
                Hop::Ask
            }
            None if !rested => Hop::Waiting,
            None if now.since(entry.asked) < AGAIN + SILENT => Hop::Silent,
            None => {
                (entry.tries, entry.asked) = (1, now);
                Hop::Ask
            }
        }
    }

    /// An address says where it is; true when it was asked for or known.
    pub(super) fn heard(&mut self, address: IpAddr, mac: Mac, now: Instant) -> bool {
        let home = self.home(address);
        let Some(set) = self.sets.get_mut(home) else { return false };
        let Some(entry) = set.iter_mut().flatten().find(|entry| entry.address == address) else { return false };
        (entry.mac, entry.heard, entry.tries) = (Some(mac), now, 0);
        self.last = None;
        true
    }

    fn begin(&mut self, home: usize, address: IpAddr, by: NicId, now: Instant) -> Hop {
        let unknown = |entry: &&Entry| entry.mac.is_none() && now.since(entry.asked) < AGAIN * u32::from(TRIES);
        let asked = self.sets.iter().flatten().flatten().filter(unknown).filter(|entry| entry.by == by).count();
        if asked >= SHARE {
            return Hop::Silent;
        }
        let Some(set) = self.sets.get_mut(home) else { return Hop::Silent };
        // First an empty place, then what was not found, then what was heard of longest ago.
        let place = set.iter_mut().min_by_key(|entry| {
            entry.map_or((0, Instant::START), |entry| (1 + u8::from(entry.mac.is_some()), entry.heard))
        });
        if let Some(place) = place {
            *place = Some(Entry { address, mac: None, heard: now, asked: now, tries: 1, by });
        }
        Hop::Ask
    }

    fn home(&self, address: IpAddr) -> usize {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let low = fold(bits as u64 ^ self.seed, 0x9e37_79b9_7f4a_7c15);
        fold(low ^ (bits >> 64) as u64, self.seed) as usize % SETS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 9]);

    fn at(ms: u64) -> Instant {
        Instant::START + Duration::from_millis(ms)
    }

    #[test]
    fn an_address_is_asked_for_three_times_and_left_alone_for_a_while() {
        let mut neighbours = Neighbours::new(1);
        let to = IpAddr::from([192, 0, 2, 9]);
        let mut seen = Vec::new();
        for ms in (0..8000).step_by(500) {
            seen.push(neighbours.find(to, NicId(1), at(ms)));
        }
        let asked: Vec<usize> = seen.iter().enumerate().filter(|(_, hop)| **hop == Hop::Ask).map(|(n, _)| n).collect();
        assert_eq!(asked, [0, 2, 4, 12, 14], "{seen:?}");
        assert!(seen[6..12].iter().all(|hop| *hop == Hop::Silent), "{seen:?}");
        assert!(neighbours.heard(to, MAC, at(8000)));
        assert_eq!(neighbours.find(to, NicId(1), at(8000)), Hop::Known(MAC));
        assert!(!neighbours.heard(IpAddr::from([192, 0, 2, 8]), MAC, at(8000)), "nobody asked");
    }

    #[test]
    fn what_was_not_heard_of_for_long_is_used_while_it_is_asked_for() {
        let mut neighbours = Neighbours::new(1);
        let to = IpAddr::from([192, 0, 2, 9]);
        assert_eq!(neighbours.find(to, NicId(1), at(0)), Hop::Ask);
        assert!(neighbours.heard(to, MAC, at(1)));
        assert_eq!(neighbours.find(to, NicId(1), at(29_000)), Hop::Known(MAC));
        for ms in [31_000, 32_000, 33_000] {
            assert_eq!(neighbours.find(to, NicId(1), at(ms)), Hop::Doubtful(MAC));
            assert_eq!(neighbours.find(to, NicId(1), at(ms + 500)), Hop::Known(MAC));
        }
        assert_eq!(neighbours.find(to, NicId(1), at(34_000)), Hop::Ask, "it is gone");
    }

    #[test]
    fn who_looks_for_what_is_not_there_keeps_nobody_from_anything() {
        let mut neighbours = Neighbours::new(1);
        let asked = (0..100).filter(|n| neighbours.find(IpAddr::from([192, 0, 2, *n]), NicId(1), at(0)) == Hop::Ask);
        assert_eq!(asked.count(), SHARE);
        assert_eq!(neighbours.find(IpAddr::from([192, 0, 2, 200]), NicId(2), at(0)), Hop::Ask);
    }
}

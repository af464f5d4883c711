//! [`Neighbours`]: which MAC has which IP address in which network, and whether that is on this host or behind a tunnel.
//!
//! Invariant: never more than its capacity, and nothing is allocated for a frame. An address has one MAC at a time. What control placed stays
//! until control takes it back; what was heard ages, and gives way at the bound: whoever holds most loses what it has not said for longest,
//! so a guest or an endpoint that invents addresses loses its own.
//!
//! Theory of operation: entries lie in an array and are found by a keyed hash of network and address. Each is in the list of who it was heard
//! from (a NIC of this host, an endpoint of another, or control), oldest first, so who gives way and what is too old are found at the front.
//! Where stations are is not known here: an endpoint that is asked about a neighbour looks where its MAC is, too ([`crate::vtep`]), so that a
//! guest which moves takes its addresses along. What was said at a NIC of this host is forgotten when that goes.
//! Read first: RFC 826, RFC 4861 section 7, RFC 9161 (what endpoints may answer).

use std::{collections::HashMap, net::IpAddr, time::Duration};

use wire::{Instant, Mac, NicId, keyed::Keyed};

use crate::{remotes::RemoteId, vtep::NetworkId};

use self::lists::{Holder, Lists};

mod lists;
#[cfg(test)]
mod tests;

/// Bounds of the capacity; what is outside is brought to the nearer one.
const CAPACITY: std::ops::RangeInclusive<usize> = 16..=1 << 20;

/// Where it is known from that an address has a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whence {
    /// Control or the configuration says so: behind a tunnel.
    Placed,
    /// A NIC of this host said so.
    Local(NicId),
    /// It came out of a tunnel.
    Remote(RemoteId),
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC.
    pub mac: Mac,
    /// How that is known.
    pub whence: Whence,
    /// Whether it is a router (RFC 4861 section 4.4, R); nothing: it was not heard to say.
    pub router: Option<bool>,
    /// Whether what it says takes the place of what was known (RFC 4861 section 4.4, O).
    pub overrides: bool,
}

impl Neighbour {
    /// One that said nothing but its MAC.
    pub fn new(mac: Mac, whence: Whence) -> Neighbour {
        Neighbour { mac, whence, router: None, overrides: true }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    network: NetworkId,
    address: IpAddr,
}

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    neighbour: Neighbour,
    heard: Instant,
}

/// See the module's documentation.
pub struct Neighbours {
    entries: Vec<Option<Entry>>,
    /// Places of `entries` that nobody has.
    free: Vec<u32>,
    places: HashMap<Key, u32, Keyed>,
    lists: Lists,
    ageing: Duration,
    hand: usize,
}

impl Neighbours {
    /// None yet, `capacity` (16 to 2^20) at most; what was heard is believed for `ageing`. All memory, about 170 bytes each, is taken here.
    /// `seed` must be unknown to guests.
    pub fn new(capacity: usize, ageing: Duration, seed: u64) -> Neighbours {
        let capacity = capacity.clamp(*CAPACITY.start(), *CAPACITY.end());
        Neighbours {
            entries: vec![None; capacity],
            free: (0..capacity as u32).rev().collect(),
            // At most half full, a table makes room for new keys in its own place.
            places: HashMap::with_capacity_and_hasher(capacity * 2, Keyed::new(seed)),
            lists: Lists::new(capacity),
            ageing,
            hand: 0,
        }
    }

    /// Control's word: an address is behind a tunnel, at `mac`, whatever was heard. False when half of the table is placed already, or the
    /// address or MAC is none of one station.
    pub fn place(&mut self, network: NetworkId, address: IpAddr, mac: Mac) -> bool {
        let key = Key { network, address };
        let known = self.places.get(&key).and_then(|at| self.entry(*at)).map(|entry| entry.neighbour);
        let is_new = known.is_none_or(|known| known.whence != Whence::Placed);
        if !mac.is_unicast() || !is_unicast(address) {
            return false;
        }
        if is_new && self.lists.count(Whence::Placed.into()) >= self.entries.len() / 2 {
            return false;
        }
        let flags = known.filter(|known| known.mac == mac).unwrap_or(Neighbour::new(mac, Whence::Placed));
        self.put(key, Neighbour { whence: Whence::Placed, ..flags }, Instant::START)
    }

    /// Control takes back what it placed, or what was heard is no longer so; false when nothing was known.
    pub fn forget(&mut self, network: NetworkId, address: IpAddr) -> bool {
        match self.places.get(&Key { network, address }).copied() {
            Some(at) => self.remove(at),
            None => false,
        }
    }

    /// Who has an address was heard. What control placed keeps its MAC: no more is learnt of it than what it says of itself.
    pub fn hear(&mut self, network: NetworkId, address: IpAddr, heard: Neighbour, now: Instant) {
        if !heard.mac.is_unicast() || !is_unicast(address) {
            return;
        }
        let key = Key { network, address };
        let mut new = heard;
        if let Some(known) = self.places.get(&key).and_then(|at| self.entry(*at)).map(|entry| entry.neighbour) {
            if known.mac == heard.mac {
                new.router = heard.router.or(known.router);
            }
            if known.whence == Whence::Placed {
                if known.mac != heard.mac {
                    return;
                }
                new.whence = Whence::Placed;
            }
        }
        self.put(key, new, now);
    }

    /// Who has an address, if that is known at `now`.
    #[inline]
    pub fn find(&self, network: NetworkId, address: IpAddr, now: Instant) -> Option<Neighbour> {
        let entry = self.entry(*self.places.get(&Key { network, address })?)?;
        (!self.is_expired(entry, now)).then_some(entry.neighbour)
    }

    /// All that are known, in no order.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (NetworkId, IpAddr, Neighbour)> {
        let entries = self.entries.iter().flatten().filter(move |entry| !self.is_expired(entry, now));
        entries.map(|entry| (entry.key.network, entry.key.address, entry.neighbour))
    }

    /// How many are held, those included that are too old and not yet swept out.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// How many it can hold.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// An endpoint is known no more: what came from it is forgotten.
    pub fn forget_remote(&mut self, remote: RemoteId) {
        self.forget_all(Whence::Remote(remote).into());
    }

    /// A NIC of this host is down: what it said is forgotten.
    pub fn forget_nic(&mut self, nic: NicId) {
        self.forget_all(Whence::Local(nic).into());
    }

    /// A network is gone. Looks at every entry.
    pub fn forget_network(&mut self, network: NetworkId) {
        for at in 0..self.entries.len() as u32 {
            if self.entry(at).is_some_and(|entry| entry.key.network == network) {
                self.remove(at);
            }
        }
    }

    /// Frees up to `budget` that were not heard within the ageing time.
    pub fn sweep(&mut self, now: Instant, budget: usize) {
        let mut freed = 0;
        for _ in 0..self.lists.holders() {
            while freed < budget
                && let Some(at) = self.lists.first(self.hand)
                && self.entry(at).is_some_and(|entry| self.is_expired(entry, now))
            {
                self.remove(at);
                freed += 1;
            }
            if freed >= budget {
                return;
            }
            self.hand = (self.hand + 1) % self.lists.holders();
        }
    }

    fn forget_all(&mut self, holder: Holder) {
        while let Some(at) = self.lists.oldest(holder) {
            self.remove(at);
        }
    }

    fn entry(&self, at: u32) -> Option<&Entry> {
        self.entries.get(at as usize)?.as_ref()
    }

    fn is_expired(&self, entry: &Entry, now: Instant) -> bool {
        entry.neighbour.whence != Whence::Placed && now.since(entry.heard) >= self.ageing
    }

    /// Takes an entry up, in the place of what was known; false when only what control placed could give way.
    fn put(&mut self, key: Key, neighbour: Neighbour, heard: Instant) -> bool {
        let known = self.places.get(&key).copied();
        let before = known.and_then(|at| self.entry(at)).map(|entry| entry.neighbour);
        let at = match known {
            Some(at) => at,
            None => {
                if self.free.is_empty()
                    && let Some(oldest) = self.lists.oldest_of_heaviest()
                {
                    self.remove(oldest);
                }
                let Some(at) = self.free.pop() else { return false };
                self.places.insert(key, at);
                at
            }
        };
        if let Some(before) = before {
            self.lists.unlink(before.whence.into(), at);
        }
        self.lists.append(neighbour.whence.into(), at);
        if let Some(place) = self.entries.get_mut(at as usize) {
            *place = Some(Entry { key, neighbour, heard });
        }
        true
    }

    fn remove(&mut self, at: u32) -> bool {
        let Some(Entry { key, neighbour, .. }) = self.entries.get_mut(at as usize).and_then(Option::take) else {
            return false;
        };
        self.lists.unlink(neighbour.whence.into(), at);
        self.places.remove(&key);
        self.free.push(at);
        true
    }
}

/// Whether an address can be that of one station.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast() && !v6.is_loopback(),
    }
}

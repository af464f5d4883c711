//! [`Leases`]: who has which address.
//!
//! Invariant: an address has at most one lease and a client at most one address that is not put aside. The table holds at most the pool and the
//! reserved addresses. A NIC holds at most its share of the pool, counting what is offered, taken, remembered and put aside: who asks
//! under ever new names recycles their own addresses, and nobody else's.
//!
//! Theory of operation: a free address is found from a place that the client's hash gives, so a client tends to the same address even
//! without memory. When none is free, the lease that has been over for longest is given up; when there is none, an offer of the NIC that
//! holds most. A lease that is running is never given up. Every step is a look-up in an ordered map, and the choice depends on
//! nothing but the messages and the seed.
//! Read first: RFC 2131 section 4.3.1 (which address to choose).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use wire::{Instant, Mac, NicId};

use super::{Client, Lease, LeaseEvent, LeaseState, SavedLease, mix};

/// An address that can be leased.
pub(crate) trait Address: Copy + Ord {
    /// As a number.
    fn number(self) -> u128;
    /// The address of a number that one of its kind had, or one between two.
    fn numbered(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn numbered(number: u128) -> Self {
        (number as u32).into()
    }
}

impl Address for Ipv6Addr {
    fn number(self) -> u128 {
        self.to_bits()
    }

    fn numbered(number: u128) -> Self {
        number.into()
    }
}

#[derive(Debug)]
pub(crate) struct Leases<A = Ipv4Addr> {
    by_address: BTreeMap<A, Lease<A>>,
    by_client: HashMap<Client, A>,
    /// By the end of the current state.
    by_end: BTreeSet<(Instant, A)>,
    /// Addresses of the pool, by who holds them and by the end of the current state.
    by_nic: BTreeMap<NicId, BTreeSet<(Instant, A)>>,
    /// Those of them that are offered.
    offers: BTreeMap<NicId, BTreeSet<(Instant, A)>>,
    /// Addresses of the pool without a lease.
    free: BTreeSet<A>,
    /// The pool: addresses to be given to anybody.
    pool: BTreeSet<A>,
    share: usize,
    seed: u64,
}

impl<A: Address> Leases<A> {
    pub(crate) fn new(pool: BTreeSet<A>, share: usize, seed: u64) -> Self {
        Leases {
            by_address: BTreeMap::new(),
            by_client: HashMap::new(),
            by_end: BTreeSet::new(),
            by_nic: BTreeMap::new(),
            offers: BTreeMap::new(),
            free: pool.clone(),
            // More than half of the pool is nobody's, so that one guest cannot exhaust a small one.
            share: share.min(pool.len() / 2).max(1),
            pool,
            seed,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease<A>> {
        self.by_address.values()
    }

    pub(crate) fn at(&self, address: A) -> Option<&Lease<A>> {
        self.by_address.get(&address)
    }

    /// What the client has or had; never an address put aside.
    pub(crate) fn of(&self, client: &Client) -> Option<&Lease<A>> {
        self.by_address.get(self.by_client.get(client)?)
    }

    pub(crate) fn in_pool(&self, address: A) -> bool {
        self.pool.contains(&address)
    }

    /// Whether `address` can be given to a client behind `mac` who has no claim to it; who uses one already may have it.
    pub(crate) fn is_free(&self, address: A, mac: Mac, now: Instant) -> bool {
        let used_by = |lease: &Lease<A>| lease.state == LeaseState::InUse && lease.client.mac == mac;
        self.by_address.get(&address).is_none_or(|lease| lease.expires <= now || used_by(lease))
    }

    /// Whether `nic` may hold one more address of the pool.
    pub(crate) fn within_share(&self, nic: NicId) -> bool {
        self.by_nic.get(&nic).map_or(0, BTreeSet::len) < self.share
    }

    /// An address of the pool for a client behind `nic` who has none.
    pub(crate) fn choose(&self, client: &Client, nic: NicId, now: Instant) -> Option<A> {
        if !self.within_share(nic) {
            return self.own(nic, now);
        }
        let from = self.place_of(client);
        let free = from.and_then(|from| self.free.range(from..).next()).or_else(|| self.free.first());
        free.copied().or_else(|| self.over(now)).or_else(|| self.offered_by_whoever_holds_most(nic))
    }

    /// Where the search for a free address begins.
    fn place_of(&self, client: &Client) -> Option<A> {
        let (first, last) = (self.pool.first()?.number(), self.pool.last()?.number());
        let hash = client.id.iter().fold(mix(client.mac.to_bits() ^ self.seed), |hash, c| mix(hash ^ u64::from(*c)));
        Some(A::numbered(first + u128::from(hash) % (last - first + 1)))
    }

    /// An address that `nic` itself can do without.
    fn own(&self, nic: NicId, now: Instant) -> Option<A> {
        let held = self.by_nic.get(&nic)?;
        let unused = |(_, address): &&(Instant, A)| {
            self.pool.contains(address)
                && self.at(*address).is_some_and(|lease| lease.expires <= now || lease.state == LeaseState::Offered)
        };
        held.iter().find(unused).map(|(_, address)| *address)
    }

    /// The address of the pool whose lease has been over for longest.
    fn over(&self, now: Instant) -> Option<A> {
        let ended = self.by_end.iter().take_while(|(end, _)| *end <= now);
        ended.map(|(_, address)| *address).find(|address| self.pool.contains(address))
    }

    /// The oldest offer to the NIC that holds more than `nic`, and most of those that have offers.
    fn offered_by_whoever_holds_most(&self, nic: NicId) -> Option<A> {
        let held = |nic| self.by_nic.get(nic).map_or(0, BTreeSet::len);
        let mine = held(&nic);
        let more = self.offers.iter().filter(|(other, _)| held(other) > mine);
        let (_, offers) = more.max_by_key(|(other, _)| held(other))?;
        offers.first().map(|(_, address)| *address)
    }

    /// Puts `lease` in the place of whatever its address and its client had. What only goes on stays where and when it began.
    pub(crate) fn put(&mut self, mut lease: Lease<A>, now: Instant) -> LeaseEvent<A> {
        let bound = LeaseState::Bound;
        if let Some(old) = self.by_address.get(&lease.address)
            && (old.state, lease.state) == (bound, bound)
            && old.client == lease.client
            && old.expires > now
        {
            lease.home = old.home.or(lease.home);
            lease.began = if old.name == lease.name { old.began } else { lease.began };
        }
        let aside = matches!(lease.state, LeaseState::Declined | LeaseState::InUse);
        let left = self.by_client.get(&lease.client).copied().filter(|had| *had != lease.address && !aside);
        if let Some(had) = left {
            self.remove(had);
        }
        self.remove(lease.address);
        self.free.remove(&lease.address);
        self.by_end.insert((lease.expires, lease.address));
        if let Some(nic) = lease.nic
            && self.pool.contains(&lease.address)
        {
            let entry = (lease.expires, lease.address);
            self.by_nic.entry(nic).or_default().insert(entry);
            if lease.state == LeaseState::Offered {
                self.offers.entry(nic).or_default().insert(entry);
            }
        }
        if !aside {
            self.by_client.insert(lease.client.clone(), lease.address);
        }
        self.by_address.insert(lease.address, lease.clone());
        LeaseEvent { lease, left }
    }

    fn remove(&mut self, address: A) {
        let Some(lease) = self.by_address.remove(&address) else { return };
        self.by_end.remove(&(lease.expires, address));
        for index in [&mut self.by_nic, &mut self.offers] {
            if let Some(nic) = lease.nic
                && let Some(held) = index.get_mut(&nic)
            {
                held.remove(&(lease.expires, address));
                if held.is_empty() {
                    index.remove(&nic);
                }
            }
        }
        if self.by_client.get(&lease.client) == Some(&address) {
            self.by_client.remove(&lease.client);
        }
        if self.pool.contains(&address) {
            self.free.insert(address);
        }
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Vec<SavedLease<A>> {
        let saved = |lease: &Lease<A>| SavedLease {
            address: lease.address,
            client: lease.client.clone(),
            state: lease.state,
            name: lease.name.clone(),
            began: lease.began,
            remaining: lease.expires.since(now),
        };
        self.iter().map(saved).collect()
    }

    /// Takes over what was saved `away` ago. No state goes on for longer than its `longest`, whatever the file says or the clock did.
    pub(crate) fn restore(&mut self, saved: &SavedLease<A>, now: Instant, away: Duration, longest: Duration) {
        let lease = Lease {
            address: saved.address,
            client: saved.client.clone(),
            state: saved.state,
            nic: None,
            home: None,
            name: saved.name.clone(),
            began: saved.began,
            expires: now + saved.remaining.saturating_sub(away).min(longest),
        };
        self.put(lease, now);
    }
}

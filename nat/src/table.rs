//! [`NatTable`]: who holds which mapping, and for how long.
//!
//! Invariant: it never holds more than its capacity, a NIC never more than its quota, and whatever guests send, one packet costs two look-ups
//! by hash and a bounded number of changes. Nothing is allocated after [`NatTable::new`] and [`NatTable::add_nic`]. An outside endpoint
//! belongs to one mapping; sessions and permits hang on a mapping, which does not go before them.
//!
//! Theory of operation: mappings, TCP sessions and permits are records of one kind, found by one keyed hash. Every record is in the list of
//! its NIC and state, ordered by when it was renewed, which happens once a second at most. So [`NatTable::sweep`] looks at the first of each
//! list only, and at the bound the NIC that holds most gives up what it can do without best: closed connections first, established ones
//! last. At its quota a NIC gives up its own, but nothing of a lasting kind: then it is refused. A mapping is moved behind its permits
//! whenever one of them is renewed, so the first of a list has nothing hanging on it. Time is counted in whole seconds from long before the
//! clock's start, so that what is restored can be older than the clock.
//! Read first: RFC 4787 sections 4 and 5; `vswitch/src/fdb.rs`, which bounds its table the same way; then [`crate::decide`].

use std::net::Ipv4Addr;

use wire::{Instant, NicId, keyed::splitmix};

use crate::{
    config::{Config, ConfigError, Filtering, Lifetimes, Pooling},
    decide::Refusal,
    family::Family,
    fragments::Fragments,
    holders::Holders,
    index::Index,
    ports::{Ports, Wish},
    record::{Endpoint, Key, MAPPING, PERMIT, Protocol, Record, SESSION, Slot, State},
    stats::NatStats,
    tcp,
    unsolicited::Unsolicited,
};

#[cfg(test)]
mod tests;

/// See the module's documentation.
pub struct NatTable<A: Family = Ipv4Addr> {
    pub(crate) records: Box<[Record<A>]>,
    pub(crate) index: Index,
    pub(crate) holders: Holders,
    pub(crate) ports: Ports<A>,
    pub(crate) fragments: Fragments<A>,
    pub(crate) unsolicited: Unsolicited<A>,
    lifetimes: [u32; State::ALL.len()],
    /// Added to the clock's seconds.
    base: u32,
    free: Slot,
    len: usize,
    pub(crate) mappings: usize,
    pub(crate) published: usize,
    pub(crate) most_published: usize,
    quota: usize,
    hand: usize,
    random: u64,
    pub(crate) id: u32,
    pub(crate) filtering: Filtering,
    pooling: Pooling,
    preserve_port: bool,
    parity: bool,
    pub(crate) inbound_refresh: bool,
    pub(crate) stats: NatStats,
}

impl<A: Family> NatTable<A> {
    /// An empty table. All memory is taken here: for each of [`Config::mappings`] 160 bytes (IPv6: 288), for each outside address 792 KiB.
    pub fn new(config: &Config<A>) -> Result<NatTable<A>, ConfigError> {
        config.check()?;
        Ok(NatTable::made(config))
    }

    /// As [`NatTable::new`], of what has been checked, or has no outside address and maps nothing.
    pub(crate) fn made(config: &Config<A>) -> NatTable<A> {
        let records = config.mappings.clamp(64, 1 << 20) * 2;
        let mut seed = config.seed;
        let mut secret = || splitmix(&mut seed);
        let index = Index::new(records, secret());
        let seconds = |time: std::time::Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).min(1 << 30);
        let Lifetimes { udp, udp_well_known, tcp_established, tcp_opening, tcp_closing, icmp, .. } = config.lifetimes;
        let lifetimes = [tcp_closing, tcp_opening, icmp, udp_well_known, udp, tcp_established].map(seconds);
        let [closing, opening, query, brief, long, established] = lifetimes;
        let mut all = sys::huge::filled(records, Record::EMPTY);
        for (n, record) in all.iter_mut().enumerate() {
            record.after = if n + 1 < records { Slot(n as u32 + 1) } else { Slot::NONE };
        }
        NatTable {
            records: all,
            index,
            holders: Holders::default(),
            ports: Ports::new(&config.outside, seconds(config.lifetimes.port_rest)),
            fragments: Fragments::new([secret() | 1, secret() | 1], seconds(config.lifetimes.fragment)),
            unsolicited: Unsolicited::new(seconds(config.lifetimes.unsolicited_syn)),
            lifetimes: [closing, opening, query, brief, long, established, u32::MAX, u32::MAX],
            base: lifetimes.into_iter().max().unwrap_or(0),
            free: Slot(0),
            len: 0,
            mappings: 0,
            published: 0,
            most_published: config.published.min(records / 4),
            quota: config.quota.clamp(4, records),
            hand: 0,
            random: secret(),
            id: secret() as u32,
            filtering: config.filtering,
            pooling: config.pooling,
            preserve_port: config.preserve_port,
            parity: config.parity,
            inbound_refresh: config.inbound_refresh,
            stats: NatStats::default(),
        }
    }

    /// NICs up to `nic` may hold mappings from here on. Allocates.
    pub fn add_nic(&mut self, nic: NicId) {
        self.holders.add(nic);
    }

    /// Forgets everything of a NIC, what is published for it included; returns how many records. Takes time in proportion.
    pub fn remove_nic(&mut self, nic: NicId) -> usize {
        let before = self.len;
        for state in State::ALL {
            // First what hangs on others; what is left then, those it hung on.
            self.clear(nic, state, |record| record.key.kind() != MAPPING);
        }
        for state in State::ALL {
            self.clear(nic, state, |_| true);
        }
        before - self.len
    }

    /// Removes those records of a list that are `meant` and on which nothing hangs.
    pub(crate) fn clear(&mut self, nic: NicId, state: State, meant: impl Fn(&Record<A>) -> bool) {
        let mut next = self.holders.first(nic, state);
        while let Some(slot) = next {
            let Some(record) = self.record(slot).copied() else { return };
            next = (record.after != Slot::NONE).then_some(record.after);
            if meant(&record) && record.children == 0 {
                self.remove(slot);
                // What it hung on may have gone with it, and may have been the next.
                if next.and_then(|slot| self.record(slot)).is_some_and(Record::is_empty) {
                    next = self.holders.first(nic, state);
                }
            }
        }
    }

    /// Frees up to `budget` records whose time is up; returns how many. Looks at the oldest of every list.
    pub fn sweep(&mut self, now: Instant, budget: usize) -> usize {
        let now = self.tick(now);
        let mut freed = 0;
        for _ in 0..self.holders.nics() {
            let nic = NicId(self.hand as u16);
            for state in State::ALL.into_iter().take(State::MORTAL) {
                while freed < budget
                    && let Some(slot) = self.holders.first(nic, state)
                    && self.record(slot).is_some_and(|record| self.is_expired(record, now))
                    && self.remove_at(slot, now)
                {
                    freed += 1;
                }
            }
            if freed == budget {
                break;
            }
            self.hand = (self.hand + 1) % self.holders.nics();
        }
        self.stats.expired += freed as u64;
        freed
    }

    /// Records it holds: mappings, sessions and permits, those included whose time is up and that were not yet freed.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Records it can hold.
    pub fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Mappings it holds.
    pub fn mappings(&self) -> usize {
        self.mappings
    }

    /// Records of a NIC.
    pub fn count(&self, nic: NicId) -> usize {
        self.holders.count(nic)
    }

    /// The outside addresses.
    pub fn outside(&self) -> &[A] {
        self.ports.addresses()
    }

    /// The outside address that an inside one is given first.
    pub(crate) fn paired(&self, inside: A) -> A {
        self.ports.paired(inside).next().unwrap_or(A::UNSPECIFIED)
    }

    /// Whether time changes anything: it holds records, or SYNs that nobody inside has asked for.
    pub(crate) fn is_busy(&self) -> bool {
        self.len > 0 || self.unsolicited.len() > 0
    }

    /// What happened so far.
    pub fn stats(&self) -> NatStats {
        self.stats
    }

    /// Bytes of memory it has taken.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.records) + self.index.memory() + self.ports.memory() + self.fragments.memory()
    }

    #[inline]
    pub(crate) fn tick(&self, now: Instant) -> u32 {
        u32::try_from(now.seconds()).unwrap_or(u32::MAX).saturating_add(self.base) & (u32::MAX >> 1)
    }

    #[inline]
    pub(crate) fn record(&self, slot: Slot) -> Option<&Record<A>> {
        self.records.get(slot.0 as usize)
    }

    #[inline]
    pub(crate) fn record_mut(&mut self, slot: Slot) -> Option<&mut Record<A>> {
        self.records.get_mut(slot.0 as usize)
    }

    /// The record of a key, whether or not its time is up.
    #[inline]
    pub(crate) fn find(&self, key: Key<A>) -> Option<(Slot, &Record<A>)> {
        let is = |slot| self.record(slot).is_some_and(|record| record.key == key);
        let slot = self.index.find(self.index.hash(key), is)?;
        Some((slot, self.record(slot)?))
    }

    /// The mapping of an outside endpoint, whether or not its time is up.
    #[inline]
    pub(crate) fn owner(&self, protocol: Protocol, outside: Endpoint<A>) -> Option<(Slot, &Record<A>)> {
        let slot = self.ports.owner(protocol, outside)?;
        Some((slot, self.record(slot)?))
    }

    #[inline]
    pub(crate) fn lifetime(&self, state: State) -> u32 {
        self.lifetimes.get(state as usize).copied().unwrap_or(u32::MAX)
    }

    #[inline]
    pub(crate) fn is_expired(&self, record: &Record<A>, now: u32) -> bool {
        now.saturating_sub(record.stamp) >= self.lifetime(record.state)
    }

    /// An outside endpoint for an inside one that has none.
    pub(crate) fn choose(&self, key: Key<A>, now: u32) -> Result<Endpoint<A>, Refusal> {
        let (protocol, nic, inside) = (key.protocol(), key.nic(), key.inside());
        // The other of a pair of ports, an even one and the odd one after it (RFC 4787 section 4.2.3).
        let sibling = Endpoint::new(inside.address, inside.port ^ 1);
        let sibling = (protocol != Protocol::Icmp && self.parity)
            .then(|| self.find(Key::mapping(protocol, nic, sibling)))
            .flatten()
            .map(|(_, record)| record.outside)
            .filter(|outside| (outside.port ^ inside.port) & 1 == 1);
        let random = self.index.choice(key, self.random);
        let all = match self.pooling {
            Pooling::Paired => 1,
            Pooling::Arbitrary => self.ports.addresses().len(),
        };
        let mut addresses = self.ports.paired(inside.address).take(all);
        let chosen = addresses.find_map(|address| {
            let beside = sibling.filter(|outside| outside.address == address).map(|outside| outside.port ^ 1);
            let same = (self.preserve_port && (inside.port != 0 || protocol == Protocol::Icmp)).then_some(inside.port);
            let first = [beside.filter(|port| *port != 0), same];
            let wish = Wish { protocol, inside: inside.port, first, parity: self.parity, random, now };
            self.ports.choose(address, wish).map(|port| Endpoint::new(address, port))
        });
        chosen.ok_or(Refusal::NoPort)
    }

    /// Puts in a record of an unknown key. A mapping gets its outside endpoint, a session or permit counts in what it hangs on.
    pub(crate) fn insert(&mut self, record: Record<A>, now: u32) -> Result<Slot, Refusal> {
        let nic = record.key.nic();
        self.make_room(nic, record.state, now)?;
        let slot = self.free;
        let hash = self.index.hash(record.key);
        if !self.index.insert(hash, slot) {
            self.crowd_out(record.key, now);
            // Taking a record out puts its place before the others.
            let slot = self.free;
            if !self.index.insert(hash, slot) {
                return Err(Refusal::Full);
            }
        }
        let slot = self.free;
        if record.key.kind() == MAPPING && !self.ports.take(record.key.protocol(), record.outside, slot) {
            self.index.remove(hash, slot);
            return Err(Refusal::NoPort);
        }
        let Some(place) = self.record_mut(slot) else { return Err(Refusal::Full) };
        let next = place.after;
        *place = record;
        self.free = next;
        self.len += 1;
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.holders.append(&mut self.records, slot);
        match record.key.kind() {
            MAPPING => {
                self.mappings += 1;
                self.stats.mapped += u64::from(record.state != State::Published);
            }
            kind => {
                self.stats.sessions += u64::from(kind == SESSION);
                self.hang(record.key.own(), 1);
                if record.tcp & tcp::PERMITTED != 0 {
                    self.hang(record.key.permit(record.key.remote().address), 1);
                }
            }
        }
        Ok(slot)
    }

    /// Changes state and time of a record, at once if the state is another, else once a second.
    #[inline]
    pub(crate) fn renew(&mut self, slot: Slot, state: State, now: u32, again: bool) {
        let Some(record) = self.record(slot) else { return };
        if record.state == state && record.stamp == now && !again {
            return;
        }
        self.holders.unlink(&mut self.records, slot);
        if let Some(record) = self.record_mut(slot) {
            record.state = state;
            record.stamp = now;
        }
        self.holders.append(&mut self.records, slot);
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> bool {
        // Without the time, a port rests as if it had been used until its mapping's end.
        let now = self.record(slot).map_or(0, |record| record.stamp);
        self.remove_at(slot, now)
    }

    /// Takes a record out, and what only it held; false when something hangs on it.
    pub(crate) fn remove_at(&mut self, slot: Slot, now: u32) -> bool {
        let Some(record) = self.record(slot).copied().filter(|record| !record.is_empty() && record.children == 0)
        else {
            return false;
        };
        self.holders.unlink(&mut self.records, slot);
        self.index.remove(self.index.hash(record.key), slot);
        let free = self.free;
        if let Some(place) = self.record_mut(slot) {
            *place = Record { after: free, ..Record::EMPTY };
        }
        self.free = slot;
        self.len -= 1;
        if record.key.kind() == MAPPING {
            self.mappings -= 1;
            self.published -= usize::from(record.state == State::Published).min(self.published);
            self.ports.give_back(record.key.protocol(), record.outside, now);
            return true;
        }
        if record.tcp & tcp::PERMITTED != 0 && record.key.kind() == SESSION {
            self.let_go(record.key.permit(record.key.remote().address), now);
        }
        self.let_go(record.key.own(), now);
        true
    }

    /// Something hangs on the record of a key, or one thing less.
    pub(crate) fn hang(&mut self, key: Key<A>, more: i32) {
        let Some(slot) = self.find(key).map(|(slot, _)| slot) else { return };
        if let Some(record) = self.record_mut(slot) {
            record.children = record.children.saturating_add_signed(more);
        }
    }

    /// One thing less hangs on the record of a key; the last takes it along if it has no time of its own.
    pub(crate) fn let_go(&mut self, key: Key<A>, now: u32) {
        self.hang(key, -1);
        if let Some((slot, record)) = self.find(key)
            && record.children == 0
            && record.state == State::Held
        {
            self.remove_at(slot, now);
        }
    }

    /// Whether there is, or can be made, room for a record of a NIC that a packet asks for.
    pub(crate) fn has_room(&self, nic: NicId) -> Result<(), Refusal> {
        self.has_room_for(nic, State::Udp)
    }

    /// The same in a state: what is published does not count against what a guest may have.
    pub(crate) fn has_room_for(&self, nic: NicId, state: State) -> Result<(), Refusal> {
        if !self.holders.knows(nic) {
            return Err(Refusal::UnknownNic);
        }
        let quota = state != State::Published && self.holders.count(nic) >= self.quota;
        if quota && self.holders.least(nic, State::Udp).is_none() {
            return Err(Refusal::Quota);
        }
        if self.free == Slot::NONE && self.holders.heaviest().is_none() {
            return Err(Refusal::Full);
        }
        Ok(())
    }

    /// Makes it: at the NIC's quota by what it can do without, at the table's bound by what the NIC that holds most can do without.
    fn make_room(&mut self, nic: NicId, state: State, now: u32) -> Result<(), Refusal> {
        self.has_room_for(nic, state)?;
        if state != State::Published && self.holders.count(nic) >= self.quota {
            let victim = self.holders.least(nic, State::Udp).ok_or(Refusal::Quota)?;
            if !self.remove_at(victim, now) {
                return Err(Refusal::Quota);
            }
            self.stats.over_quota += 1;
        }
        if self.free == Slot::NONE {
            let heaviest = self.holders.heaviest().ok_or(Refusal::Full)?;
            let victim = self.holders.least(heaviest, State::Held).ok_or(Refusal::Full)?;
            if !self.remove_at(victim, now) {
                return Err(Refusal::Full);
            }
            self.stats.evicted += 1;
        }
        Ok(())
    }

    /// Makes room in the buckets of a key: a record there whose time is up goes, else one of the NIC that holds most, the oldest of them.
    fn crowd_out(&mut self, key: Key<A>, now: u32) {
        let rivals = self.index.rivals(self.index.hash(key)).filter_map(|slot| Some((slot, self.record(slot)?)));
        let mortal = rivals.filter(|(_, record)| (record.state as usize) < State::MORTAL && record.children == 0);
        let weigh = |record: &Record<A>| {
            (self.is_expired(record, now), self.holders.count(record.key.nic()), now.saturating_sub(record.stamp))
        };
        let victim = mortal.max_by_key(|(_, record)| weigh(record)).map(|(slot, _)| slot);
        if let Some(slot) = victim {
            self.remove_at(slot, now);
            self.stats.crowded += 1;
        }
    }

    /// Lets packets from a remote address in, or goes on doing so; the mapping is moved behind its permit.
    pub(crate) fn permit(
        &mut self,
        mapping: Slot,
        key: Key<A>,
        remote: Endpoint<A>,
        state: State,
        now: u32,
    ) -> Result<(), Refusal> {
        let permit = key.permit(remote.address);
        debug_assert_eq!(permit.kind(), PERMIT);
        match self.find(permit).map(|(slot, record)| (slot, record.stamp == now && record.state == state)) {
            Some((_, true)) => return Ok(()),
            Some((slot, false)) => self.renew(slot, state, now, false),
            None => {
                // What hangs on it keeps the mapping from giving way meanwhile.
                self.hang(key, 1);
                let made = self.insert(Record { key: permit, state, stamp: now, ..Record::EMPTY }, now);
                self.hang(key, -1);
                made?;
            }
        }
        if key.protocol() != Protocol::Tcp {
            self.renew(mapping, state.max(self.record(mapping).map_or(state, |record| record.state)), now, true);
        }
        Ok(())
    }
}

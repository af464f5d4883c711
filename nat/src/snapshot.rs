//! A table as plain data: [`NatTable::entries`] for people, [`NatTable::snapshot`] and [`NatTable::restore`] over a restart.
//!
//! Invariant: what is restored has the outside endpoints and the ages that it had; what does not fit the table it is restored into is left out
//! and counted, never bent.

use std::net::Ipv4Addr;

use wire::{Instant, NicId};

use crate::{
    family::Family,
    record::{Endpoint, Key, MAPPING, Protocol, Record, SESSION, State},
    table::NatTable,
    tcp,
};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A mapping; its remote is zero.
    Mapping,
    /// An address that a mapping lets in; the remote's port is zero.
    Permit,
    /// A TCP connection.
    Session,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<A = Ipv4Addr> {
    /// What it is.
    pub kind: Kind,
    /// TCP, UDP or ICMP queries.
    pub protocol: Protocol,
    /// Whose it is.
    pub nic: NicId,
    /// The endpoint inside.
    pub inside: Endpoint<A>,
    /// What the outside sees.
    pub outside: Endpoint<A>,
    /// Who is spoken to.
    pub remote: Endpoint<A>,
    /// How far it is.
    pub state: State,
    /// Seconds until it is forgotten if no packet comes; nothing when it goes with others or stays.
    pub expires: Option<u32>,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes of these, IP headers included.
    pub bytes: u64,
    /// TCP: which side has opened, closed or reset it; as `tcp.rs` counts them.
    pub marks: u8,
}

/// Everything a table knows but published ports, which come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot<A = Ipv4Addr> {
    /// Mappings before permits before sessions, each oldest first.
    pub entries: Vec<Entry<A>>,
}

impl<A> Default for Snapshot<A> {
    fn default() -> Snapshot<A> {
        Snapshot { entries: Vec::new() }
    }
}

impl<A: Family> NatTable<A> {
    /// What is valid at `now`, in no order.
    pub fn entries(&self, now: Instant) -> impl Iterator<Item = Entry<A>> {
        let now = self.tick(now);
        let valid = self.records.iter().filter(move |record| !record.is_empty() && !self.is_expired(record, now));
        valid.map(move |record| self.entry(record, now))
    }

    /// Everything that is valid at `now` but published ports. Allocates.
    pub fn snapshot(&self, now: Instant) -> Snapshot<A> {
        let mut entries: Vec<Entry<A>> = self.entries(now).filter(|entry| entry.state != State::Published).collect();
        entries.sort_by_key(|entry| (entry.kind, entry.expires));
        Snapshot { entries }
    }

    /// Takes up what a table said of itself; returns how many entries found no place: their outside address is not ours, their port or
    /// endpoint is taken, their NIC is unknown or at its quota. Best done before the first packet and after publishing.
    pub fn restore(&mut self, snapshot: &Snapshot<A>, now: Instant) -> usize {
        let now = self.tick(now);
        let mut entries: Vec<&Entry<A>> = snapshot.entries.iter().collect();
        entries.sort_by_key(|entry| (entry.kind, entry.expires));
        let left_out = entries.into_iter().filter(|entry| !self.take_up(entry, now)).count();
        // TCP mappings and permits that nothing hangs on: their sessions found no place.
        for nic in (0..self.holders.nics()).map(|nic| NicId(nic as u16)) {
            self.clear(nic, State::Held, |record| record.key.kind() != MAPPING);
            self.clear(nic, State::Held, |_| true);
        }
        // A mapping stands behind its permits in every list.
        let slots = 0..self.records.len() as u32;
        for slot in slots.map(crate::record::Slot) {
            let Some(record) = self.record(slot).copied() else { break };
            if record.children > 0 && record.key.protocol() != Protocol::Tcp && record.key.kind() == MAPPING {
                self.renew(slot, record.state, record.stamp, true);
            }
        }
        left_out
    }

    fn entry(&self, record: &Record<A>, now: u32) -> Entry<A> {
        let Record { key, outside, state, packets, bytes, .. } = *record;
        let kind = match key.kind() {
            MAPPING => Kind::Mapping,
            SESSION => Kind::Session,
            _ => Kind::Permit,
        };
        let outside = match kind {
            Kind::Permit => self.find(key.own()).map_or(outside, |(_, mapping)| mapping.outside),
            _ => outside,
        };
        Entry {
            kind,
            protocol: key.protocol(),
            nic: key.nic(),
            inside: key.inside(),
            outside,
            remote: key.remote(),
            state,
            expires: ((state as usize) < State::MORTAL)
                .then(|| self.lifetime(state).saturating_sub(now.saturating_sub(record.stamp))),
            packets,
            bytes,
            marks: record.tcp,
        }
    }

    fn take_up(&mut self, entry: &Entry<A>, now: u32) -> bool {
        let Entry { protocol, nic, inside, outside, remote, state, packets, bytes, .. } = *entry;
        let own = Key::mapping(protocol, nic, inside);
        let key = match entry.kind {
            Kind::Mapping => own,
            Kind::Permit => own.permit(remote.address),
            Kind::Session => own.session(remote),
        };
        let tcp = if entry.kind == Kind::Session { entry.marks } else { 0 };
        let is_tcp = protocol == Protocol::Tcp;
        let fits = match entry.kind {
            Kind::Session => is_tcp && state == tcp::state(tcp),
            _ if is_tcp => state == State::Held,
            _ => {
                matches!((protocol, state), (Protocol::Icmp, State::Query) | (Protocol::Udp, State::Udp | State::Brief))
            }
        };
        let rooted = match entry.kind {
            Kind::Mapping => true,
            Kind::Permit => self.find(own).is_some(),
            Kind::Session => {
                let permitted = tcp & tcp::PERMITTED == 0 || self.find(own.permit(remote.address)).is_some();
                permitted && self.find(own).is_some_and(|(_, mapping)| mapping.outside == outside)
            }
        };
        if !fits || !rooted || self.find(key).is_some() || entry.expires == Some(0) {
            return false;
        }
        let age = entry.expires.map_or(0, |left| self.lifetime(state).saturating_sub(left));
        let outside = if entry.kind == Kind::Permit { Record::<A>::EMPTY.outside } else { outside };
        let stamp = now.saturating_sub(age);
        self.insert(Record { key, outside, tcp, state, stamp, packets, bytes, ..Record::EMPTY }, now).is_ok()
    }
}

//! Published ports: [`NatTable::publish`] and [`NatTable::unpublish`], at any time.
//!
//! Invariant: a published port is a mapping like any other that neither expires nor gives way, and lets everybody in. Its inside endpoint speaks
//! to the outside by it, too. What was mapped dynamically to either end before goes, with its connections. These are for the control side:
//! they may take time in proportion to what a NIC holds.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use wire::{Instant, NicId};

use crate::{
    family::Family,
    record::{Endpoint, Key, Protocol, Record, Slot, State},
    table::NatTable,
};

/// Ports of an outside address that lead to ports inside, one to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward<A = Ipv4Addr> {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// One of the outside addresses.
    pub outside: A,
    /// Ports of it.
    pub ports: RangeInclusive<u16>,
    /// Where the first port leads; the others to the ports after it.
    pub inside: Endpoint<A>,
    /// Whose that is.
    pub nic: NicId,
}

/// Why a port cannot be published. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError<A: Family = Ipv4Addr> {
    /// ICMP has no ports.
    #[error("icmp has no ports to publish; name tcp or udp")]
    Protocol,
    /// Not one of ours.
    #[error("{0} is not an outside address of this NAT; publish on one that is")]
    Address(A),
    /// None, zero, or past the last one.
    #[error("the ports to publish must be 1 to 65535 on both sides, and at least one")]
    Range,
    /// Somebody else's.
    #[error("port {0} is published already; withdraw that first")]
    Taken(Endpoint<A>),
    /// An endpoint inside has one outside.
    #[error("{inside} is published already, as {outside}; an endpoint has one place outside")]
    Twice {
        /// The endpoint inside.
        inside: Endpoint<A>,
        /// Where it is published.
        outside: Endpoint<A>,
    },
    /// Too many.
    #[error("no room for more published ports; {0} are the most of this NAT; raise its limit")]
    Full(usize),
    /// Unknown.
    #[error("NIC {} is not known to this NAT; attach it first", .0.0)]
    Nic(NicId),
}

impl<A: Family> Forward<A> {
    /// Pairs of outside and inside endpoints.
    fn pairs(&self) -> impl Iterator<Item = (Endpoint<A>, Endpoint<A>)> {
        let first = *self.ports.start();
        let inside = self.inside;
        self.ports.clone().map(move |port| {
            let to = inside.port.wrapping_add(port.wrapping_sub(first));
            (Endpoint::new(self.outside, port), Endpoint::new(inside.address, to))
        })
    }
}

impl<A: Family> NatTable<A> {
    /// Publishes ports.
    pub fn publish(&mut self, forward: &Forward<A>, now: Instant) -> Result<(), PublishError<A>> {
        let now = self.tick(now);
        self.check(forward)?;
        for (outside, inside) in forward.pairs() {
            let key = Key::mapping(forward.protocol, forward.nic, inside);
            let of_either = [self.find(key), self.owner(forward.protocol, outside)];
            for slot in of_either.map(|known| known.map(|(slot, _)| slot)).into_iter().flatten() {
                self.remove_whole(slot);
            }
            let record = Record { key, outside, state: State::Published, stamp: now, ..Record::EMPTY };
            if self.insert(record, now).is_err() {
                self.unpublish(forward);
                return Err(PublishError::Full(self.most_published));
            }
            self.published += 1;
        }
        Ok(())
    }

    /// Withdraws published ports and ends their connections; returns how many ports were published.
    pub fn unpublish(&mut self, forward: &Forward<A>) -> usize {
        let mut withdrawn = 0;
        for (outside, inside) in forward.pairs() {
            let key = Key::mapping(forward.protocol, forward.nic, inside);
            let known =
                self.find(key).filter(|(_, record)| record.state == State::Published && record.outside == outside);
            if let Some(slot) = known.map(|(slot, _)| slot) {
                withdrawn += usize::from(self.remove_whole(slot));
            }
        }
        withdrawn
    }

    fn check(&self, forward: &Forward<A>) -> Result<(), PublishError<A>> {
        if forward.protocol == Protocol::Icmp {
            return Err(PublishError::Protocol);
        }
        if !self.ports.has(forward.outside) {
            return Err(PublishError::Address(forward.outside));
        }
        if !self.holders.knows(forward.nic) {
            return Err(PublishError::Nic(forward.nic));
        }
        let count = forward.ports.len();
        let past = usize::from(forward.inside.port) + count > 65_536;
        if count == 0 || *forward.ports.start() == 0 || forward.inside.port == 0 || past {
            return Err(PublishError::Range);
        }
        let room = self.has_room_for(forward.nic, State::Published);
        if self.published + count > self.most_published || room.is_err() {
            return Err(PublishError::Full(self.most_published));
        }
        for (outside, inside) in forward.pairs() {
            if self.owner(forward.protocol, outside).is_some_and(|(_, record)| record.state == State::Published) {
                return Err(PublishError::Taken(outside));
            }
            let known = self.find(Key::mapping(forward.protocol, forward.nic, inside));
            if let Some((_, record)) = known.filter(|(_, record)| record.state == State::Published) {
                return Err(PublishError::Twice { inside, outside: record.outside });
            }
        }
        Ok(())
    }

    /// Removes a mapping with everything that hangs on it.
    fn remove_whole(&mut self, slot: Slot) -> bool {
        let Some(record) = self.record(slot).copied() else { return false };
        if record.children > 0 {
            // Sessions first, as permits hang on them; the last may take the mapping along.
            for state in State::ALL {
                self.clear(record.key.nic(), state, |other| other.key != record.key && other.key.own() == record.key);
            }
            for state in State::ALL {
                self.clear(record.key.nic(), state, |other| other.key != record.key && other.key.own() == record.key);
            }
        }
        if self.record(slot).is_some_and(|now| now.key == record.key) {
            return self.remove(slot);
        }
        true
    }
}

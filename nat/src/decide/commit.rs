//! Doing what was decided: [`NatTable::commit`].
//!
//! Invariant: the table is changed first; the head is rewritten only when that has succeeded.

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{Head, Instant};

use super::{Decision, Leg, Refusal, Translation};
use crate::{
    family::Family,
    fragments::Fate,
    record::{Key, Protocol, Record, Slot, State},
    table::NatTable,
    tcp,
    unsolicited::Waiting,
};

impl<A: Family> NatTable<A> {
    /// Does what [`NatTable::decide`] said of the same head: `Ok` when the packet goes on, rewritten; `Err` with the reason when it ends
    /// here. What is to be held is an error too, [`Refusal::NotMapped`]: ask again instead.
    #[inline]
    pub fn commit(&mut self, decision: Decision<A>, head: &mut Head) -> Result<(), Refusal> {
        match decision {
            Decision::Translate(translation) => self.carry_out(&translation, head),
            Decision::Hold => Err(Refusal::NotMapped),
            Decision::Wait(waiting) => {
                self.unsolicited.add(waiting);
                Err(Refusal::NotMapped)
            }
            Decision::Drop(refusal) => Err(refusal),
        }
    }

    /// A SYN of [`Decision::Wait`] that was not answered by one from inside within its time: to be answered by an ICMP error "port unreachable"
    /// (RFC 5382 REQ-4). Ask until there is none.
    pub fn unreachable(&mut self, now: Instant) -> Option<Waiting<A>> {
        let now = self.tick(now);
        self.unsolicited.due(now)
    }

    #[inline]
    pub(crate) fn carry_out(&mut self, translation: &Translation<A>, head: &mut Head) -> Result<(), Refusal> {
        let Translation { out, into, now, len, .. } = *translation;
        self.leg(out, len, now)?;
        self.leg(into, len, now)?;
        if let Some(refusal) = translation.refused {
            return Err(refusal);
        }
        if let Some(which) = translation.remember {
            let (source, destination) = (translation.ends.source.address, translation.ends.destination.address);
            let id = translation.rewrite.id.map_or(which.id, |(_, id)| id);
            self.fragments.remember(
                which,
                Fate { to: translation.to, holder: translation.nic, source, destination, id },
                now,
            );
        }
        if translation.rewrite.id.is_some_and(|(_, id)| id == self.id) {
            // A super-frame takes as many as it may have segments.
            let segments = match head.offload.segment_size() {
                0 => 1,
                size => len / size + 1,
            };
            self.id = self.id.wrapping_add(u32::from(segments));
        }
        translation.rewrite.apply(head);
        Ok(())
    }

    #[inline]
    fn leg(&mut self, leg: Leg<A>, len: u16, now: u32) -> Result<(), Refusal> {
        match leg {
            Leg::None => Ok(()),
            Leg::Use { slot, key, tcp, state, renew, anew, permit } => {
                let record = self.record_mut(slot).filter(|record| record.key == key).ok_or(Refusal::Stale)?;
                if anew {
                    (record.packets, record.bytes) = (0, 0);
                }
                record.packets += 1;
                record.bytes += u64::from(len);
                record.tcp = tcp;
                if renew && record.state != State::Published {
                    self.renew(slot, state, now, false);
                }
                if anew && tcp & tcp::OPEN_OUT != 0 {
                    self.answer(slot, key);
                }
                match permit {
                    Some(remote) => self.permit(slot, key, remote, state, now),
                    None => Ok(()),
                }
            }
            Leg::Open { key, remote, outside, tcp, state, .. } => {
                let of_its_own = if key.protocol() == Protocol::Tcp { State::Held } else { state };
                let known = self.find(key).map(|(slot, _)| slot);
                let mapping = match known {
                    Some(slot) => slot,
                    None => {
                        self.insert(Record { key, outside, state: of_its_own, stamp: now, ..Record::EMPTY }, now)?
                    }
                };
                if let Some(record) = self.record_mut(mapping) {
                    record.packets += 1;
                    record.bytes += u64::from(len);
                }
                // While something is being hung on it, a mapping does not give way.
                self.hang(key, 1);
                let opened = self.open(mapping, leg, len, now);
                self.hang(key, -1);
                if opened.is_err() && known.is_none() {
                    self.remove_at(mapping, now);
                }
                if opened.is_ok() && tcp & tcp::OPEN_OUT != 0 {
                    self.unsolicited.answer(outside, remote);
                }
                opened
            }
        }
    }

    /// The session or the permit of a mapping.
    fn open(&mut self, mapping: Slot, leg: Leg<A>, len: u16, now: u32) -> Result<(), Refusal> {
        let Leg::Open { key, remote, outside, tcp, state, permit } = leg else { return Ok(()) };
        if key.protocol() != Protocol::Tcp {
            return if permit { self.permit(mapping, key, remote, state, now) } else { Ok(()) };
        }
        // Who connects to its own outside endpoint is both ends of one session; the other leg has just opened it.
        if let Some((slot, record)) = self.find(key.session(remote)) {
            let tcp = record.tcp | tcp;
            if let Some(record) = self.record_mut(slot) {
                record.tcp = tcp;
            }
            self.renew(slot, tcp::state(tcp), now, false);
            return Ok(());
        }
        let of = key.permit(remote.address);
        if permit {
            self.permit(mapping, key, remote, State::Held, now)?;
            self.hang(of, 1);
        }
        let session = Record {
            key: key.session(remote),
            outside,
            tcp,
            state,
            stamp: now,
            packets: 1,
            bytes: len.into(),
            ..Record::EMPTY
        };
        let made = self.insert(session, now);
        if permit {
            self.let_go(of, now);
        }
        made.map(|_| ())
    }

    fn answer(&mut self, slot: Slot, key: Key<A>) {
        if let Some(outside) = self.record(slot).map(|record| record.outside) {
            self.unsolicited.answer(outside, key.remote());
        }
    }
}

/// Nothing but what a decision needs; kept here so that the compiler says when it grows.
const _: () = assert!(size_of::<Decision<Ipv4Addr>>() <= 320);
const _: () = assert!(size_of::<Decision<Ipv6Addr>>() <= 640);

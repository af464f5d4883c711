//! [`Known`]: the short way of a packet whose flow the table knows.
//!
//! Invariant: what is found here is what [`NatTable::decide`] would say, and [`NatTable::pass`] does what `commit` would do: a test holds
//! them together. Here are whole packets of TCP and UDP without IP options, from a live record, to the other side. Everything else
//! (new flows, fragments, errors, hairpins, permits to be renewed, a SYN) is nothing to be found here and goes the long way.
//!
//! Theory of operation: such a packet is most packets. It has one end that changes, every offset in it is a constant, and what a decision
//! has to carry for the rest is not needed. Read first: [`crate::decide`], [`crate::rewrite`].

use std::net::Ipv4Addr;

use wire::{Head, Instant};

use crate::{
    config::Filtering,
    record::{Endpoint, Key, Protocol, Record, Side, Slot, State},
    table::NatTable,
    tcp,
};

const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const L4: usize = 34;

/// The fields of a packet that its flow is known by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    /// TCP's.
    flags: u8,
    may_fragment: bool,
    /// Bytes of the packet.
    pub(crate) len: u16,
}

impl Flow {
    /// Of an untagged frame with a whole packet of TCP or UDP without IP options; nothing of others.
    #[inline]
    pub(crate) fn of(head: &Head) -> Option<Flow> {
        let bytes = head.bytes();
        let fixed: &[u8; 42] = bytes.first_chunk()?;
        let [
            ..,
            a,
            b,
            first,
            _,
            l,
            m,
            _,
            _,
            f,
            o,
            _,
            number,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
            p,
            q,
            r,
            s,
            _,
            _,
            _,
            _,
        ] = *fixed;
        let (protocol, least, flags) = match number {
            6 => (Protocol::Tcp, 40, *bytes.first_chunk::<54>()?.get(L4 + 13)?),
            17 => (Protocol::Udp, 28, 0),
            _ => return None,
        };
        let len = u16::from_be_bytes([l, m]);
        let is_plain = [a, b, first] == [0x08, 0x00, 0x45] && f & 0x3f | o == 0;
        let is_there = len >= least && usize::from(len) + wire::layers::ETHERNET_LEN <= head.len();
        (is_plain && is_there).then_some(Flow {
            protocol,
            source: Endpoint::new(Ipv4Addr::new(s0, s1, s2, s3), u16::from_be_bytes([p, q])),
            destination: Endpoint::new(Ipv4Addr::new(d0, d1, d2, d3), u16::from_be_bytes([r, s])),
            flags,
            may_fragment: f & 0x40 == 0,
            len,
        })
    }

    /// Whether what is known of one packet holds for the other.
    #[inline]
    pub(crate) fn is_like(&self, other: &Flow) -> bool {
        self.protocol == other.protocol
            && self.source == other.source
            && self.destination == other.destination
            && self.flags == other.flags
    }

    /// Whether what the frame owes is the checksum of its own transport header.
    #[inline]
    pub(crate) fn owes_its_own(&self, head: &Head) -> bool {
        let offset = if self.protocol == Protocol::Tcp { 16 } else { 6 };
        !head.offload.needs_checksum()
            || (usize::from(head.offload.checksum_start()) == L4 && head.offload.checksum_offset() == offset)
    }

    /// The record that a packet from inside is known by.
    #[inline]
    pub(crate) fn key(&self, nic: wire::NicId) -> Key {
        let mapping = Key::mapping(self.protocol, nic, self.source);
        if self.protocol == Protocol::Tcp { mapping.session(self.destination) } else { mapping }
    }
}

/// A packet's record, and what it does to it. See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The side it goes to.
    pub(crate) to: Side,
    /// Whose the record is.
    pub(crate) nic: wire::NicId,
    /// What the end of ours becomes: outside of a packet that leaves, inside of one that comes.
    pub(crate) end: Endpoint,
    protocol: Protocol,
    pub(crate) slot: Slot,
    tcp: u8,
    state: State,
    renew: bool,
    new_id: bool,
    len: u16,
    now: u32,
}

impl Known {
    /// Whether the packet leaves what the next of its flow will be to the table as it is: it makes no step in a TCP connection.
    #[inline]
    pub(crate) fn lasts(&self, table: &NatTable) -> bool {
        self.protocol == Protocol::Udp || table.record(self.slot).is_some_and(|record| record.tcp == self.tcp)
    }

    /// The same of another packet of the flow.
    #[inline]
    pub(crate) fn of_another(&self, flow: &Flow) -> Known {
        Known { len: flow.len, new_id: self.to == Side::Outside && flow.may_fragment, ..*self }
    }
}

impl NatTable<Ipv4Addr> {
    /// The known flow of a packet, whose fields are `flow`.
    #[inline]
    pub(crate) fn known(&self, side: Side, head: &Head, flow: &Flow, now: Instant) -> Option<Known> {
        // A SYN opens something, or has an MSS to be looked at.
        if flow.flags & tcp::SYN != 0 || !flow.owes_its_own(head) || self.ports.has(flow.source.address) {
            return None;
        }
        let now = self.tick(now);
        match side {
            Side::Inside => self.known_out(head, flow, now),
            Side::Outside => self.known_in(flow, now),
        }
    }

    #[inline]
    fn known_out(&self, head: &Head, flow: &Flow, now: u32) -> Option<Known> {
        if self.ports.has(flow.destination.address) {
            return None;
        }
        let key = flow.key(head.origin.nic);
        let (slot, record) = self.find(key).filter(|(_, record)| !self.is_expired(record, now))?;
        let (marks, state, renew) = if flow.protocol == Protocol::Tcp {
            follow(record, Side::Inside, flow.flags)
        } else {
            if self.filtering == Filtering::AddressDependent && record.state != State::Published {
                return None;
            }
            let state = if flow.destination.port < 1024 { State::Brief } else { State::Udp };
            (0, record.state.max(state), true)
        };
        Some(Known {
            to: Side::Outside,
            nic: head.origin.nic,
            end: record.outside,
            protocol: flow.protocol,
            slot,
            tcp: marks,
            state,
            renew,
            new_id: flow.may_fragment,
            len: flow.len,
            now,
        })
    }

    #[inline]
    fn known_in(&self, flow: &Flow, now: u32) -> Option<Known> {
        let (mut slot, mapping) = self.owner(flow.protocol, flow.destination)?;
        if self.is_expired(mapping, now) {
            return None;
        }
        let (marks, state, renew) = if flow.protocol == Protocol::Tcp {
            let (at, session) = self.find(mapping.key.session(flow.source))?;
            if self.is_expired(session, now) {
                return None;
            }
            slot = at;
            follow(session, Side::Outside, flow.flags)
        } else {
            if self.filtering == Filtering::AddressDependent && mapping.state != State::Published {
                return None;
            }
            (0, mapping.state, self.inbound_refresh)
        };
        Some(Known {
            to: Side::Inside,
            nic: mapping.key.nic(),
            end: mapping.key.inside(),
            protocol: flow.protocol,
            slot,
            tcp: marks,
            state,
            renew,
            new_id: false,
            len: flow.len,
            now,
        })
    }

    /// Renews what a packet is known by and rewrites its head; one from outside has gone one hop more. The head and the table must be those
    /// that it was found with.
    #[inline]
    pub(crate) fn pass(&mut self, known: &Known, head: &mut Head) {
        let Known { slot, state, len, now, .. } = *known;
        let Some(record) = self.record_mut(slot) else { return };
        record.packets += 1;
        record.bytes += u64::from(len);
        record.tcp = known.tcp;
        let renew = known.renew && record.state != State::Published && (record.state != state || record.stamp != now);
        if renew {
            self.renew(slot, state, now, false);
        }
        let mut id = None;
        if known.new_id {
            id = Some(self.id as u16);
            let segments = match head.offload.segment_size() {
                0 => 1,
                size => len / size + 1,
            };
            self.id = self.id.wrapping_add(u32::from(segments));
        }
        rewrite(known, id, head);
    }
}

/// What a segment of a known connection does to its marks and state, and whether it puts off their end.
#[inline]
fn follow(record: &Record, from: Side, flags: u8) -> (u8, State, bool) {
    let marks = tcp::after(record.tcp, from, flags);
    let state = tcp::state(marks);
    let ended = state == State::Closing && record.state == State::Closing;
    (marks, state, !ended && !tcp::refuses(record.tcp, from, flags))
}

/// Writes two bytes; what that adds to a checksum that covers them, in the CPU's byte order (RFC 1071 section 2(B)).
#[inline]
fn put_word(bytes: &mut [u8], at: usize, new: [u8; 2]) -> u64 {
    let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return 0 };
    let old = std::mem::replace(place, new);
    u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new))
}

/// The same of four bytes.
#[inline]
fn put_address(bytes: &mut [u8], at: usize, new: Ipv4Addr) -> u64 {
    let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) else { return 0 };
    let old = std::mem::replace(place, new.octets());
    u64::from(!u32::from_ne_bytes(old)) + u64::from(u32::from_ne_bytes(new.octets()))
}

#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[inline]
fn rewrite(known: &Known, id: Option<u16>, head: &mut Head) {
    let is_owed = head.offload.needs_checksum();
    let bytes = head.bytes_mut();
    let leaves = known.to == Side::Outside;
    let (address_at, port_at) = if leaves { (SOURCE, L4) } else { (DESTINATION, L4 + 2) };
    let address = put_address(bytes, address_at, known.end.address);
    let port = put_word(bytes, port_at, known.end.port.to_be_bytes());
    let mut header = address;
    if let Some(id) = id {
        header += put_word(bytes, 18, id.to_be_bytes());
    }
    if !leaves && let Some([ttl, number]) = bytes.get(22..).and_then(|rest| rest.first_chunk().copied()) {
        header += put_word(bytes, 22, [ttl.saturating_sub(1), number]);
    }
    sum(bytes, 24, |field| !fold(u64::from(!field) + header));
    let of_udp = known.protocol == Protocol::Udp;
    sum(bytes, if of_udp { L4 + 6 } else { L4 + 16 }, |field| {
        if is_owed {
            return fold(u64::from(field) + address);
        }
        if of_udp && field == 0 {
            return 0;
        }
        let new = !fold(u64::from(!field) + address + port);
        if of_udp && new == 0 { u16::MAX } else { new }
    });
}

/// Changes a checksum, in the CPU's byte order.
#[inline]
fn sum(bytes: &mut [u8], at: usize, change: impl Fn(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *field = change(u16::from_ne_bytes(*field)).to_ne_bytes();
    }
}

#[cfg(test)]
mod tests;

//! What is to be done with a packet: [`NatTable::decide`], and doing it: [`NatTable::commit`].
//!
//! Invariant: `decide` changes nothing, and `commit` does what it said or fails with a reason and leaves the head as it was. A decision is
//! good for the head it was made of, until the table changes.
//!
//! Theory of operation: a packet crosses the NAT in up to two legs. The *leg out* makes its source an outside endpoint; the *leg in* makes its
//! destination an inside one. From inside to the world there is the first, from the world inside the second. A packet from inside to one of
//! our outside addresses takes both (hairpinning): the second leg sees it as the world would have.
//! Read first: RFC 4787 sections 4 to 6, [`crate::table`], then `commit.rs` and `errors.rs` beside this file.

use std::net::Ipv4Addr;

use wire::{Head, Instant, NicId};

use crate::{
    config::Filtering,
    family::Family,
    fragments::{Fate, Which},
    packet::{Content, Packet, Part},
    record::{Endpoint, Key, Protocol, Record, Side, Slot, State},
    rewrite::{Ends, Rewrite, Shape},
    table::NatTable,
    tcp,
    unsolicited::Waiting,
};

mod commit;
mod errors;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet is not translated.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every reason.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$name,)*];

            /// The reason's name in counters, JSON and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Refusal::$name => $text,)* }
            }
        }
    };
}

refusals! {
    /// Headers are cut off, or contradict each other.
    Malformed = "malformed",
    /// Not the version of IP that is translated.
    OtherVersion = "other_version",
    /// Neither TCP nor UDP nor ICMP.
    UnknownProtocol = "unknown_protocol",
    /// An ICMP type that is neither a query nor an error to be translated.
    UnknownIcmp = "unknown_icmp",
    /// The checksum of an ICMP error is wrong.
    BadChecksum = "bad_checksum",
    /// What an ICMP error quotes is no packet that can be told.
    BadQuote = "bad_quote",
    /// The frame owes a checksum that is not that of its transport header.
    BadOffload = "bad_offload",
    /// From inside to nowhere that is outside, or from outside to none of our addresses.
    NotOurs = "not_ours",
    /// Nothing is mapped to this outside endpoint. Who owns the address may answer itself.
    NotMapped = "not_mapped",
    /// The mapping's filter does not let this remote in.
    Filtered = "filtered",
    /// A TCP segment of no connection that is known, and it does not open one.
    NoSession = "no_session",
    /// All ports of the outside address are taken.
    NoPort = "no_port",
    /// The NIC holds as much as it may, nothing of which can give way.
    Quota = "quota",
    /// The table is full and nothing can give way.
    Full = "full",
    /// The NIC was not added.
    UnknownNic = "unknown_nic",
    /// The table has changed since the decision.
    Stale = "stale",
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<A: Family = Ipv4Addr> {
    /// Its head is rewritten and it goes on.
    Translate(Translation<A>),
    /// A later fragment whose first has not been seen: may be kept a moment and asked about again, or dropped.
    Hold,
    /// A SYN that nobody inside asked for. It ends here in silence; [`NatTable::unreachable`] says when it is to be answered after all.
    Wait(Waiting<A>),
    /// It ends here.
    Drop(Refusal),
}

/// How a packet is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A: Family = Ipv4Addr> {
    /// The side it leaves on.
    pub to: Side,
    /// Whose mapping it comes in by, or else goes out by.
    pub nic: NicId,
    /// The packet's new endpoints. For what has no ports, these are zero.
    pub ends: Ends<A>,
    /// A hairpinned packet that is not let in at the other end; its sender's mapping is made and renewed all the same.
    pub refused: Option<Refusal>,
    rewrite: Rewrite<A>,
    out: Leg<A>,
    into: Leg<A>,
    remember: Option<Which<A>>,
    len: u16,
    now: u32,
}

impl<A: Family> Translation<A> {
    /// Whether later fragments of its packet can go after it.
    #[inline]
    pub(crate) fn is_first_fragment(&self) -> bool {
        self.remember.is_some()
    }

    /// Where the TCP header begins, if it has one.
    #[inline]
    pub(crate) fn tcp(&self) -> Option<usize> {
        match self.rewrite.shape {
            Shape::Transport { l4, protocol: Protocol::Tcp } => Some(l4.into()),
            _ => None,
        }
    }
}

/// What crossing means to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg<A: Family> {
    /// Nothing.
    None,
    /// A record is used.
    Use {
        slot: Slot,
        key: Key<A>,
        tcp: u8,
        state: State,
        renew: bool,
        /// It starts anew in place of one whose time was up.
        anew: bool,
        permit: Option<Endpoint<A>>,
    },
    /// A mapping or a session, or both, are made.
    Open { key: Key<A>, remote: Endpoint<A>, outside: Endpoint<A>, tcp: u8, state: State, permit: bool },
}

impl<A: Family> NatTable<A> {
    /// What is to be done with the packet in `head`, which came in on `side`; its origin says whose it is.
    #[inline]
    pub fn decide(&self, side: Side, head: &Head, now: Instant) -> Decision<A> {
        match self.consider(side, head, self.tick(now)) {
            Ok(decision) => decision,
            Err(refusal) => Decision::Drop(refusal),
        }
    }

    /// Which packet a fragment belongs to.
    pub(crate) fn packet_of(&self, side: Side, head: &Head) -> Option<Which<A>> {
        A::packet(head).ok().map(|packet| which(side, head.origin.nic, &packet))
    }

    fn consider(&self, side: Side, head: &Head, now: u32) -> Result<Decision<A>, Refusal> {
        let packet = A::packet(head)?;
        let nic = head.origin.nic;
        if self.ports.has(packet.source) || (side == Side::Outside && !self.ports.has(packet.destination)) {
            return Err(Refusal::NotOurs);
        }
        if packet.part == Part::Later {
            return Ok(self.later(side, nic, &packet, now));
        }
        let translation = match packet.content {
            Content::Error(quote) => self.consider_error(side, nic, &packet, quote, now)?,
            _ => match self.cross(side, nic, &packet, now)? {
                Ok(translation) => translation,
                Err(()) => return Ok(Decision::Wait(waiting(head, &packet, now))),
            },
        };
        if !translation.rewrite.suits(head) {
            return Err(Refusal::BadOffload);
        }
        Ok(Decision::Translate(translation))
    }

    /// Anything but an ICMP error, whole or the first fragment. The inner error: a SYN that has to wait.
    fn cross(
        &self,
        side: Side,
        nic: NicId,
        packet: &Packet<A>,
        now: u32,
    ) -> Result<Result<Translation<A>, ()>, Refusal> {
        let (source, destination) = packet.ends();
        let mut ends = Ends { source, destination };
        let (mut out, mut into, mut to, mut holder) = (Leg::None, Leg::None, Side::Outside, nic);
        let mut refused = None;
        if side == Side::Inside {
            (out, ends.source) = self.leave(nic, packet, source, destination, now)?;
        }
        if side == Side::Outside || self.ports.has(destination.address) {
            to = Side::Inside;
            match self.enter(packet, ends.source, ends.destination, now) {
                Ok((leg, inside, whose)) => (into, ends.destination, holder) = (leg, inside, whose),
                Err(refusal) if out == Leg::None => {
                    let asks = matches!(packet.content, Content::Ports { flags, .. } if packet.protocol == Protocol::Tcp && tcp::opens(flags));
                    let waits =
                        matches!(refusal, Refusal::NotMapped | Refusal::Filtered) && asks && packet.part == Part::Whole;
                    return if waits { Ok(Err(())) } else { Err(refusal) };
                }
                Err(refusal) => refused = Some(refusal),
            }
        }
        if packet.protocol == Protocol::Icmp {
            // One field stands for both.
            let id = if into == Leg::None { ends.source.port } else { ends.destination.port };
            (ends.source.port, ends.destination.port) = (id, id);
        }
        let id = self.new_id(side, packet);
        let shape = Shape::Transport { l4: packet.l4 as u16, protocol: packet.protocol };
        let rewrite = Rewrite { l3: packet.l3 as u16, ends, shape, id };
        let remember = (packet.part == Part::First).then(|| which(side, nic, packet));
        Ok(Ok(Translation { to, nic: holder, ends, refused, rewrite, out, into, remember, len: packet.len, now }))
    }

    /// The leg out.
    #[inline]
    fn leave(
        &self,
        nic: NicId,
        packet: &Packet<A>,
        inside: Endpoint<A>,
        remote: Endpoint<A>,
        now: u32,
    ) -> Result<(Leg<A>, Endpoint<A>), Refusal> {
        let mapping = Key::mapping(packet.protocol, nic, inside);
        let strict = self.filtering == Filtering::AddressDependent;
        let (state, flags) = match packet.content {
            Content::Ports { flags, .. } if packet.protocol == Protocol::Tcp => {
                let session = mapping.session(remote);
                let known = self.find(session);
                if let Some((slot, record)) = known.filter(|(_, record)| !self.is_expired(record, now)) {
                    let (leg, outside) = (self.follow(slot, record, Side::Inside, flags), record.outside);
                    return Ok((leg, outside));
                }
                if !tcp::opens(flags) {
                    return Err(Refusal::NoSession);
                }
                if let Some((slot, record)) = known {
                    let tcp = record.tcp & tcp::PERMITTED | tcp::OPEN_OUT;
                    let leg = Leg::Use {
                        slot,
                        key: session,
                        tcp,
                        state: State::Opening,
                        renew: true,
                        anew: true,
                        permit: None,
                    };
                    return Ok((leg, record.outside));
                }
                (State::Opening, tcp::OPEN_OUT | if strict { tcp::PERMITTED } else { 0 })
            }
            // An answer that nobody can have asked for, as no query reaches a guest.
            Content::Query { reply: true, .. } => return Err(Refusal::NoSession),
            Content::Query { .. } => (State::Query, 0),
            _ if remote.port < 1024 => (State::Brief, 0),
            _ => (State::Udp, 0),
        };
        if let Some((slot, record)) = self.find(mapping) {
            let outside = record.outside;
            if packet.protocol == Protocol::Tcp {
                self.has_room(nic)?;
                return Ok((Leg::Open { key: mapping, remote, outside, tcp: flags, state, permit: strict }, outside));
            }
            let anew = self.is_expired(record, now);
            // What has spoken to others than well-known ports lasts, and so does what anything hangs on.
            let state = if anew && record.children == 0 || record.state < state { state } else { record.state };
            let permit = (strict && record.state != State::Published).then_some(remote);
            return Ok((Leg::Use { slot, key: mapping, tcp: 0, state, renew: true, anew, permit }, outside));
        }
        self.has_room(nic)?;
        let outside = self.choose(mapping, now)?;
        Ok((Leg::Open { key: mapping, remote, outside, tcp: flags, state, permit: strict }, outside))
    }

    /// The leg in: what becomes of the outside endpoint, and whose it is.
    #[inline]
    fn enter(
        &self,
        packet: &Packet<A>,
        remote: Endpoint<A>,
        outside: Endpoint<A>,
        now: u32,
    ) -> Result<(Leg<A>, Endpoint<A>, NicId), Refusal> {
        if matches!(packet.content, Content::Query { reply: false, .. }) {
            return Err(Refusal::NotMapped);
        }
        let (slot, mapping) = self.owner(packet.protocol, outside).ok_or(Refusal::NotMapped)?;
        if self.is_expired(mapping, now) {
            return Err(Refusal::NotMapped);
        }
        let (key, inside, nic) = (mapping.key, mapping.key.inside(), mapping.key.nic());
        if let Content::Ports { flags, .. } = packet.content
            && packet.protocol == Protocol::Tcp
        {
            let known = self.find(key.session(remote));
            if let Some((slot, record)) = known.filter(|(_, record)| !self.is_expired(record, now)) {
                return Ok((self.follow(slot, record, Side::Outside, flags), inside, nic));
            }
            if !tcp::opens(flags) {
                return Err(Refusal::NoSession);
            }
            self.admits(mapping, remote, now)?;
            let state = State::Opening;
            if let Some((slot, record)) = known {
                let tcp = record.tcp & tcp::PERMITTED | tcp::OPEN_IN;
                let key = record.key;
                return Ok((Leg::Use { slot, key, tcp, state, renew: true, anew: true, permit: None }, inside, nic));
            }
            self.has_room(nic)?;
            return Ok((Leg::Open { key, remote, outside, tcp: tcp::OPEN_IN, state, permit: false }, inside, nic));
        }
        self.admits(mapping, remote, now)?;
        let renew = self.inbound_refresh && packet.protocol == Protocol::Udp;
        Ok((Leg::Use { slot, key, tcp: 0, state: mapping.state, renew, anew: false, permit: None }, inside, nic))
    }

    /// Whether a mapping lets a remote in.
    #[inline]
    fn admits(&self, mapping: &Record<A>, remote: Endpoint<A>, now: u32) -> Result<(), Refusal> {
        if self.filtering == Filtering::EndpointIndependent || mapping.state == State::Published {
            return Ok(());
        }
        let permit = self.find(mapping.key.permit(remote.address));
        permit.filter(|(_, record)| !self.is_expired(record, now)).map(|_| ()).ok_or(Refusal::Filtered)
    }

    /// A segment of a known connection.
    #[inline]
    fn follow(&self, slot: Slot, record: &Record<A>, from: Side, flags: u8) -> Leg<A> {
        let tcp = tcp::after(record.tcp, from, flags);
        let state = tcp::state(tcp);
        // The end of a connection is not put off by what still comes.
        let ended = state == State::Closing && record.state == State::Closing;
        let renew = !ended && !tcp::refuses(record.tcp, from, flags);
        Leg::Use { slot, key: record.key, tcp, state, renew, anew: false, permit: None }
    }

    /// A later fragment goes where the first one went.
    fn later(&self, side: Side, nic: NicId, packet: &Packet<A>, now: u32) -> Decision<A> {
        let Some(fate) = self.fragments.find(which(side, nic, packet), now) else { return Decision::Hold };
        let Fate { to, holder, source, destination, id } = fate;
        let ends = Ends { source: Endpoint::new(source, 0), destination: Endpoint::new(destination, 0) };
        let rewrite = Rewrite { l3: packet.l3 as u16, ends, shape: Shape::Bare, id: Some((packet.id_at, id)) };
        let (out, into, remember, len) = (Leg::None, Leg::None, None, packet.len);
        Decision::Translate(Translation {
            to,
            nic: holder,
            ends,
            refused: None,
            rewrite,
            out,
            into,
            remember,
            len,
            now,
        })
    }

    /// Packets of several guests leave with one source address, so those that can be cut, or have been, get an identification of the NAT's own
    /// (RFC 6864 section 5.3.1, RFC 7857). IPv6 packets are not cut on their way.
    #[inline]
    fn new_id(&self, side: Side, packet: &Packet<A>) -> Option<(u16, u32)> {
        (side == Side::Inside && (packet.may_fragment || packet.part != Part::Whole)).then_some((packet.id_at, self.id))
    }
}

#[inline]
fn which<A: Family>(from: Side, nic: NicId, packet: &Packet<A>) -> Which<A> {
    let nic = if from == Side::Inside { nic } else { NicId(0) };
    Which { from, nic, source: packet.source, destination: packet.destination, number: packet.number, id: packet.id }
}

fn waiting<A: Family>(head: &Head, packet: &Packet<A>, since: u32) -> Waiting<A> {
    let (remote, outside) = packet.ends();
    let mut quote = [0; 48];
    let bytes = head.bytes();
    // Without its options, which nobody needs to know it by.
    let (ip, tcp) = quote.split_at_mut(A::HEADER);
    if let (Some(from_ip), Some(from_tcp), Some(tcp)) =
        (bytes.get(packet.l3..packet.l3 + A::HEADER), bytes.get(packet.l4..packet.l4 + 8), tcp.get_mut(..8))
    {
        ip.copy_from_slice(from_ip);
        tcp.copy_from_slice(from_tcp);
        A::strip(ip);
    }
    Waiting { remote, outside, quote, since }
}

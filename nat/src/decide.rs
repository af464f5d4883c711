//! What is to be done with a packet: [`NatTable::decide`], and doing it: [`NatTable::commit`].
//!
//! Invariant: `decide` changes nothing, and `commit` does what it said or fails with a reason and leaves the head as it was. A decision is
//! good for the head it was made of, until the table changes.
//!
//! Theory of operation: a packet crosses the NAT in up to two legs. The *leg out* makes its source an outside endpoint; the *leg in* makes its
//! destination an inside one. From inside to the world there is the first, from the world inside the second. A packet from inside to one of
//! our outside addresses takes both (hairpinning): the second leg sees it as the world would have.
//! Read first: RFC 4787 sections 4 to 6, [`crate::table`], then `commit.rs` and `errors.rs` beside this file.

use wire::{Head, Instant, NicId};

use crate::{
    config::Filtering,
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
    /// Not IPv4.
    NotIpv4 = "not_ipv4",
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
pub enum Decision {
    /// Its head is rewritten and it goes on.
    Translate(Translation),
    /// A later fragment whose first has not been seen: may be kept a moment and asked about again, or dropped.
    Hold,
    /// A SYN that nobody inside asked for. It ends here in silence; [`NatTable::unreachable`] says when it is to be answered after all.
    Wait(Waiting),
    /// It ends here.
    Drop(Refusal),
}

/// How a packet is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The side it leaves on.
    pub to: Side,
    /// Whose mapping it comes in by, or else goes out by.
    pub nic: NicId,
    /// The packet's new endpoints. For what has no ports, these are zero.
    pub ends: Ends,
    /// A hairpinned packet that is not let in at the other end; its sender's mapping is made and renewed all the same.
    pub refused: Option<Refusal>,
    rewrite: Rewrite,
    out: Leg,
    into: Leg,
    remember: Option<Which>,
    len: u16,
    now: u32,
}

impl Translation {
    /// Whether later fragments of its packet can go after it.
    #[inline]
    pub(crate) fn is_first_fragment(&self) -> bool {
        self.remember.is_some()
    }

    /// Where the transport header begins, if it has one.
    #[inline]
    pub(crate) fn l4(&self) -> Option<usize> {
        match self.rewrite.shape {
            Shape::Transport { l4, .. } => Some(l4.into()),
            Shape::Error { .. } | Shape::Bare => None,
        }
    }
}

/// What crossing means to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    /// Nothing.
    None,
    /// A record is used.
    Use {
        slot: Slot,
        key: Key,
        tcp: u8,
        state: State,
        renew: bool,
        /// It starts anew in place of one whose time was up.
        anew: bool,
        permit: Option<Endpoint>,
    },
    /// A mapping or a session, or both, are made.
    Open { key: Key, remote: Endpoint, outside: Endpoint, tcp: u8, state: State, permit: bool },
}

impl NatTable {
    /// What is to be done with the packet in `head`, which came in on `side`; its origin says whose it is.
    #[inline]
    pub fn decide(&self, side: Side, head: &Head, now: Instant) -> Decision {
        match self.consider(side, head, self.tick(now)) {
            Ok(decision) => decision,
            Err(refusal) => Decision::Drop(refusal),
        }
    }

    /// Which packet a fragment belongs to.
    pub(crate) fn packet_of(&self, side: Side, head: &Head) -> Option<Which> {
        Packet::of(head).ok().map(|packet| which(side, head.origin.nic, &packet))
    }

    fn consider(&self, side: Side, head: &Head, now: u32) -> Result<Decision, Refusal> {
        let packet = Packet::of(head)?;
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
    fn cross(&self, side: Side, nic: NicId, packet: &Packet, now: u32) -> Result<Result<Translation, ()>, Refusal> {
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
        packet: &Packet,
        inside: Endpoint,
        remote: Endpoint,
        now: u32,
    ) -> Result<(Leg, Endpoint), Refusal> {
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
        packet: &Packet,
        remote: Endpoint,
        outside: Endpoint,
        now: u32,
    ) -> Result<(Leg, Endpoint, NicId), Refusal> {
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
    fn admits(&self, mapping: &Record, remote: Endpoint, now: u32) -> Result<(), Refusal> {
        if self.filtering == Filtering::EndpointIndependent || mapping.state == State::Published {
            return Ok(());
        }
        let permit = self.find(mapping.key.permit(remote.address));
        permit.filter(|(_, record)| !self.is_expired(record, now)).map(|_| ()).ok_or(Refusal::Filtered)
    }

    /// A segment of a known connection.
    #[inline]
    fn follow(&self, slot: Slot, record: &Record, from: Side, flags: u8) -> Leg {
        let tcp = tcp::after(record.tcp, from, flags);
        let state = tcp::state(tcp);
        // The end of a connection is not put off by what still comes.
        let renew = state != State::Closing || record.state != State::Closing;
        Leg::Use { slot, key: record.key, tcp, state, renew, anew: false, permit: None }
    }

    /// A later fragment goes where the first one went.
    fn later(&self, side: Side, nic: NicId, packet: &Packet, now: u32) -> Decision {
        let Some(fate) = self.fragments.find(which(side, nic, packet), now) else { return Decision::Hold };
        let Fate { to, holder, source, destination, id } = fate;
        let ends = Ends { source: Endpoint::new(source, 0), destination: Endpoint::new(destination, 0) };
        let rewrite = Rewrite { l3: packet.l3 as u16, ends, shape: Shape::Bare, id: Some(id) };
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

    /// Packets of several guests leave with one source address, so those that can be cut get an identification of the NAT's own
    /// (RFC 6864 section 5.3.1, RFC 7857).
    #[inline]
    fn new_id(&self, side: Side, packet: &Packet) -> Option<u16> {
        (side == Side::Inside && (packet.may_fragment || packet.part != Part::Whole)).then_some(self.id)
    }
}

#[inline]
fn which(from: Side, nic: NicId, packet: &Packet) -> Which {
    let nic = if from == Side::Inside { nic } else { NicId(0) };
    Which { from, nic, source: packet.source, destination: packet.destination, number: packet.number, id: packet.id }
}

fn waiting(head: &Head, packet: &Packet, since: u32) -> Waiting {
    let (remote, outside) = packet.ends();
    let mut quote = [0; 28];
    let bytes = head.bytes();
    // Without its options, which nobody needs to know it by.
    let (ip, tcp) = quote.split_at_mut(20);
    if let (Some(from_ip), Some(from_tcp)) = (bytes.get(packet.l3..packet.l3 + 20), bytes.get(packet.l4..packet.l4 + 8))
    {
        ip.copy_from_slice(from_ip);
        tcp.copy_from_slice(from_tcp);
        if let Some(first) = ip.first_mut() {
            *first = 0x45;
        }
    }
    Waiting { remote, outside, quote, since }
}

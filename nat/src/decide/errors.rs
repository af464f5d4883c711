//! ICMP errors: translated together with the packet they quote, in both directions and hairpinned.
//!
//! Invariant: an error changes nothing in the table; it neither makes, renews nor removes a mapping (RFC 4787 REQ-12, RFC 5508 REQ-6).
//! Read first: RFC 5508 section 4.

use wire::NicId;

use super::{Leg, Refusal, Translation};
use crate::{
    family::Family,
    packet::{Packet, Quote},
    record::{Endpoint, Key, Protocol, Record, Side},
    rewrite::{Ends, Rewrite, Shape},
    table::NatTable,
};

impl<A: Family> NatTable<A> {
    pub(super) fn consider_error(
        &self,
        side: Side,
        nic: NicId,
        packet: &Packet<A>,
        quote: Quote<A>,
        now: u32,
    ) -> Result<Translation<A>, Refusal> {
        let protocol = quote.protocol;
        let mut quoted = Ends { source: quote.source, destination: quote.destination };
        let bare = |address| Endpoint::new(address, 0);
        let mut ends = Ends { source: bare(packet.source), destination: bare(packet.destination) };
        let (mut to, mut holder) = (Side::Outside, nic);
        let mut id = None;
        if side == Side::Inside {
            // It is about a packet that came in: its destination is the inside endpoint, its source the remote one.
            let mapping = Key::mapping(protocol, nic, quoted.destination);
            let (_, record) = self.find(mapping).ok_or(Refusal::NotMapped)?;
            self.speaks(record, quoted.source, now)?;
            quoted.destination = self.outside_of(record, quoted.source);
            // A router inside that has no mapping is hidden behind the address of the mapping (RFC 5508 REQ-5).
            ends.source.address = quoted.destination.address;
            id = self.new_id(side, packet);
        }
        if side == Side::Outside || self.ports.has(packet.destination) {
            // It is about a packet that went out: its source is the outside endpoint. The error goes to where that came from.
            if quoted.source.address != packet.destination {
                return Err(Refusal::BadQuote);
            }
            let (_, record) = self.owner(protocol, quoted.source).ok_or(Refusal::NotMapped)?;
            self.speaks(record, quoted.destination, now)?;
            quoted.source = record.key.inside();
            ends.destination.address = record.key.inside().address;
            (to, holder) = (Side::Inside, record.key.nic());
        } else if quoted.source.address != packet.destination {
            return Err(Refusal::BadQuote);
        }
        if protocol == Protocol::Icmp {
            let id = if to == Side::Inside { quoted.source.port } else { quoted.destination.port };
            (quoted.source.port, quoted.destination.port) = (id, id);
        }
        let shape = Shape::Error {
            l4: packet.l4 as u16,
            quote_l3: quote.l3 as u16,
            quote_l4: quote.l4 as u16,
            protocol,
            quote: quoted,
        };
        let rewrite = Rewrite { l3: packet.l3 as u16, ends, shape, id };
        let (out, into, remember, len) = (Leg::None, Leg::None, None, packet.len);
        Ok(Translation { to, nic: holder, ends, refused: None, rewrite, out, into, remember, len, now })
    }

    /// Whether a mapping is one that could have carried the quoted packet.
    fn speaks(&self, mapping: &Record<A>, remote: Endpoint<A>, now: u32) -> Result<(), Refusal> {
        if self.is_expired(mapping, now) {
            return Err(Refusal::NotMapped);
        }
        if mapping.key.protocol() != Protocol::Tcp {
            return Ok(());
        }
        let session = self.find(mapping.key.session(remote));
        session.filter(|(_, record)| !self.is_expired(record, now)).map(|_| ()).ok_or(Refusal::NoSession)
    }

    fn outside_of(&self, mapping: &Record<A>, remote: Endpoint<A>) -> Endpoint<A> {
        let session = self.find(mapping.key.session(remote)).map(|(_, record)| record.outside);
        session.unwrap_or(mapping.outside)
    }
}

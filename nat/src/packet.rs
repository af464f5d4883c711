//! [`Packet`]: what the NAT has to know of a packet, read from the head of its frame once: of IPv4 by [`v4`], of IPv6 by [`v6`].
//!
//! Invariant: every offset, and every field that is going to be changed, lies within the head. What is not so is refused here.
//! Read first: RFC 791 section 3.1, RFC 8200 section 4, RFC 1858 (tiny fragments).

use std::net::Ipv4Addr;

use crate::{
    decide::Refusal,
    family::Family,
    record::{Endpoint, Protocol},
};

pub(crate) mod v4;
pub(crate) mod v6;

/// Whether it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<A = Ipv4Addr> {
    /// Where its IP header begins.
    pub(crate) l3: usize,
    /// Where its transport header begins; eight bytes of it are there.
    pub(crate) l4: usize,
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint<A>,
    pub(crate) destination: Endpoint<A>,
}

/// What is behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<A = Ipv4Addr> {
    /// TCP or UDP; the flags are TCP's.
    Ports { source: u16, destination: u16, flags: u8 },
    /// An ICMP query or the reply to one.
    Query { id: u16, reply: bool },
    /// An ICMP error.
    Error(Quote<A>),
    /// A later fragment.
    Nothing,
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub struct Packet<A = Ipv4Addr> {
    pub(crate) l3: usize,
    pub(crate) l4: usize,
    /// The protocol's number, where fragments of one packet share it.
    pub(crate) number: u8,
    /// Of a later fragment it is not known and says nothing.
    pub(crate) protocol: Protocol,
    pub(crate) source: A,
    pub(crate) destination: A,
    /// What fragments of one packet share, and where it is.
    pub(crate) id: u32,
    pub(crate) id_at: u16,
    pub(crate) may_fragment: bool,
    pub(crate) part: Part,
    pub(crate) content: Content<A>,
    /// Bytes of the packet; one more than can be said is one less.
    pub(crate) len: u16,
}

impl<A: Family> Packet<A> {
    /// Source and destination endpoint of what has ports or an identifier, which stands on both sides.
    #[inline]
    pub(crate) fn ends(&self) -> (Endpoint<A>, Endpoint<A>) {
        let (source, destination) = match self.content {
            Content::Ports { source, destination, .. } => (source, destination),
            Content::Query { id, .. } => (id, id),
            Content::Error(_) | Content::Nothing => (0, 0),
        };
        (Endpoint::new(self.source, source), Endpoint::new(self.destination, destination))
    }
}

/// The ports of TCP or UDP, whose header is in the head as far as it is going to be changed.
#[inline]
fn ports<A: Family>(rest: &[u8], protocol: Protocol) -> Result<Content<A>, Refusal> {
    let flags = match protocol {
        Protocol::Tcp => {
            let [_, _, _, _, _, _, _, _, _, _, _, _, _, flags, ..] =
                *rest.first_chunk::<20>().ok_or(Refusal::Malformed)?;
            flags
        }
        _ => 0,
    };
    let [a, b, c, d, ..] = *rest.first_chunk::<8>().ok_or(Refusal::Malformed)?;
    Ok(Content::Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]), flags })
}

/// The endpoints of a quoted packet, of which eight bytes behind its IP header are there; `queries` are the types of ICMP that have an
/// identifier.
fn quoted_ports(rest: &[u8], protocol: Protocol, queries: &[u8]) -> Result<(u16, u16), Refusal> {
    let [a, b, c, d, e, f, ..] = *rest.first_chunk::<8>().ok_or(Refusal::BadQuote)?;
    match protocol {
        // An error is never about an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4); queries and replies have an identifier.
        Protocol::Icmp if queries.contains(&a) => Ok((u16::from_be_bytes([e, f]), u16::from_be_bytes([e, f]))),
        Protocol::Icmp => Err(Refusal::BadQuote),
        _ => Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))),
    }
}

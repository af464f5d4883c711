//! [`Message`]: what a DHCPv6 client says.
//!
//! Invariant: the options of a message, and of the association in it that counts, end within it. Of an option that comes more than once
//! the first counts; of several associations (IA_NA) the first is given an address, the others are told that there is none.
//! Read first: RFC 8415 sections 8 and 21, RFC 4704 section 4.1 (option 39).

use std::net::Ipv6Addr;

use crate::bytes::{array, be16};

/// Message types (RFC 8415 section 7.3).
pub(crate) const SOLICIT: u8 = 1;
pub(crate) const ADVERTISE: u8 = 2;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const CONFIRM: u8 = 4;
pub(crate) const RENEW: u8 = 5;
pub(crate) const REBIND: u8 = 6;
pub(crate) const REPLY: u8 = 7;
pub(crate) const RELEASE: u8 = 8;
pub(crate) const DECLINE: u8 = 9;
pub(crate) const INFORMATION_REQUEST: u8 = 11;

/// Associations beyond the first that are answered, at most.
const MORE: usize = 4;
/// Longest DUID (RFC 8415 section 11.1).
const DUID_MAX: usize = 130;

/// What a client said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u8,
    pub(crate) xid: [u8; 3],
    pub(crate) client: Option<&'a [u8]>,
    pub(crate) server: Option<&'a [u8]>,
    /// The IAID of its first IA_NA.
    pub(crate) association: Option<[u8; 4]>,
    /// The first address in that.
    pub(crate) address: Option<Ipv6Addr>,
    /// The IAIDs of others.
    pub(crate) more: [Option<[u8; 4]>; MORE],
    pub(crate) rapid: bool,
    wanted: Option<&'a [u8]>,
    /// Its first label, as it was said.
    pub(crate) name: Option<&'a [u8]>,
}

/// The options of `bytes`; nothing where one reaches past them.
fn walk<'a>(mut bytes: &'a [u8], visit: &mut impl FnMut(u16, &'a [u8])) -> Option<()> {
    while !bytes.is_empty() {
        let (code, length) = (be16(bytes, 0)?, usize::from(be16(bytes, 2)?));
        let (value, rest) = bytes.get(4..)?.split_at_checked(length)?;
        visit(code, value);
        bytes = rest;
    }
    Some(())
}

impl<'a> Message<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let [kind, a, b, c] = array(bytes, 0)?;
        let mut found = Message { kind, xid: [a, b, c], ..Message::default() };
        let mut inside = None;
        walk(bytes.get(4..)?, &mut |code, value| match code {
            1 => found.client = found.client.or(Some(value)),
            2 => found.server = found.server.or(Some(value)),
            3 if found.association.is_none() => {
                found.association = array(value, 0);
                inside = value.get(12..);
            }
            3 => {
                if let (Some(place), id) = (found.more.iter_mut().find(|place| place.is_none()), array(value, 0)) {
                    *place = id;
                }
            }
            6 => found.wanted = found.wanted.or(Some(value)),
            14 => found.rapid = true,
            39 => {
                let length = value.get(1).copied().unwrap_or(0);
                found.name = found.name.or_else(|| value.get(2..)?.get(..usize::from(length)));
            }
            _ => {}
        })?;
        if found.association.is_some() {
            walk(inside?, &mut |code, value| {
                if code == 5 {
                    found.address = found.address.or_else(|| array::<16>(value, 0).map(Ipv6Addr::from));
                }
            })?;
        }
        found.client.is_none_or(|duid| (1..=DUID_MAX).contains(&duid.len())).then_some(found)
    }

    /// Whether the client wants this option; one that does not say what it wants is told everything.
    pub(crate) fn wants(&self, code: u16) -> bool {
        self.wanted.is_none_or(|list| list.chunks_exact(2).any(|entry| entry == code.to_be_bytes()))
    }
}

//! [`Message`]: what a DHCP client says.
//!
//! Invariant: a message here is a BOOTREQUEST over Ethernet with the DHCP cookie, and its options end within their field. Of an option that
//! comes more than once, the first counts.
//! Read first: RFC 2131 sections 2 and 4.1, RFC 2132 section 9.3 (overload: options in `file`, then in `sname`).

use std::net::Ipv4Addr;

use wire::Mac;

use crate::bytes::{array, be16, be32};

/// Where the options begin: after the fixed fields and the cookie.
pub(crate) const OPTIONS: usize = 240;
pub(crate) const COOKIE: u32 = 0x6382_5363;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// Option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

/// What a client said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: Kind,
    pub(crate) xid: [u8; 4],
    pub(crate) broadcast: bool,
    pub(crate) flags: [u8; 2],
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) relayed: bool,
    pub(crate) mac: Mac,
    pub(crate) requested: Option<Ipv4Addr>,
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) lease: Option<u32>,
    pub(crate) wanted: Option<&'a [u8]>,
    pub(crate) max_size: u16,
    pub(crate) id: &'a [u8],
    pub(crate) name: Option<&'a [u8]>,
    pub(crate) relay: Option<&'a [u8]>,
}

/// The options of one field; ends at the end option, or nothing where one reaches past the field.
fn walk<'a>(mut field: &'a [u8], visit: &mut impl FnMut(u8, &'a [u8])) -> Option<()> {
    while let Some((&code, rest)) = field.split_first() {
        field = match code {
            0 => rest,
            255 => return Some(()),
            _ => {
                let (&length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(length))?;
                visit(code, value);
                rest
            }
        };
    }
    Some(())
}

impl<'a> Message<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let [op, hardware, length, _] = array(bytes, 0)?;
        if (op, hardware, length) != (1, 1, 6) || be32(bytes, 236)? != COOKIE {
            return None;
        }
        let flags: [u8; 2] = array(bytes, 10)?;
        let mut found = Message {
            kind: Kind::Discover,
            xid: array(bytes, 4)?,
            broadcast: flags[0] & 0x80 != 0,
            flags,
            ciaddr: array::<4>(bytes, 12)?.into(),
            relayed: array::<4>(bytes, 24)? != [0; 4],
            mac: Mac::new(array(bytes, 28)?),
            requested: None,
            server: None,
            lease: None,
            wanted: None,
            max_size: 576,
            id: &[],
            name: None,
            relay: None,
        };
        let (mut kind, mut overload) = (None, 0);
        walk(bytes.get(OPTIONS..)?, &mut |code, value| match code {
            52 => overload = value.first().copied().unwrap_or(0),
            _ => found.take(code, value, &mut kind),
        })?;
        for (bit, field) in [(1, FILE), (2, SNAME)] {
            if overload & bit != 0 {
                walk(bytes.get(field)?, &mut |code, value| found.take(code, value, &mut kind))?;
            }
        }
        found.kind = match kind? {
            1 => Kind::Discover,
            3 => Kind::Request,
            4 => Kind::Decline,
            7 => Kind::Release,
            8 => Kind::Inform,
            _ => return None,
        };
        Some(found)
    }
    fn take(&mut self, code: u8, value: &'a [u8], kind: &mut Option<u8>) {
        let address = || array::<4>(value, 0).map(Ipv4Addr::from);
        match code {
            12 => self.name = self.name.or(Some(value)),
            50 => self.requested = self.requested.or_else(address),
            51 => self.lease = self.lease.or_else(|| be32(value, 0)),
            53 => *kind = kind.or_else(|| value.first().copied()),
            54 => self.server = self.server.or_else(address),
            55 => self.wanted = self.wanted.or(Some(value)),
            57 => self.max_size = be16(value, 0).unwrap_or(576).max(576),
            61 if self.id.is_empty() => self.id = value,
            82 => self.relay = self.relay.or(Some(value)),
            _ => {}
        }
    }
}

/// A host name made fit for DNS: its first label, in lower case, letters, digits and hyphens only, none of these at an end
/// (RFC 1123 section 2.1); nothing when nothing is left.
pub(crate) fn host_name(said: &[u8]) -> Option<Box<str>> {
    let label = said.split(|c| *c == b'.').next()?;
    let fit: String = label
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| if c.is_ascii_alphanumeric() { char::from(c.to_ascii_lowercase()) } else { '-' })
        .take(63)
        .collect();
    let fit = fit.trim_matches('-');
    (!fit.is_empty()).then(|| fit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_made_fit_for_dns() {
        let name = |said: &[u8]| host_name(said).map(String::from);
        assert_eq!(name(b"Web-1.example.org").as_deref(), Some("web-1"));
        assert_eq!(name(b"-a b_c-\0trash").as_deref(), Some("a-b-c"));
        assert_eq!(name(b"\xff\xfe"), None);
        assert_eq!(name(b""), None);
        assert_eq!(name(&[b'x'; 255]).map(|name| name.len()), Some(63));
        assert_eq!(name(b"x<script>").as_deref(), Some("x-script"));
    }
}

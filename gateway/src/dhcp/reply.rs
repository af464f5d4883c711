//! How an answer looks: addresses, fields, options.
//!
//! Invariant: an answer fits into the datagram that the client said it takes, into 576 bytes where it said nothing, and into the MTU.
//! The client identifier and a relay's option go back as they came; what there is no room for is left out, these last.
//! Read first: RFC 2131 sections 4.1 (whom an answer goes to) and 4.3.1 (table 3), RFC 6842, RFC 3046 section 2.2.

use std::net::Ipv4Addr;

use wire::{Mac, checksum::Checksum, layers::ETHERTYPE_IPV4};

use super::{
    CLIENT_PORT, SERVER_PORT,
    message::{COOKIE, Kind, Message, OPTIONS},
    options::{HOST_NAME, Options},
};
use crate::{
    bytes::set16,
    packet::{self, L4_OVER_V4, UDP, V4},
};

const UDP_LEN: usize = 8;
/// The least that a BOOTP client takes (RFC 1542 section 2.1).
const MIN_MESSAGE: usize = 300;

/// What is said.
pub(crate) struct Reply<'a> {
    pub(crate) kind: Kind,
    pub(crate) router: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) mtu: u16,
    pub(crate) to: Ipv4Addr,
    pub(crate) to_mac: Mac,
    pub(crate) address: Ipv4Addr,
    /// Seconds, where an address is given.
    pub(crate) lease: Option<u32>,
    pub(crate) name: Option<&'a str>,
    pub(crate) fixed: &'a [(u8, Vec<u8>)],
}

/// Writes the answer to `message` as a frame.
pub(crate) fn write(out: &mut Vec<u8>, reply: &Reply<'_>, message: &Message<'_>) {
    let limit = usize::from(message.max_size.min(reply.mtu)) + wire::layers::ETHERNET_LEN;
    packet::ethernet(out, reply.to_mac, reply.mac, ETHERTYPE_IPV4);
    // The lengths are known at the end; the header is written over then.
    out.resize(L4_OVER_V4 + UDP_LEN, 0);
    fields(out, reply, message);
    let mut options = Options::new(out, limit);
    options.add(53, &[reply.kind as u8]);
    options.add(54, &reply.router.octets());
    let lasts = [(61, message.id), (82, message.relay.unwrap_or_default())];
    let kept = lasts.iter().map(|(_, value)| if value.is_empty() { 0 } else { value.len() + 2 }).sum();
    options.keep(kept);
    if let Some(lease) = reply.lease {
        options.add(51, &lease.to_be_bytes());
        options.add(58, &(lease / 2).to_be_bytes());
        options.add(59, &(lease - lease / 8).to_be_bytes());
    }
    match message.wanted {
        _ if reply.kind == Kind::Nak => options.add(56, b"this address is not yours here"),
        Some(wanted) => wanted.iter().enumerate().for_each(|(at, code)| {
            if !wanted.iter().take(at).any(|earlier| earlier == code) {
                one(&mut options, *code, reply);
            }
        }),
        None => {
            reply.fixed.iter().for_each(|(code, _)| one(&mut options, *code, reply));
            one(&mut options, HOST_NAME, reply);
        }
    }
    options.keep(0);
    for (code, value) in lasts {
        options.add(code, value);
    }
    options.end();
    let least = L4_OVER_V4 + UDP_LEN + MIN_MESSAGE;
    if out.len() < least {
        out.resize(least, 0);
    }
    finish(out, reply);
}

fn one(options: &mut Options<'_>, code: u8, reply: &Reply<'_>) {
    if code == HOST_NAME {
        options.add(code, reply.name.unwrap_or_default().as_bytes());
    } else if let Some((_, value)) = reply.fixed.iter().find(|(fixed, _)| *fixed == code) {
        options.add(code, value);
    }
}

/// The fixed fields of the message.
fn fields(out: &mut Vec<u8>, reply: &Reply<'_>, message: &Message<'_>) {
    let start = out.len();
    out.extend_from_slice(&[2, 1, 6, 0]);
    out.extend_from_slice(&message.xid);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&message.flags);
    // Table 3: `ciaddr` goes back in an ACK only.
    let ciaddr = if reply.kind == Kind::Ack { message.ciaddr } else { Ipv4Addr::UNSPECIFIED };
    out.extend_from_slice(&ciaddr.octets());
    out.extend_from_slice(&reply.address.octets());
    // There is nothing to boot here: `siaddr` and `giaddr` are zero.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&message.mac.bytes());
    out.resize(start + OPTIONS - 4, 0);
    out.extend_from_slice(&COOKIE.to_be_bytes());
}

/// IP and UDP headers, in front of a message that is complete.
fn finish(out: &mut [u8], reply: &Reply<'_>) {
    let length = out.len().saturating_sub(L4_OVER_V4);
    let at = wire::layers::ETHERNET_LEN;
    let header = V4 { from: reply.router, to: reply.to, protocol: UDP, tos: 0, payload: length };
    packet::ipv4_at(out, at, &header);
    set16(out, L4_OVER_V4, SERVER_PORT);
    set16(out, L4_OVER_V4 + 2, CLIENT_PORT);
    set16(out, L4_OVER_V4 + 4, length as u16);
    let mut sum = Checksum::pseudo_v4(reply.router.octets(), reply.to.octets(), UDP, length as u16);
    sum.add_bytes(out.get(L4_OVER_V4..).unwrap_or_default());
    set16(out, L4_OVER_V4 + 6, sum.finish_udp());
}

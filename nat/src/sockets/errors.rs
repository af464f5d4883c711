//! ICMP and ICMPv6 errors for guests: what the outside said about a packet that the host sent in a guest's stead, said to the guest about its
//! own packet.
//!
//! Invariant: an error quotes the guest's packet with the addresses that the guest gave it, and is never about an error. Its source is whoever
//! sent it outside, where that is known, else the router. Read first: RFC 792, RFC 1812 section 4.3, RFC 4443 sections 2.4 and 3, RFC 5508 section 4.

use std::net::{IpAddr, SocketAddr};

use sys::inet::udp::{Found, SendError};
use wire::{Burst, Context, Frame, checksum};

use super::{
    inward::{Headers, Label, Way, icmp},
    packet::{Packet, front},
};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The TTL of errors.
const TTL: u8 = 64;
/// The longest error with IPv4 (RFC 1812 section 4.3.2.3).
const LONGEST_V4: usize = 576;
/// The longest error with IPv6 (RFC 4443 section 2.4).
const LONGEST_V6: usize = 1280;
/// An ICMP header.
const HEADER: usize = 8;

/// Linux's number of what is too long to be sent (errno(3)).
pub(crate) const EMSGSIZE: i32 = 90;

/// Type, code and the word that follows the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saying {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) word: u32,
}

/// What a guest is told for an error number of the host; nothing where the packet is simply lost.
pub(crate) fn from_errno(errno: i32, v6: bool, mtu: u32) -> Option<Saying> {
    // The numbers of Linux on all architectures that it runs guests on (errno(3)).
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const ENETDOWN: i32 = 100;
    const ENETUNREACH: i32 = 101;
    const ECONNREFUSED: i32 = 111;
    const EHOSTUNREACH: i32 = 113;
    let say = |kind, code, word| Some(Saying { kind, code, word });
    match (errno, v6) {
        (EMSGSIZE, false) => say(3, 4, mtu.min(0xffff)),
        (EMSGSIZE, true) => say(2, 0, mtu),
        (ENETUNREACH | ENETDOWN, false) => say(3, 0, 0),
        (ENETUNREACH | ENETDOWN, true) => say(1, 0, 0),
        (EHOSTUNREACH, false) => say(3, 1, 0),
        (EHOSTUNREACH, true) => say(1, 3, 0),
        (EACCES | EPERM, false) => say(3, 13, 0),
        (EACCES | EPERM, true) => say(1, 1, 0),
        (ECONNREFUSED, false) => say(3, 3, 0),
        (ECONNREFUSED, true) => say(1, 4, 0),
        _ => None,
    }
}

/// What a guest is told of an error that came back; nothing of types that are no errors.
pub(crate) fn from_outside(error: &SendError<'_>, v6: bool) -> Option<Saying> {
    if error.found == Found::Here {
        return from_errno(error.errno, v6, error.info);
    }
    let say = |word| Some(Saying { kind: error.kind, code: error.code, word });
    match (error.kind, v6) {
        (3, false) if error.code == 4 => say(error.info & 0xffff),
        (3 | 11, false) | (1 | 3, true) => say(0),
        // The kernel gives the pointer of IPv4 in the first byte of the word, as it came.
        (12, false) => say(error.info << 24),
        (2, true) | (4, true) => say(error.info),
        _ => None,
    }
}

/// Tells a guest about a packet of its own that is at hand.
pub(crate) fn about_packet(
    cx: &mut Context,
    out: &mut Burst,
    way: &Way,
    source: IpAddr,
    say: Saying,
    about: (&Frame, &Packet),
) {
    let (frame, packet) = about;
    let mut message = Message::new(say);
    message.put(front(cx.heads.get(frame), packet.l3, packet.end));
    message.send(cx, out, way, source, packet.source);
}

/// An error that came back for what a guest has sent.
pub(crate) struct Back<'b> {
    pub(crate) say: Saying,
    /// Whose error it is, as the guest sees them, else the router.
    pub(crate) source: IpAddr,
    /// To whom it was sent: outside, and as the guest has named them.
    pub(crate) to: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// See [`sys::inet::udp::SendError::quoted`].
    pub(crate) quoted: &'b [u8],
}

/// What is known of a packet that a guest sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// The guest's endpoint; of pings, the port is the identifier.
    pub(crate) inside: SocketAddr,
    /// Whom it spoke to, as it named them.
    pub(crate) remote: SocketAddr,
    /// IPv4 identification.
    pub(crate) id: u16,
    /// TOS or traffic class.
    pub(crate) tos: u8,
    pub(crate) df: bool,
    /// Bytes of the transport layer; what was quoted counts where that is more.
    pub(crate) len: u16,
    /// Its UDP checksum, if it was known.
    pub(crate) sum: u16,
}

/// Tells a guest about a UDP datagram of which all behind its header came back.
pub(crate) fn about_udp(cx: &mut Context, out: &mut Burst, way: &Way, back: &Back, sent: &Sent) {
    let len = (8 + back.quoted.len()).max(usize::from(sent.len));
    let mut message = Message::about(back.say, sent, UDP, len);
    message.put(&(len as u16).to_be_bytes());
    message.put(&sent.sum.to_be_bytes());
    message.put(back.quoted);
    message.send(cx, out, way, back.source, sent.inside.ip());
}

/// Tells a guest about a SYN of its own that nothing came of, with this number.
pub(crate) fn about_syn(
    cx: &mut Context,
    out: &mut Burst,
    way: &Way,
    source: IpAddr,
    say: Saying,
    sent: &Sent,
    number: u32,
) {
    let mut message = Message::about(say, sent, TCP, usize::from(sent.len));
    message.put(&number.to_be_bytes());
    message.send(cx, out, way, source, sent.inside.ip());
}

/// Tells a guest about an echo request that came back, with the identifier outside.
pub(crate) fn about_echo(cx: &mut Context, out: &mut Burst, way: &Way, back: &Back, sent: &Sent) {
    let mut message = Message::new(back.say);
    let protocol = if sent.inside.is_ipv6() { ICMPV6 } else { ICMP };
    message.header(sent, back.say, protocol, back.quoted.len().max(usize::from(sent.len)));
    let Some(([kind, code, s, t, i, d], rest)) = back.quoted.split_first_chunk::<6>() else { return };
    let (inside, outside) = (sent.inside.port(), u16::from_be_bytes([*i, *d]));
    let sum = checksum::update(u16::from_be_bytes([*s, *t]), outside, inside);
    message.put(&[*kind, *code]);
    message.put(&sum.to_be_bytes());
    message.put(&inside.to_be_bytes());
    message.put(rest);
    message.send(cx, out, way, back.source, sent.inside.ip());
}

/// An error being written, from its ICMP header on.
struct Message {
    bytes: [u8; LONGEST_V6],
    len: usize,
}

impl Message {
    fn new(say: Saying) -> Message {
        let mut message = Message { bytes: [0; LONGEST_V6], len: 0 };
        message.put(&[say.kind, say.code, 0, 0]);
        message.put(&say.word.to_be_bytes());
        message
    }

    /// With the headers of the packet that it is about, up to its ports.
    fn about(say: Saying, sent: &Sent, protocol: u8, len: usize) -> Message {
        let mut message = Message::new(say);
        message.header(sent, say, protocol, len);
        message.put(&sent.inside.port().to_be_bytes());
        message.put(&sent.remote.port().to_be_bytes());
        message
    }

    /// As many of the bytes as there is room for.
    fn put(&mut self, more: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let n = room.len().min(more.len());
        room.iter_mut().zip(more).for_each(|(to, from)| *to = *from);
        self.len += n;
    }

    /// The IP header of the packet that it is about, with `len` bytes behind it.
    fn header(&mut self, sent: &Sent, say: Saying, protocol: u8, len: usize) {
        let exceeded = matches!((say.kind, sent.inside.is_ipv6()), (11, false) | (3, true));
        let (source, destination) = (sent.inside.ip(), sent.remote.ip());
        let ttl = if exceeded { 1 } else { TTL };
        let label = Label { source, destination, protocol, ttl, tos: sent.tos, id: sent.id };
        let mut headers = Headers::new();
        if headers.ip(&label, len, None, sent.df) {
            self.put(headers.bytes());
        }
    }

    fn send(mut self, cx: &mut Context, out: &mut Burst, way: &Way, source: IpAddr, destination: IpAddr) {
        let v6 = destination.is_ipv6();
        let len = self.len.min(if v6 { LONGEST_V6 - 40 } else { LONGEST_V4 - 20 });
        let protocol = if v6 { ICMPV6 } else { ICMP };
        let label = Label { source, destination, protocol, ttl: TTL, tos: 0, id: 0 };
        if let Some(message) = self.bytes.get_mut(..len).filter(|message| message.len() > HEADER) {
            icmp(cx, out, way, &label, message);
        }
    }
}

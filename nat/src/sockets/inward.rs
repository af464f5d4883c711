//! Frames for guests: UDP datagrams, runs of them, fragments of long ones, and ICMP messages.
//!
//! Invariant: every frame that is made counts as originated. A datagram that fits owes its checksum (the port that it leaves by completes it
//! where its guest cannot); fragments owe nothing. Nothing is allocated.
//! Read first: RFC 768, RFC 791, RFC 8200 section 4.5, RFC 6864, [`wire::offload`].

use std::net::{IpAddr, SocketAddr};

use wire::{
    Burst, Context, DropReason, Frame, Gso, Mac, Offload,
    checksum::Checksum,
    frame::{BURST, HEAD_BYTES, Origin},
};

const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const UDP: u8 = 17;
/// The longest IP packet.
const LONGEST: usize = 65_535;

/// The way to a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// As whose frames they are: the router's.
    pub(crate) origin: Origin,
    /// The guest's address; zero when the router has to find it out.
    pub(crate) mac: Mac,
    /// The longest IP packet that the segment takes.
    pub(crate) mtu: usize,
}

/// What an IP header says besides lengths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

/// Headers being written.
pub(crate) struct Headers {
    bytes: [u8; HEAD_BYTES],
    len: usize,
}

impl Headers {
    pub(crate) fn new() -> Headers {
        Headers { bytes: [0; HEAD_BYTES], len: 0 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn put(&mut self, more: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + more.len()) {
            place.copy_from_slice(more);
            self.len += more.len();
        }
    }

    /// The Ethernet header. The source is the router's to set.
    pub(crate) fn ethernet(&mut self, way: &Way, v6: bool) {
        self.put(&way.mac.bytes());
        self.put(&[0; 6]);
        self.put(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    }

    /// The IP header of a packet with `len` bytes behind it, of a fragment with its header where that is one of its own. False when the
    /// addresses are not of one family.
    pub(crate) fn ip(&mut self, label: &Label, len: usize, part: Option<Part>, df: bool) -> bool {
        match (label.source, label.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = (20 + len) as u16;
                let (offset, more) = part.map_or((0, false), |part| (part.offset, part.more));
                let flags = (offset / 8) as u16 | if more { 0x2000 } else { 0 } | if df { 0x4000 } else { 0 };
                let start = self.len;
                self.put(&[0x45, label.tos]);
                self.put(&total.to_be_bytes());
                self.put(&label.id.to_be_bytes());
                self.put(&flags.to_be_bytes());
                self.put(&[label.ttl, label.protocol, 0, 0]);
                self.put(&source.octets());
                self.put(&destination.octets());
                let mut sum = Checksum::new();
                sum.add_bytes(self.bytes.get(start..self.len).unwrap_or_default());
                if let Some(field) = self.bytes.get_mut(start + 10..start + 12) {
                    field.copy_from_slice(&sum.finish().to_be_bytes());
                }
                true
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extra = if part.is_some() { 8 } else { 0 };
                self.put(&[0x60 | label.tos >> 4, label.tos << 4, 0, 0]);
                self.put(&((len + extra) as u16).to_be_bytes());
                self.put(&[if part.is_some() { 44 } else { label.protocol }, label.ttl]);
                self.put(&source.octets());
                self.put(&destination.octets());
                if let Some(part) = part {
                    self.put(&[label.protocol, 0]);
                    self.put(&(part.offset as u16 | u16::from(part.more)).to_be_bytes());
                    self.put(&u32::from(label.id).to_be_bytes());
                }
                true
            }
            _ => false,
        }
    }
}

/// The sum of the pseudo header of a transport that has one.
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Checksum {
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => Checksum::pseudo_v4(s.octets(), d.octets(), protocol, len as u16),
        (IpAddr::V6(s), IpAddr::V6(d)) => Checksum::pseudo_v6(s.octets(), d.octets(), protocol, len as u32),
        _ => Checksum::new(),
    }
}

/// Makes a frame of headers and the bytes behind them; nothing when the turn has no room for it.
pub(crate) fn frame(cx: &mut Context, origin: Origin, headers: &[u8], behind: &[u8]) -> Option<Frame> {
    let near = behind.len().min(HEAD_BYTES.checked_sub(headers.len())?);
    let (near, far) = behind.split_at_checked(near)?;
    let body = if far.is_empty() { None } else { Some(cx.arena.pool(far)?) };
    let (frame, head) = cx.heads.begin(origin, headers.len() + behind.len())?;
    let (first, second) = head.fill().split_at_mut_checked(headers.len())?;
    first.copy_from_slice(headers);
    second.copy_from_slice(near);
    if let Some(body) = body
        && !cx.heads.add_piece(&frame, body)
    {
        return None;
    }
    cx.ledger.originated += 1;
    Some(frame)
}

/// Puts a frame that was made into `out`; counts what could not be made or does not fit as dropped.
pub(crate) fn deliver(cx: &mut Context, out: &mut Burst, made: Option<Frame>) {
    match made {
        None => {
            cx.ledger.originated += 1;
            cx.drop_one(DropReason::NoBuffers);
        }
        Some(frame) => {
            if let Err(frame) = out.push(frame) {
                cx.drop(frame, DropReason::NoBuffers);
            }
        }
    }
}

/// Bytes of the IP header.
fn ip_len(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

/// Bytes of the transport layer in each fragment but the last.
fn part_len(mtu: usize, v6: bool) -> usize {
    (mtu.saturating_sub(if v6 { 48 } else { 20 }) & !7).max(8)
}

/// How many frames a datagram of `len` payload bytes becomes.
pub(crate) fn frames(len: usize, mtu: usize, v6: bool) -> usize {
    if ip_len(v6) + UDP_LEN + len <= mtu { 1 } else { (UDP_LEN + len).div_ceil(part_len(mtu, v6)) }
}

/// Whether a run of datagrams of `segment` bytes can be one super-frame.
pub(crate) fn is_super(len: usize, segment: usize, mtu: usize, v6: bool) -> bool {
    let headers = ip_len(v6) + UDP_LEN;
    segment > 0 && len > segment && headers + segment <= mtu && ip_len(false) + headers + len <= LONGEST
}

/// Makes the frames of one datagram, or one super-frame of a run of datagrams of `segment` bytes ([`is_super`]), from `source` to `destination`.
pub(crate) fn datagram(
    cx: &mut Context,
    out: &mut Burst,
    way: &Way,
    label: &Label,
    ports: (u16, u16),
    payload: &[u8],
    segment: u16,
) {
    let v6 = label.source.is_ipv6();
    let len = UDP_LEN + payload.len();
    let mut udp = [0; UDP_LEN];
    let put = |udp: &mut [u8; UDP_LEN], sum: u16| {
        let [a, b] = ports.0.to_be_bytes();
        let [c, d] = ports.1.to_be_bytes();
        let [e, f] = (len as u16).to_be_bytes();
        let [g, h] = sum.to_be_bytes();
        *udp = [a, b, c, d, e, f, g, h];
    };
    let sum = pseudo(label.source, label.destination, UDP, len);
    if segment > 0 || ip_len(v6) + len <= way.mtu {
        put(&mut udp, sum.fold());
        let mut headers = Headers::new();
        headers.ethernet(way, v6);
        if !headers.ip(label, len, None, false) {
            return;
        }
        let l4 = headers.len as u16;
        headers.put(&udp);
        let gso = if segment > 0 { Gso::Udp } else { Gso::None };
        let offload = Offload::new(gso, headers.len as u16, segment, l4, 6);
        let made = frame(cx, way.origin, headers.bytes(), payload);
        if let Some(made) = &made {
            cx.heads.get_mut(made).offload = offload;
        }
        return deliver(cx, out, made);
    }
    let size = part_len(way.mtu, v6);
    if len.div_ceil(size) > BURST {
        cx.ledger.originated += 1;
        return cx.drop_one(DropReason::TooBig);
    }
    put(&mut udp, 0);
    let mut whole = sum;
    whole.add_bytes(&udp);
    whole.add_bytes(payload);
    put(&mut udp, whole.finish_udp());
    let mut at = 0;
    while at < len {
        let end = (at + size).min(len);
        let mut headers = Headers::new();
        headers.ethernet(way, v6);
        if !headers.ip(label, end - at, Some(Part { offset: at, more: end < len }), false) {
            return;
        }
        if at == 0 {
            headers.put(&udp);
        }
        let from = at.max(UDP_LEN) - UDP_LEN;
        let part = payload.get(from..end - UDP_LEN).unwrap_or_default();
        let made = frame(cx, way.origin, headers.bytes(), part);
        deliver(cx, out, made);
        at = end;
    }
}

/// Makes the frame of an ICMP or ICMPv6 message whose bytes, with a zero checksum, are `message`; in fragments where it is long.
pub(crate) fn icmp(cx: &mut Context, out: &mut Burst, way: &Way, label: &Label, message: &mut [u8]) {
    let v6 = label.source.is_ipv6();
    let len = message.len();
    let mut sum = if v6 { pseudo(label.source, label.destination, label.protocol, len) } else { Checksum::new() };
    sum.add_bytes(message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.finish().to_be_bytes());
    }
    let fits = ip_len(v6) + len <= way.mtu;
    let size = if fits { len } else { part_len(way.mtu, v6) };
    if len.div_ceil(size.max(1)) > BURST {
        cx.ledger.originated += 1;
        return cx.drop_one(DropReason::TooBig);
    }
    let mut at = 0;
    while at < len {
        let end = (at + size).min(len);
        let part = (!fits).then_some(Part { offset: at, more: end < len });
        let mut headers = Headers::new();
        headers.ethernet(way, v6);
        if !headers.ip(label, end - at, part, false) {
            return;
        }
        let made = frame(cx, way.origin, headers.bytes(), message.get(at..end).unwrap_or_default());
        deliver(cx, out, made);
        at = end;
    }
}

/// Where a datagram came from and goes to, as labels have it.
pub(crate) fn label(source: SocketAddr, destination: SocketAddr, ttl: u8, tos: u8, id: u16) -> Label {
    Label { source: source.ip(), destination: destination.ip(), protocol: UDP, ttl, tos, id }
}

const _: () = assert!(ETHERNET_LEN + 48 + UDP_LEN <= HEAD_BYTES);

//! Segments for the guest: acknowledgements, resets, SYNs, and data that is peeked out of the host socket straight into a frame.
//!
//! Invariant: a data segment's bytes lie in the head and the pool of the turn and nowhere else of ours; it owes its checksum, and is a super-frame
//! of segments that the guest can take where it is longer than one. Nothing is allocated.
//! Read first: [`super::flow`], [`wire::offload`], RFC 9293 sections 3.1 and 3.10.7.1 (resets).

use std::io::{self, ErrorKind};

use wire::{Context, DropReason, Gso, Offload, frame::HEAD_BYTES};

use super::{
    flow::{Flow, OUR_SCALE, State},
    segment::{ACK, FIN, HEADER, PSH, RST, SYN, Segment, seq},
};
use crate::sockets::{
    Hub,
    inward::{self, Headers, Label},
    packet::Packet,
};

const TCP: u8 = 6;
const TTL: u8 = 64;
const ETHERNET_LEN: usize = 14;
/// The most data in one super-frame: with its headers no more than an IP packet can have.
const MOST: usize = 65_000;
/// Of TCP options in our SYNs: MSS and window scale with padding.
const OPTIONS: usize = 8;

/// What became of an attempt to send data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// There may be more at once.
    More,
    /// Nothing now; an event or an acknowledgement will say when.
    Done,
    /// The turn has no room.
    Full,
    /// The host's end is no more.
    Broken,
}

/// The MSS that a segment of a network takes, by its MTU and version of IP.
pub(super) fn mss(mtu: u16, v6: bool) -> u16 {
    mtu.saturating_sub(if v6 { 60 } else { 40 })
}

fn label(flow: &Flow, id: u16) -> Label {
    let (source, destination) = (flow.key.remote.ip(), flow.key.inside.ip());
    Label { source, destination, protocol: TCP, ttl: TTL, tos: 0, id }
}

/// Fields of a segment that are not the flow's own.
#[derive(Clone, Copy)]
struct Said {
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
}

fn header(ports: (u16, u16), said: Said, words: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let fields: [&[u8]; 7] = [
        &ports.0.to_be_bytes(),
        &ports.1.to_be_bytes(),
        &said.seq.to_be_bytes(),
        &said.ack.to_be_bytes(),
        &[words << 4, said.flags],
        &said.window.to_be_bytes(),
        &[0, 0, 0, 0],
    ];
    header.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
    header
}

/// Sends a segment without data; false when the turn has no room.
fn bare(cx: &mut Context, hub: &mut Hub, flow: &mut Flow, said: Said, options: &[u8]) -> bool {
    if hub.out.room() == 0 {
        return false;
    }
    let ports = (flow.key.remote.port(), flow.key.inside.port());
    let mut bytes = [0; HEADER + OPTIONS];
    let len = HEADER + options.len();
    let front = header(ports, said, (len / 4) as u8);
    bytes.iter_mut().zip(front.iter().chain(options)).for_each(|(to, from)| *to = *from);
    let id = hub.next_id();
    flow.packets += 1;
    segment(cx, hub, flow.mac, &label(flow, id), bytes.get_mut(..len).unwrap_or_default())
}

/// Puts a complete segment into a frame.
fn segment(cx: &mut Context, hub: &mut Hub, mac: wire::Mac, label: &Label, bytes: &mut [u8]) -> bool {
    let way = hub.way(cx, mac);
    let mut sum = inward::pseudo(label.source, label.destination, TCP, bytes.len());
    sum.add_bytes(bytes);
    if let Some(field) = bytes.get_mut(16..18) {
        field.copy_from_slice(&sum.finish().to_be_bytes());
    }
    let mut headers = Headers::new();
    headers.ethernet(&way, label.source.is_ipv6());
    if !headers.ip(label, bytes.len(), None, true) {
        return false;
    }
    let Some(frame) = inward::frame(cx, way.origin, headers.bytes(), bytes) else { return false };
    if let Err(frame) = hub.out.push(frame) {
        cx.drop(frame, DropReason::NoBuffers);
        return false;
    }
    true
}

/// Acknowledges what the host has taken, and tells the window.
pub(super) fn acknowledge(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> bool {
    let window = flow.tell_window();
    // The highest number sent, also while what came before it is being sent again: a guest that has it would not listen to less.
    let said = Said { flags: ACK, seq: flow.high, ack: flow.expected, window };
    let sent = bare(cx, hub, flow, said, &[]);
    flow.owes &= !sent;
    sent
}

/// Asks the guest for an acknowledgement by a number it has acknowledged already (RFC 9293 section 3.8.4).
pub(super) fn probe(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> bool {
    let said = Said { flags: ACK, seq: flow.first.wrapping_sub(1), ack: flow.expected, window: flow.window_field() };
    bare(cx, hub, flow, said, &[])
}

/// Our SYN: the answer to the guest's, or the first word of a published connection.
pub(super) fn syn(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> bool {
    let v6 = flow.key.inside.is_ipv6();
    let [a, b] = mss(hub.config.mtu, v6).to_be_bytes();
    let scaled = [2, 4, a, b, 1, 3, 3, OUR_SCALE];
    let answer = flow.state == State::Answered;
    let options = if answer && flow.scale.is_none() { scaled.get(..4) } else { Some(scaled.as_slice()) };
    let flags = if answer { SYN | ACK } else { SYN };
    let window = flow.first_window();
    let first = flow.next.wrapping_sub(1);
    let said = Said { flags, seq: first, ack: if answer { flow.expected } else { 0 }, window };
    bare(cx, hub, flow, said, options.unwrap_or_default())
}

/// Tells the guest that there is no connection (any more), by the number that it most likely expects: what is being sent again may have arrived.
pub(super) fn reset(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> bool {
    let said = Said { flags: RST | ACK, seq: flow.high, ack: flow.expected, window: 0 };
    bare(cx, hub, flow, said, &[])
}

/// Answers a segment of no connection by a reset (RFC 9293 section 3.10.7.1).
pub(super) fn refuse(cx: &mut Context, hub: &mut Hub, mac: wire::Mac, packet: &Packet, about: &Segment) -> bool {
    let said = if about.has(ACK) {
        Said { flags: RST, seq: about.ack, ack: 0, window: 0 }
    } else {
        Said { flags: RST | ACK, seq: 0, ack: about.seq.wrapping_add(about.space()), window: 0 }
    };
    let mut bytes = header((about.ports.1, about.ports.0), said, 5);
    let id = hub.next_id();
    let label = Label { source: packet.destination, destination: packet.source, protocol: TCP, ttl: TTL, tos: 0, id };
    hub.out.room() > 0 && segment(cx, hub, mac, &label, &mut bytes)
}

/// Sends what waits in the host socket, as much as the guest may have and one frame holds; or the end.
pub(super) fn data(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> Served {
    if flow.fin.is_some_and(|fin| fin == flow.next) {
        return end(cx, hub, flow);
    }
    if flow.fin_is_sent() || !flow.readable {
        return Served::Done;
    }
    let mss = usize::from(flow.mss.max(1));
    let allowed = flow.allowed() as usize;
    // Not a little while more is on the way (RFC 9293 section 3.8.6.2.1).
    if allowed == 0 || (allowed < mss && flow.on_the_way() > 0) {
        return Served::Done;
    }
    let most = (MOST / mss).max(1) * mss;
    let want = if allowed >= mss { (allowed / mss * mss).min(most) } else { allowed };
    match fill(cx, hub, flow, want) {
        Ok(0) => {
            flow.fin = Some(flow.next);
            end(cx, hub, flow)
        }
        Ok(_) if flow.fin_is_sent() => {
            flow.readable = false;
            Served::Done
        }
        Ok(n) if n == want => Served::More,
        // The end, or urgent data, is behind it, and was told already.
        Ok(_) if flow.hung_up || flow.urgent => Served::More,
        Ok(_) => {
            // There was less than asked for: whatever comes is told as an event.
            flow.readable = false;
            Served::Done
        }
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => {
                flow.readable = false;
                Served::Done
            }
            ErrorKind::OutOfMemory => Served::Full,
            _ => Served::Broken,
        },
    }
}

/// Our FIN.
fn end(cx: &mut Context, hub: &mut Hub, flow: &mut Flow) -> Served {
    let said = Said { flags: FIN | ACK, seq: flow.next, ack: flow.expected, window: flow.window_field() };
    if !bare(cx, hub, flow, said, &[]) {
        return Served::Full;
    }
    flow.next = flow.next.wrapping_add(1);
    flow.high = seq::max(flow.high, flow.next);
    flow.readable = false;
    Served::Done
}

/// A frame with up to `want` bytes; how many it has, 0 at the end of what the host sends.
fn fill(cx: &mut Context, hub: &mut Hub, flow: &mut Flow, want: usize) -> io::Result<usize> {
    let v6 = flow.key.inside.is_ipv6();
    let way = hub.way(cx, flow.mac);
    let l4 = ETHERNET_LEN + if v6 { 40 } else { 20 };
    let start = l4 + HEADER;
    if hub.out.room() == 0 || cx.heads.left() == 0 {
        return Err(ErrorKind::OutOfMemory.into());
    }
    let (frame, head) = cx.heads.begin(way.origin, 0).ok_or(ErrorKind::OutOfMemory)?;
    let near = want.min(HEAD_BYTES - start);
    let place = head.room().get_mut(start..start + near).ok_or(ErrorKind::OutOfMemory)?;
    let offset = flow.data_on_the_way() as usize;
    // What is owed by this frame may be that there is room again, which no event tells a second time.
    let window = if flow.owes { flow.tell_window() } else { flow.window_field() };
    let Some(socket) = &mut flow.socket else { return Err(ErrorKind::NotConnected.into()) };
    let (n, rest) = socket.peek(&mut cx.arena, offset, place, want - near)?;
    if n == 0 {
        return Ok(0);
    }
    let id = hub.next_ids(n / usize::from(flow.mss.max(1)) + 1);
    let label = label(flow, id);
    let mut headers = Headers::new();
    headers.ethernet(&way, v6);
    headers.ip(&label, HEADER + n, None, true);
    // All that came before the end was there when the end was told, so less than asked for is all.
    let last = flow.hung_up && !flow.urgent && n < want;
    let flags = if last { ACK | PSH | FIN } else { ACK | PSH };
    let said = Said { flags, seq: flow.next, ack: flow.expected, window };
    let mut tcp = header((flow.key.remote.port(), flow.key.inside.port()), said, 5);
    // What is owed begins from the sum of the pseudo header.
    let sum = inward::pseudo(label.source, label.destination, TCP, HEADER + n).fold();
    if let Some(field) = tcp.get_mut(16..18) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    headers.put(&tcp);
    let room = head.room().get_mut(..start).ok_or(ErrorKind::OutOfMemory)?;
    room.copy_from_slice(headers.bytes().get(..start).ok_or(ErrorKind::InvalidData)?);
    head.set_len(start + n);
    let gso = match (n > usize::from(flow.mss), v6) {
        (false, _) => Gso::None,
        (true, false) => Gso::Tcp4,
        (true, true) => Gso::Tcp6,
    };
    let size = if gso == Gso::None { 0 } else { flow.mss };
    head.offload = Offload::new(gso, start as u16, size, l4 as u16, 16);
    if !rest.is_empty() && !cx.heads.add_piece(&frame, rest) {
        // Peeked, and not sent: the next peek begins here again.
        let _ = flow.socket.as_ref().map(|socket| socket.rewind(offset));
        return Err(ErrorKind::OutOfMemory.into());
    }
    cx.ledger.originated += 1;
    if let Err(frame) = hub.out.push(frame) {
        cx.drop(frame, DropReason::NoBuffers);
    }
    flow.next = flow.next.wrapping_add(n as u32);
    if last {
        flow.fin = Some(flow.next);
        flow.next = flow.next.wrapping_add(1);
    }
    flow.high = seq::max(flow.high, flow.next);
    flow.owes = false;
    flow.packets += 1;
    flow.bytes += n as u64;
    Ok(n)
}

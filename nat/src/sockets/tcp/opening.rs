//! Connections that guests open: from the SYN until the host has connected or has not.
//!
//! Invariant: a guest that asks for more connections than it may have gets them in the place of its own that nobody has answered for [`SILENT`],
//! the oldest first, and of no others.
//! Read first: [`super::flow`], RFC 5382 section 5 (what keeps half-open connections from using everything up is left to the NAT).

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use sys::inet::tcp::Stream;
use wire::{Context, DropReason, Frame, Instant, Mac, NicId};

use super::{
    Tcp,
    flow::{Flow, FlowKey, State},
    inward,
    segment::Segment,
    serve,
};
use crate::sockets::{
    Hub, Token,
    errors::{self, Saying},
    mappings::Slot,
    packet::Packet,
    udp::{is_room, no_room, prohibited, source_mac, tell},
};

/// After which a connection that nobody has answered gives way: the host has sent its SYN three times.
const SILENT: Duration = Duration::from_secs(3);

/// By NIC, the connections that its guest has opened, the oldest first; those that are past connecting are taken out now and then.
#[derive(Default)]
pub(super) struct Connecting {
    lines: Vec<VecDeque<Slot>>,
}

impl Tcp {
    /// A guest's SYN: the host begins to connect.
    pub(super) fn open(
        &mut self,
        cx: &mut Context,
        frame: Frame,
        packet: &Packet,
        segment: &Segment,
        key: FlowKey,
        hub: &mut Hub,
    ) {
        let mac = source_mac(cx, &frame);
        let Some(address) = hub.reach(packet.destination) else {
            // To the router itself, where nothing listens: refused, as any host would say.
            if hub.router(packet.destination.is_ipv6()) == Some(packet.destination) {
                inward::refuse(cx, hub, mac, packet, segment);
                return cx.drop(frame, DropReason::NoConnection);
            }
            return prohibited(cx, hub, frame, packet);
        };
        if !(hub.take_descriptor(key.nic) || self.give_way(key.nic, cx.now, hub) && hub.take_descriptor(key.nic)) {
            return no_room(cx, hub, frame, packet);
        }
        let peer = SocketAddr::new(address, key.remote.port());
        let socket = match Stream::connect(peer) {
            Ok(socket) => socket,
            Err(error) => {
                hub.return_descriptor(key.nic);
                if is_room(&error) {
                    return no_room(cx, hub, frame, packet);
                }
                return self.not_connected(cx, hub, (frame, packet, segment, mac), &error);
            }
        };
        let mut flow = Flow::new(key, peer, socket, State::Connecting, hub.chance() as u32);
        flow.mac = mac;
        flow.expected = segment.seq.wrapping_add(1);
        flow.edge = flow.expected;
        flow.mss = segment.mss.min(inward::mss(hub.config.mtu, key.inside.is_ipv6())).max(1);
        flow.scale = segment.scale;
        flow.window = u32::from(segment.window);
        flow.packets = 1;
        // The kernel has waits of its own; this is for what it forgets.
        flow.deadline = cx.now + hub.config.tcp_opening;
        let slot = self.enter(flow);
        let watched = self
            .table
            .get(slot)
            .and_then(|flow| flow.socket.as_ref())
            .map(|socket| hub.watch_changes(socket, Token::Tcp(slot)));
        if !matches!(watched, Some(Ok(()))) {
            self.remove(slot, hub);
            return no_room(cx, hub, frame, packet);
        }
        self.note_connecting(key.nic, slot, hub);
        self.last = Some((key, slot));
        cx.transmitted(1, cx.heads.get(&frame).len() as u64);
    }

    /// Ends guests' connections to where they may not: to addresses that are this host's now.
    pub(crate) fn end_forbidden(&mut self, cx: &mut Context, hub: &mut Hub) {
        let forbidden = |flow: &Flow| flow.socket.is_some() && flow.door.is_none() && hub.keeps_out_of(flow.peer.ip());
        for slot in self.table.slots(forbidden) {
            if let Some(flow) = self.table.get_mut(slot) {
                inward::reset(cx, hub, flow);
            }
            self.abort(slot, hub);
        }
    }

    /// Tells a guest why the host did not even begin to connect.
    fn not_connected(
        &mut self,
        cx: &mut Context,
        hub: &mut Hub,
        (frame, packet, segment, mac): (Frame, &Packet, &Segment, Mac),
        error: &std::io::Error,
    ) {
        match serve::saying(error, packet.source.is_ipv6()) {
            Some(say) => tell(cx, hub, &frame, packet, say),
            None => {
                inward::refuse(cx, hub, mac, packet, segment);
            }
        }
        cx.drop(frame, DropReason::NoRoute);
    }

    /// Tells about the guest's SYN what the outside said of it.
    pub(super) fn tell(&mut self, cx: &mut Context, hub: &mut Hub, flow: &Flow, say: Saying) {
        let v6 = flow.key.inside.is_ipv6();
        let Some(router) = hub.router(v6) else { return };
        let way = hub.way(cx, flow.mac);
        let sent =
            errors::Sent { inside: flow.key.inside, remote: flow.key.remote, id: 0, tos: 0, df: !v6, len: 20, sum: 0 };
        errors::about_syn(cx, &mut hub.out, &way, router, say, &sent, flow.expected.wrapping_sub(1));
    }

    /// Writes down that a connection waits for the host.
    fn note_connecting(&mut self, nic: NicId, slot: Slot, hub: &Hub) {
        let lines = &mut self.connecting.lines;
        if lines.len() <= nic.index() {
            lines.resize_with(nic.index() + 1, VecDeque::new);
        }
        let Some(line) = lines.get_mut(nic.index()) else { return };
        let table = &self.table;
        let connects = |slot: &Slot| table.get(*slot).is_some_and(|flow| flow.state == State::Connecting);
        while line.front().is_some_and(|oldest| !connects(oldest)) {
            line.pop_front();
        }
        // No more than the quota are left, so this happens once for as many connections.
        if line.len() >= 2 * hub.config.descriptor_quota {
            line.retain(connects);
        }
        line.push_back(slot);
    }

    /// Ends the NIC's oldest connection that was never answered; false when there is none that has waited long enough.
    fn give_way(&mut self, nic: NicId, now: Instant, hub: &mut Hub) -> bool {
        while let Some(oldest) = self.connecting.lines.get_mut(nic.index()).and_then(|line| line.pop_front()) {
            let Some(flow) = self.table.get(oldest).filter(|flow| flow.state == State::Connecting) else { continue };
            let waited = hub.config.tcp_opening.saturating_sub(flow.deadline.since(now));
            if waited < SILENT {
                if let Some(line) = self.connecting.lines.get_mut(nic.index()) {
                    line.push_front(oldest);
                }
                return false;
            }
            self.abort(oldest, hub);
            return true;
        }
        false
    }
}

//! What comes in for guests: datagrams and errors ([`Udp::ready`]).
//!
//! Invariant: a datagram is made into frames only when there is room for all of them; until then it waits in the batch, and nothing else is received.
//! Read first: [`crate::sockets::inward`], RFC 4787 REQ-8.

use std::io;

use sys::inet::udp::{Datagrams, RecvBatch};
use wire::{BURST, Context, DropReason};

use super::{Backlog, Mapping, Talk, Udp, Via};
use crate::{
    config::Filtering,
    sockets::{Hub, endpoints, errors, inward, mappings::Slot},
};

impl Udp {
    /// The socket of a mapping has something.
    pub(crate) fn ready(&mut self, cx: &mut Context, slot: Slot, hub: &mut Hub) {
        self.ready_via(cx, Via::Mapping(slot), hub);
    }

    /// A published port has something.
    pub(crate) fn ready_published(&mut self, cx: &mut Context, door: u32, hub: &mut Hub) {
        self.ready_via(cx, Via::Door(door), hub);
    }

    /// Makes frames of what was received in an earlier turn; false while some of it still waits.
    pub(crate) fn resume(&mut self, cx: &mut Context, hub: &mut Hub) -> bool {
        if let Some(backlog) = self.backlog.take() {
            self.make(cx, hub, backlog);
        }
        self.backlog.is_none()
    }

    fn ready_via(&mut self, cx: &mut Context, via: Via, hub: &mut Hub) {
        if !self.resume(cx, hub) || hub.out.room() == 0 {
            return;
        }
        let (socket, talk) = match via {
            Via::Mapping(slot) => match self.mappings.get_mut(slot) {
                Some(Mapping { socket, talk }) => (socket, Some(&*talk)),
                None => return,
            },
            Via::Door(door) => match self.publications.socket(door) {
                Some(socket) => (socket, None),
                None => return,
            },
        };
        let nic = talk.map_or(cx.nic, |talk| talk.nic);
        if !hub.spend(nic) {
            return;
        }
        match self.batch.receive(socket, hub.out.room()) {
            Ok(0) => {}
            Ok(_) => self.make(cx, hub, Backlog { via, index: 0, at: 0 }),
            Err(error) => {
                // Nothing there, so that it was an error that woke us; or the error itself.
                let _ = read_errors(cx, hub, socket, &mut self.errors, talk);
                if error.kind() != io::ErrorKind::WouldBlock {
                    let _ = socket.take_error();
                }
            }
        }
    }

    /// Makes frames of the datagrams of a batch from one on, as far as there is room.
    fn make(&mut self, cx: &mut Context, hub: &mut Hub, mut backlog: Backlog) {
        while backlog.index < self.batch.len() {
            let Some(incoming) = self.batch.get(backlog.index) else {
                backlog = Backlog { index: backlog.index + 1, at: 0, ..backlog };
                continue;
            };
            let bytes = incoming.bytes;
            let inside = match backlog.via {
                Via::Mapping(slot) => self.mappings.get(slot).map(|Mapping { talk, .. }| {
                    (talk.inside, talk.mac, hub.seen_as(incoming.from, talk.inside.is_ipv6()))
                }),
                Via::Door(door) => self.publications.arrival(door, incoming.from, cx.now),
            };
            let Some((to, mac, Some(from))) = inside else {
                cx.lost(DropReason::NotTranslated);
                backlog = Backlog { index: backlog.index + 1, at: 0, ..backlog };
                continue;
            };
            if let Via::Mapping(slot) = backlog.via
                && self.filtering == Filtering::AddressDependent
                && let Some(Mapping { talk, .. }) = self.mappings.get(slot)
                && !talk.permits(incoming.from, self.permit_lifetime, cx.now)
            {
                cx.lost(DropReason::Filtered);
                backlog = Backlog { index: backlog.index + 1, at: 0, ..backlog };
                continue;
            }
            let way = hub.way(cx, mac);
            let (segment, v6) = (usize::from(incoming.segment), to.is_ipv6());
            let whole = backlog.at == 0 && inward::is_super(bytes.len(), segment, way.mtu, v6);
            let end = match segment {
                1.. if !whole => (backlog.at + segment).min(bytes.len()),
                _ => bytes.len(),
            };
            let part = bytes.get(backlog.at..end).unwrap_or_default();
            let need = if whole { 1 } else { inward::frames(part.len(), way.mtu, v6) };
            if hub.out.room() < need.min(BURST) {
                break;
            }
            // Identifications of a super-frame's segments follow on each other.
            let id = self.id;
            self.id = self.id.wrapping_add(if whole { (bytes.len() / segment.max(1) + 1) as u16 } else { 1 });
            let label = inward::label(from, to, 64, incoming.tos, id);
            let segment = if whole { incoming.segment } else { 0 };
            inward::datagram(cx, &mut hub.out, &way, &label, (from.port(), to.port()), part, segment);
            if let Via::Mapping(slot) = backlog.via
                && let Some(Mapping { talk, .. }) = self.mappings.get_mut(slot)
            {
                talk.packets += 1;
                talk.bytes += part.len() as u64 + if v6 { 48 } else { 28 };
            }
            backlog = match end {
                end if end < bytes.len() => Backlog { at: end, ..backlog },
                _ => Backlog { index: backlog.index + 1, at: 0, ..backlog },
            };
        }
        self.backlog = (backlog.index < self.batch.len()).then_some(backlog);
    }
}

/// Reads the errors that came back to a socket and tells the guest, if it is one's; gives the MTU of the last that the host itself found.
pub(super) fn read_errors(
    cx: &mut Context,
    hub: &mut Hub,
    socket: &Datagrams,
    batch: &mut RecvBatch,
    talk: Option<&Talk>,
) -> Option<u32> {
    endpoints::read_errors(cx, hub, socket, batch, |cx, hub, back| {
        let Some(talk) = talk else { return };
        let note = talk.noted(back.to);
        let sent = errors::Sent {
            inside: talk.inside,
            remote: back.remote,
            id: note.map_or(0, |note| note.id),
            tos: note.map_or(0, |note| note.tos),
            df: note.is_some_and(|note| note.df) && talk.inside.is_ipv4(),
            len: note.map_or(8, |note| note.len),
            sum: note.map_or(0, |note| note.sum),
        };
        let way = hub.way(cx, talk.mac);
        errors::about_udp(cx, &mut hub.out, &way, back, &sent);
    })
}

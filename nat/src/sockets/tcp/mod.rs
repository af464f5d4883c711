//! [`Tcp`]: TCP flow by flow, each on a host socket of its own.
//!
//! Invariant: what the host socket took is acknowledged to the guest and no more; the guest hears that it is connected only when the host is. A flow has
//! one place in the table, one in the index, at most one in the list of those to be served and one that counts in the wheel of timers. Flows are
//! bounded by descriptors, each NIC by its own.
//!
//! Theory of operation: a guest's segment goes straight to its flow (`arrive.rs`): an acknowledgement discards from the host socket what it
//! covers, data is written to it. What the guest is owed for that is written down, and sent once for all the segments of a burst. The host's side comes
//! as events of the sockets (`serve.rs`): flows with something to say stand in line by NIC, and each in its turn has one super-frame made by
//! peeking (`inward.rs`). The kernel's buffers are the only ones, so a guest that does not read stops whoever sends, and the other way round.
//! Read first: [`flow`], RFC 9293 section 3.10.

mod arrive;
mod flow;
mod inward;
mod opening;
mod publish;
mod segment;
mod serve;
mod table;
mod timers;

use std::{collections::VecDeque, net::SocketAddr};

use wire::{Context, DropReason, Frame, Instant, Layers, NicId};

use super::{Hub, mappings::Slot, packet::Packet, udp::source_mac};
use crate::{control::Line, record::Protocol};
use flow::{Flow, FlowKey, State};
use opening::Connecting;
use publish::Listeners;
use segment::{ACK, RST, SYN, Segment};
use table::Table;
use timers::Timers;

/// See the module's documentation.
pub(crate) struct Tcp {
    table: Table,
    timers: Timers,
    listeners: Listeners,
    /// By NIC, flows that have something for their guests; and the NICs that have such flows, in their turn.
    lines: Vec<VecDeque<Slot>>,
    turns: VecDeque<NicId>,
    /// Flows whose guests are owed an acknowledgement.
    owed: Vec<Slot>,
    due: Vec<Slot>,
    connecting: Connecting,
    /// Flows that are over and remembered for what comes late, the oldest first.
    over: VecDeque<Slot>,
    /// The flow that was spoken of last, which is likely to be the next.
    last: Option<(FlowKey, Slot)>,
}

impl Tcp {
    /// Without a connection.
    pub(crate) fn new(hub: &Hub) -> Tcp {
        Tcp {
            table: Table::new(hub.config.seed ^ 0x5443_5000),
            timers: Timers::new(),
            listeners: Listeners::default(),
            lines: Vec::new(),
            turns: VecDeque::new(),
            owed: Vec::with_capacity(wire::BURST),
            due: Vec::new(),
            connecting: Connecting::default(),
            over: VecDeque::new(),
            last: None,
        }
    }

    /// Takes a guest's whole TCP packet.
    pub(crate) fn leave(&mut self, cx: &mut Context, frame: Frame, layers: &Layers, hub: &mut Hub) {
        let read = Packet::read(cx.heads.get(&frame), layers)
            .and_then(|packet| Ok((packet, Segment::read(cx, &frame, &packet)?)));
        let (packet, segment) = match read {
            Ok(read) => read,
            Err(reason) => return cx.drop(frame, reason),
        };
        if !packet.is_unicast() {
            return cx.drop(frame, DropReason::NoRoute);
        }
        let key = FlowKey {
            nic: packet.origin.nic,
            inside: SocketAddr::new(packet.source, segment.ports.0),
            remote: SocketAddr::new(packet.destination, segment.ports.1),
        };
        let known = self.last.filter(|(of, slot)| *of == key && self.table.get(*slot).is_some());
        let known = known.map(|(_, slot)| slot).or_else(|| self.find(key, &segment, hub));
        let opens = segment.has(SYN) && segment.flags & (RST | ACK) == 0;
        if let Some(slot) = known {
            let is_over = self.table.get(slot).is_some_and(|flow| flow.state == State::Over);
            if !(is_over && opens) {
                self.last = Some((key, slot));
                return self.arrive(cx, frame, &segment, slot, hub);
            }
            self.remove(slot, hub);
        }
        let mac = source_mac(cx, &frame);
        if opens && packet.destination != packet.source {
            return self.open(cx, frame, &packet, &segment, key, hub);
        }
        if !segment.has(RST) {
            inward::refuse(cx, hub, mac, &packet, &segment);
        }
        cx.drop(frame, DropReason::NoConnection);
    }

    /// The flow of a key. One that was opened without its NIC being known gets it here, from whoever has read the SYN: it acknowledges a number that nobody
    /// can guess.
    fn find(&mut self, key: FlowKey, segment: &Segment, hub: &mut Hub) -> Option<Slot> {
        self.table.find(key).or_else(|| {
            let slot = self.table.find(FlowKey { nic: publish::ANY, ..key })?;
            let answers = |flow: &&Flow| flow.state == State::Asked && segment.has(ACK) && segment.ack == flow.next;
            self.table.get(slot).filter(answers)?;
            self.table.move_to(slot, key);
            hub.move_descriptor(publish::ANY, key.nic);
            Some(slot)
        })
    }

    /// Puts a new flow into the table and the wheel.
    fn enter(&mut self, flow: Flow) -> Slot {
        let deadline = flow.deadline;
        let slot = self.table.insert(flow);
        let scheduled = self.timers.put(slot, deadline);
        if let Some(flow) = self.table.get_mut(slot) {
            flow.scheduled = scheduled;
        }
        slot
    }

    /// Has a flow looked at no later than at its deadline.
    fn schedule(&mut self, slot: Slot) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if self.timers.due(flow.deadline) < flow.scheduled {
            flow.scheduled = self.timers.put(slot, flow.deadline);
        }
    }

    /// Has a flow served in its NIC's turn.
    fn queue(&mut self, slot: Slot) {
        let Some(flow) = self.table.get_mut(slot).filter(|flow| !flow.queued) else { return };
        flow.queued = true;
        let nic = flow.key.nic;
        let nic = if nic == publish::ANY { NicId(0) } else { nic };
        if self.lines.len() <= nic.index() {
            self.lines.resize_with(nic.index() + 1, VecDeque::new);
        }
        if let Some(line) = self.lines.get_mut(nic.index()) {
            if line.is_empty() {
                self.turns.push_back(nic);
            }
            line.push_back(slot);
        }
    }

    /// Writes down that a guest is owed an acknowledgement.
    fn owe(&mut self, slot: Slot) {
        if let Some(flow) = self.table.get_mut(slot).filter(|flow| !flow.owes) {
            flow.owes = true;
            self.owed.push(slot);
        }
    }

    /// Takes a flow out; its socket is closed.
    fn remove(&mut self, slot: Slot, hub: &mut Hub) -> Option<Flow> {
        let flow = self.table.remove(slot)?;
        if flow.socket.is_some() {
            hub.return_descriptor(flow.key.nic);
        }
        Some(flow)
    }

    /// Takes a flow out and resets what is left of it outside.
    fn abort(&mut self, slot: Slot, hub: &mut Hub) {
        if let Some(mut flow) = self.remove(slot, hub)
            && let Some(socket) = flow.socket.take()
        {
            socket.reset();
        }
    }

    /// Both directions have ended: the socket is closed, and the flow remembered for a moment.
    fn finish(&mut self, slot: Slot, now: Instant, hub: &mut Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if flow.socket.take().is_some() {
            hub.return_descriptor(flow.key.nic);
        }
        flow.state = State::Over;
        flow.deadline = now + serve::LINGER;
        self.schedule(slot);
        self.over.push_back(slot);
        if self.over.len() > serve::MOST_OVER
            && let Some(oldest) = self.over.pop_front()
        {
            self.table.remove(oldest);
        }
    }

    /// What is remembered.
    pub(crate) fn show(&self, now: Instant, lines: &mut Vec<Line>) {
        for flow in self.table.iter() {
            lines.push(Line {
                protocol: Protocol::Tcp,
                nic: flow.key.nic,
                inside: flow.key.inside,
                outside: flow.outside,
                remote: Some(flow.peer),
                state: flow.word(),
                expires: Some(flow.deadline.since(now).as_secs() as u32),
                packets: flow.packets,
                bytes: flow.bytes,
            });
        }
        lines.extend(self.listeners.iter().map(|(_, door)| door.line()));
    }
}

//! The host's side: sockets' events, flows served in turn, acknowledgements sent, and what is done when nothing happens.
//!
//! Invariant: each NIC has its turn, and each of its flows in that; a NIC that has had its share of system calls waits for the next turn.
//! Read first: [`super`], RFC 9293 sections 3.8.1 (sending again) and 3.8.6.1 (probing).

use std::{io, time::Duration};

use wire::{Context, Instant};

use super::{
    Tcp,
    flow::{SYN_WAITS, State, WAITS},
    inward::{self, Served},
};
use crate::sockets::{
    Hub,
    errors::{self, Saying},
    mappings::Slot,
};

/// How long a flow that is over is remembered.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// How many of them.
pub(super) const MOST_OVER: usize = 16_384;
/// Linux's number of a connection attempt that nobody answered (errno(3)).
const ETIMEDOUT: i32 = 110;

/// What a guest is told when its connection could not be made; nothing where that is a reset.
pub(super) fn saying(error: &io::Error, v6: bool) -> Option<Saying> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => None,
        _ if error.raw_os_error() == Some(ETIMEDOUT) => {
            Some(if v6 { Saying { kind: 1, code: 3, word: 0 } } else { Saying { kind: 3, code: 1, word: 0 } })
        }
        // No ports, no memory: not now.
        _ => errors::from_errno(error.raw_os_error().unwrap_or(0), v6, 0).or(Some(if v6 {
            Saying { kind: 1, code: 1, word: 0 }
        } else {
            Saying { kind: 3, code: 13, word: 0 }
        })),
    }
}

impl Tcp {
    /// A flow's socket has changed.
    pub(crate) fn ready(&mut self, cx: &mut Context, slot: Slot, change: sys::epoll::Change, hub: &mut Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        flow.readable |= change.readable || change.failed;
        flow.hung_up |= change.ended;
        flow.urgent |= change.urgent;
        match flow.state {
            State::Connecting => return self.connected(cx, slot, change, hub),
            State::Asked if change.failed => {
                // The client has gone before the guest was there.
                inward::reset(cx, hub, flow);
                return self.abort(slot, hub);
            }
            State::Open if change.failed => {
                if let Some(Ok(Some(_))) = flow.socket.as_ref().map(sys::inet::tcp::Stream::take_error) {
                    inward::reset(cx, hub, flow);
                    return self.abort(slot, hub);
                }
            }
            _ => {}
        }
        // There is room again for a guest that was told that there is none.
        if change.writable && flow.state == State::Open && !flow.ended && flow.window_is_small() {
            self.owe(slot);
        }
        self.settle(cx, slot, hub);
    }

    /// The host has connected, or it has not.
    fn connected(&mut self, cx: &mut Context, slot: Slot, change: sys::epoll::Change, hub: &mut Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        // A socket that failed says so with the event.
        let failed = change.failed.then(|| flow.socket.as_ref().map(sys::inet::tcp::Stream::take_error)).flatten();
        let error = match failed {
            None | Some(Ok(None)) if change.writable => {
                flow.state = State::Answered;
                flow.next = flow.first.wrapping_add(1);
                flow.first = flow.next;
                flow.high = flow.next;
                inward::syn(cx, hub, flow);
                flow.deadline = cx.now + flow.wait();
                return self.schedule(slot);
            }
            None | Some(Ok(None)) => return,
            Some(Ok(Some(error))) | Some(Err(error)) => error,
        };
        match saying(&error, flow.key.inside.is_ipv6()) {
            None => {
                inward::reset(cx, hub, flow);
                self.remove(slot, hub);
            }
            Some(say) => {
                if let Some(flow) = self.remove(slot, hub) {
                    self.tell(cx, hub, &flow, say);
                }
            }
        }
    }

    /// Makes frames for guests while there is room: data first, which acknowledges by the way, then what is still owed.
    pub(crate) fn serve(&mut self, cx: &mut Context, hub: &mut Hub) {
        let mut tired = 0;
        while hub.out.room() > self.owed.len().min(8)
            && let Some(nic) = self.turns.pop_front()
        {
            let Some(line) = self.lines.get_mut(nic.index()) else { continue };
            if !hub.spend(nic) {
                self.turns.push_back(nic);
                tired += 1;
                if tired >= self.turns.len() {
                    break;
                }
                continue;
            }
            let slot = line.pop_front();
            if !line.is_empty() {
                self.turns.push_back(nic);
            }
            let Some(slot) = slot else { continue };
            let Some(flow) = self.table.get_mut(slot) else { continue };
            flow.queued = false;
            match inward::data(cx, hub, flow) {
                Served::More => self.queue(slot),
                Served::Full => {
                    self.queue(slot);
                    break;
                }
                Served::Broken => {
                    inward::reset(cx, hub, flow);
                    self.abort(slot, hub);
                    continue;
                }
                Served::Done => {}
            }
            self.await_answer(cx, slot, hub);
        }
        self.pay(cx, hub);
    }

    /// After something was sent: an answer is waited for.
    fn await_answer(&mut self, cx: &Context, slot: Slot, hub: &Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if flow.state == State::Open {
            let waits = flow.on_the_way() > 0 || (flow.readable && flow.window == 0);
            let established = cx.now + hub.config.tcp_established;
            flow.deadline = if waits { flow.deadline.min(cx.now + flow.wait()) } else { established };
            self.schedule(slot);
        }
    }

    /// Sends the acknowledgements that are still owed.
    fn pay(&mut self, cx: &mut Context, hub: &mut Hub) {
        while let Some(slot) = self.owed.pop() {
            if hub.out.room() == 0 {
                self.owed.push(slot);
                return;
            }
            if let Some(flow) = self.table.get_mut(slot).filter(|flow| flow.owes) {
                inward::acknowledge(cx, hub, flow);
                flow.owes = false;
            }
        }
    }

    /// Whether there is something to do that no event will tell of.
    pub(crate) fn waits(&self) -> bool {
        !self.turns.is_empty() || !self.owed.is_empty()
    }

    /// When the next flow is to be looked at.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.deadline()
    }

    /// Looks at the flows whose time has come.
    pub(crate) fn sweep(&mut self, cx: &mut Context, hub: &mut Hub) {
        if !self.timers.is_due(cx.now) {
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        self.timers.take(cx.now, &mut due);
        for slot in due.drain(..) {
            self.look(cx, slot, hub);
        }
        self.due = due;
    }

    fn look(&mut self, cx: &mut Context, slot: Slot, hub: &mut Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if cx.now < flow.scheduled {
            // It was put into an earlier bucket meanwhile, and this is an entry of before.
            return;
        }
        if cx.now < flow.deadline {
            flow.scheduled = self.timers.put(slot, flow.deadline);
            return;
        }
        flow.waits = flow.waits.saturating_add(1);
        match flow.state {
            State::Over => {
                self.table.remove(slot);
                while self.over.front().is_some_and(|oldest| self.table.get(*oldest).is_none()) {
                    self.over.pop_front();
                }
                return;
            }
            State::Connecting => return self.abort(slot, hub),
            State::Answered | State::Asked if flow.waits >= SYN_WAITS => return self.abort(slot, hub),
            State::Answered | State::Asked => {
                inward::syn(cx, hub, flow);
            }
            State::Open if flow.on_the_way() > 0 && flow.waits < WAITS => {
                flow.lost(true);
                if flow.allowed() > 0 || flow.fin == Some(flow.next) {
                    self.queue(slot);
                } else {
                    inward::probe(cx, hub, flow);
                }
            }
            State::Open if flow.readable && flow.window == 0 && flow.waits < WAITS => {
                inward::probe(cx, hub, flow);
            }
            // Silent for as long as it may be, or for too long.
            State::Open => {
                inward::reset(cx, hub, flow);
                return self.abort(slot, hub);
            }
        }
        if let Some(flow) = self.table.get_mut(slot) {
            flow.deadline = cx.now + flow.wait();
            flow.scheduled = self.timers.put(slot, flow.deadline);
        }
    }
}

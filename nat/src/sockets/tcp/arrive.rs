//! A guest's segment at its flow.
//!
//! Invariant: nothing is acknowledged that the host socket did not take. A segment outside of what is expected changes nothing and is answered by
//! what is expected, so that whoever guesses numbers learns and breaks nothing, and who asks whether we are there (RFC 9293 section 3.8.4) hears it.
//! Read first: RFC 9293 section 3.10.7, RFC 5961 sections 3 to 5 (challenges).

use std::io::ErrorKind;

use wire::{Context, DropReason, Frame};

use super::{
    Tcp,
    flow::{Flow, State, WAITS},
    inward,
    segment::{ACK, FIN, RST, SYN, Segment, seq},
};
use crate::sockets::{
    Hub,
    mappings::Slot,
    packet::{body, front},
    udp::source_mac,
};

/// Acknowledgements of one number that mean that something was lost (RFC 5681 section 3.2).
const REPEATED: u8 = 3;

/// What is to happen to the flow after a segment.
enum After {
    /// It goes on.
    Go,
    /// The guest has given it up.
    Abort,
    /// The host's end is no more: the guest is told.
    Broken,
}

impl Tcp {
    pub(super) fn arrive(&mut self, cx: &mut Context, frame: Frame, segment: &Segment, slot: Slot, hub: &mut Hub) {
        let mac = source_mac(cx, &frame);
        let Some(flow) = self.table.get_mut(slot) else { return cx.drop(frame, DropReason::NoConnection) };
        flow.packets += 1;
        flow.mac = mac;
        let after = match flow.state {
            State::Connecting => connecting(segment),
            State::Asked => {
                let after = asked(flow, segment, hub);
                if flow.state == State::Open {
                    // Without an acknowledgement the guest's answer is not the last word, also where the client says nothing.
                    self.owe(slot);
                }
                after
            }
            State::Over => {
                // Our last word was lost, it seems.
                if segment.space() > 0 && !segment.has(RST) {
                    inward::acknowledge(cx, hub, flow);
                }
                After::Go
            }
            State::Answered if segment.has(SYN) && !segment.has(RST) => {
                inward::syn(cx, hub, flow);
                After::Go
            }
            State::Answered | State::Open => self.go_on(cx, &frame, segment, slot, hub),
        };
        cx.transmitted(1, cx.heads.get(&frame).len() as u64);
        match after {
            After::Abort => self.abort(slot, hub),
            After::Broken => {
                if let Some(flow) = self.table.get_mut(slot) {
                    inward::reset(cx, hub, flow);
                }
                self.abort(slot, hub);
            }
            After::Go => self.settle(cx, slot, hub),
        }
    }

    /// What follows when a segment, or an event, has been taken.
    pub(super) fn settle(&mut self, cx: &Context, slot: Slot, hub: &mut Hub) {
        let Some(flow) = self.table.get_mut(slot) else { return };
        if flow.state == State::Over {
            return;
        }
        if flow.is_over() {
            // What is owed is sent before the flow is forgotten.
            return self.finish(slot, cx.now, hub);
        }
        if flow.state == State::Open {
            let idle = flow.on_the_way() == 0 && !(flow.readable && flow.window == 0);
            // What is waited for is not put off by a guest that says something else (RFC 6298 section 5).
            flow.deadline =
                if idle { cx.now + hub.config.tcp_established } else { flow.deadline.min(cx.now + flow.wait()) };
            let serve = (flow.readable && flow.allowed() > 0) || flow.fin == Some(flow.next);
            if serve {
                self.queue(slot);
            }
        }
        self.schedule(slot);
    }

    /// A segment of a connection that is open, or about to be.
    fn go_on(&mut self, cx: &mut Context, frame: &Frame, segment: &Segment, slot: Slot, hub: &mut Hub) -> After {
        let Some(flow) = self.table.get_mut(slot) else { return After::Go };
        if segment.has(RST) {
            if segment.seq == flow.expected {
                return After::Abort;
            }
            let window = flow.edge.wrapping_sub(flow.expected).max(1);
            if segment.seq.wrapping_sub(flow.expected) < window {
                self.owe(slot);
            }
            return After::Go;
        }
        // Neither its end before what is expected nor its beginning behind the window; a SYN is never in its place. Who probes a closed window by an
        // octet may go on from before it or from behind it, and is to be heard all the same (RFC 9293 section 3.10.7.4).
        let (begins, ends) = (segment.seq, segment.seq.wrapping_add(segment.space()));
        let old = seq::before(ends.wrapping_add(1), flow.expected);
        let behind = seq::before(flow.edge.wrapping_add(1), begins);
        if segment.has(SYN) || old || behind {
            self.owe(slot);
            return After::Go;
        }
        if !segment.has(ACK) {
            return After::Go;
        }
        // No more than was sent.
        if seq::before(flow.high, segment.ack) {
            self.owe(slot);
            return After::Go;
        }
        if flow.state == State::Answered {
            if segment.ack != flow.next {
                return After::Go;
            }
            flow.state = State::Open;
            flow.waits = 0;
        }
        let first = flow.first;
        acknowledged(flow, segment);
        if flow.first != first {
            flow.deadline = cx.now + flow.wait();
        } else if flow.on_the_way() == 0 || (flow.window == 0 && segment.ack == first) {
            // A guest that answers probes may keep its window closed (RFC 9293 section 3.8.6.1), for our FIN, too.
            flow.waits = flow.waits.min(WAITS / 2);
        }
        if let Err(after) = taken(cx, frame, segment, flow) {
            return after;
        }
        if segment.space() > 0 {
            // What is not in its place is told at once, for the guest counts on being told each time.
            if seq::before(flow.expected, segment.seq) {
                inward::acknowledge(cx, hub, flow);
            } else {
                self.owe(slot);
            }
        } else if seq::before(segment.seq, flow.expected) {
            // It asks whether we are there (RFC 9293 section 3.8.4), or has not heard what we have.
            self.owe(slot);
        }
        After::Go
    }
}

fn connecting(segment: &Segment) -> After {
    // Its SYN again, most likely: the host is at it.
    if segment.has(RST) { After::Abort } else { After::Go }
}

/// The guest's answer to our SYN.
fn asked(flow: &mut Flow, segment: &Segment, hub: &Hub) -> After {
    let answers = segment.has(ACK) && segment.ack == flow.next;
    if segment.has(RST) {
        return if answers { After::Abort } else { After::Go };
    }
    if !(answers && segment.has(SYN)) {
        return After::Go;
    }
    flow.expected = segment.seq.wrapping_add(1);
    flow.edge = flow.expected;
    flow.mss = segment.mss.min(inward::mss(hub.config.mtu, flow.key.inside.is_ipv6())).max(1);
    flow.scale = segment.scale;
    flow.window = u32::from(segment.window);
    flow.first = flow.next;
    flow.state = State::Open;
    flow.waits = 0;
    // The client may have spoken already.
    flow.readable = true;
    After::Go
}

/// The acknowledgement and the window in a segment.
fn acknowledged(flow: &mut Flow, segment: &Segment) {
    let window = u32::from(segment.window) << flow.scale.unwrap_or(0);
    if seq::before(flow.first, segment.ack) {
        let mut data = flow.acknowledged(segment.ack) as usize;
        // It was peeked at, so it is there; where there is urgent data, in more than one part.
        while let (Some(socket), 1..) = (&flow.socket, data) {
            match socket.discard(data) {
                Ok(n @ 1..) => data = data.saturating_sub(n),
                _ => break,
            }
        }
        flow.window = window;
    } else if segment.ack == flow.first {
        let again = flow.on_the_way() > 0 && segment.space() == 0 && window == flow.window;
        if flow.window == 0 && window > 0 {
            // How long it was closed says nothing of what is sent from now on.
            flow.waits = 0;
        }
        flow.window = window;
        if again {
            flow.repeated = flow.repeated.saturating_add(1);
            // Behind a loss the guest repeats itself for what was sent twice, too (RFC 6582 section 4.1).
            if flow.repeated == REPEATED && seq::before(flow.recover, flow.first) {
                flow.lost(false);
                // Not again until something new was acknowledged.
                flow.repeated = REPEATED + 1;
            }
        }
    }
}

/// Hands the data of a segment, and its end, to the host socket, as far as they are next and it takes them.
fn taken(cx: &Context, frame: &Frame, segment: &Segment, flow: &mut Flow) -> Result<(), After> {
    if seq::before(flow.expected, segment.seq) || flow.ended {
        return Ok(());
    }
    let before = flow.expected.wrapping_sub(segment.seq);
    if before > segment.len() {
        return Ok(());
    }
    let Some(socket) = &mut flow.socket else { return Ok(()) };
    let (from, to) = (segment.data + before as usize, segment.end);
    let mut at = from;
    if to > from {
        let head = cx.heads.get(frame);
        match socket.send(&cx.arena, front(head, from, to), body(cx, frame, from, to)) {
            Ok(n) => at += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(After::Broken),
        }
        flow.expected = flow.expected.wrapping_add((at - from) as u32);
        flow.bytes += (at - from) as u64;
        // It was told no less than this.
        flow.edge = seq::max(flow.edge, flow.expected);
    }
    if at == to && segment.has(FIN) {
        flow.expected = flow.expected.wrapping_add(1);
        flow.edge = seq::max(flow.edge, flow.expected);
        flow.ended = true;
        // Where both directions have ended now, the socket is closed, which says the same.
        if !flow.fin_acked && socket.end().is_err() {
            return Err(After::Broken);
        }
    }
    Ok(())
}

//! Datagrams of guests on their way out: [`Udp::flush`].
//!
//! Invariant: each pending frame ends here, sent or dropped with a reason, and a guest is told what became of a packet that the host refused.
//!
//! Theory of operation: all of a socket's go with one call, split only where DF changes. A call that fails tells of the first datagram that it did
//! not send: an error that came back earlier makes any call fail once, so that one is tried again; a run of datagrams that is too long for
//! a segment of the path or the device is cut here. Read first: udp(7), [`sys::inet::udp::SendBatch`].

use std::io;

use sys::inet::udp::{Datagrams, FRONT, Outgoing, RecvBatch, SendBatch};
use wire::{Context, DropReason};

use super::{Mapping, Pending, Talk, Udp, Via, arriving::read_errors, tell};
use crate::sockets::{
    Hub, errors,
    packet::{body, front},
};

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const EMSGSIZE: i32 = 90;
/// How often a datagram is tried that another one's error stands in the way of.
const TRIES: usize = 3;

/// What sending by one socket takes.
struct Sender<'u> {
    socket: &'u mut Datagrams,
    /// Whose errors come back; a published port has nobody to tell.
    talk: Option<&'u mut Talk>,
    batch: &'u mut SendBatch,
    cut: &'u mut SendBatch,
    errors: &'u mut RecvBatch,
}

impl Udp {
    /// Sends what [`Udp::leave`] has put together.
    pub(crate) fn flush(&mut self, cx: &mut Context, hub: &mut Hub) {
        let mut touched = std::mem::take(&mut self.touched);
        for via in touched.drain(..) {
            self.send_all(cx, hub, via);
        }
        self.touched = touched;
        // There is none left that was not touched.
        self.pending.clear();
    }

    /// Sends what is to leave by `via`.
    fn send_all(&mut self, cx: &mut Context, hub: &mut Hub, via: Via) {
        let mut group = std::mem::take(&mut self.group);
        group.extend(self.pending.extract_if(.., |one| one.via == via));
        let (socket, talk) = match via {
            Via::Mapping(slot) => match self.mappings.get_mut(slot) {
                Some(Mapping { socket, talk }) => (Some(socket), Some(talk)),
                None => (None, None),
            },
            Via::Door(door) => (self.publications.socket(door), None),
        };
        match socket {
            None => group.iter().for_each(|_| cx.drop_one(DropReason::NotReady)),
            Some(socket) => {
                let Udp { send, cut, errors, .. } = self;
                Sender { socket, talk, batch: send, cut, errors }.all(cx, hub, &group);
            }
        }
        group.clear();
        self.group = group;
    }
}

impl Sender<'_> {
    fn all(&mut self, cx: &mut Context, hub: &mut Hub, group: &[Pending]) {
        let mut left = group;
        while let Some(first) = left.first() {
            let df = first.packet.df;
            let run = left.iter().take_while(|one| one.packet.df == df).count();
            let (run, rest) = left.split_at(run);
            left = rest;
            // Where it cannot be set, datagrams go as they did before.
            let _ = self.socket.set_df(df);
            self.run(cx, hub, run);
        }
    }

    /// Sends datagrams that go alike.
    fn run(&mut self, cx: &mut Context, hub: &mut Hub, run: &[Pending]) {
        let mut left = run;
        while !left.is_empty() {
            self.batch.clear();
            let taken = left.iter().take_while(|one| push(cx, self.batch, self.socket, one)).count();
            if taken == 0 {
                // In more pieces than fit a batch.
                cx.drop_one(DropReason::TooManyPieces);
                left = left.get(1..).unwrap_or_default();
                continue;
            }
            let (now, rest) = left.split_at(taken);
            left = rest;
            self.batch_of(cx, hub, now);
        }
    }

    fn batch_of(&mut self, cx: &mut Context, hub: &mut Hub, group: &[Pending]) {
        let (mut from, mut tries) = (0, 0);
        while let Some(first) = group.get(from) {
            hub.spend(first.packet.origin.nic);
            let error = match self.batch.send(self.socket, &cx.arena, from) {
                Ok(sent) => {
                    for one in group.iter().skip(from).take(sent) {
                        cx.transmitted(1, cx.heads.get(&one.frame).len() as u64);
                    }
                    from += sent.max(1);
                    tries = 0;
                    continue;
                }
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::WouldBlock {
                // The socket is full, for the others as well.
                group.iter().skip(from).for_each(|_| cx.drop_one(DropReason::WouldBlock));
                return;
            }
            let number = error.raw_os_error().unwrap_or(0);
            if first.packet.segment > 0 && matches!(number, EINVAL | EIO | EMSGSIZE) {
                self.cut_run(cx, hub, first);
                from += 1;
                continue;
            }
            let mtu = self.errors(cx, hub);
            if number != EMSGSIZE && number != EINVAL && tries < TRIES {
                tries += 1;
                continue;
            }
            self.refused(cx, hub, first, number, mtu);
            from += 1;
            tries = 0;
        }
    }

    /// Reads errors that came back and tells the guest; gives the MTU if the last was told here.
    fn errors(&mut self, cx: &mut Context, hub: &mut Hub) -> Option<u32> {
        let mtu = read_errors(cx, hub, self.socket, self.errors, self.talk.as_deref());
        let _ = self.socket.take_error();
        mtu
    }

    /// Ends a datagram that the host would not send.
    fn refused(&mut self, cx: &mut Context, hub: &mut Hub, one: &Pending, number: i32, mtu: Option<u32>) {
        let v6 = one.packet.source.is_ipv6();
        if let Some(say) = errors::from_errno(number, v6, mtu.unwrap_or(0)) {
            tell(cx, hub, &one.frame, &one.packet, say);
        }
        cx.drop_one(if number == EMSGSIZE { DropReason::TooBig } else { DropReason::NoRoute });
    }

    /// Sends a run of datagrams one by one.
    fn cut_run(&mut self, cx: &mut Context, hub: &mut Hub, one: &Pending) {
        let (size, end) = (usize::from(one.packet.segment).max(1), one.packet.end);
        let mut at = one.payload;
        while at < end {
            self.cut.clear();
            let first = at;
            while at < end && push_part(cx, self.cut, self.socket, one, at, (at + size).min(end), 0) {
                at = (at + size).min(end);
            }
            let count = self.cut.len();
            if count == 0 {
                return cx.drop_one(DropReason::TooManyPieces);
            }
            let (mut from, mut tries) = (0, 0);
            while from < count {
                hub.spend(one.packet.origin.nic);
                match self.cut.send(self.socket, &cx.arena, from) {
                    Ok(sent) => (from, tries) = (from + sent.max(1), 0),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        let mtu = self.errors(cx, hub);
                        let number = error.raw_os_error().unwrap_or(0);
                        if number != EMSGSIZE && tries < TRIES {
                            tries += 1;
                            continue;
                        }
                        if first == one.payload && from == 0 {
                            return self.refused(cx, hub, one, number, mtu);
                        }
                        (from, tries) = (from + 1, 0);
                    }
                }
            }
        }
        cx.transmitted(1, cx.heads.get(&one.frame).len() as u64);
    }
}

/// Puts a datagram, or a run of them, into a batch; false when there is no room.
fn push(cx: &Context, batch: &mut SendBatch, socket: &Datagrams, one: &Pending) -> bool {
    push_part(cx, batch, socket, one, one.payload, one.packet.end, one.packet.segment)
}

/// As [`push`], of the bytes between two places of the frame.
fn push_part(
    cx: &Context,
    batch: &mut SendBatch,
    socket: &Datagrams,
    one: &Pending,
    from: usize,
    to: usize,
    segment: u16,
) -> bool {
    // What is no more than one segment is no run.
    let segment = if to - from > usize::from(segment) { segment } else { 0 };
    let how = Outgoing { to: one.to, ttl: one.packet.ttl, tos: one.packet.tos, segment };
    batch.push(socket, how, front(cx.heads.get(&one.frame), from, to), body(cx, &one.frame, from, to))
}

// What lies in a head fits what a batch copies.
const _: () = assert!(wire::HEAD_BYTES <= FRONT);

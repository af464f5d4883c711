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
    Hub,
    errors::{self, EMSGSIZE},
    packet::{body, front},
};

const EIO: i32 = 5;
const EINVAL: i32 = 22;
/// How often a datagram is tried that another one's error stands in the way of.
const TRIES: usize = 3;

/// Datagrams that are worth being sent as a run, and as many as the kernel takes (UDP_MAX_SEGMENTS).
const LEAST: usize = 4;
const RUN: usize = 64;
/// Bytes of a run, and of each datagram in it: longer ones are likely not to fit a segment of the path.
const RUN_BYTES: usize = 60_000;
const LONGEST_ALIKE: usize = 1452;

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
            self.runs(cx, hub, run);
        }
    }

    /// Sends datagrams of one size to one destination as one run: the kernel takes its way once for all of them. Others go as they are, and so do those
    /// of a run that was refused, for whatever reason.
    fn runs(&mut self, cx: &mut Context, hub: &mut Hub, group: &[Pending]) {
        let (mut from, mut at) = (0, 0);
        while at < group.len() {
            let alike = alike(group.get(at..).unwrap_or_default());
            if alike < LEAST {
                at += alike.max(1);
                continue;
            }
            let part = group.get(at..at + alike).unwrap_or_default();
            self.run(cx, hub, group.get(from..at).unwrap_or_default());
            at += alike;
            if self.joined(cx, hub, part) {
                part.iter().for_each(|one| cx.transmitted(1, cx.heads.get(&one.frame).len() as u64));
                from = at;
            } else {
                self.run(cx, hub, part);
                from = at;
            }
        }
        self.run(cx, hub, group.get(from..).unwrap_or_default());
    }

    /// Sends all of them or none.
    fn joined(&mut self, cx: &mut Context, hub: &mut Hub, part: &[Pending]) -> bool {
        self.cut.clear();
        for one in part {
            let (from, to) = (one.payload, one.packet.end);
            let fits = match self.cut.is_empty() {
                true => {
                    let Outgoing { to: name, ttl, tos, .. } = outgoing(one, 0);
                    let how = Outgoing { to: name, ttl, tos, segment: (to - from) as u16 };
                    let first = front(cx.heads.get(&one.frame), from, to);
                    self.cut.push(self.socket, how, first, body(cx, &one.frame, from, to))
                }
                false => self.cut.join(front(cx.heads.get(&one.frame), from, to), body(cx, &one.frame, from, to)),
            };
            if !fits {
                return false;
            }
        }
        if let Some(first) = part.first() {
            hub.spend(first.packet.origin.nic);
        }
        self.cut.send(self.socket, &cx.arena, 0).is_ok_and(|sent| sent == 1)
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

/// How many of the first are alike: of one size, to one destination, to be sent in the same way.
fn alike(group: &[Pending]) -> usize {
    let Some(first) = group.first() else { return 0 };
    let of = |one: &Pending| (one.to, one.packet.ttl, one.packet.tos, one.packet.segment, one.packet.end - one.payload);
    let (what, len) = (of(first), first.packet.end - first.payload);
    if first.packet.segment > 0 || !(1..=LONGEST_ALIKE).contains(&len) {
        return 1;
    }
    group.iter().take((RUN_BYTES / len).min(RUN)).take_while(|one| of(one) == what).count()
}

fn outgoing(one: &Pending, segment: u16) -> Outgoing {
    Outgoing { to: one.to, ttl: one.packet.ttl, tos: one.packet.tos, segment }
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
    batch.push(
        socket,
        outgoing(one, segment),
        front(cx.heads.get(&one.frame), from, to),
        body(cx, &one.frame, from, to),
    )
}

// What lies in a head fits what a batch copies.
const _: () = assert!(wire::HEAD_BYTES <= FRONT);

//! [`Sockets`]: UDP sockets of the host as what carries packets between hosts; no privilege is needed.
//!
//! Invariant: it never waits, and no system call is for one frame where several go the same way.
//!
//! Theory of operation: outward, frames of one flow to one endpoint follow each other in one datagram that the kernel cuts (UDP_SEGMENT), out of the
//! socket that the flow's hash chooses, so that its source port spreads flows over the underlay (RFC 7348 section 5).
//! Inward, datagrams are received into the pool, in runs where the kernel has joined them (UDP_GRO), and TCP segments become super-frames again.
//! Read first: [`super`], `docs/decisions/0016-a-tunnel-on-udp-sockets.md`; then `door.rs` beside this file.

use std::{io, net::SocketAddr, os::fd::AsRawFd};

use sys::inet::udp::{Datagrams, Kind, LendBatch, Lending, Outgoing, RecvBatch};
use wire::{Accepts, Context, DropReason, Instant, NicId, Wake};

use super::{
    TTL,
    door::{Contents, Door, Leaving, hear_errors},
    inward::{ECN, Heard, most},
    outward::{Packet, Underlay},
    unwrap::Unwrap,
};
use crate::{encap::HEADER, vtep::Vtep};

/// See the module's documentation.
pub(super) struct Sockets {
    /// What is sent to the endpoint, and to the groups that it is in.
    inbound: Vec<Datagrams>,
    doors: Vec<Door>,
    batch: LendBatch,
    unwrap: Unwrap,
    /// Errors that came back.
    errors: RecvBatch,
}

impl Underlay for Sockets {
    const ACCEPTS: Accepts = Accepts::NONE;

    fn put(&mut self, cx: &mut Context, vtep: &Vtep, packet: Packet) {
        let Packet { frame, network, way, tos, hash } = packet;
        let nic = cx.nic;
        let head = cx.heads.get_mut(&frame);
        let Some(header) = vtep.header(network).filter(|_| head.push(HEADER)) else {
            return cx.drop(frame, DropReason::NotReady);
        };
        if let Some(place) = head.bytes_mut().first_chunk_mut() {
            *place = header;
        }
        let door = (u64::from(hash) * self.doors.len() as u64) >> 32;
        let Some(door) = self.doors.get_mut(door as usize) else { return cx.drop(frame, DropReason::NotReady) };
        let remotes = vtep.at_end(network, &way);
        let (mut lost, bytes) = (0, cx.heads.get(&frame).len() - HEADER);
        for remote in remotes.iter().copied() {
            let Some(address) = vtep.remotes.get(remote).map(|remote| remote.address) else {
                cx.drop_one(DropReason::NoDestination);
                continue;
            };
            let how = Outgoing { to: (address, vtep.port()).into(), ttl: TTL, tos, segment: 0 };
            let packet = Leaving { remote, how, nic, frames: 1, bytes };
            let put = |door: &mut Door, cx: &Context| {
                door.put(packet, &Contents::Frame(cx.heads.get(&frame).bytes(), cx.heads.body(&frame)))
            };
            // A batch that is full makes room by being sent.
            if !put(door, cx) {
                door.flush(cx);
                lost += usize::from(!put(door, cx));
            }
        }
        // Each packet is a frame of its own to the books, those too that did not find room.
        if remotes.is_empty() {
            return cx.drop(frame, DropReason::NoDestination);
        }
        cx.ledger.copied += remotes.len() as u64 - 1;
        (0..lost).for_each(|_| cx.drop_one(DropReason::TooManyPieces));
    }

    /// What is sent counts when the kernel has taken it.
    fn end(&mut self, _cx: &mut Context) {}
}

impl Sockets {
    /// Opens the sockets of an endpoint; `sources` of them send.
    pub(super) fn open(vtep: &Vtep, sources: usize) -> io::Result<Sockets> {
        let kind = if vtep.local().is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
        let open = |port: u16| -> io::Result<Datagrams> {
            let mut socket = Datagrams::open(kind, SocketAddr::new(vtep.local(), port), TTL, 0)?;
            // The underlay says what is too long for it instead of cutting it.
            socket.set_df(true)?;
            Ok(socket)
        };
        let mut inbound = vec![open(vtep.port())?];
        let groups = vtep.groups();
        for group in &groups {
            inbound.push(Datagrams::join(SocketAddr::new(*group, vtep.port()), vtep.local())?);
        }
        let door = |_| {
            let socket = open(0)?;
            if !groups.is_empty() {
                socket.reach_groups(vtep.local(), TTL)?;
            }
            Ok(Door::new(socket))
        };
        Ok(Sockets {
            inbound,
            doors: (0..sources.max(1)).map(door).collect::<io::Result<_>>()?,
            batch: LendBatch::default(),
            unwrap: Unwrap::default(),
            errors: RecvBatch::default(),
        })
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, cx: &mut Context, vtep: &mut Vtep) {
        let mut failed = false;
        for door in &mut self.doors {
            failed |= door.flush(cx);
        }
        if failed {
            self.hear_errors(vtep, cx.now);
        }
    }

    /// Says what to sleep on. Errors are no reason to wake up: the next packet that is sent fails by them, and is sent again once they are heard.
    pub(super) fn wake(&self, wake: &mut Wake) {
        wake.readable.extend(self.inbound.iter().map(AsRawFd::as_raw_fd));
    }

    /// Takes errors that came back for what was sent: paths that are narrower than was thought.
    #[cold]
    pub(super) fn hear_errors(&mut self, vtep: &mut Vtep, now: Instant) {
        let sockets = self.inbound.iter().chain(self.doors.iter().map(Door::socket));
        sockets.for_each(|socket| hear_errors(&mut self.errors, socket, vtep, now));
    }

    /// Takes what has arrived, as far as there is room for frames.
    pub(super) fn come_in(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId]) {
        let nic = cx.nic;
        for at in 0..self.inbound.len() {
            self.come_in_by(at, cx, vtep, nics);
        }
        cx.nic = nic;
    }

    fn come_in_by(&mut self, at: usize, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId]) {
        // A run may become as many frames as it has packets; what is expected of the next is what the last was.
        let mut each = 1;
        while let (Some(most), Some(socket)) = (most(cx, each), self.inbound.get(at)) {
            match self.batch.receive(socket, &mut cx.arena, most) {
                Ok(came) => {
                    let before = cx.answers.room();
                    for at in 0..came {
                        if let Some(packet) = self.batch.get(at) {
                            self.take(cx, vtep, nics, packet);
                        }
                    }
                    each = (before - cx.answers.room()).div_ceil(came.max(1)).max(1);
                    if came < most {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => break,
                // Something that was sent earlier did not arrive; what waits is still there.
                Err(_) => {
                    self.hear_errors(vtep, cx.now);
                    break;
                }
            }
        }
    }

    /// Takes a packet of the underlay, or a run of them from one sender.
    fn take(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId], packet: Lending) {
        let mut heard = Heard::new(vtep.sender(packet.from.ip()));
        let size = if packet.segment == 0 { packet.bytes.len() } else { usize::from(packet.segment) };
        let mut at = 0;
        while at < packet.bytes.len() {
            let len = size.min(packet.bytes.len() - at);
            let Some(bytes) = packet.bytes.part(at, len) else { break };
            at += len;
            self.unwrap.take(cx, (vtep, nics), &mut heard, bytes, packet.tos & ECN);
        }
        self.unwrap.finish(cx, packet.tos & ECN);
    }
}

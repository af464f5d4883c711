//! [`Door`]: a socket that packets leave by, many datagrams by one system call.
//!
//! Invariant: a frame counts as transmitted when the kernel has taken it. Read first: [`super::sockets`], udp(7) on UDP_SEGMENT.

use std::io;

use sys::{
    Lent,
    inet::udp::{BATCH, Datagrams, Outgoing, RecvBatch, SendBatch},
};
use wire::{Context, DropReason, Instant, NicId};

use crate::{
    remotes::RemoteId,
    vtep::{LEAST, Vtep},
};

/// Linux's number of "message too long" (errno(3)).
const EMSGSIZE: i32 = 90;
/// Of "input/output error" and "invalid argument", which the kernel says where it cannot cut datagrams for a device.
const CANNOT_CUT: [i32; 2] = [5, 22];
/// Datagrams that the kernel cuts out of one, at most (UDP_MAX_SEGMENTS of the oldest kernels that can), and their bytes.
const MOST_CUT: u16 = 64;
const MOST_BYTES: usize = 65_000;

/// Whose frames one message of a batch carries.
#[derive(Clone, Copy)]
struct Carried {
    nic: NicId,
    frames: u32,
    bytes: u32,
}

/// The message pushed last, while datagrams may still be joined to it.
#[derive(Clone, Copy)]
struct Run {
    remote: RemoteId,
    nic: NicId,
    tos: u8,
    size: usize,
    bytes: usize,
    count: u16,
}

/// A socket that packets leave by, and what waits for it.
pub(super) struct Door {
    socket: Datagrams,
    batch: SendBatch,
    carried: Vec<Carried>,
    run: Option<Run>,
    /// The kernel cuts datagrams for the device that they leave by.
    cuts: bool,
}

/// One packet.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) remote: RemoteId,
    pub(super) how: Outgoing,
    pub(super) nic: NicId,
    /// Frames that it carries, one or none, and their bytes.
    pub(super) frames: u32,
    pub(super) bytes: usize,
}

/// Where the bytes of a packet are.
pub(super) enum Contents<'p> {
    /// In a frame.
    Frame(&'p [u8], &'p [Lent]),
    /// So many in the room that [`Door::room`] gave.
    Room(usize),
}

impl Contents<'_> {
    fn len(&self) -> usize {
        match self {
            Contents::Frame(front, body) => front.len() + body.iter().map(Lent::len).sum::<usize>(),
            Contents::Room(len) => *len,
        }
    }
}

impl Door {
    pub(super) fn new(socket: Datagrams) -> Door {
        Door::with(socket, SendBatch::default())
    }

    /// One that gives room for packets.
    pub(super) fn with_room(socket: Datagrams, bytes: usize) -> Door {
        Door::with(socket, SendBatch::with_room(bytes))
    }

    fn with(socket: Datagrams, batch: SendBatch) -> Door {
        let carried = Vec::with_capacity(BATCH);
        Door { socket, batch, carried, run: None, cuts: true }
    }

    pub(super) fn socket(&self) -> &Datagrams {
        &self.socket
    }

    /// Room for a packet, where it is put from; nothing when there is none before the next [`Door::flush`].
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.batch.len() < BATCH { self.batch.room(len) } else { None }
    }

    /// Puts a packet into the batch; false when there is no room for it.
    pub(super) fn put(&mut self, packet: Leaving, contents: &Contents) -> bool {
        let len = contents.len();
        // What carries no frame is a message of our own, and goes alone.
        if let Some(run) = self.run.as_mut().filter(|_| packet.frames > 0)
            && self.cuts
            && (run.remote, run.nic, run.tos) == (packet.remote, packet.nic, packet.how.tos)
            && len <= run.size
            && run.count < MOST_CUT
            && run.bytes + len <= MOST_BYTES
        {
            let joined = match contents {
                Contents::Frame(front, body) => self.batch.join(front, body.iter().copied()),
                Contents::Room(len) => self.batch.join_room(*len, std::iter::empty()),
            };
            // As a message of its own it would find room, and so would all that follow: one by one.
            if !joined {
                return false;
            }
            run.count += 1;
            run.bytes += len;
            if let Some(carried) = self.carried.last_mut() {
                carried.frames += packet.frames;
                carried.bytes += packet.bytes as u32;
            }
            // A shorter one is the last.
            self.run = self.run.filter(|run| len == run.size);
            return true;
        }
        let how = Outgoing { segment: if self.cuts { len as u16 } else { 0 }, ..packet.how };
        let pushed = match contents {
            Contents::Frame(front, body) => self.batch.push(&self.socket, how, front, body.iter().copied()),
            Contents::Room(len) => self.batch.push_room(&self.socket, how, *len),
        };
        if !pushed {
            return false;
        }
        let run = Run { remote: packet.remote, nic: packet.nic, tos: packet.how.tos, size: len, bytes: len, count: 1 };
        self.run = (packet.frames > 0).then_some(run);
        self.carried.push(Carried { nic: packet.nic, frames: packet.frames, bytes: packet.bytes as u32 });
        true
    }

    /// Sends what waits; true when something came back that is to be heard.
    pub(super) fn flush(&mut self, cx: &mut Context) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        let nic = cx.nic;
        let (mut failed, mut again) = (false, true);
        let mut from = 0;
        while from < self.carried.len() {
            let reason = match self.batch.send(&self.socket, &cx.arena, from) {
                Ok(0) => DropReason::DeviceError,
                Ok(sent) => {
                    for carried in self.carried.iter().skip(from).take(sent) {
                        cx.nic = carried.nic;
                        cx.transmitted(carried.frames.into(), carried.bytes.into());
                    }
                    from += sent;
                    again = true;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => DropReason::WouldBlock,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none() => {
                    DropReason::Stale
                }
                Err(error) => {
                    failed = true;
                    match error.raw_os_error() {
                        Some(EMSGSIZE) => DropReason::MtuExceeded,
                        Some(errno) if self.cuts && CANNOT_CUT.contains(&errno) => {
                            self.cuts = false;
                            DropReason::CannotSegment
                        }
                        // What befell an earlier one is told once; this one may go.
                        _ if again => {
                            again = false;
                            continue;
                        }
                        _ => DropReason::NoRoute,
                    }
                }
            };
            // A socket that is full is full for all.
            let lost = if reason == DropReason::WouldBlock { self.carried.len() - from } else { 1 };
            for carried in self.carried.iter().skip(from).take(lost) {
                cx.nic = carried.nic;
                (0..carried.frames).for_each(|_| cx.drop_one(reason));
            }
            from += lost;
        }
        cx.nic = nic;
        self.batch.clear();
        self.carried.clear();
        self.run = None;
        failed
    }
}

/// Takes errors that came back for what a socket has sent: paths that are narrower than was thought.
#[cold]
pub(super) fn hear_errors(errors: &mut RecvBatch, socket: &Datagrams, vtep: &mut Vtep, now: Instant) {
    // As many as an underlay may cause in a tick; what is left is read the next time.
    for _ in 0..64 {
        let Ok(Some(error)) = errors.error(socket) else { break };
        // The kernel has looked at it. Should a link of this host be narrower than that, what does not fit is still counted.
        if let (EMSGSIZE, Some(to), Ok(mtu)) = (error.errno, error.to, u16::try_from(error.info)) {
            vtep.narrows(to.ip(), mtu.max(LEAST), now);
        }
    }
}

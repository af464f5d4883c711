//! [`Door`]: a socket that packets leave by, many datagrams by one system call.
//!
//! Invariant: a frame counts as transmitted when the kernel has taken it. Read first: [`super::sockets`], udp(7) on UDP_SEGMENT.

use std::io;

use sys::inet::udp::{Datagrams, Outgoing, SendBatch};
use wire::{Context, DropReason, Frame, NicId};

use crate::{encap::HEADER, remotes::RemoteId};

/// Linux's number of "message too long" (errno(3)).
pub(super) const EMSGSIZE: i32 = 90;
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
pub(super) struct Leaving<'p> {
    pub(super) remote: RemoteId,
    pub(super) how: Outgoing,
    pub(super) nic: NicId,
    pub(super) frame: &'p Frame,
}

impl Door {
    pub(super) fn new(socket: Datagrams) -> Door {
        let carried = Vec::with_capacity(sys::inet::udp::BATCH);
        Door { socket, batch: SendBatch::default(), carried, run: None, cuts: true }
    }

    pub(super) fn socket(&self) -> &Datagrams {
        &self.socket
    }

    /// Puts a packet into the batch; false when there is no room for it.
    pub(super) fn put(&mut self, cx: &Context, packet: &Leaving) -> bool {
        let head = cx.heads.get(packet.frame);
        let (front, pieces) = (head.bytes(), || cx.heads.body(packet.frame).iter().copied());
        let len = head.len();
        if let Some(run) = &mut self.run
            && self.cuts
            && (run.remote, run.nic, run.tos) == (packet.remote, packet.nic, packet.how.tos)
            && len <= run.size
            && run.count < MOST_CUT
            && run.bytes + len <= MOST_BYTES
            && self.batch.join(front, pieces())
        {
            run.count += 1;
            run.bytes += len;
            if let Some(carried) = self.carried.last_mut() {
                carried.frames += 1;
                carried.bytes += (len - HEADER) as u32;
            }
            // A shorter one is the last.
            self.run = self.run.filter(|run| len == run.size);
            return true;
        }
        let how = Outgoing { segment: if self.cuts { len as u16 } else { 0 }, ..packet.how };
        if !self.batch.push(&self.socket, how, front, pieces()) {
            return false;
        }
        self.run =
            Some(Run { remote: packet.remote, nic: packet.nic, tos: packet.how.tos, size: len, bytes: len, count: 1 });
        self.carried.push(Carried { nic: packet.nic, frames: 1, bytes: (len - HEADER) as u32 });
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

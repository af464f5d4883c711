//! [`TapPort`]: a port of the switch that is one queue of a TAP device.
//!
//! Invariant: a frame read from a TAP lies in its head and in pooled bytes, with the kernel's own virtio-net header; super-frames are passed
//! on as they are, in both directions. A frame that the device refuses is a drop; only a device that is gone ends the port.
//!
//! Theory of operation: one `readv` brings one frame, straight to where it stays: header, head, pool. A burst ends at `BURST_BYTES`, so that
//! what was read is still in the cache when it is written on. A read that finds nothing costs a system call, which frames between rings must
//! not pay for: after one the queue is left alone for `PAUSE`, for longer the more often nothing was there, until `LONGEST_PAUSE`. A
//! worker that sleeps is woken by the descriptor, and then the queue is read at once.
//!
//! Read first: [`wire::port`], [`sys::tap`]; Linux Documentation/networking/tuntap.rst; virtio 1.2 section 5.1.6.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use sys::{
    arena::MAX_PIECES,
    tap::{HEADER_LEN, TapDevice, TapFault, TapQueue},
};
use wire::{
    Accepts, BURST, Burst, Context, DropReason, Frame, HEAD_BYTES, Instant, MAX_FRAME, Offload, Origin, Port, Wake,
    segmentation::Settle,
};

/// Bytes after which a burst ends.
const BURST_BYTES: usize = 192 << 10;
/// Time for which a queue that was found empty is not read.
const PAUSE: Duration = Duration::from_micros(20);
/// The same for one that was found empty again and again.
const LONGEST_PAUSE: Duration = Duration::from_micros(100);
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Pooled bytes offered to a read: what the head does not take of the longest frame, and one more, which tells of a longer one.
const MORE: usize = MAX_FRAME - HEAD_BYTES + 1;

/// One queue of a TAP as a port. See the module's documentation.
pub struct TapPort {
    queue: TapQueue,
    device: Box<str>,
    lane: u16,
    accepts: Accepts,
    /// The queue is not read before.
    look_at: Instant,
    pause: Duration,
    /// The last burst ended with frames possibly left.
    unread: bool,
}

impl TapPort {
    /// The port of `queue`, which is lane number `lane` of the TAP `device`.
    pub fn new(device: &TapDevice, queue: TapQueue, lane: u16) -> Self {
        let offloads = device.offloads();
        let mut accepts = Accepts::NONE;
        if offloads.checksum() {
            accepts = accepts.with(Accepts::CSUM);
        }
        if offloads.tcp_segmentation() {
            // Any kernel that takes TCP super-frames takes those with CWR set.
            accepts = accepts.with(Accepts::TSO4).with(Accepts::TSO6).with(Accepts::ECN);
        }
        if offloads.udp_segmentation() {
            accepts = accepts.with(Accepts::USO);
        }
        let device = device.name().into();
        TapPort { queue, device, lane, accepts, look_at: Instant::START, pause: PAUSE, unread: false }
    }

    /// Reads one frame into a head and the pool.
    #[inline]
    fn read(&self, cx: &mut Context) -> Result<Frame, Miss> {
        let origin = Origin { nic: cx.nic, lane: self.lane };
        let (frame, head) = cx.heads.begin(origin, 0).ok_or(Miss::Full)?;
        let mut header = [0; HEADER_LEN];
        let (read, rest) = match cx.arena.read_from(self.queue.as_fd(), [&mut header, head.room()], MORE) {
            Ok(read) => read,
            Err(error) => return Err(self.miss(error)),
        };
        let len = read.checked_sub(HEADER_LEN).filter(|len| *len >= MIN_FRAME).ok_or(Miss::Lost(DropReason::Runt))?;
        if len > MAX_FRAME {
            return Err(Miss::Lost(DropReason::Oversize));
        }
        head.set_len(len);
        head.offload = Offload::from_bytes(header).checked(len).ok_or(Miss::Lost(DropReason::BadOffload))?;
        if !rest.is_empty() && !cx.heads.add_piece(&frame, rest) {
            return Err(Miss::Lost(DropReason::NoBuffers));
        }
        Ok(frame)
    }

    #[cold]
    fn miss(&self, error: io::Error) -> Miss {
        match TapFault::of(&error) {
            // The one thing that the arena itself refuses in a read.
            TapFault::Memory => Miss::Full,
            TapFault::Gone => Miss::Gone(self.gone(&error)),
            // What else goes wrong may not the next time: the kernel was short of memory, or the interface went down.
            TapFault::WouldBlock | TapFault::Refused => Miss::Empty,
        }
    }

    fn gone(&self, error: &io::Error) -> io::Error {
        let device = &self.device;
        io::Error::new(
            error.kind(),
            format!("TAP {device}: the device was removed while the port used it ({error}): restart the port"),
        )
    }

    #[cold]
    fn too_small(&self) -> io::Error {
        let device = &self.device;
        let message = format!(
            "TAP {device}: the worker's memory for one turn does not hold one frame: \
             it needs a head and {MORE} pooled bytes"
        );
        io::Error::new(io::ErrorKind::OutOfMemory, message)
    }

    /// Writes one frame; the reason when the device does not take it, or the error when there is none any more.
    #[inline]
    fn write(&self, cx: &Context, frame: &Frame) -> io::Result<Result<usize, DropReason>> {
        let head = cx.heads.get(frame);
        let body = cx.heads.body(frame);
        if body.len() > MAX_PIECES {
            return Ok(Err(DropReason::TooManyPieces));
        }
        let header = head.offload.to_bytes(0);
        match cx.arena.write_to(self.queue.as_fd(), [&header, head.bytes()], body.iter()) {
            Ok(_) => Ok(Ok(head.len())),
            Err(error) => self.refusal(&error).map(Err),
        }
    }

    #[cold]
    fn refusal(&self, error: &io::Error) -> io::Result<DropReason> {
        match TapFault::of(error) {
            TapFault::Memory => Ok(DropReason::Stale),
            TapFault::WouldBlock => Ok(DropReason::WouldBlock),
            TapFault::Refused => Ok(DropReason::DeviceError),
            TapFault::Gone => Err(self.gone(error)),
        }
    }
}

/// Why a read brought no frame.
enum Miss {
    /// Nothing is there.
    Empty,
    /// No heads or pooled bytes left in this turn.
    Full,
    /// A frame that cannot be passed on.
    Lost(DropReason),
    /// The device is gone.
    Gone(io::Error),
}

impl Port for TapPort {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        if cx.now < self.look_at {
            return Ok(());
        }
        self.unread = true;
        let (mut bytes, mut lost) = (0, false);
        for _ in 0..BURST {
            match self.read(cx) {
                Ok(frame) => {
                    bytes += cx.heads.get(&frame).len();
                    // No more reads than a burst has places.
                    let _ = burst.push(frame);
                }
                Err(Miss::Lost(reason)) => {
                    cx.lost(reason);
                    lost = true;
                }
                Err(Miss::Empty) => {
                    self.unread = false;
                    break;
                }
                Err(Miss::Full) if burst.is_empty() && !lost => return Err(self.too_small()),
                Err(Miss::Full) => break,
                Err(Miss::Gone(error)) => {
                    cx.received(burst.len() as u64, bytes as u64);
                    return Err(error);
                }
            }
            if bytes >= BURST_BYTES {
                break;
            }
        }
        if self.unread || lost || !burst.is_empty() {
            self.pause = PAUSE;
        }
        if !self.unread {
            self.look_at = cx.now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        cx.received(burst.len() as u64, bytes as u64);
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let (mut frames, mut bytes) = (0, 0);
        let mut gone = None;
        for frame in burst.drain() {
            let mut settle = Settle::new(cx, frame, self.accepts);
            while let Some(frame) = settle.next(cx) {
                if gone.is_some() {
                    cx.drop(frame, DropReason::NotReady);
                    continue;
                }
                match self.write(cx, &frame) {
                    Ok(Ok(len)) => {
                        frames += 1;
                        bytes += len as u64;
                    }
                    Ok(Err(reason)) => cx.drop(frame, reason),
                    Err(error) => {
                        cx.drop(frame, DropReason::DeviceError);
                        gone = Some(error);
                    }
                }
            }
        }
        cx.transmitted(frames, bytes);
        gone.map_or(Ok(()), Err)
    }

    fn release(&mut self, _cx: &mut Context) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        wake.readable.push(self.queue.as_raw_fd());
        !self.unread
    }

    fn awake(&mut self) {
        self.look_at = Instant::START;
        self.pause = PAUSE;
    }
}

#[cfg(test)]
mod tests;

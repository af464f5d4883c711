//! [`LinePort`]: a port of the switch on a descriptor of the host's that brings and takes one frame a call, with a virtio-net header.
//!
//! Invariant: a frame that was read lies in its head and in pooled bytes, with the kernel's own virtio-net header; super-frames are passed
//! on as they are, in both directions. A frame that the device refuses is a drop; only a device that is gone ends the port.
//!
//! Theory of operation: one call brings one frame, straight to where it stays: header, head, pool. A burst ends at `BURST_BYTES`, so that
//! what was read is still in the cache when it is written on. A read that finds nothing costs a system call, which frames between rings must
//! not pay for: after one the line is left alone for `PAUSE`, for longer the more often nothing was there, until `LONGEST_PAUSE`. A
//! worker that sleeps is woken by the descriptor, and then the line is read at once.
//!
//! Read first: [`wire::port`]; virtio 1.2 section 5.1.6; then [`super::tap`] and [`super::uplink`], the lines there are.

use std::{io, os::fd::RawFd, time::Duration};

use sys::{
    Lent,
    arena::{Arena, MAX_PIECES},
    tap::{HEADER_LEN, TapFault},
};
use wire::{
    Accepts, BURST, Burst, Context, DropReason, Frame, HEAD_BYTES, Head, Instant, MAX_FRAME, Offload, Origin, Port,
    Wake, layers::TAG_LEN, segmentation::Settle,
};

/// Bytes after which a burst ends.
pub(super) const BURST_BYTES: usize = 192 << 10;
/// Time for which a queue that was found empty is not read.
pub(super) const PAUSE: Duration = Duration::from_micros(20);
/// The same for one that was found empty again and again.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_micros(100);
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Pooled bytes offered to a read: what the head does not take of the longest frame, and one more, which tells of a longer one.
const MORE: usize = MAX_FRAME - HEAD_BYTES + 1;

/// What a frame was read as.
pub struct Read {
    /// Bytes of it.
    pub len: usize,
    /// Those behind its head.
    pub rest: Lent,
    /// An IEEE 802.1Q tag that the kernel took off and that belongs behind its addresses.
    pub tag: Option<[u8; 4]>,
}

/// A descriptor that brings and takes one frame a call.
pub trait Line: Send {
    /// Reads one frame: its header, as much as `room` takes, and up to `more` pooled bytes.
    ///
    /// # Errors
    /// As [`Line::fault`] tells them apart; `OutOfMemory` of the arena when it has no room for `more`.
    fn read(&self, arena: &mut Arena, header: &mut [u8; HEADER_LEN], room: &mut [u8], more: usize) -> io::Result<Read>;

    /// Writes one frame: its header, the bytes of its head, and its body.
    ///
    /// # Errors
    /// As [`Line::fault`] tells them apart.
    fn write(&self, arena: &Arena, header: &[u8; HEADER_LEN], head: &[u8], body: &[Lent]) -> io::Result<()>;

    /// What an error of the calls above says about the device.
    fn fault(&self, error: &io::Error) -> TapFault;

    /// What becomes readable when frames are there.
    fn descriptor(&self) -> RawFd;
}

/// A line as a port. See the module's documentation.
pub struct LinePort<L> {
    pub(super) line: L,
    /// What it is, for people: a kind and a name.
    pub(super) device: Box<str>,
    lane: u16,
    pub(super) accepts: Accepts,
    /// The line is not read before.
    pub(super) look_at: Instant,
    pause: Duration,
    /// The last burst ended with frames possibly left.
    unread: bool,
}

impl<L: Line> LinePort<L> {
    /// The port of `line`, which is lane number `lane` of `device` and takes over `accepts`.
    pub(super) fn of(line: L, device: Box<str>, lane: u16, accepts: Accepts) -> Self {
        LinePort { line, device, lane, accepts, look_at: Instant::START, pause: PAUSE, unread: false }
    }

    /// Reads one frame into a head and the pool.
    #[inline]
    fn read(&self, cx: &mut Context) -> Result<Frame, Miss> {
        let origin = Origin { nic: cx.nic, lane: self.lane };
        let (frame, head) = cx.heads.begin(origin, 0).ok_or(Miss::Full)?;
        let mut header = [0; HEADER_LEN];
        let Read { len, rest, tag } = match self.line.read(&mut cx.arena, &mut header, head.room(), MORE) {
            Ok(read) => read,
            Err(error) => return Err(self.miss(error)),
        };
        if len < MIN_FRAME {
            return Err(Miss::Lost(DropReason::Runt));
        }
        if len > MAX_FRAME - if tag.is_some() { TAG_LEN } else { 0 } {
            return Err(Miss::Lost(DropReason::Oversize));
        }
        head.set_len(len);
        head.offload = Offload::from_bytes(header).checked(len).ok_or(Miss::Lost(DropReason::BadOffload))?;
        if let Some(tag) = tag {
            put_back(head, tag);
        }
        if !rest.is_empty() && !cx.heads.add_piece(&frame, rest) {
            return Err(Miss::Lost(DropReason::NoBuffers));
        }
        Ok(frame)
    }

    #[cold]
    fn miss(&self, error: io::Error) -> Miss {
        match self.line.fault(&error) {
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
            format!("{device}: the device was removed while the port used it ({error}): restart the port"),
        )
    }

    #[cold]
    fn too_small(&self) -> io::Error {
        let device = &self.device;
        let message = format!(
            "{device}: the worker's memory for one turn does not hold one frame: \
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
        match self.line.write(&cx.arena, &header, head.bytes(), body) {
            Ok(()) => Ok(Ok(head.len())),
            Err(error) => self.refusal(&error).map(Err),
        }
    }

    #[cold]
    fn refusal(&self, error: &io::Error) -> io::Result<DropReason> {
        match self.line.fault(error) {
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

/// Puts a tag back behind the addresses of a frame.
fn put_back(head: &mut Head, [a, b, c, d]: [u8; TAG_LEN]) {
    // A head that was just read has all its headroom.
    if head.push(TAG_LEN)
        && let Some(start) = head.bytes_mut().first_chunk_mut::<16>()
    {
        start.copy_within(TAG_LEN.., 0);
        let [.., e, f, g, h] = start;
        (*e, *f, *g, *h) = (a, b, c, d);
        head.offload = head.offload.shifted(TAG_LEN as i16);
    }
}

impl<L: Line> Port for LinePort<L> {
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
        wake.readable.push(self.line.descriptor());
        !self.unread
    }

    fn awake(&mut self) {
        self.look_at = Instant::START;
        self.pause = PAUSE;
    }
}

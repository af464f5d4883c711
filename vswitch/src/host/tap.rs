//! [`TapPort`]: a port of the switch that is one queue of a TAP device.
//!
//! Invariant: that of [`super::line`]: frames keep the kernel's virtio-net header, super-frames stay whole.
//!
//! Read first: [`super::line`], [`sys::tap`]; Linux Documentation/networking/tuntap.rst.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use sys::{
    Lent,
    arena::Arena,
    tap::{HEADER_LEN, TapDevice, TapFault, TapQueue},
};
use wire::Accepts;

use super::line::{Line, LinePort, Read};

/// One queue of a TAP as a port.
pub type TapPort = LinePort<TapQueue>;

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
        LinePort::of(queue, format!("TAP {}", device.name()).into(), lane, accepts)
    }
}

impl Line for TapQueue {
    #[inline]
    fn read(&self, arena: &mut Arena, header: &mut [u8; HEADER_LEN], room: &mut [u8], more: usize) -> io::Result<Read> {
        let (read, rest) = arena.read_from(self.as_fd(), [header, room], more)?;
        Ok(Read { len: read.saturating_sub(HEADER_LEN), rest, tag: None })
    }

    #[inline]
    fn write(&self, arena: &Arena, header: &[u8; HEADER_LEN], head: &[u8], body: &[Lent]) -> io::Result<()> {
        arena.write_to(self.as_fd(), [header, head], body.iter()).map(drop)
    }

    fn fault(&self, error: &io::Error) -> TapFault {
        TapFault::of(error)
    }

    fn descriptor(&self) -> RawFd {
        self.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;

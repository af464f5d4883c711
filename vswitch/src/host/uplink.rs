//! [`UplinkPort`]: a port of the switch that is an interface of the host's, by a packet socket.
//!
//! Invariant: that of [`super::line`]. The host's own frames out of the interface are not seen, and unless the port is promiscuous, of those that
//! come in only what is for one of its stations or for a group; the host goes on using the interface.
//!
//! Read first: [`super::line`], [`sys::packet`]; packet(7).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use sys::{
    Lent,
    arena::Arena,
    packet::{self, PacketSocket},
    tap::{HEADER_LEN, TapFault},
};
use wire::Accepts;

use super::line::{Line, LinePort, Read};

/// An interface of the host's as a port.
pub type UplinkPort = LinePort<PacketSocket>;

impl UplinkPort {
    /// The port of `socket`.
    pub fn new(socket: PacketSocket) -> Self {
        // The kernel cuts and sums up what the interface cannot.
        let tcp = Accepts::CSUM.with(Accepts::TSO4).with(Accepts::TSO6).with(Accepts::ECN);
        let accepts = if socket.udp_segmentation() { tcp.with(Accepts::USO) } else { tcp };
        let device = format!("uplink {}", socket.interface()).into();
        LinePort::of(socket, device, 0, accepts)
    }
}

impl Line for PacketSocket {
    #[inline]
    fn read(&self, arena: &mut Arena, header: &mut [u8; HEADER_LEN], room: &mut [u8], more: usize) -> io::Result<Read> {
        let packet::Read { len, rest, tag } = self.read(arena, header, room, more)?;
        Ok(Read { len, rest, tag })
    }

    #[inline]
    fn write(&self, arena: &Arena, header: &[u8; HEADER_LEN], head: &[u8], body: &[Lent]) -> io::Result<()> {
        let (header, _) = header.split_at(packet::HEADER_LEN);
        arena.write_to(self.as_fd(), [header, head], body.iter()).map(drop)
    }

    fn fault(&self, error: &io::Error) -> TapFault {
        PacketSocket::fault(error)
    }

    fn descriptor(&self) -> RawFd {
        self.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;

//! What comes in from the underlay: whose it is, whether it may, and frames of it.
//!
//! Invariant: a frame's origin is the port's NIC in its network, and nothing of a packet is trusted before [`crate::vtep::Vtep::accept`] has taken it.
//! Read first: [`super`], RFC 6040 section 4.2 (congestion marks).

use std::io;

use sys::{Lent, inet::udp::Lending};
use wire::{Context, DropReason, Frame, Origin, checksum};

use super::TunnelPort;
use crate::{
    remotes::RemoteId,
    resolution::Message,
    vtep::{Inward, NetworkId, Sender},
};

/// Packets of the underlay taken in one go: as many as the frames of them find room for, if none is a run.
const MOST: usize = 32;
/// Congestion marks, the low two bits of TOS and traffic class (RFC 3168 section 5).
const ECN: u8 = 3;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;
/// Bytes that say whose a packet is and where its frame goes.
const FRONT: usize = 8 + 64;

impl TunnelPort {
    /// Takes what has arrived, as far as there is room for frames.
    pub(super) fn come_in(&mut self, cx: &mut Context) -> io::Result<()> {
        let nic = cx.nic;
        // A run may become as many frames as it has packets; what is expected of the next is what the last was.
        let mut each = 1;
        loop {
            let room = cx.answers.room();
            if room < wire::BURST {
                break;
            }
            let most = (room / each).clamp(1, MOST);
            match self.batch.receive(&self.inbound, &mut cx.arena, most) {
                Ok(came) => {
                    let before = cx.answers.room();
                    for at in 0..came {
                        if let Some(packet) = self.batch.get(at) {
                            self.take(cx, packet);
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
                    self.hear_errors();
                    break;
                }
            }
        }
        cx.nic = nic;
        Ok(())
    }

    /// Takes a packet of the underlay, or a run of them from one sender.
    fn take(&mut self, cx: &mut Context, packet: Lending) {
        let sender = self.vtep.sender(packet.from.ip());
        let size = if packet.segment == 0 { packet.bytes.len() } else { usize::from(packet.segment) };
        let mut heard: Option<(NetworkId, u64)> = None;
        let mut sender = sender;
        let mut at = 0;
        while at < packet.bytes.len() {
            let len = size.min(packet.bytes.len() - at);
            let Some(bytes) = packet.bytes.part(at, len) else { break };
            at += len;
            let mut front = [0; FRONT];
            let near = cx.arena.read(bytes, &mut front);
            let front = front.get(..near).unwrap_or_default();
            let inward = match self.vtep.accept(sender, front, len) {
                Ok(inward) => inward,
                Err(reason) => {
                    cx.nic = self.nics.first().copied().unwrap_or(cx.nic);
                    cx.lost(reason);
                    continue;
                }
            };
            let source = source(front.get(inward.at..).unwrap_or_default());
            if heard != Some((inward.network, source)) {
                heard = Some((inward.network, source));
                if let Some(id) = self.vtep.hear(sender, inward.network, source, cx.now) {
                    sender = Sender::Known(id);
                }
            }
            if let Sender::Known(id) = sender {
                self.listen(cx, inward, id, bytes);
            }
            let mtu = match sender {
                Sender::Known(id) => self.vtep.inner_mtu(id),
                Sender::Stranger(_) => u16::MAX,
            };
            self.unwrap(cx, inward, bytes, mtu, packet.tos & ECN);
        }
        if let Some(frame) = self.coalesce.finish(cx) {
            deliver(cx, frame, packet.tos & ECN);
        }
    }

    /// Learns of neighbours what an endpoint's frame says.
    #[inline]
    fn listen(&mut self, cx: &Context, inward: Inward, from: RemoteId, bytes: Lent) {
        if !self.vtep.looks(inward.network) {
            return;
        }
        let mut front = [0; wire::HEAD_BYTES];
        let Some(inner) = bytes.part(inward.at, bytes.len() - inward.at) else { return };
        let near = cx.arena.read(inner, &mut front);
        let front = front.get(..near).unwrap_or_default();
        let ethertype =
            front.get(12..).and_then(|rest| rest.first_chunk()).map_or(0, |field| u16::from_be_bytes(*field));
        if Message::may_be(ethertype, front) {
            self.vtep.tell(inward.network, from, front, cx.now);
        }
    }

    /// Makes a frame of a packet.
    fn unwrap(&mut self, cx: &mut Context, inward: Inward, bytes: Lent, mtu: u16, mark: u8) {
        let Some(nic) = self.nics.get(usize::from(inward.network.0)).copied() else { return };
        cx.nic = nic;
        let Some(inner) = bytes.part(inward.at, bytes.len() - inward.at) else { return cx.lost(DropReason::Runt) };
        match self.coalesce.push(cx, Origin { nic, lane: 0 }, inner, mtu) {
            Ok(Some(frame)) => deliver(cx, frame, mark),
            Ok(None) => {}
            Err(reason) => cx.lost(reason),
        }
    }
}

/// The source of a frame that begins with these bytes, as [`wire::Mac::to_bits`] has it.
fn source(frame: &[u8]) -> u64 {
    match frame.get(6..).and_then(|rest| rest.first_chunk::<6>()) {
        Some([a, b, c, d, e, f]) => u64::from_le_bytes([*a, *b, *c, *d, *e, *f, 0, 0]),
        None => 0,
    }
}

/// Gives a frame to the bridge of its network, with what the underlay says of congestion.
fn deliver(cx: &mut Context, frame: Frame, mark: u8) {
    let head = cx.heads.get_mut(&frame);
    let (nic, len) = (head.origin.nic, head.len());
    let marked = match mark {
        CE | ECT1 => marked(head.bytes_mut(), mark),
        _ => true,
    };
    cx.nic = nic;
    cx.received(1, len as u64);
    if !marked {
        return cx.drop(frame, DropReason::Congested);
    }
    if let Err(frame) = cx.answers.push(frame) {
        cx.drop(frame, DropReason::NoBuffers);
    }
}

/// Passes a mark of the underlay on to the inner packet (RFC 6040 figure 4); false: the packet does not know congestion marks and is to be dropped.
#[cold]
fn marked(bytes: &mut [u8], outer: u8) -> bool {
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => {
            let Some([version, tos]) = bytes.get(14..16).and_then(|at| at.first_chunk::<2>()).copied() else {
                return true;
            };
            let Some(new) = combined(tos & ECN, outer) else { return false };
            let (old, new) = ([version, tos], [version, tos & !ECN | new]);
            if let Some(place) = bytes.get_mut(14..16) {
                place.copy_from_slice(&new);
            }
            if let Some(field) = bytes.get_mut(24..26).and_then(|at| at.first_chunk_mut::<2>()) {
                let sum = u16::from_be_bytes(*field);
                *field = checksum::update(sum, u16::from_be_bytes(old), u16::from_be_bytes(new)).to_be_bytes();
            }
            true
        }
        Some([0x86, 0xdd]) => {
            let Some(place) = bytes.get_mut(15) else { return true };
            match combined(*place >> 4 & ECN, outer) {
                Some(new) => {
                    *place = *place & !(ECN << 4) | new << 4;
                    true
                }
                None => false,
            }
        }
        // Nothing that could say so.
        _ => true,
    }
}

/// The inner mark after the outer one was seen; nothing: to be dropped.
const fn combined(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (0, CE) => None,
        (0, _) | (CE, _) => Some(inner),
        (_, CE) => Some(CE),
        (ECT0, ECT1) => Some(ECT1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_combined_as_figure_4_of_rfc_6040_says() {
        // By inner and outer mark: not-ECT, ECT(1), ECT(0), CE.
        let table = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in table.into_iter().enumerate() {
            for (outer, expected) in row.into_iter().enumerate() {
                assert_eq!(combined(inner as u8, outer as u8), expected, "{inner} in {outer}");
            }
        }
    }

    #[test]
    fn a_mark_changes_the_header_and_keeps_its_checksum_right() {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut bytes = Vec::new();
        builder.udp(1, 2).write(&mut bytes, b"data").unwrap();
        assert!(!marked(&mut bytes, CE), "it does not know marks");
        bytes[15] = 0xb8 | ECT0;
        let sum = checksum::update(u16::from_be_bytes([bytes[24], bytes[25]]), 0x4500, 0x45ba);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        assert!(marked(&mut bytes, CE));
        let ip = etherparse::Ipv4HeaderSlice::from_slice(&bytes[14..]).unwrap();
        assert_eq!((ip.ecn().value(), ip.dcp().value()), (3, 0x2e));
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        let mut bytes = vec![0; 54];
        bytes[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, 0x20]);
        assert!(marked(&mut bytes, CE));
        assert_eq!(bytes[15], 0x30);
    }
}

//! What comes in from the underlay, whatever carried it: who sent it, and what the underlay says of congestion.
//!
//! Invariant: a frame's origin is the port's NIC in its network, and nothing of a packet is trusted before [`crate::vtep::Vtep::accept`] has taken it.
//! Read first: [`super`], RFC 6040 section 4.2 (congestion marks).

use wire::{
    Context, DropReason, Frame,
    bytes::word,
    checksum,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN},
};

use crate::{
    resolution::Message,
    vtep::{NetworkId, Sender, Vtep},
};

/// Congestion marks, the low two bits of TOS and traffic class (RFC 3168 section 5).
pub(crate) const ECN: u8 = 3;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
pub(crate) const CE: u8 = 3;

/// Packets of the underlay taken in one go: as many as the frames of them find room for, if none is a run.
const MOST: usize = 32;
/// Frames made of them in one turn, at most.
const ROUND: usize = 256;

/// How many packets to take next, while a turn has room for the frames of them; `each` is how many one became last.
pub(super) fn most(cx: &Context, each: usize) -> Option<usize> {
    let room = cx.answers.room().saturating_sub(wire::ANSWERS - ROUND);
    (room >= wire::BURST).then(|| (room / each).clamp(1, MOST))
}

/// Who was heard last in a run of packets from one sender.
pub(crate) struct Heard {
    pub(crate) sender: Sender,
    last: Option<(NetworkId, u64, Result<(), DropReason>)>,
}

impl Heard {
    pub(crate) fn new(sender: Sender) -> Heard {
        Heard { sender, last: None }
    }

    /// A frame of this sender that begins with these bytes was taken for a network.
    ///
    /// # Errors
    /// See [`Vtep::hear`].
    #[inline]
    pub(crate) fn hear(
        &mut self,
        cx: &Context,
        vtep: &mut Vtep,
        network: NetworkId,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let source = source(frame);
        if let Some((last, from, may)) = self.last
            && (last, from) == (network, source)
        {
            return may;
        }
        let heard = vtep.hear(self.sender, network, source, cx.now);
        if let Ok(Some(id)) = heard {
            self.sender = Sender::Known(id);
        }
        let may = heard.map(|_| ());
        self.last = Some((network, source, may));
        may
    }

    /// The lane of the frames' origin: whose budgets are charged.
    pub(crate) fn lane(&self) -> u16 {
        match self.sender {
            Sender::Known(id) => id.0,
            Sender::Stranger(_) => 0,
        }
    }
}

/// Learns of neighbours what an endpoint's frame says, of which these are the first bytes.
#[inline]
pub(crate) fn listen(cx: &Context, vtep: &mut Vtep, network: NetworkId, sender: Sender, front: &[u8]) {
    let Sender::Known(from) = sender else { return };
    if Message::may_be(word(front, 12).unwrap_or(0), front) {
        vtep.tell(network, from, front, cx.now);
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
#[inline]
pub(crate) fn deliver(cx: &mut Context, frame: Frame, mark: u8) {
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

/// The EtherType of a frame's packet, and where that begins: behind a tag (IEEE 802.1Q clause 9.6), if there is one. What is behind two
/// is not looked for.
#[inline]
pub(super) fn packet(bytes: &[u8]) -> Option<(u16, usize)> {
    match word(bytes, 12)? {
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Some((word(bytes, 16)?, 18)),
        own => Some((own, 14)),
    }
}

/// Passes a mark of the underlay on to the inner packet (RFC 6040 figure 4); false: the packet does not know congestion marks and is to be dropped.
#[cold]
fn marked(bytes: &mut [u8], outer: u8) -> bool {
    let Some((ethertype, at)) = packet(bytes) else { return true };
    let Some(header) = bytes.get_mut(at..) else { return true };
    match (ethertype, header) {
        (ETHERTYPE_IPV4, [version, tos, _, _, _, _, _, _, _, _, high, low, ..]) => {
            let Some(new) = combined(*tos & ECN, outer) else { return false };
            let old = u16::from_be_bytes([*version, *tos]);
            *tos = *tos & !ECN | new;
            let sum = checksum::update(u16::from_be_bytes([*high, *low]), old, u16::from_be_bytes([*version, *tos]));
            [*high, *low] = sum.to_be_bytes();
            true
        }
        (ETHERTYPE_IPV6, [_, place, ..]) => match combined(*place >> 4 & ECN, outer) {
            Some(new) => {
                *place = *place & !(ECN << 4) | new << 4;
                true
            }
            None => false,
        },
        // Nothing that could say so.
        _ => true,
    }
}

/// The inner mark after the outer one was seen; nothing: to be dropped.
pub(super) const fn combined(inner: u8, outer: u8) -> Option<u8> {
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
        // A tag before it hides nothing.
        let mut tagged = [&bytes[..12], &[0x81, 0, 0, 7], &bytes[12..]].concat();
        tagged[19] = 0xb8 | ECT0;
        let sum = checksum::update(u16::from_be_bytes([tagged[28], tagged[29]]), 0x45bb, 0x45ba);
        tagged[28..30].copy_from_slice(&sum.to_be_bytes());
        assert!(marked(&mut tagged, CE));
        assert_eq!(tagged[18..], bytes[14..]);
        let mut bytes = vec![0; 54];
        bytes[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, 0x20]);
        assert!(marked(&mut bytes, CE));
        assert_eq!(bytes[15], 0x30);
        // What ends too early has no mark.
        for len in 0..30 {
            let mut cut = tagged[..len].to_vec();
            assert!(marked(&mut cut, CE) && cut == tagged[..len], "{len} bytes");
        }
    }
}

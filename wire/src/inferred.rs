//! [`inferred`]: what a frame owes that came without a word about it, out of a tunnel of the same machine.
//!
//! A kernel that sends by its own tunnel to an endpoint it need not leave the machine for completes no inner checksum and cuts no inner super-frame: no
//! device is there to do it, and a UDP socket is not told. Such a frame is known by its checksum field, which holds the sum of the pseudo header
//! (virtio 1.2 section 5.1.6.2) and nothing more.
//!
//! Invariant: what is said to be owed changes no packet that was right: if the field of a complete checksum happens to hold that sum, which is one in
//! 65,536, completing it once more makes the same. Read first: [`crate::offload`].

use crate::{L3, Layers, Offload, bytes::array, checksum::Checksum, offload::Gso};

/// What a frame of `len` bytes that begins with these owes; where it is longer than an IP packet of `mtu` bytes, it is a super-frame that is cut
/// into such.
pub fn inferred(bytes: &[u8], len: usize, mtu: u16) -> Offload {
    read(bytes, len, usize::from(mtu)).unwrap_or(Offload::NONE)
}

fn read(bytes: &[u8], len: usize, mtu: usize) -> Option<Offload> {
    let layers = Layers::parse(bytes)?;
    let (l3, l4) = (layers.l2_len, layers.l4?);
    let protocol = layers.protocol.filter(|_| !layers.fragment)?;
    let (offset, headers) = match protocol {
        6 => (16, l4 + usize::from(array::<1>(bytes, l4 + 12)?[0] >> 4) * 4),
        17 => (6, l4 + 8),
        _ => return None,
    };
    let l4_len = len.checked_sub(l4)?;
    let (pseudo, gso) = match layers.l3 {
        L3::V4 => {
            let sum = Checksum::pseudo_v4(
                array(bytes, l3 + 12)?,
                array(bytes, l3 + 16)?,
                protocol,
                u16::try_from(l4_len).ok()?,
            );
            (sum, Gso::Tcp4)
        }
        L3::V6 => {
            let sum = Checksum::pseudo_v6(
                array(bytes, l3 + 8)?,
                array(bytes, l3 + 24)?,
                protocol,
                u32::try_from(l4_len).ok()?,
            );
            (sum, Gso::Tcp6)
        }
        _ => return None,
    };
    if u16::from_be_bytes(array(bytes, l4 + offset)?) != pseudo.fold() {
        return None;
    }
    let gso = match len - l3 > mtu {
        false => Gso::None,
        true if protocol == 17 => Gso::Udp,
        true => gso,
    };
    let size = mtu.checked_sub(headers - l3).filter(|size| *size > 0)?;
    let size = if gso == Gso::None { 0 } else { size };
    Some(Offload::new(gso, headers as u16, size as u16, l4 as u16, offset as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Accepts,
        segmentation::tests::{context, frame, settle},
    };

    fn packet(v6: bool, tcp: bool, payload: usize) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let payload: Vec<u8> = (0..payload).map(|n| n as u8).collect();
        let mut bytes = Vec::new();
        macro_rules! transport {
            ($ip:expr) => {
                if tcp {
                    $ip.tcp(1, 2, 3, 4).write(&mut bytes, &payload)
                } else {
                    $ip.udp(1, 2).write(&mut bytes, &payload)
                }
            };
        }
        if v6 {
            transport!(builder.ipv6([1; 16], [2; 16], 9))
        } else {
            transport!(builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9))
        }
        .unwrap();
        bytes
    }

    /// The same with a checksum that is owed.
    fn owing(mut bytes: Vec<u8>, v6: bool, tcp: bool) -> Vec<u8> {
        let l4 = if v6 { 54 } else { 34 };
        let len = bytes.len() - l4;
        let protocol = if tcp { 6 } else { 17 };
        let sum = if v6 {
            Checksum::pseudo_v6([1; 16], [2; 16], protocol, len as u32)
        } else {
            Checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], protocol, len as u16)
        };
        let at = l4 + if tcp { 16 } else { 6 };
        bytes[at..at + 2].copy_from_slice(&sum.fold().to_be_bytes());
        bytes
    }

    #[test]
    fn a_complete_packet_owes_nothing_and_what_is_owed_completes_it() {
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let whole = packet(v6, tcp, 100);
            assert!(inferred(&whole, whole.len(), 1450).is_none());
            let bytes = owing(whole.clone(), v6, tcp);
            let owed = inferred(&bytes, bytes.len(), 1450);
            assert!(owed.needs_checksum() && owed.gso() == Gso::None);
            let mut cx = context();
            let frame = frame(&mut cx, &bytes, owed, &[100]);
            assert_eq!(settle(&mut cx, frame, Accepts::NONE), [(whole, Offload::NONE)]);
        }
        assert!(inferred(&[0; 60], 60, 1450).is_none());
    }

    #[test]
    fn what_is_longer_than_the_mtu_is_cut_to_it() {
        for v6 in [false, true] {
            let bytes = owing(packet(v6, true, 10_000), v6, true);
            let owed = inferred(&bytes[..128], bytes.len(), 1450);
            assert_eq!(owed.gso(), if v6 { Gso::Tcp6 } else { Gso::Tcp4 });
            let mut cx = context();
            let frame = frame(&mut cx, &bytes, owed, &[1000]);
            let segments = settle(&mut cx, frame, Accepts::NONE);
            assert_eq!(segments.iter().map(|(bytes, _)| bytes.len()).max(), Some(1464));
        }
    }
}

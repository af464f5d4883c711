//! The frames that a measurement sends, and how they are told apart.
//!
//! Invariant: what is sent is what a guest could send: valid Ethernet, IPv4 and UDP or TCP headers, addresses that belong to the port.
//! Read first: [`crate::bench::case`].

use wire::{Gso, Mac, Offload, checksum::Checksum};

use super::case::{Case, Path, What};

/// Bytes of Ethernet, IPv4 and UDP headers: where the payload begins, and with it the stamp.
pub const STAMP_AT: usize = 42;
/// Bytes of a VLAN tag.
pub const TAG: usize = 4;
/// The VLAN of the VLAN path.
pub const VLAN: u16 = 100;
/// Where the UDP source port lies.
pub const SOURCE_PORT_AT: usize = 34;
/// Bytes of destination and source address.
pub const ADDRESSES: usize = 12;

/// Address number `n` of a port.
pub fn mac(port: usize, n: u32) -> Mac {
    let [_, a, b, c] = n.to_be_bytes();
    Mac::new([2, 0, port as u8, a, b, c])
}

/// The port that frames of `port` are for, and that sends back.
pub fn partner(port: usize) -> usize {
    port ^ 1
}

/// Whether frames of and to this port carry a tag.
pub fn is_tagged(case: &Case, port: usize) -> bool {
    case.path == Path::Vlan && port % 2 == 1
}

/// Destination and source of the frames from address `n` of `port` to address `n` of its partner.
pub fn addresses(port: usize, n: u32) -> [u8; ADDRESSES] {
    let mut bytes = [0; ADDRESSES];
    let (to, from) = bytes.split_at_mut(ADDRESSES / 2);
    to.copy_from_slice(&mac(partner(port), n).bytes());
    from.copy_from_slice(&mac(port, n).bytes());
    bytes
}

/// The frame that `port` sends, from its first address and flow, and what it owes.
pub fn frame(case: &Case, port: usize) -> (Vec<u8>, Offload) {
    let tag = if is_tagged(case, port) { TAG } else { 0 };
    // A tag makes a frame longer, as it does on a wire.
    let len = case.frame_bytes() as usize + tag;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(addresses(port, 0));
    if tag > 0 {
        bytes.extend([0x81, 0]);
        bytes.extend(VLAN.to_be_bytes());
    }
    bytes.extend([8, 0]);
    let tcp = case.what == What::Throughput;
    let protocol = if tcp { 6 } else { 17 };
    let ip_len = (len - bytes.len()) as u16;
    let (source, destination) = ([10, 0, 0, port as u8 + 1], [10, 0, 0, partner(port) as u8 + 1]);
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&destination);
    let mut sum = Checksum::new();
    sum.add_bytes(&ip);
    ip[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    bytes.extend(ip);
    let start = bytes.len();
    bytes.extend(1000u16.to_be_bytes());
    bytes.extend(9u16.to_be_bytes());
    let mut offload = Offload::NONE;
    if tcp {
        let owed = Checksum::pseudo_v4(source, destination, protocol, ip_len - 20).fold();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 0xff, 0xff]);
        bytes.extend(owed.to_be_bytes());
        bytes.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
        offload = Offload::new(Gso::Tcp4, bytes.len() as u16, 1448, start as u16, 16);
    } else {
        bytes.extend((ip_len - 20).to_be_bytes());
        // Over IPv4, zero says that there is no checksum (RFC 768): a stamp may change.
        bytes.extend([0, 0]);
    }
    bytes.resize(len, 0);
    (bytes, offload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::SUPER_FRAME;

    fn vlan(what: What, size: u32) -> Case {
        Case { path: Path::Vlan, ..Case::new(what, size) }
    }

    #[test]
    fn frames_have_their_size_and_valid_headers() {
        for size in crate::bench::case::SIZES {
            let (bytes, offload) = frame(&Case::new(What::Rate, size), 0);
            assert_eq!((bytes.len() as u32 + 4, offload), (size, Offload::NONE));
            let mut sum = Checksum::new();
            sum.add_bytes(&bytes[14..34]);
            assert!(sum.is_valid());
            assert_eq!(u16::from_be_bytes([bytes[16], bytes[17]]) as usize, bytes.len() - 14);
            assert_eq!(
                bytes[..6],
                frame(&Case::new(What::Rate, size), 1).0[6..12],
                "one's destination is the other's source"
            );
        }
    }

    #[test]
    fn a_tag_makes_a_frame_longer() {
        let case = vlan(What::Rate, 64);
        let (plain, tagged) = (frame(&case, 0).0, frame(&case, 1).0);
        assert_eq!((plain.len(), tagged.len()), (60, 64));
        assert_eq!(tagged[12..16], [0x81, 0, 0, 100]);
    }

    #[test]
    fn super_frames_owe_what_they_say() {
        for port in 0..2 {
            let (bytes, offload) = frame(&vlan(What::Throughput, SUPER_FRAME), port);
            assert_eq!(offload.checked(bytes.len()), Some(offload));
            assert_eq!((bytes.len() - usize::from(offload.header_len())) % 1448, 0);
            assert!(bytes.len() - 14 - port * TAG <= 65_535);
            assert_eq!(usize::from(offload.checksum_start()), 34 + port * TAG);
        }
    }
}

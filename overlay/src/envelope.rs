//! [`Envelope`]: the IP and UDP headers around a tunnel's packet that is sealed as a whole, as WireGuard carries packets.
//!
//! Invariant: what is opened is a packet from the endpoint that sealed it to this one, whole and to its port. Nothing inside is trusted for having been sealed.
//! Read first: [`super::tunnel`], RFC 791, RFC 768, RFC 8200.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    bytes::{array, word},
    checksum::Checksum,
};

use crate::{encap::source_port, tunnel::TTL};

const UDP: u8 = 17;

/// See the module's documentation.
pub(crate) struct Envelope {
    local: IpAddr,
    port: u16,
}

/// What was in an envelope.
pub(crate) struct Opened<'p> {
    /// What is behind the UDP header.
    pub(crate) bytes: &'p [u8],
    /// TOS or traffic class.
    pub(crate) tos: u8,
}

impl Envelope {
    /// That of packets from and to an address, at this UDP port.
    pub(crate) fn new(local: IpAddr, port: u16) -> Envelope {
        Envelope { local, port }
    }

    /// Bytes before what is in it.
    pub(crate) const fn front(&self) -> usize {
        if self.local.is_ipv4() { 28 } else { 48 }
    }

    /// Writes the headers into the first [`Envelope::front`] bytes of a packet. Nothing where it is too long, or `to` is of the other version of IP.
    pub(crate) fn close(&self, packet: &mut [u8], to: IpAddr, tos: u8, hash: u32) -> Option<()> {
        let total = u16::try_from(packet.len()).ok()?;
        let (from, port) = (source_port(hash).to_be_bytes(), self.port.to_be_bytes());
        match (self.local, to) {
            (IpAddr::V4(us), IpAddr::V4(to)) => {
                let ([a, b], [c, d]) = (total.to_be_bytes(), total.checked_sub(20)?.to_be_bytes());
                let header = packet.first_chunk_mut::<28>()?;
                let (ip, udp) = header.split_at_mut(20);
                // Not to be cut; of such packets the identification means nothing.
                ip.copy_from_slice(&[0x45, tos, a, b, 0, 0, 0x40, 0, TTL, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                ip.get_mut(12..16)?.copy_from_slice(&us.octets());
                ip.get_mut(16..20)?.copy_from_slice(&to.octets());
                let mut sum = Checksum::new();
                sum.add_bytes(ip);
                ip.get_mut(10..12)?.copy_from_slice(&sum.finish().to_be_bytes());
                udp.copy_from_slice(&[from[0], from[1], port[0], port[1], c, d, 0, 0]);
            }
            (IpAddr::V6(us), IpAddr::V6(to)) => {
                let len = total.checked_sub(40)?;
                let [c, d] = len.to_be_bytes();
                let ip = packet.first_chunk_mut::<40>()?;
                ip[..8].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0, c, d, UDP, TTL]);
                ip[8..24].copy_from_slice(&us.octets());
                ip[24..].copy_from_slice(&to.octets());
                packet.get_mut(40..48)?.copy_from_slice(&[from[0], from[1], port[0], port[1], c, d, 0, 0]);
                // Over IPv6 there is no packet without a checksum (RFC 8200 section 8.1).
                let mut sum = Checksum::pseudo_v6(us.octets(), to.octets(), UDP, len.into());
                sum.add_bytes(packet.get(40..)?);
                packet.get_mut(46..48)?.copy_from_slice(&sum.finish_udp().to_be_bytes());
            }
            _ => return None,
        }
        Some(())
    }

    /// What a packet holds that the endpoint with this address has sealed; nothing: it is from or to somebody else, no UDP, in pieces or cut off.
    /// Checksums say nothing that the seal did not.
    pub(crate) fn open<'p>(&self, packet: &'p [u8], from: IpAddr) -> Option<Opened<'p>> {
        let (tos, at) = match (self.local, from) {
            (IpAddr::V4(us), IpAddr::V4(from)) => {
                let [0x45, tos, a, b, _, _, flags, offset, _, UDP, ..] = *packet.first_chunk::<20>()? else {
                    return None;
                };
                let ends = [Ipv4Addr::from(array::<4>(packet, 12)?), array::<4>(packet, 16)?.into()];
                let whole = flags & 0x3f == 0 && offset == 0 && usize::from(u16::from_be_bytes([a, b])) == packet.len();
                (whole && ends == [from, us]).then_some((tos, 20))?
            }
            (IpAddr::V6(us), IpAddr::V6(from)) => {
                let [first, second, _, _, a, b, UDP, ..] = *packet.first_chunk::<40>()? else { return None };
                let ends = [Ipv6Addr::from(array::<16>(packet, 8)?), array::<16>(packet, 24)?.into()];
                let whole = first >> 4 == 6 && usize::from(u16::from_be_bytes([a, b])) + 40 == packet.len();
                (whole && ends == [from, us]).then_some((first << 4 | second >> 4, 40))?
            }
            _ => return None,
        };
        let right = word(packet, at + 2)? == self.port && usize::from(word(packet, at + 4)?) + at == packet.len();
        right.then_some(Opened { bytes: packet.get(at + 8..)?, tos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(v6: bool) -> [IpAddr; 2] {
        let address =
            |n: u16| if v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]) } else { [192, 0, 2, n as u8].into() };
        [address(1), address(2)]
    }

    fn closed(us: IpAddr, to: IpAddr) -> Vec<u8> {
        let envelope = Envelope::new(us, 4789);
        let mut packet = vec![0; envelope.front()];
        packet.extend(b"what is in it");
        envelope.close(&mut packet, to, 0xba, 0x1234_5678).unwrap();
        packet
    }

    #[test]
    fn it_is_a_right_packet_and_opens_at_the_other_end_only() {
        for v6 in [false, true] {
            let [a, b] = pair(v6);
            let packet = closed(a, b);
            let read = etherparse::SlicedPacket::from_ip(&packet).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = read.transport else { panic!("no UDP") };
            assert_eq!(
                (udp.destination_port(), udp.source_port() >> 14, udp.payload()),
                (4789, 3, &b"what is in it"[..])
            );
            match read.net.unwrap() {
                etherparse::NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    let header = ip.header().to_header();
                    let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), sum);
                }
                _ => panic!("neither"),
            }
            let opened = Envelope::new(b, 4789).open(&packet, a).unwrap();
            assert_eq!((opened.bytes, opened.tos), (&b"what is in it"[..], 0xba));
            assert!(Envelope::new(b, 4789).open(&packet, b).is_none(), "from somebody else");
            assert!(Envelope::new(a, 4789).open(&packet, a).is_none(), "to somebody else");
            assert!(Envelope::new(b, 4790).open(&packet, a).is_none(), "to another port");
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_is_not_opened_or_holds_the_same() {
        for v6 in [false, true] {
            let [a, b] = pair(v6);
            let (packet, envelope) = (closed(a, b), Envelope::new(b, 4789));
            for len in 0..packet.len() {
                assert!(envelope.open(packet.get(..len).unwrap(), a).is_none(), "{len} bytes");
            }
            for at in 0..packet.len() {
                for bit in 0..8 {
                    let mut other = packet.clone();
                    other[at] ^= 1 << bit;
                    if let Some(opened) = envelope.open(&other, a) {
                        assert_eq!(opened.bytes.len(), 13, "byte {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn two_versions_of_ip_do_not_meet() {
        let ([a, _], [_, b]) = (pair(false), pair(true));
        let mut packet = vec![0; 100];
        assert!(Envelope::new(a, 4789).close(&mut packet, b, 0, 0).is_none());
        assert!(Envelope::new(a, 4789).open(&packet, b).is_none());
    }
}

//! [`Straight`]: most of what passes through a router, told by a few words of its head.
//!
//! Invariant: what is said here to go straight on is what `ipv4.rs` would let go on, and for the same reasons; about anything else it says
//! nothing. It is a shorter way to one answer, not a second opinion: a test holds the two together.
//! Read first: `course` in `ipv4.rs`.

use std::net::IpAddr;

use wire::{Mac, checksum};

use crate::config::{Config, Elsewhere, is_host};

/// EtherType IPv4, version 4, a header without options; as they follow one another in a frame.
const PLAIN: [u8; 3] = [0x08, 0x00, 0x45];

/// The router's addresses, made ready to be compared with. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Straight {
    mac: Mac,
    network: u32,
    mask: u32,
    aliases: Box<[u32]>,
}

impl Straight {
    /// For a router behind which there is something; nothing for others.
    pub(crate) fn new(config: &Config) -> Option<Straight> {
        let v4 = config.v4.as_ref().filter(|_| config.elsewhere == Elsewhere::Forward)?;
        let aliases = config.aliases.iter().filter_map(|alias| match alias {
            IpAddr::V4(alias) => Some(alias.to_bits()),
            IpAddr::V6(_) => None,
        });
        let (network, mask) = (v4.network().to_bits(), v4.mask().to_bits());
        Some(Straight { mac: config.mac, network, mask, aliases: aliases.collect() })
    }

    /// Whether a frame goes on, by its first bytes.
    #[inline]
    pub(crate) fn covers(&self, bytes: &[u8], checksum_owed: bool) -> bool {
        let Some(bytes) = bytes.first_chunk::<34>() else { return false };
        let [t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, a, b, c, .., ttl, _, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *bytes;
        let (to, from) = (Mac::new([t0, t1, t2, t3, t4, t5]), Mac::new([f0, f1, f2, f3, f4, f5]));
        let Some(header) = bytes.last_chunk::<20>() else { return false };
        let (source, destination) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([d0, d1, d2, d3]));
        to == self.mac
            && [a, b, c] == PLAIN
            && ttl > 1
            && destination & self.mask != self.network
            && is_host(destination.into())
            && is_host(source.into())
            && from.is_unicast()
            && from != self.mac
            && (checksum_owed || checksum::is_valid_header(header))
            && !self.aliases.contains(&destination)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::{Instant, NicId, Origin};

    use super::*;
    use crate::{Gateway, Incoming, Interest, RouterV4};

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

    fn router() -> Gateway {
        let mut config = Config::new(MAC);
        config.v4 = Some(RouterV4 { address: [10, 0, 0, 1].into(), prefix: 24, dhcp: None });
        config.elsewhere = Elsewhere::Forward;
        config.aliases = vec![IpAddr::from([10, 9, 0, 1])];
        config.routes = vec![(IpAddr::from([10, 9, 0, 0]), 24)];
        config.services = vec![53];
        Gateway::new(config, Instant::START).unwrap()
    }

    fn packet(to: [u8; 4], from: [u8; 4], ttl: u8) -> Vec<u8> {
        let ip = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], MAC.bytes()).ipv4(from, to, ttl);
        let mut bytes = Vec::new();
        ip.udp(1000, 53).write(&mut bytes, b"payload").unwrap();
        bytes
    }

    #[test]
    fn what_leads_elsewhere_goes_straight_on_if_it_is_intact() {
        let router = router();
        let straight = router.straight().unwrap();
        let good = packet([198, 51, 100, 7], [10, 0, 0, 2], 64);
        assert!(straight.covers(&good, false));
        let mut bad = good.clone();
        bad[25] ^= 1;
        assert!(!straight.covers(&bad, false));
        let incoming = Incoming { bytes: &bad, origin: Origin { nic: NicId(1), lane: 0 }, checksum_owed: false };
        assert_eq!(router.interest(&incoming, Instant::START), Interest::None(wire::DropReason::BadPacket));
        for (to, ttl) in [([10, 0, 0, 1], 64), ([10, 0, 0, 9], 64), ([10, 9, 0, 1], 64), ([198, 51, 100, 7], 1)] {
            assert!(!straight.covers(&packet(to, [10, 0, 0, 2], ttl), false), "{to:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_goes_straight_on_that_would_not_go_on_anyway(
            to in prop::sample::select(vec![[10, 0, 0, 1], [10, 0, 0, 255], [10, 9, 0, 1], [10, 9, 0, 7], [198, 51, 100, 7], [224, 0, 0, 1], [0; 4]]),
            from in prop::sample::select(vec![[10, 0, 0, 2], [127, 0, 0, 1], [255; 4], [198, 51, 100, 8]]),
            ttl in 0..4u8,
            change in prop::option::of((0..48usize, any::<u8>())),
            owed: bool,
        ) {
            let router = router();
            let mut bytes = packet(to, from, ttl);
            if let Some((at, byte)) = change {
                bytes[at] = byte;
            }
            if router.straight().unwrap().covers(&bytes, owed) {
                let incoming = Incoming { bytes: &bytes, origin: Origin { nic: NicId(1), lane: 0 }, checksum_owed: owed };
                prop_assert_eq!(router.interest_in_other(&incoming, Instant::START), Interest::Forward);
            }
        }
    }
}

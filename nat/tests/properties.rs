//! Properties over random packets: those of either version of IP are in `suites/properties.rs`; here is what one of them has besides, and the
//! exchange of prefixes.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/properties.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/properties.rs"]
mod v6;

use common::v4::*;
use nat::{Nptv6, Side};
use proptest::prelude::*;
use wire::{Context, NicId, Origin, Sizes};

proptest! {
    #[test]
    fn no_udp_checksum_stays_none(n in 2..200u32, from in 1..=u16::MAX, port in 1..=u16::MAX) {
        let inside = ep(host(n), from);
        let mut nat = Packets::new(&config());
        let mut frame = udp(inside, ep(PEER, port), b"abc");
        frame[40..42].fill(0);
        let out = nat.out(&frame).outward();
        prop_assert_eq!(&out.frame[40..42], &[0, 0]);
    }

    /// RFC 6296 | packet | met | Prefixes are exchanged so that every checksum stays right, and back again.
    #[test]
    fn rfc6296_prefixes_are_exchanged_checksum_neutrally(interface: u64, subnet: u16, length in prop::sample::select(vec![40u32, 48, 56, 64])) {
        let inside = std::net::Ipv6Addr::from_bits(0xfd01_0203_0405 << 80 | u128::from(subnet) << 64 | u128::from(interface));
        let outside: std::net::Ipv6Addr = "2001:db8:1:2::".parse().unwrap();
        let nptv6 = Nptv6::new(inside, outside, length).unwrap();
        let remote: std::net::Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(inside.octets(), remote.octets(), 64).udp(1, 2).write(&mut bytes, b"hello").unwrap();
        let mut cx = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
        cx.begin_turn(wire::Instant::START);
        let handle = cx.originate(Origin { nic: NicId(0), lane: 0 }, &bytes).unwrap();
        let head = cx.heads.get_mut(&handle);
        let translated = nptv6.translate(Side::Inside, head);
        let blocked = if length <= 48 { subnet == 0xffff } else { interface == u64::MAX };
        prop_assert_eq!(translated.is_err(), blocked);
        if blocked {
            return Ok(());
        }
        let translated_frame = head.bytes().to_vec();
        let packet = etherparse::SlicedPacket::from_ethernet(&translated_frame).unwrap();
        let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else { panic!() };
        let sum = udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap();
        prop_assert_eq!(udp.checksum(), sum);
        let mask = u128::MAX << (128 - length);
        prop_assert_eq!(ip.header().source_addr().to_bits() & mask, outside.to_bits() & mask);
        prop_assert_eq!(nptv6.outside(inside), Some(ip.header().source_addr()));
        // The answer's destination becomes what the source was.
        let answer = ip.header().source_addr().octets();
        head.bytes_mut()[38..54].copy_from_slice(&answer);
        nptv6.translate(Side::Outside, head).unwrap();
        prop_assert_eq!(&head.bytes()[38..54], &inside.octets());
        cx.drop(handle, wire::DropReason::NoDestination);
    }
}

//! What the suites share: [`v4`] and [`v6`] are the same file (`face.rs`), with the addresses and headers of `ip4.rs` and `ip6.rs`. A suite is
//! compiled for both by the same means: the macro `family!` says whose names it uses.

#![allow(
    dead_code,
    unused_imports,
    clippy::duplicate_mod,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use wire::Mac;

pub mod ip4;
pub mod ip6;

macro_rules! family {
    () => {
        pub use super::ip4::*;
    };
}
#[path = "face.rs"]
pub mod v4;

macro_rules! family {
    () => {
        pub use super::ip6::*;
    };
}
#[path = "face.rs"]
pub mod v6;

/// The port's MAC address outside, and that of the router there.
pub const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 0xaa]);
pub const HOP_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0xbb]);

/// Sums every checksum up anew.
#[track_caller]
pub fn check(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
            if ip.is_payload_fragmented() {
                return;
            }
            match &packet.transport {
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), sum, "UDP");
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    let sum = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
                    assert_eq!(tcp.checksum(), sum, "TCP");
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP");
                }
                _ => {}
            }
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            if ip.is_payload_fragmented() {
                return;
            }
            match &packet.transport {
                Some(TransportSlice::Udp(udp)) => {
                    let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), sum, "UDP");
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    let sum = tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap();
                    assert_eq!(tcp.checksum(), sum, "TCP");
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    assert!(icmp.is_checksum_valid(header.source, header.destination), "ICMPv6");
                }
                _ => {}
            }
        }
        _ => {}
    }
}

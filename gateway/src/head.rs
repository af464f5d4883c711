//! What a router reads and changes in the head of an untagged packet that goes through it.
//!
//! Invariant: a head that ends too early stays as it is. Read first: RFC 1812 section 5.3.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    Mac, checksum,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::bytes::array;

/// Where an untagged packet goes.
pub(crate) fn destination(frame: &[u8]) -> Option<IpAddr> {
    match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_IPV4 => array::<4>(frame, 30).map(|to| Ipv4Addr::from(to).into()),
        ETHERTYPE_IPV6 => array::<16>(frame, 38).map(|to| Ipv6Addr::from(to).into()),
        _ => None,
    }
}

/// Writes the source and, where it is known, the destination.
pub(crate) fn set_macs(frame: &mut [u8], to: Option<Mac>, from: Mac) {
    if let Some(place) = frame.get_mut(..12) {
        let (destination, source) = place.split_at_mut(6);
        if let Some(to) = to {
            destination.copy_from_slice(&to.bytes());
        }
        source.copy_from_slice(&from.bytes());
    }
}

/// Takes one from the time to live, or hop limit, of an untagged packet that goes through the router (RFC 1812 section 5.3.1); what is to the
/// router itself may come with the last.
pub(crate) fn age(frame: &mut [u8]) {
    match array(frame, 12).map(u16::from_be_bytes) {
        Some(ETHERTYPE_IPV4) => {
            let Some([ttl, protocol, a, b]) = frame.get_mut(22..26).and_then(|fields| fields.first_chunk_mut()) else {
                return;
            };
            if *ttl > 1 {
                let old = u16::from_be_bytes([*ttl, *protocol]);
                *ttl -= 1;
                let new = u16::from_be_bytes([*ttl, *protocol]);
                [*a, *b] = checksum::update(u16::from_be_bytes([*a, *b]), old, new).to_be_bytes();
            }
        }
        Some(ETHERTYPE_IPV6) => {
            if let Some(limit) = frame.get_mut(21).filter(|limit| **limit > 1) {
                *limit -= 1;
            }
        }
        _ => {}
    }
}

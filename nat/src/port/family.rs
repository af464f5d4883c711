//! [`Routed`]: what the port does by another way for IPv4 than for IPv6. A packet's way itself (`forward.rs`) is written once.
//!
//! Invariant: nothing here decides what becomes of a packet.

use std::net::{Ipv4Addr, Ipv6Addr};
use wire::icmp::{self, Owed};

use wire::fit::{self as mtu, Fit};
use wire::{Context, Frame, Head, Mac, NicId};

use super::{
    PacketPort,
    bytes::{array, put, put_summed, word},
    forward::L3,
    held::For,
    neighbours::Neighbours,
};
use crate::{family::Family, fragments::Which, record::Side, table::NatTable};

/// See the module's documentation.
pub(super) trait Routed: Family {
    /// Bytes of an IP and a TCP header without options.
    const TCP_HEADERS: u16;

    /// The table that translates it, if one does.
    fn table(port: &mut PacketPort) -> Option<&mut NatTable<Self>>;
    /// The address that errors about a packet come from.
    fn speaker(port: &PacketPort, head: &Head, to: Side) -> Option<Self>;
    /// The neighbour that is next on the way to a destination outside.
    fn hop(port: &PacketPort, to: Self) -> Option<Self>;
    /// Where an address was found last, if that is kept at hand.
    fn last(neighbours: &Neighbours, address: Self) -> Option<Mac>;
    /// The MAC address of a guest's address, or zero.
    fn guest(port: &PacketPort, nic: NicId, address: Self) -> u64;
    /// Answers an echo request to one of our own addresses; false when it is none.
    fn answer_ping(port: &mut PacketPort, cx: &mut Context, frame: &Frame, side: Side) -> bool;
    /// Hops it may still go.
    fn hops(head: &Head) -> u8;
    /// One hop more (RFC 1812 section 5.3.1, RFC 8200 section 3).
    fn age(head: &mut Head);
    /// How a packet gets through an MTU.
    fn fit(head: &Head, mtu: u16) -> Fit;
    /// Makes an error about `packet` in `into`.
    fn error(owed: Owed, from: Self, packet: &[u8], into: &mut [u8]) -> Option<usize>;
    /// Waits for the first fragment.
    fn first(which: Which<Self>) -> For;
}

impl Routed for Ipv4Addr {
    const TCP_HEADERS: u16 = 40;

    #[inline]
    fn table(port: &mut PacketPort) -> Option<&mut NatTable> {
        Some(&mut port.table)
    }

    fn speaker(port: &PacketPort, head: &Head, to: Side) -> Option<Ipv4Addr> {
        match to {
            Side::Inside => Some(port.router),
            Side::Outside => array::<4>(head.bytes(), L3 + Self::DESTINATION).map(Ipv4Addr::from),
        }
    }

    #[inline]
    fn hop(port: &PacketPort, to: Ipv4Addr) -> Option<Ipv4Addr> {
        port.hop_to(to)
    }

    #[inline]
    fn last(neighbours: &Neighbours, address: Ipv4Addr) -> Option<Mac> {
        neighbours.last(address)
    }

    #[inline]
    fn guest(port: &PacketPort, nic: NicId, address: Ipv4Addr) -> u64 {
        port.guests.find(nic, address)
    }

    fn answer_ping(port: &mut PacketPort, cx: &mut Context, frame: &Frame, side: Side) -> bool {
        port.answer_ping(cx, frame, side)
    }

    #[inline]
    fn hops(head: &Head) -> u8 {
        head.bytes().get(L3 + 8).copied().unwrap_or(0)
    }

    #[inline]
    fn age(head: &mut Head) {
        let bytes = head.bytes_mut();
        if let Some(old) = word(bytes, L3 + 8) {
            put_summed(bytes, L3 + 8, old.wrapping_sub(0x0100), L3 + 10);
        }
    }

    #[inline]
    fn fit(head: &Head, mtu: u16) -> Fit {
        mtu::fit(head, mtu)
    }

    fn error(owed: Owed, from: Ipv4Addr, packet: &[u8], into: &mut [u8]) -> Option<usize> {
        icmp::v4(owed, from, packet, into)
    }

    fn first(which: Which) -> For {
        For::First(which)
    }
}

impl Routed for Ipv6Addr {
    const TCP_HEADERS: u16 = 60;

    fn table(port: &mut PacketPort) -> Option<&mut NatTable<Ipv6Addr>> {
        port.table6_mut()
    }

    fn speaker(port: &PacketPort, head: &Head, to: Side) -> Option<Ipv6Addr> {
        let v6 = port.v6.as_ref()?;
        let asked = array::<16>(head.bytes(), L3 + Self::DESTINATION).map(Ipv6Addr::from);
        Some(match to {
            Side::Inside => v6.router,
            Side::Outside => asked.filter(|asked| v6.owned().contains(asked)).unwrap_or(v6.address),
        })
    }

    fn hop(port: &PacketPort, to: Ipv6Addr) -> Option<Ipv6Addr> {
        port.hop6(to)
    }

    fn last(_: &Neighbours, _: Ipv6Addr) -> Option<Mac> {
        None
    }

    fn guest(port: &PacketPort, nic: NicId, address: Ipv6Addr) -> u64 {
        port.guests.find6(nic, address)
    }

    fn answer_ping(port: &mut PacketPort, cx: &mut Context, frame: &Frame, side: Side) -> bool {
        port.answer_ping_v6(cx, frame, side)
    }

    fn hops(head: &Head) -> u8 {
        head.bytes().get(L3 + 7).copied().unwrap_or(0)
    }

    fn age(head: &mut Head) {
        let left = Self::hops(head).saturating_sub(1);
        put(head.bytes_mut(), L3 + 7, &[left]);
    }

    fn fit(head: &Head, mtu: u16) -> Fit {
        mtu::fit6(head, mtu)
    }

    fn error(owed: Owed, from: Ipv6Addr, packet: &[u8], into: &mut [u8]) -> Option<usize> {
        icmp::v6(owed, from, packet, into)
    }

    fn first(which: Which<Ipv6Addr>) -> For {
        For::First6(which)
    }
}

//! IPv6 through the port: by a table, as IPv4 (`forward.rs`), or by prefixes exchanged one for the other (RFC 6296).
//!
//! Invariant: what has an address of the link only never crosses by a table. With prefixes exchanged nothing is kept of a packet: an ICMPv6 error's
//! quoted packet is translated with it, so that the sender knows it as its own; what is quoted of an address does not change its checksum
//! either, and so neither does the error's.
//! Read first: `discovery.rs` beside this file, [`crate::nptv6`], RFC 6296 section 3.

use std::net::Ipv6Addr;
use wire::icmp::Owed;

use wire::fit::{self as mtu, Fit};
use wire::{Context, DropReason, Frame, Head, L3, Layers};

use super::{
    PacketPort,
    bytes::array,
    config::{ByV6, PortConfigV6, mask6},
    discovery::is_discovery,
    family::Routed,
};
use crate::{decide::Refusal, nptv6::Nptv6, record::Side, table::NatTable};

pub(super) const IP: usize = 14;
pub(super) const SOURCE: usize = IP + 8;
pub(super) const DESTINATION: usize = IP + 24;
pub(super) const ICMP6: u8 = 58;

/// In place of a guest's MAC address: with prefixes exchanged it is not known which NIC an address is behind, and what a guest says of that
/// is believed of nobody.
const ROUTER_FINDS: u64 = 0;

/// Source and destination of a packet.
pub(super) fn addresses(head: &Head) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let bytes = head.bytes();
    Some((array::<16>(bytes, SOURCE)?.into(), array::<16>(bytes, DESTINATION)?.into()))
}

/// What is set about IPv6, and the table if there is one.
pub(super) struct V6 {
    pub(super) by: By,
    pub(super) address: Ipv6Addr,
    pub(super) router: Ipv6Addr,
    prefix: u8,
    next_hop: Option<Ipv6Addr>,
}

/// How it is translated.
pub(super) enum By {
    Prefixes { prefixes: Nptv6, proxy: bool },
    Table(Box<NatTable<Ipv6Addr>>),
}

impl V6 {
    /// Of a checked configuration.
    pub(super) fn new(config: PortConfigV6) -> V6 {
        let PortConfigV6 { by, address, prefix, next_hop, router, inside: _ } = config;
        let by = match by {
            ByV6::Prefixes { prefixes, proxy } => By::Prefixes { prefixes, proxy },
            ByV6::Table(table) => By::Table(Box::new(NatTable::made(&table))),
        };
        V6 { by, address, router, prefix, next_hop }
    }

    /// Our addresses outside, but the link-local one and those of prefixes exchanged.
    pub(super) fn owned(&self) -> &[Ipv6Addr] {
        match &self.by {
            By::Prefixes { .. } => std::slice::from_ref(&self.address),
            By::Table(table) => table.outside(),
        }
    }
}

impl PacketPort {
    /// A frame from inside.
    pub(super) fn go_out_v6(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let nic = head.origin.nic;
        let (_, mac) = head.macs();
        let (Some((source, to)), Some(v6)) = (addresses(head), &self.v6) else {
            return self.end(cx, frame, Side::Inside, DropReason::NatUnsupported);
        };
        let prefixes = match v6.by {
            By::Prefixes { prefixes, .. } => Some((prefixes, v6.address)),
            By::Table(_) => None,
        };
        if prefixes.is_none() && !is_global(source) {
            // Who has no address yet, or one of the link, goes no further than the link (RFC 4291 section 2.5.6).
            return self.end(cx, frame, Side::Inside, DropReason::NoRoute);
        }
        if !self.guests.learn6(nic, source, mac) {
            self.add_nic(nic);
        }
        match prefixes {
            Some(prefixes) => self.exchange_out(cx, frame, prefixes, to),
            None => self.take_long::<Ipv6Addr>(cx, frame, Side::Inside),
        }
    }

    /// Prefixes exchanged, of a packet that goes out.
    fn exchange_out(&mut self, cx: &mut Context, frame: Frame, (prefixes, address): (Nptv6, Ipv6Addr), to: Ipv6Addr) {
        if prefixes.inside(to).is_some() || to == address {
            // Between guests by their outside addresses (RFC 6296 section 4, hairpinning).
            return self.turn_round(cx, frame, to == address);
        }
        let fit = mtu::fit6(cx.heads.get(&frame), self.outside_mtu);
        if fit == Fit::TooBig {
            self.tell::<Ipv6Addr>(cx, &frame, Side::Inside, Owed::TooBig(self.outside_mtu));
            return self.end(cx, frame, Side::Inside, DropReason::MtuExceeded);
        }
        let Some((frame, mac)) = self.way_to(cx, frame, Side::Inside, to) else { return };
        let head = cx.heads.get_mut(&frame);
        if prefixes.translate(Side::Inside, head).is_err() {
            // An address that is not of the prefix or cannot be translated (RFC 6296 section 3.5).
            self.tell::<Ipv6Addr>(cx, &frame, Side::Inside, Owed::NoRoute);
            return self.end(cx, frame, Side::Inside, DropReason::NoRoute);
        }
        if prefixes.translate_quote(Side::Inside, head).is_err() {
            return self.end(cx, frame, Side::Inside, DropReason::BadPacket);
        }
        self.finish_v6(cx, frame, Side::Outside, mac, fit);
    }

    /// A packet between guests by an address outside.
    fn turn_round(&mut self, cx: &mut Context, frame: Frame, to_us: bool) {
        let Some(V6 { by: By::Prefixes { prefixes, .. }, .. }) = self.v6.as_ref().filter(|_| !to_us) else {
            return self.end(cx, frame, Side::Inside, DropReason::NotForGateway);
        };
        let prefixes = *prefixes;
        let head = cx.heads.get_mut(&frame);
        if prefixes.translate(Side::Inside, head).and_then(|()| prefixes.translate(Side::Outside, head)).is_err() {
            return self.end(cx, frame, Side::Inside, DropReason::NoRoute);
        }
        let fit = mtu::fit6(cx.heads.get(&frame), self.inside_mtu);
        self.finish_v6(cx, frame, Side::Inside, ROUTER_FINDS, fit);
    }

    fn finish_v6(&mut self, cx: &mut Context, frame: Frame, to: Side, mac: u64, fit: Fit) {
        let head = cx.heads.get_mut(&frame);
        let layers = Layers::parse(head.bytes());
        if let Some(l4) =
            layers.filter(|layers| layers.protocol == Some(6) && !layers.fragment).and_then(|layers| layers.l4)
        {
            mtu::clamp(head, l4, self.outside_mtu.min(self.inside_mtu), 60);
        }
        if let Fit::Lower(size) = fit {
            head.offload = mtu::lowered(head.offload, size);
        }
        self.send(cx, frame, to, mac);
    }

    /// A frame from outside.
    pub(super) fn come_in_v6(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let (mac, _) = head.macs();
        let (Some((source, to)), Some(v6)) = (addresses(head), &self.v6) else {
            return cx.drop(frame, DropReason::NotForGateway);
        };
        let bytes = head.bytes();
        if bytes.get(IP + 6) == Some(&ICMP6) && bytes.get(IP + 7) == Some(&255) && is_discovery(bytes) {
            return self.hear_discovery(cx, frame, source);
        }
        if mac != self.mac.to_bits() || source.is_multicast() || source.is_unspecified() || source.is_loopback() {
            return cx.drop(frame, DropReason::NotForGateway);
        }
        let to_us = match &v6.by {
            By::Prefixes { .. } => to == v6.address,
            By::Table(_) => !is_global(source),
        };
        if to_us || to == self.link_local() {
            if self.answer_ping_v6(cx, &frame, Side::Outside) {
                let len = cx.heads.get(&frame).len();
                return cx.transmitted(1, len as u64);
            }
            return cx.drop(frame, DropReason::NotForGateway);
        }
        match v6.by {
            By::Prefixes { prefixes, .. } => self.exchange_in(cx, frame, prefixes, to),
            By::Table(_) => self.take_long::<Ipv6Addr>(cx, frame, Side::Outside),
        }
    }

    /// Prefixes exchanged, of a packet that comes in.
    fn exchange_in(&mut self, cx: &mut Context, frame: Frame, prefixes: Nptv6, to: Ipv6Addr) {
        let head = cx.heads.get(&frame);
        let fit = mtu::fit6(head, self.inside_mtu);
        if prefixes.inside(to).is_none() {
            return cx.drop(frame, DropReason::NoRoute);
        }
        if Ipv6Addr::hops(head) < 2 {
            self.tell::<Ipv6Addr>(cx, &frame, Side::Outside, Owed::Expired);
            return cx.drop(frame, DropReason::TtlExceeded);
        }
        if fit == Fit::TooBig {
            self.tell::<Ipv6Addr>(cx, &frame, Side::Outside, Owed::TooBig(self.inside_mtu));
            return cx.drop(frame, DropReason::MtuExceeded);
        }
        let head = cx.heads.get_mut(&frame);
        if prefixes.translate(Side::Outside, head).and_then(|()| prefixes.translate_quote(Side::Outside, head)).is_err()
        {
            return cx.drop(frame, DropReason::BadPacket);
        }
        Ipv6Addr::age(head);
        self.finish_v6(cx, frame, Side::Inside, ROUTER_FINDS, fit);
    }

    /// The neighbour that is next on the way to a destination outside.
    pub(super) fn hop6(&self, to: Ipv6Addr) -> Option<Ipv6Addr> {
        let v6 = self.v6.as_ref()?;
        let mask = mask6(v6.prefix);
        if to.is_multicast() || to.is_unspecified() || to.is_loopback() || to.is_unicast_link_local() {
            None
        } else if v6.prefix < 128 && (to.to_bits() ^ v6.address.to_bits()) & mask == 0 {
            Some(to)
        } else {
            v6.next_hop
        }
    }
}

/// Whether a router may send on what comes from an address.
fn is_global(source: Ipv6Addr) -> bool {
    !(source.is_unicast_link_local() || source.is_multicast() || source.is_unspecified() || source.is_loopback())
}

impl crate::Nptv6 {
    /// Translates the packet that an ICMPv6 error quotes, the other way round than the error itself; other packets are left alone.
    pub fn translate_quote(&self, side: Side, head: &mut Head) -> Result<(), Refusal> {
        let layers = Layers::parse(head.bytes()).ok_or(Refusal::Malformed)?;
        let (L3::V6, Some(ICMP6), false, Some(l4)) = (layers.l3, layers.protocol, layers.fragment, layers.l4) else {
            return Ok(());
        };
        if head.bytes().get(l4).is_none_or(|kind| *kind >= 128) {
            return Ok(());
        }
        // What goes out is about what came in: the quoted destination is inside.
        self.exchange_at(side, head, l4 + 8 + if side == Side::Inside { 24 } else { 8 })
    }
}

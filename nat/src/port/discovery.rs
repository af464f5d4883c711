//! The port as a station of IPv6 on the link outside: neighbour discovery, and pings to its own addresses.
//!
//! Invariant: only what was asked for is believed, and only for our own addresses do we answer.
//! Read first: RFC 4861 sections 4.3 and 4.4; `outside.rs` beside this file, which does the same for IPv4.

use std::net::Ipv6Addr;
use wire::icmp::sum_v6;

use wire::{Context, DropReason, Frame, Mac, solicited_node};

use super::{
    PacketPort,
    bytes::{array, put, put_summed},
    config::interface,
    v6::{By, DESTINATION, ICMP6, IP, SOURCE, V6, addresses},
};
use crate::record::Side;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Bytes of a neighbour solicitation or advertisement with its option.
const DISCOVERY_LEN: usize = IP + 40 + 24 + 8;

impl PacketPort {
    /// The link-local address of the outside NIC (RFC 4291 appendix A).
    pub(super) fn link_local(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(u64::from_be_bytes(interface(self.mac))))
    }

    /// Whether we answer for an address on the link.
    fn is_ours_v6(&self, address: Ipv6Addr) -> bool {
        let Some(v6) = &self.v6 else { return false };
        let stands_for = match v6.by {
            By::Prefixes { prefixes, proxy } => proxy && prefixes.inside(address).is_some(),
            By::Table(_) => false,
        };
        stands_for || address == self.link_local() || v6.owned().contains(&address)
    }

    /// Neighbour discovery from outside.
    pub(super) fn hear_discovery(&mut self, cx: &mut Context, frame: Frame, source: Ipv6Addr) {
        let head = cx.heads.get(&frame);
        let (bytes, len) = (head.bytes(), head.len());
        let (_, from) = head.macs();
        let message = bytes.get(IP + 40..).unwrap_or_default();
        let target = array::<16>(message, 8).map(Ipv6Addr::from);
        let length = array::<2>(bytes, IP + 4).map_or(0, |len| usize::from(u16::from_be_bytes(len)));
        let valid = message.get(..length).is_some_and(|message| {
            let ends = (array(bytes, SOURCE), array(bytes, DESTINATION));
            let (Some(source), Some(to)) = ends else { return false };
            let mut sum = wire::checksum::Checksum::pseudo_v6(source, to, ICMP6, length as u32);
            sum.add_bytes(message);
            sum.is_valid()
        });
        let option = message.get(24..).and_then(|option| array::<2>(option, 0).zip(array::<6>(option, 2)));
        let (Some([kind, 0]), Some(target), true) = (array::<2>(message, 0), target, valid) else {
            return cx.drop(frame, DropReason::NotForGateway);
        };
        match (kind, option) {
            (SOLICITATION, _) if self.is_ours_v6(target) => {
                if source.is_unspecified() {
                    self.advertise(cx, target, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), None);
                } else {
                    self.neighbours.heard(source.into(), Mac::from_bits(from), cx.now);
                    self.advertise(cx, target, source, Some(Mac::from_bits(from)));
                }
                cx.transmitted(1, len as u64);
            }
            (ADVERTISEMENT, Some(([2, 1], mac))) if self.neighbours.heard(target.into(), Mac::new(mac), cx.now) => {
                cx.transmitted(1, len as u64);
                if !self.held.is_empty() {
                    self.settle(cx, target.into());
                }
            }
            _ => cx.drop(frame, DropReason::NotForGateway),
        }
    }

    /// Sends a neighbour advertisement of one of our addresses.
    pub(super) fn advertise(&mut self, cx: &mut Context, ours: Ipv6Addr, to: Ipv6Addr, mac: Option<Mac>) {
        // Solicited if somebody asked, and in place of what was known (RFC 4861 section 4.4).
        let flags = if mac.is_some() { 0x60 } else { 0x20 };
        self.discovery(cx, ADVERTISEMENT, flags, [ours, to, ours], mac);
    }

    /// Asks for a neighbour.
    pub(super) fn solicit(&mut self, cx: &mut Context, target: Ipv6Addr) {
        self.discovery(cx, SOLICITATION, 0, [self.link_local(), solicited_node(target), target], None);
    }

    fn discovery(
        &mut self,
        cx: &mut Context,
        kind: u8,
        flags: u8,
        [from, to, target]: [Ipv6Addr; 3],
        mac: Option<Mac>,
    ) {
        let mac = mac.unwrap_or(Mac::of_group(to.into()));
        let own = self.mac.bytes();
        let Some(bytes) = self.answer.get_mut(..DISCOVERY_LEN) else { return };
        bytes.fill(0);
        put(bytes, 12, &[0x86, 0xdd, 0x60]);
        put(bytes, IP + 4, &[0, 32, ICMP6, 255]);
        put(bytes, SOURCE, &from.octets());
        put(bytes, DESTINATION, &to.octets());
        put(bytes, 54, &[kind, 0, 0, 0, flags]);
        put(bytes, 62, &target.octets());
        put(bytes, 78, &[if kind == SOLICITATION { 1 } else { 2 }, 1]);
        put(bytes, 80, &own);
        if let Some(sum) = sum_v6(bytes) {
            put(bytes, 56, &sum);
        }
        self.originate(cx, DISCOVERY_LEN, Side::Outside, mac.to_bits());
    }

    /// As [`PacketPort::answer_ping`], of IPv6.
    pub(super) fn answer_ping_v6(&mut self, cx: &mut Context, frame: &Frame, side: Side) -> bool {
        let head = cx.heads.get(frame);
        let (_, mac) = head.macs();
        let to = addresses(head).map(|(_, to)| to);
        let owned = self.v6.as_ref().map(V6::owned).unwrap_or_default();
        let ours = to.is_some_and(|to| owned.contains(&to) || to == self.link_local());
        let asks = head.bytes().get(IP + 6) == Some(&ICMP6) && array::<2>(head.bytes(), 54) == Some([128, 0]);
        if !(ours && asks && head.offload.is_none()) {
            return false;
        }
        let len = cx.read_all(frame, &mut self.scratch).filter(|len| *len <= self.answer.len());
        let Some((question, answer)) = len.and_then(|len| self.scratch.get(..len).zip(self.answer.get_mut(..len)))
        else {
            return false;
        };
        answer.copy_from_slice(question);
        put(answer, SOURCE, question.get(DESTINATION..DESTINATION + 16).unwrap_or_default());
        put(answer, DESTINATION, question.get(SOURCE..SOURCE + 16).unwrap_or_default());
        put(answer, IP + 7, &[64]);
        // What was wrong stays wrong.
        put_summed(answer, 54, 129 << 8, 56);
        let len = question.len();
        self.originate(cx, len, side, mac);
        true
    }
}

/// Whether an ICMPv6 message without extension headers is one of neighbour discovery or its kin, which no router sends on.
pub(super) fn is_discovery(bytes: &[u8]) -> bool {
    bytes.get(IP + 40).is_some_and(|kind| (133..=137).contains(kind))
}

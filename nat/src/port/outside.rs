//! The port as a host on the link outside: ARP, pings to its own addresses, and answers to SYNs that nobody wanted.
//!
//! Invariant: only what was asked for is believed, and only for our own addresses do we answer.
//! Read first: RFC 826, RFC 5227 section 3, RFC 5382 REQ-4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wire::icmp::Owed;

use wire::{Context, DropReason, Frame, Mac, NicId};

use super::{
    PacketPort,
    bytes::{array, put, put_summed, sum, word},
    family::Routed,
    held::For,
    neighbours::Hop,
};
use crate::record::Side;

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
const L3: usize = 14;
/// Bytes of an ARP frame.
const ARP_LEN: usize = 42;

impl PacketPort {
    /// An ARP frame from outside.
    pub(super) fn hear_arp(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let bytes = head.bytes();
        let (to, _) = head.macs();
        let len = head.len();
        let ours = to == self.mac.to_bits() || to == Mac::BROADCAST.to_bits();
        let kind = array::<8>(bytes, L3).filter(|fields| fields.starts_with(&[0, 1, 8, 0, 6, 4, 0]) && ours);
        let (Some([.., kind]), Some(sender), Some(from), Some(target)) =
            (kind, array::<6>(bytes, 22), array::<4>(bytes, 28), array::<4>(bytes, 38))
        else {
            return cx.drop(frame, DropReason::NotForGateway);
        };
        let (sender, from, target) = (Mac::new(sender), Ipv4Addr::from(from), Ipv4Addr::from(target));
        let addresses = self.table.outside();
        if addresses.contains(&from) {
            // Somebody else has our address: we defend it, once in a while (RFC 5227 section 2.4).
            if sender != self.mac {
                self.announce = self.announce.max(1);
            }
            return cx.drop(frame, DropReason::NotForGateway);
        }
        let asks_us = kind == 1 && addresses.contains(&target);
        let known = self.neighbours.heard(from.into(), sender, cx.now);
        if asks_us {
            self.arp(cx, 2, target, sender, from);
        }
        if asks_us || known {
            cx.transmitted(1, len as u64);
        } else {
            cx.drop(frame, DropReason::NotForGateway);
        }
        if known && !self.held.is_empty() {
            self.settle(cx, from.into());
        }
    }

    /// Sends an ARP request (1) or reply (2) of one of our addresses.
    fn arp(&mut self, cx: &mut Context, kind: u8, ours: Ipv4Addr, to: Mac, target: Ipv4Addr) {
        let mac = self.mac.bytes();
        let bytes = &mut self.answer;
        put(bytes, 12, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, kind]);
        put(bytes, 22, &mac);
        put(bytes, 28, &ours.octets());
        put(bytes, 32, &if kind == 1 { [0; 6] } else { to.bytes() });
        put(bytes, 38, &target.octets());
        self.originate(cx, ARP_LEN, Side::Outside, to.to_bits());
    }

    /// Where an address outside is; asks for it if that is to be done.
    pub(super) fn find(&mut self, cx: &mut Context, address: IpAddr, by: NicId) -> Hop {
        let hop = self.neighbours.find(address, by, cx.now);
        if matches!(hop, Hop::Ask | Hop::Doubtful(_)) {
            match address {
                IpAddr::V4(target) => {
                    let ours = self.table.outside().first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
                    self.arp(cx, 1, ours, Mac::BROADCAST, target);
                }
                IpAddr::V6(target) => self.solicit(cx, target),
            }
        }
        hop
    }

    /// Tells the link where our addresses are (RFC 5227 section 3).
    pub(super) fn say_where_we_are(&mut self, cx: &mut Context) {
        for n in 0..self.table.outside().len() {
            if let Some(address) = self.table.outside().get(n).copied() {
                self.arp(cx, 1, address, Mac::BROADCAST, address);
            }
        }
        let own = |port: &PacketPort, n: usize| port.v6.as_ref().and_then(|v6| v6.owned().get(n).copied());
        let mut n = 0;
        while let Some(address) = own(self, n) {
            self.advertise(cx, address, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), None);
            n += 1;
        }
    }

    /// Answers an echo request to one of our own addresses that nothing is mapped to; false when it is none.
    pub(super) fn answer_ping(&mut self, cx: &mut Context, frame: &Frame, side: Side) -> bool {
        let head = cx.heads.get(frame);
        let bytes = head.bytes();
        let (_, mac) = head.macs();
        let owes = !head.offload.is_none();
        let (Some([first]), Some(part), Some(to)) =
            (array::<1>(bytes, L3), word(bytes, L3 + 6), array::<4>(bytes, L3 + 16).map(Ipv4Addr::from))
        else {
            return false;
        };
        let l4 = L3 + usize::from(first & 0x0f) * 4;
        let asks = array::<1>(bytes, L3 + 9) == Some([1]) && array::<2>(bytes, l4) == Some([8, 0]);
        if !asks || owes || part & 0x3fff != 0 || !self.table.outside().contains(&to) {
            return false;
        }
        let Some(len) = cx.read_all(frame, &mut self.scratch).filter(|len| *len <= self.answer.len()) else {
            return false;
        };
        let (Some(question), Some(answer)) = (self.scratch.get(..len), self.answer.get_mut(..len)) else {
            return false;
        };
        answer.copy_from_slice(question);
        let Some(from) = array::<4>(question, L3 + 12) else { return false };
        put(answer, L3 + 12, &to.octets());
        put(answer, L3 + 16, &from);
        put(answer, L3 + 8, &[64]);
        put(answer, L3 + 10, &[0; 2]);
        let header = sum(answer.get(L3..l4).unwrap_or_default());
        put(answer, L3 + 10, &header);
        // What was wrong stays wrong.
        put_summed(answer, l4, 0, l4 + 2);
        self.originate(cx, len, side, mac);
        true
    }

    /// SYNs that nobody inside has met in time are answered "port unreachable" (RFC 5382 REQ-4).
    pub(super) fn tell_unsolicited<A: Routed>(&mut self, cx: &mut Context) {
        let Some(outside) = self.outside else { return };
        while let Some(waiting) = A::table(self).and_then(|table| table.unreachable(cx.now)) {
            let Some(hop) = A::hop(self, waiting.remote.address) else { continue };
            let made = A::error(Owed::NoPort, waiting.outside.address, waiting.quote(), &mut self.answer);
            let Some(len) = made.filter(|_| self.limits.take(outside.nic, cx.now)) else { continue };
            let Some(frame) = self.answer.get(..len).and_then(|bytes| cx.originate(outside, bytes)) else { continue };
            match self.find(cx, hop.into(), outside.nic) {
                Hop::Known(mac) | Hop::Doubtful(mac) => self.send(cx, frame, Side::Outside, mac.to_bits()),
                Hop::Ask | Hop::Waiting => self.keep(cx, frame, Side::Outside, For::OwnHop(hop.into())),
                Hop::Silent => cx.drop(frame, DropReason::Unresolved),
            }
        }
    }
}

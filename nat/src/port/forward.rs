//! A packet's way through the port, from inside and from outside, of either version of IP.
//!
//! Invariant: `commit` comes after everything that can still stop a packet but the table itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use wire::icmp::{self, Owed};

use wire::fit::{self as mtu, Cutter, Fit};
use wire::{
    Accepts, Context, DropReason, Frame, Mac,
    checksum::is_valid_header,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    segmentation::Settle,
};

use super::{
    PacketPort,
    bytes::array,
    family::Routed,
    held::{For, Held},
    memo::Memo,
    neighbours::Hop,
};
use crate::{
    decide::{Decision, Refusal, Translation},
    known::Flow,
    record::Side,
};

/// Where the IP header begins: frames come without tags.
pub(super) const L3: usize = 14;

impl PacketPort {
    /// A frame from inside.
    #[inline]
    pub(super) fn go_out(&mut self, cx: &mut Context, frame: Frame) {
        let Some(frame) = self.follow(cx, frame, Side::Inside) else { return };
        let head = cx.heads.get(&frame);
        match head.ethertype() {
            ETHERTYPE_IPV4 => {
                let nic = head.origin.nic;
                let (_, mac) = head.macs();
                let source = array::<4>(head.bytes(), L3 + 12).unwrap_or_default();
                if !self.guests.learn(nic, Ipv4Addr::from(source), mac) {
                    self.add_nic(nic);
                }
                if let Some(frame) = self.pass(cx, frame, Side::Inside) {
                    self.take_long::<Ipv4Addr>(cx, frame, Side::Inside);
                }
            }
            ETHERTYPE_IPV6 => self.go_out_v6(cx, frame),
            _ => cx.drop_at(cx.heads.get(&frame).origin.nic, frame, DropReason::NotForGateway),
        }
    }

    /// A frame from outside.
    #[inline]
    pub(super) fn come_in(&mut self, cx: &mut Context, frame: Frame) {
        let head = cx.heads.get(&frame);
        let (to, _) = head.macs();
        match head.ethertype() {
            ETHERTYPE_IPV4 if to == self.mac.to_bits() => {
                let source = array::<4>(head.bytes(), L3 + 12).map(Ipv4Addr::from);
                if !(source.is_some_and(icmp::is_host) && is_intact(head.bytes())) {
                    return cx.drop(frame, DropReason::BadPacket);
                }
                let Some(frame) = self.follow(cx, frame, Side::Outside) else { return };
                if let Some(frame) = self.pass(cx, frame, Side::Outside) {
                    self.take_long::<Ipv4Addr>(cx, frame, Side::Outside);
                }
            }
            ETHERTYPE_IPV6 => self.come_in_v6(cx, frame),
            super::outside::ETHERTYPE_ARP => self.hear_arp(cx, frame),
            _ => cx.drop(frame, DropReason::NotForGateway),
        }
    }

    /// Sends a packet on as the one before it, if it is of the same flow; gives it back if not.
    #[inline]
    fn follow(&mut self, cx: &mut Context, frame: Frame, side: Side) -> Option<Frame> {
        let Some(memo) = &self.memo else { return Some(frame) };
        let head = cx.heads.get_mut(&frame);
        let Some(flow) = Flow::of(head) else { return Some(frame) };
        let mac = memo.mac;
        let Some(known) = memo.covers(side, head, &flow).filter(|_| self.goes(side, head, &flow)) else {
            self.memo = None;
            return Some(frame);
        };
        self.table.pass(&known, head);
        self.send(cx, frame, known.to, mac);
        None
    }

    /// Whether a packet fits where it goes and has a hop left.
    #[inline]
    fn goes(&self, side: Side, head: &wire::Head, flow: &Flow) -> bool {
        match side {
            Side::Inside => flow.len <= self.outside_mtu,
            Side::Outside => flow.len <= self.inside_mtu && head.bytes().get(L3 + 8).is_some_and(|ttl| *ttl > 1),
        }
    }

    /// Sends a packet of a known flow on; gives back what has to go the long way.
    #[inline]
    fn pass(&mut self, cx: &mut Context, frame: Frame, side: Side) -> Option<Frame> {
        let head = cx.heads.get_mut(&frame);
        let Some(flow) = Flow::of(head) else { return Some(frame) };
        let Some(known) = self.table.known(side, head, &flow, cx.now) else { return Some(frame) };
        if !self.goes(side, head, &flow) {
            return Some(frame);
        }
        let mac = match side {
            Side::Inside => {
                let hop = self.hop_to(flow.destination.address);
                hop.and_then(|hop| self.neighbours.last(hop)).map(Mac::to_bits)
            }
            Side::Outside => Some(self.guests.find(known.nic, known.end.address)),
        };
        let Some(mac) = mac else { return Some(frame) };
        // Where flows alternate, remembering each would only cost.
        let follows = self.last.replace(known.slot) == Some(known.slot);
        if follows && known.lasts(&self.table) {
            self.memo = Some(Memo::new(side, head, flow, known, mac));
        }
        self.table.pass(&known, head);
        self.send(cx, frame, known.to, mac);
        None
    }

    /// The way of every other packet.
    #[inline(never)]
    pub(super) fn take_long<A: Routed>(&mut self, cx: &mut Context, frame: Frame, side: Side) {
        (self.memo, self.last) = (None, None);
        let Some(table) = A::table(self) else { return self.end(cx, frame, side, DropReason::NatUnsupported) };
        let decision = table.decide(side, cx.heads.get(&frame), cx.now);
        self.carry_out(cx, frame, side, &decision);
    }

    /// A frame that was held is decided anew.
    fn again(&mut self, cx: &mut Context, frame: Frame, side: Side) {
        match (side, cx.heads.get(&frame).ethertype()) {
            (Side::Inside, _) => self.go_out(cx, frame),
            (Side::Outside, ETHERTYPE_IPV6) => self.take_long::<Ipv6Addr>(cx, frame, side),
            (Side::Outside, _) => self.take_long::<Ipv4Addr>(cx, frame, side),
        }
    }

    #[inline]
    fn carry_out<A: Routed>(&mut self, cx: &mut Context, frame: Frame, side: Side, decision: &Decision<A>) {
        match *decision {
            Decision::Translate(ref translation) => self.translate(cx, frame, side, translation),
            Decision::Hold => {
                let which = A::table(self).and_then(|table| table.packet_of(side, cx.heads.get(&frame)));
                match which {
                    Some(which) => self.keep(cx, frame, side, A::first(which)),
                    None => cx.drop(frame, DropReason::BadPacket),
                }
            }
            Decision::Wait(_) => {
                // What is to be remembered of it is; that is all that becomes of it.
                let head = cx.heads.get_mut(&frame);
                let refusal = A::table(self).and_then(|table| table.commit(*decision, head).err());
                self.refuse::<A>(cx, frame, side, refusal.unwrap_or(Refusal::NotMapped));
            }
            Decision::Drop(refusal) => self.refuse::<A>(cx, frame, side, refusal),
        }
    }

    #[inline]
    fn translate<A: Routed>(&mut self, cx: &mut Context, frame: Frame, side: Side, translation: &Translation<A>) {
        let to = translation.to;
        if side == Side::Outside && A::hops(cx.heads.get(&frame)) < 2 {
            self.tell::<A>(cx, &frame, side, Owed::Expired);
            return cx.drop(frame, DropReason::TtlExceeded);
        }
        let mtu = if to == Side::Outside { self.outside_mtu } else { self.inside_mtu };
        let fit = A::fit(cx.heads.get(&frame), mtu);
        if fit == Fit::TooBig {
            self.tell::<A>(cx, &frame, side, Owed::TooBig(mtu));
            return self.end(cx, frame, side, DropReason::MtuExceeded);
        }
        let destination = translation.ends.destination.address;
        let (frame, mac) = if translation.refused.is_some() {
            (frame, 0)
        } else if to == Side::Inside {
            (frame, A::guest(self, translation.nic, destination))
        } else {
            match self.way_to(cx, frame, side, destination) {
                Some(way) => way,
                None => return,
            }
        };
        let head = cx.heads.get_mut(&frame);
        let Some(table) = A::table(self) else { return cx.drop(frame, DropReason::NatUnsupported) };
        let first = translation.is_first_fragment().then(|| table.packet_of(side, head)).flatten();
        if let Err(refusal) = table.carry_out(translation, head) {
            return self.refuse::<A>(cx, frame, side, refusal);
        }
        if side == Side::Outside {
            A::age(head);
        }
        if let Some(l4) = translation.tcp() {
            mtu::clamp(head, l4, self.outside_mtu.min(self.inside_mtu), A::TCP_HEADERS);
        }
        match fit {
            Fit::Cut => self.cut(cx, frame, to, mac, mtu),
            Fit::Lower(size) => {
                head.offload = mtu::lowered(head.offload, size);
                self.send(cx, frame, to, mac);
            }
            _ => self.send(cx, frame, to, mac),
        }
        if let Some(which) = first.filter(|_| !self.held.is_empty()) {
            for _ in 0..Held::places() {
                let Some((later, side, _)) = self.held.take(cx, |waits| waits == A::first(which)) else { break };
                self.again(cx, later, side);
            }
        }
    }

    /// The MAC address of the next hop to a destination outside; nothing when the frame has been held or has ended.
    #[inline]
    pub(super) fn way_to<A: Routed>(
        &mut self,
        cx: &mut Context,
        frame: Frame,
        side: Side,
        to: A,
    ) -> Option<(Frame, u64)> {
        let Some(hop) = A::hop(self, to) else {
            self.tell::<A>(cx, &frame, side, Owed::NoRoute);
            self.end(cx, frame, side, DropReason::NoRoute);
            return None;
        };
        match A::last(&self.neighbours, hop) {
            Some(mac) => Some((frame, mac.to_bits())),
            None => self.look_for(cx, frame, side, hop),
        }
    }

    /// The neighbour that is next on the way to a destination outside.
    #[inline]
    pub(super) fn hop_to(&self, to: Ipv4Addr) -> Option<Ipv4Addr> {
        let (network, mask) = self.subnet;
        if !icmp::is_host(to) {
            None
        } else if to.to_bits() & mask != network || mask == u32::MAX {
            self.next_hop
        } else {
            // Neither the subnet itself nor all of it; in one of two addresses, both are hosts (RFC 3021).
            let host = to.to_bits() & !mask;
            (!mask == 1 || (host != 0 && host != !mask)).then_some(to)
        }
    }

    #[cold]
    fn look_for<A: Routed>(&mut self, cx: &mut Context, frame: Frame, side: Side, hop: A) -> Option<(Frame, u64)> {
        let nic = cx.heads.get(&frame).origin.nic;
        match self.find(cx, hop.into(), nic) {
            Hop::Known(mac) | Hop::Doubtful(mac) => Some((frame, mac.to_bits())),
            Hop::Ask | Hop::Waiting => {
                self.keep(cx, frame, side, For::Hop(hop.into()));
                None
            }
            Hop::Silent => {
                self.tell::<A>(cx, &frame, side, Owed::NoHost);
                self.end(cx, frame, side, DropReason::Unresolved);
                None
            }
        }
    }

    pub(super) fn keep(&mut self, cx: &mut Context, frame: Frame, side: Side, waits: For) {
        if let Err(frame) = self.held.keep(cx, frame, side, waits) {
            self.end(cx, frame, side, DropReason::NoBuffers);
        }
    }

    /// Lets what waits for a neighbour go.
    #[cold]
    pub(super) fn settle(&mut self, cx: &mut Context, hop: IpAddr) {
        // What has to wait once more does not come twice.
        for _ in 0..Held::places() {
            let Some((frame, side, waits)) = self.held.take(cx, |waits| waits.hop() == Some(hop)) else { return };
            match waits {
                For::OwnHop(hop) => {
                    if let Hop::Known(mac) | Hop::Doubtful(mac) = self.find(cx, hop, cx.nic) {
                        self.send(cx, frame, Side::Outside, mac.to_bits());
                    } else {
                        cx.drop(frame, DropReason::Unresolved);
                    }
                }
                _ => self.again(cx, frame, side),
            }
        }
    }

    /// Asks again for what frames wait for; sends those on whose next hop is known but for which a turn had no room, and ends those whose next hop
    /// does not answer.
    pub(super) fn ask_again(&mut self, cx: &mut Context) {
        if self.held.is_empty() {
            return;
        }
        for at in 0..Held::places() {
            if let Some((hop, nic)) = self.held.hop(at)
                && !matches!(self.find(cx, hop, nic), Hop::Ask | Hop::Waiting)
            {
                self.settle(cx, hop);
            }
        }
    }

    /// Ends a packet: at whose NIC it came from, where that is a guest's.
    pub(super) fn end(&mut self, cx: &mut Context, frame: Frame, side: Side, reason: DropReason) {
        let nic = if side == Side::Inside { cx.heads.get(&frame).origin.nic } else { cx.nic };
        cx.drop_at(nic, frame, reason);
    }

    /// Ends what is not translated, and answers what is owed an answer.
    #[cold]
    fn refuse<A: Routed>(&mut self, cx: &mut Context, frame: Frame, side: Side, refusal: Refusal) {
        let unmapped = matches!(refusal, Refusal::NotMapped | Refusal::Filtered);
        if unmapped && A::answer_ping(self, cx, &frame, side) {
            let len = cx.heads.get(&frame).len();
            return cx.transmitted(1, len as u64);
        }
        if side == Side::Inside
            && matches!(refusal, Refusal::Quota | Refusal::Full | Refusal::NoPort | Refusal::UnknownProtocol)
        {
            self.tell::<A>(cx, &frame, side, Owed::Prohibited);
        }
        self.end(cx, frame, side, reason(refusal));
    }

    /// Sends an ICMP error about a frame to where it came from.
    #[cold]
    pub(super) fn tell<A: Routed>(&mut self, cx: &mut Context, frame: &Frame, to: Side, owed: Owed) {
        let head = cx.heads.get(frame);
        let nic = if to == Side::Inside { head.origin.nic } else { cx.nic };
        let (_, mac) = head.macs();
        let Some(from) = A::speaker(self, head, to) else { return };
        let Some(len) = cx.read_all(frame, &mut self.scratch) else { return };
        let packet = self.scratch.get(L3..len).unwrap_or_default();
        if let Some(len) = A::error(owed, from, packet, &mut self.answer)
            && self.limits.take(nic, cx.now)
        {
            self.originate(cx, len, to, mac);
        }
    }

    /// Sends a frame in fragments.
    #[cold]
    fn cut(&mut self, cx: &mut Context, frame: Frame, to: Side, mac: u64, mtu: u16) {
        let mut settle = Settle::new(cx, frame, Accepts::NONE);
        while let Some(frame) = settle.next(cx) {
            let mut whole = std::mem::take(&mut self.scratch);
            let len = cx.read_all(&frame, &mut whole);
            let bytes = len.and_then(|len| whole.get(..len));
            match bytes.and_then(|bytes| Cutter::new(bytes, mtu)) {
                Some(mut cutter) => {
                    cx.transmitted(1, len.unwrap_or(0) as u64);
                    while let Some(len) = cutter.next(&mut self.answer) {
                        self.originate(cx, len, to, mac);
                    }
                }
                None => cx.drop(frame, DropReason::Stale),
            }
            self.scratch = whole;
        }
    }
}

/// Whether the IPv4 header of a frame is as it was sent (RFC 1812 section 5.2.2). What is cut off is found later.
#[inline]
fn is_intact(bytes: &[u8]) -> bool {
    match array::<20>(bytes, L3) {
        Some(header) if header.first() == Some(&0x45) => is_valid_header(&header),
        _ => is_intact_with_options(bytes),
    }
}

#[cold]
fn is_intact_with_options(bytes: &[u8]) -> bool {
    let len = bytes.get(L3).map_or(0, |first| usize::from(first & 0x0f) * 4);
    bytes.get(L3..L3 + len).is_none_or(|header| super::bytes::sum(header) == [0; 2])
}

/// What a refusal is counted as.
fn reason(refusal: Refusal) -> DropReason {
    match refusal {
        Refusal::Malformed | Refusal::BadChecksum | Refusal::BadQuote | Refusal::Stale => DropReason::BadPacket,
        Refusal::BadOffload => DropReason::BadOffload,
        Refusal::OtherVersion | Refusal::UnknownProtocol | Refusal::UnknownIcmp => DropReason::NatUnsupported,
        Refusal::NotOurs => DropReason::NoRoute,
        Refusal::NotMapped => DropReason::NatNoMapping,
        Refusal::Filtered => DropReason::NatFiltered,
        Refusal::NoSession => DropReason::NatNoSession,
        Refusal::NoPort => DropReason::NatNoPort,
        Refusal::Quota => DropReason::NatQuota,
        Refusal::Full | Refusal::UnknownNic => DropReason::NatFull,
    }
}

//! What goes out into the underlay, whatever carries it: which way, in what size.
//!
//! Invariant: no packet is longer than the path to its endpoint takes, as far as that is known; who sent what does not fit is told so.
//! Read first: [`super`], RFC 6040 section 4.1.

use wire::{
    Accepts, Context, DropReason, Frame, Origin,
    fdb::Tick,
    fit::{Cutter, Fit, fit, fit6, lowered},
    flow::quick_hash,
    icmp::{self, Owed},
    layers::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    segmentation::Settle,
};

use super::{TunnelConfig, inward::packet};
use crate::{
    resolution::{self, Message},
    vtep::{NetworkId, Vtep, Way},
};

/// A frame that fits its way, and what its packet says of it.
pub(crate) struct Packet {
    /// The frame.
    pub(crate) frame: Frame,
    /// Its network.
    pub(crate) network: NetworkId,
    /// Where it goes.
    pub(crate) way: Way,
    /// TOS or traffic class of the packet.
    pub(crate) tos: u8,
    /// The same for all frames of a flow.
    pub(crate) hash: u32,
}

/// What carries packets between hosts.
pub(crate) trait Underlay {
    /// What frames may still owe when they are given to it.
    const ACCEPTS: Accepts;

    /// Takes a frame of the network whose NIC is being called: it counts as transmitted or ends with a reason, now or in this turn.
    fn put(&mut self, cx: &mut Context, vtep: &Vtep, packet: Packet);

    /// Counts what was taken of a burst, as far as that is not done yet.
    fn end(&mut self, cx: &mut Context);
}

/// Where the last frame of a burst went; the next mostly goes there, too.
#[derive(Clone, Copy)]
pub(super) struct Last {
    to: u64,
    way: Way,
    mtu: u16,
}

/// What it takes to send.
pub(super) struct Outward {
    config: TunnelConfig,
    limits: icmp::Limits,
    /// Room for one frame of our own, and for the packet that it is about.
    answer: Box<[u8]>,
    scratch: Box<[u8]>,
}

impl Outward {
    pub(super) fn new(config: TunnelConfig) -> Outward {
        let limits = icmp::Limits::new(config.errors);
        let room = || vec![0; wire::MAX_FRAME].into();
        Outward { config, limits, answer: room(), scratch: room() }
    }

    /// Takes a frame of a network. What `last` says holds for one burst of one network.
    #[inline]
    pub(super) fn go_out<U: Underlay>(
        &mut self,
        cx: &mut Context,
        (vtep, under): (&mut Vtep, &mut U),
        frame: Frame,
        (network, tick): (NetworkId, Tick),
        last: &mut Option<Last>,
    ) {
        let head = cx.heads.get(&frame);
        let (to, _) = head.macs();
        if vtep.is_loop(head.bytes()) {
            return cx.drop(frame, DropReason::TunnelLoop);
        }
        let Last { way, mtu, .. } = match *last {
            Some(last) if last.to == to => last,
            _ => match vtep.way(network, to, tick) {
                Ok(way) => *last.insert(Last { to, way, mtu: vtep.fits(network, way) }),
                Err(reason) => return cx.drop(frame, reason),
            },
        };
        if Message::may_be(head.ethertype(), head.bytes()) && is_answered(cx, vtep, &frame, network) {
            // It ends here as one that arrived.
            cx.ledger.transmitted += 1;
            return;
        }
        let head = cx.heads.get(&frame);
        let fits = match head.ethertype() {
            ETHERTYPE_IPV4 => fit(head, mtu),
            ETHERTYPE_IPV6 => fit6(head, mtu),
            _ if head.len() <= usize::from(mtu) + ETHERNET_LEN => Fit::Whole,
            _ => Fit::TooBig,
        };
        match fits {
            Fit::Whole => {}
            Fit::Lower(size) => {
                let head = cx.heads.get_mut(&frame);
                head.offload = lowered(head.offload, size);
            }
            Fit::Cut => return self.cut(cx, (vtep, under), frame, (network, way), mtu),
            Fit::TooBig => {
                self.tell(cx, &frame, mtu);
                return cx.drop(frame, DropReason::MtuExceeded);
            }
        }
        if cx.heads.get(&frame).offload.is_none() {
            return self.put(cx, (vtep, under), frame, (network, way));
        }
        let mut settle = Settle::new(cx, frame, U::ACCEPTS);
        while let Some(frame) = settle.next(cx) {
            self.put(cx, (vtep, under), frame, (network, way));
        }
    }

    #[inline]
    fn put<U: Underlay>(
        &self,
        cx: &mut Context,
        (vtep, under): (&Vtep, &mut U),
        frame: Frame,
        (network, way): (NetworkId, Way),
    ) {
        let bytes = cx.heads.get(&frame).bytes();
        let (tos, hash) = (tos(bytes, self.config.dscp), quick_hash(bytes));
        under.put(cx, vtep, Packet { frame, network, way, tos, hash });
    }

    /// Sends an IPv4 packet in fragments: it may be cut, and does not fit (RFC 791 section 2.3).
    #[cold]
    fn cut<U: Underlay>(
        &mut self,
        cx: &mut Context,
        (vtep, under): (&Vtep, &mut U),
        frame: Frame,
        to: (NetworkId, Way),
        mtu: u16,
    ) {
        let mut settle = Settle::new(cx, frame, Accepts::NONE);
        while let Some(frame) = settle.next(cx) {
            let origin = cx.heads.get(&frame).origin;
            let mut whole = std::mem::take(&mut self.scratch);
            let mut piece = std::mem::take(&mut self.answer);
            match cx.read_all(&frame, &mut whole).and_then(|len| Cutter::new(whole.get(..len)?, mtu)) {
                Some(mut cutter) => {
                    let mut is_whole = true;
                    while is_whole && !cutter.is_done() {
                        let fragment = cutter.next(&mut piece).and_then(|len| cx.originate(origin, piece.get(..len)?));
                        is_whole = fragment.is_some();
                        if let Some(fragment) = fragment {
                            self.put(cx, (vtep, under), fragment, to);
                        }
                    }
                    // The packet ends here, where its fragments began. Without one of them it is lost.
                    if is_whole { cx.ledger.transmitted += 1 } else { cx.drop(frame, DropReason::NoBuffers) }
                }
                None => cx.drop(frame, DropReason::Stale),
            }
            (self.scratch, self.answer) = (whole, piece);
        }
    }

    /// Tells the sender of a packet that it is too long, as its receiver would.
    #[cold]
    fn tell(&mut self, cx: &mut Context, frame: &Frame, mtu: u16) {
        let head = cx.heads.get(frame);
        let (nic, ethertype) = (head.origin.nic, head.ethertype());
        let (to, from) = head.macs();
        // Once for a NIC that was never told anything.
        self.limits.add(nic);
        if !self.limits.take(nic, cx.now) {
            return;
        }
        let Some(len) = cx.read_all(frame, &mut self.scratch) else { return };
        let packet = self.scratch.get(ETHERNET_LEN..len).unwrap_or_default();
        let made =
            match ethertype {
                ETHERTYPE_IPV4 => icmp::destination4(packet)
                    .and_then(|from| icmp::v4(Owed::TooBig(mtu), from, packet, &mut self.answer)),
                ETHERTYPE_IPV6 => icmp::destination6(packet)
                    .and_then(|from| icmp::v6(Owed::TooBig(mtu), from, packet, &mut self.answer)),
                _ => None,
            };
        let Some(made) = made.and_then(|len| self.answer.get_mut(..len)) else { return };
        let ([a, b, c, d, e, f, ..], [g, h, i, j, k, l, ..]) = (from.to_le_bytes(), to.to_le_bytes());
        if let Some(macs) = made.first_chunk_mut() {
            *macs = [a, b, c, d, e, f, g, h, i, j, k, l];
        }
        if let Some(answer) = cx.originate(Origin { nic: cx.nic, lane: 0 }, made)
            && let Err(answer) = cx.answers.push(answer)
        {
            cx.drop(answer, DropReason::NoBuffers);
        }
    }
}

/// Whether a message about neighbours was a question that is answered here.
#[cold]
fn is_answered(cx: &mut Context, vtep: &mut Vtep, frame: &Frame, network: NetworkId) -> bool {
    if !vtep.looks(network) {
        return false;
    }
    let head = cx.heads.get(frame);
    let mut answer = [0; resolution::LONGEST];
    let made = vtep.ask(network, head.origin.nic, head.bytes(), cx.now, &mut answer);
    let Some(answer) = made.and_then(|len| answer.get(..len)) else { return false };
    let Some(answer) = cx.originate(Origin { nic: cx.nic, lane: 0 }, answer) else { return false };
    if let Err(answer) = cx.answers.push(answer) {
        cx.drop(answer, DropReason::NoBuffers);
        return false;
    }
    true
}

/// TOS or traffic class of a packet in the underlay: the inner congestion mark (RFC 6040 section 4.1), and a DSCP that is told or the inner one.
#[inline]
fn tos(bytes: &[u8], dscp: Option<u8>) -> u8 {
    let inner = match packet(bytes).and_then(|(ethertype, at)| Some((ethertype, bytes.get(at..)?.first_chunk::<2>()?)))
    {
        Some((ETHERTYPE_IPV4, [_, tos])) => *tos,
        Some((ETHERTYPE_IPV6, [high, low])) => high << 4 | low >> 4,
        _ => 0,
    };
    dscp.map_or(inner, |dscp| dscp << 2 | inner & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_mark_of_the_inner_one_and_the_dscp_that_is_told_or_the_inner_one() {
        // TOS 0xb9: expedited forwarding, ECT(1).
        let v4 = [&[2; 12][..], &[8, 0, 0x45, 0xb9, 0, 20]].concat();
        let v6 = [&[2; 12][..], &[0x86, 0xdd, 0x6b, 0x95, 0, 0]].concat();
        let behind = |tag: &[u8], frame: &[u8]| [&frame[..12], tag, &frame[12..]].concat();
        for frame in [&v4, &v6] {
            for tag in [&[][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 7]] {
                let frame = behind(tag, frame);
                let all = [None, Some(0), Some(10), Some(63)].map(|dscp| tos(&frame, dscp));
                assert_eq!(all, [0xb9, 1, 10 << 2 | 1, 0xfd], "{frame:x?}");
            }
        }
        let arp = [&[2; 12][..], &[8, 6, 0, 1, 8, 0]].concat();
        assert_eq!([None, Some(10)].map(|dscp| tos(&arp, dscp)), [0, 40], "no packet, no mark");
        for len in 0..v4.len() - 2 {
            assert_eq!(tos(&v4[..len], None), 0, "cut off at {len}");
        }
    }
}

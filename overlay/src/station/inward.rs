//! What comes to an endpoint in a network of ours: packets of tunnels become frames of their networks, messages are answered.
//!
//! Invariant: a packet is taken only when it is whole, to this endpoint's MAC, address and port, and its checksums are right (what came by memory and owes
//! one has not been damaged). A frame begins in its head with as many bytes as any other. Packets that were cut on their way are
//! put together when a peer has sent them, and dropped else: strangers get no memory. Endpoints of ours send none, the kernel's tunnel may.
//! Read first: [`super`], RFC 7348 section 4.1, RFC 6936 section 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    Accepts, Burst, Context, DropReason, Frame, Gso, Layers, NicId, Offload, Origin,
    bytes::array,
    checksum::{self, Checksum},
    icmp,
    segmentation::Settle,
};

use super::{
    Station,
    talk::{self, Said},
};
use crate::{
    resolution,
    tunnel::inward::{ECN, Heard, deliver, listen},
    vtep::Vtep,
};

const UDP: u8 = 17;

/// Those heard in a burst.
struct Run {
    from: IpAddr,
    heard: Heard,
}

/// What the outer headers of a tunnel's packet say.
struct Outer {
    from: IpAddr,
    tos: u8,
    /// Where the UDP header begins.
    udp: usize,
    /// It has a checksum.
    has_checksum: bool,
}

impl Station {
    /// Takes what came to the endpoint's NIC, which is being called.
    pub(crate) fn come_in(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId], burst: &mut Burst) {
        let nic = cx.nic;
        let mut run = None;
        for frame in burst.drain() {
            if cx.heads.get(&frame).offload.gso() == Gso::None {
                self.take(cx, vtep, nics, frame, &mut run);
                cx.nic = nic;
                continue;
            }
            let mut settle = Settle::new(cx, frame, Accepts::CSUM);
            while let Some(frame) = settle.next(cx) {
                // Of the payload of what was cut next to nothing is in the head.
                match cx.fill_head(frame) {
                    Ok(frame) => self.take(cx, vtep, nics, frame, &mut run),
                    Err(reason) => cx.drop_one(reason),
                }
                cx.nic = nic;
            }
        }
    }

    #[inline]
    fn take(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId], frame: Frame, run: &mut Option<Run>) {
        let head = cx.heads.get(&frame);
        let (bytes, len, owed) = (head.bytes(), head.len(), head.offload);
        let Some(outer) = self.outer(bytes, len) else { return self.other(cx, (vtep, nics), frame, run) };
        let at = outer.udp + 8;
        if outer.has_checksum && owed.is_none() && !is_intact(cx, &frame, outer.udp) {
            return cx.drop(frame, DropReason::BadPacket);
        }
        let run = match run {
            Some(run) if run.from == outer.from => run,
            _ => run.insert(Run { from: outer.from, heard: Heard::new(vtep.sender(outer.from)) }),
        };
        let front = bytes.get(at..).unwrap_or_default();
        let inward = match vtep.accept(run.heard.sender, front, len - at) {
            Ok(inward) => inward,
            Err(reason) => return cx.drop(frame, reason),
        };
        let Some(nic) = nics.get(usize::from(inward.network.0)) else { return cx.drop(frame, DropReason::NotReady) };
        if let Err(reason) = run.heard.hear(cx, vtep, inward.network, front.get(inward.at..).unwrap_or_default()) {
            return cx.drop_at(*nic, frame, reason);
        }
        let off = at + inward.at;
        let (origin, head) = (Origin { nic: *nic, lane: run.heard.lane() }, cx.heads.get_mut(&frame));
        if !head.pull(off) {
            return cx.drop(frame, DropReason::BadTunnel);
        }
        // A checksum of the outer packet means nothing any more.
        let inside = usize::from(owed.checksum_start()) >= off + 14;
        head.offload = if inside { owed.shifted(-(off as i16)) } else { Offload::NONE };
        head.origin = origin;
        head.tagged = false;
        cx.transmitted(1, len as u64);
        match cx.fill_head(frame) {
            Ok(frame) => {
                if vtep.looks(inward.network) {
                    listen(cx, vtep, inward.network, run.heard.sender, cx.heads.get(&frame).bytes());
                }
                deliver(cx, frame, outer.tos & ECN);
            }
            Err(reason) => {
                cx.nic = *nic;
                cx.lost(reason);
            }
        }
    }

    /// The outer headers of a frame of `len` bytes; nothing if it is no whole packet of a tunnel to this endpoint or a group that it is in.
    #[inline]
    fn outer(&self, bytes: &[u8], len: usize) -> Option<Outer> {
        let to_us = array::<6>(bytes, 0)? == self.own.mac.bytes();
        if !to_us && bytes.first().is_none_or(|first| first & 1 == 0) {
            return None;
        }
        match self.own.address {
            IpAddr::V4(us) => {
                let ip: &[u8; 28] = bytes.get(14..)?.first_chunk()?;
                let [0x45, tos, high, low, _, _, flags, 0, _, UDP, _, _, a, b, c, d, to @ ..] = *ip else {
                    return None;
                };
                let [e, f, g, h, _, _, port_high, port_low, udp_high, udp_low, sum_high, sum_low] = to;
                let to = Ipv4Addr::new(e, f, g, h);
                let total = u16::from_be_bytes([high, low]);
                let is_for_us = if to == us { to_us } else { self.groups.contains(&to.into()) };
                let whole = flags & 0x3f == 0 && usize::from(total) + 14 == len;
                let udp = u16::from_be_bytes([udp_high, udp_low]);
                let right =
                    u16::from_be_bytes([port_high, port_low]) == self.own.port && udp.checked_add(20) == Some(total);
                let header = ip.first_chunk::<20>()?;
                (is_for_us && whole && right && checksum::is_valid_header(header)).then_some(Outer {
                    from: Ipv4Addr::new(a, b, c, d).into(),
                    tos,
                    udp: 34,
                    has_checksum: sum_high | sum_low != 0,
                })
            }
            IpAddr::V6(us) => {
                let ip: &[u8; 48] = bytes.get(14..)?.first_chunk()?;
                let [first, second, _, _, high, low, UDP, ..] = *ip else { return None };
                let [_, _, port_high, port_low, udp_high, udp_low, sum_high, sum_low] = *ip.last_chunk()?;
                let to = Ipv6Addr::from(array::<16>(ip, 24)?);
                let total = u16::from_be_bytes([high, low]);
                let is_for_us = if to == us { to_us } else { self.groups.contains(&to.into()) };
                let whole = first >> 4 == 6 && usize::from(total) + 54 == len;
                // No checksum, no packet (RFC 8200 section 8.1): what is sent without one is sent by those who were told to.
                let right = u16::from_be_bytes([port_high, port_low]) == self.own.port
                    && u16::from_be_bytes([udp_high, udp_low]) == total
                    && sum_high | sum_low != 0;
                (is_for_us && whole && right).then_some(Outer {
                    from: Ipv6Addr::from(array::<16>(ip, 8)?).into(),
                    tos: first << 4 | second >> 4,
                    udp: 54,
                    has_checksum: true,
                })
            }
        }
    }

    /// Takes what is no packet of a tunnel.
    #[cold]
    fn other(&mut self, cx: &mut Context, (vtep, nics): (&mut Vtep, &[NicId]), frame: Frame, run: &mut Option<Run>) {
        let from = cx.heads.get(&frame).origin.nic;
        let mut bytes = std::mem::take(&mut self.scratch);
        let said = match cx.read_all(&frame, &mut bytes) {
            Some(len) => talk::hear(&self.own, bytes.get_mut(..len).unwrap_or_default()),
            None => Said::Nothing,
        };
        match said {
            Said::Fragment => {
                self.scratch = bytes;
                return self.gather(cx, (vtep, nics), frame, run);
            }
            Said::Nothing => cx.drop(frame, DropReason::NotForTunnel),
            _ => cx.transmitted(1, cx.heads.get(&frame).len() as u64),
        }
        match said {
            Said::Neighbour { said, asked } => {
                if let Some(said) = said.filter(|said| said.address != self.own.address && said.mac != self.own.mac) {
                    self.hops.heard(said.address, said.mac, cx.now);
                }
                if let Some(asked) = asked.filter(|asked| asked.target == self.own.address)
                    && may(&mut self.limits.neighbours, from, cx)
                {
                    let mut answer = [0; resolution::LONGEST];
                    let len = asked.answer(&self.own.said(), &mut answer).unwrap_or_default();
                    self.say(cx, answer.get(..len).unwrap_or_default());
                }
            }
            Said::Ping(len) if may(&mut self.limits.pings, from, cx) => {
                self.say(cx, bytes.get(..len).unwrap_or_default());
            }
            Said::TooBig { to, mtu } => vtep.narrows(to, mtu, cx.now),
            // However often it is asked, it says so once in a while.
            Said::Groups => self.reports_due = true,
            Said::Ping(_) | Said::Fragment | Said::Nothing => {}
        }
        self.scratch = bytes;
    }
}

impl Station {
    /// Takes a piece of a packet that was cut on its way, and the whole when it was the last to come.
    #[cold]
    fn gather(&mut self, cx: &mut Context, (vtep, nics): (&mut Vtep, &[NicId]), frame: Frame, run: &mut Option<Run>) {
        let bytes = cx.heads.get(&frame).bytes();
        let from = match self.own.address {
            IpAddr::V4(_) => array::<4>(bytes, 26).map(IpAddr::from),
            IpAddr::V6(_) => array::<16>(bytes, 22).map(IpAddr::from),
        };
        let known = from.and_then(|from| vtep.remotes.find(from));
        let peer = known.filter(|id| vtep.remotes.get(*id).is_some_and(|remote| remote.named > 0));
        let (Some(peer), Some(layers)) = (peer, Layers::parse(bytes)) else {
            return cx.drop(frame, DropReason::OuterFragment);
        };
        let Some(whole) = self.reassembly.take(cx, frame, &layers, peer.0) else { return };
        let head = cx.heads.get(&whole);
        match self.outer(head.bytes(), head.len()) {
            Some(_) => self.take(cx, vtep, nics, whole, run),
            // A message to us is answered when it comes in one piece.
            None => cx.drop(whole, DropReason::NotForTunnel),
        }
    }
}

/// Whether one more answer may be given to what came from a NIC.
fn may(limits: &mut icmp::Limits, from: NicId, cx: &Context) -> bool {
    // Once for a NIC that never asked anything.
    limits.add(from);
    limits.take(from, cx.now)
}

/// Whether the UDP checksum of a packet is right; the UDP header is at `l4`.
#[cold]
fn is_intact(cx: &Context, frame: &Frame, l4: usize) -> bool {
    let head = cx.heads.get(frame);
    let bytes = head.bytes();
    let len = (head.len() - l4) as u16;
    let pseudo = if l4 == 34 {
        array(bytes, 26).zip(array(bytes, 30)).map(|(from, to)| Checksum::pseudo_v4(from, to, UDP, len))
    } else {
        array(bytes, 22).zip(array(bytes, 38)).map(|(from, to)| Checksum::pseudo_v6(from, to, UDP, len.into()))
    };
    let Some(mut sum) = pseudo else { return false };
    sum.add_bytes(bytes.get(l4..).unwrap_or_default());
    sum.add_lent(&cx.arena, cx.heads.body(frame).iter().copied()) && sum.is_valid()
}

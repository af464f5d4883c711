//! What a [`Bridge`] does with a frame.
//!
//! Invariant: a frame never goes back to the NIC it came from, never to a NIC outside its segment, and ends in an egress burst or with a
//! counted reason at its origin. No allocation, no lock, no system call.
//!
//! Theory of operation: [`Bridge::decide`] looks at a frame's first bytes and says what would happen to it, without changing anything;
//! `commit` makes it happen. `forward` does one after the other for every frame of a burst, and so a trace of a frame is the decision of the
//! very code that forwards. The stages of a decision, each of which may drop:
//!
//! ```text
//!   header      14 bytes (18 with a tag), else Runt
//!   segment     from tag and membership, else VlanNotAllowed, UntaggedNotAllowed
//!   reserved    01:80:C2:00:00:0X stays here, unless the NIC passes it
//!   source      one station's address (BadSource), the declared one (SpoofedSource), nobody else's by declaration or static entry
//!   learn       the source is behind the origin NIC
//!   destination known: SamePort, Isolated, NotReady or forward; group or unknown: NoDestination, over budget or flood
//! ```
//!
//! Frames of a burst mostly share source and destination. A [`Memo`] remembers, for the time of one burst, what the last frame's origin,
//! VLAN, source and destination came to, so that such frames cost a few comparisons; learning anything new forgets the destination.
//! Read first: IEEE 802.1Q clause 8.6 (the forwarding process).

use wire::{Burst, Context, DropReason, Frame, Instant, Mac, NicId, Segment};

use crate::{
    bridge::Bridge,
    budget::Traffic,
    egress::Egress,
    fdb::{Key, Learn, Tick},
    vlan::{Label, TPID_ON_WIRE, relabel},
};

pub use crate::bridge::Route;

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The segment it belongs to; the untagged one when it was dropped before that was known.
    pub segment: Segment,
    /// How it is labelled.
    pub label: Label,
    /// What its source means to the forwarding database.
    pub learn: Learn,
    /// Where it goes.
    pub outcome: Outcome,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To one NIC.
    Forward(Route),
    /// To all of [`Bridge::receivers`].
    Flood(Traffic),
    /// Nowhere.
    Drop(DropReason),
}

/// What the last frame of a burst came to. See the module's documentation.
struct Memo {
    now: Instant,
    tick: Tick,
    origin: NicId,
    /// The origin's part of every decision; nothing when it is no member.
    ingress: Option<Ingress>,
    vid: u16,
    vid_segment: Option<Segment>,
    /// The source learnt last, behind `origin`.
    source: Key,
    destination: Key,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
struct Ingress {
    vlan_aware: bool,
    untagged: Option<Segment>,
    /// [`Mac::to_bits`] of the declared address; zero for none.
    guard: u64,
    isolated: bool,
    pass_reserved: bool,
}

/// No VLAN is remembered.
const NO_VID: u16 = u16::MAX;

impl Bridge {
    /// Forwards all frames of `burst` into `egress`; each leaves by the lanes of other NICs or ends with a reason.
    pub fn forward(&mut self, cx: &mut Context, burst: &mut Burst, egress: &mut Egress) {
        let Some(first) = burst.iter().next() else { return };
        let mut memo = self.memo(cx.heads.get(first).origin.nic, cx.now);
        for frame in burst.drain() {
            let head = cx.heads.get_mut(&frame);
            if head.origin.nic != memo.origin {
                memo = self.memo(head.origin.nic, cx.now);
            }
            let decision = self.judge(&mut memo, head.bytes());
            head.segment = decision.segment;
            head.tagged = decision.label.is_tagged();
            self.commit(&mut memo, &decision, cx, frame, egress);
        }
    }

    /// What would become of a frame that NIC `origin` sent and that begins with `bytes`. Changes nothing.
    pub fn decide(&self, origin: NicId, bytes: &[u8], now: Instant) -> Decision {
        self.judge(&mut self.memo(origin, now), bytes)
    }

    /// The ways a frame takes that `origin` floods in `segment`.
    pub fn receivers(&self, origin: NicId, segment: Segment) -> impl Iterator<Item = Route> {
        let isolated = self.members.get(origin.index()).and_then(Option::as_ref).is_some_and(|member| member.isolated);
        let list = self.receivers.get(usize::from(segment.0)).map_or([].as_slice(), Vec::as_slice);
        list.iter().copied().filter(move |route| route.nic != origin && !(isolated && route.isolated))
    }

    /// A memo of nothing but the origin.
    fn memo(&self, origin: NicId, now: Instant) -> Memo {
        let member = self.members.get(origin.index()).and_then(Option::as_ref);
        Memo {
            now,
            tick: self.fdb.tick(now),
            origin,
            ingress: member.map(|member| Ingress {
                vlan_aware: self.vlan_aware,
                untagged: member.labels.untagged,
                guard: member.guard.map_or(0, Mac::to_bits),
                isolated: member.isolated,
                pass_reserved: member.pass_reserved,
            }),
            vid: NO_VID,
            vid_segment: None,
            source: Key::NONE,
            destination: Key::NONE,
            outcome: Outcome::Drop(DropReason::NoDestination),
        }
    }

    #[inline(always)]
    fn judge(&self, memo: &mut Memo, bytes: &[u8]) -> Decision {
        let mut decision = Decision {
            segment: Segment::default(),
            label: Label::NONE,
            learn: Learn::Current,
            outcome: Outcome::Drop(DropReason::Runt),
        };
        let Some(ingress) = memo.ingress else {
            decision.outcome = Outcome::Drop(DropReason::NoDestination);
            return decision;
        };
        let Some((to, from, tpid)) = addresses(bytes) else { return decision };

        let segment = if tpid == TPID_ON_WIRE && ingress.vlan_aware {
            let Some(label) = Label::read(bytes) else { return decision };
            decision.label = label;
            if label == Label::PRIORITY {
                ingress.untagged.ok_or(DropReason::UntaggedNotAllowed)
            } else {
                self.tagged_segment(memo, label).ok_or(DropReason::VlanNotAllowed)
            }
        } else {
            ingress.untagged.ok_or(DropReason::UntaggedNotAllowed)
        };
        decision.segment = match segment {
            Ok(segment) => segment,
            Err(reason) => {
                decision.outcome = Outcome::Drop(reason);
                return decision;
            }
        };

        let is_group = to & 1 != 0;
        if is_group && !ingress.pass_reserved && Mac::from_bits(to).is_reserved() {
            decision.outcome = Outcome::Drop(DropReason::Reserved);
            return decision;
        }

        let source = Key::new(decision.segment, from);
        if source != memo.source {
            match self.heard(memo, &ingress, source) {
                Ok(Learn::Current) => memo.source = source,
                Ok(learn) => decision.learn = learn,
                Err(reason) => {
                    decision.outcome = Outcome::Drop(reason);
                    return decision;
                }
            }
        }

        if is_group {
            let traffic = if Mac::from_bits(to).is_broadcast() { Traffic::Broadcast } else { Traffic::Multicast };
            decision.outcome = self.flooded(memo, decision.segment, traffic);
            return decision;
        }
        let destination = Key::new(decision.segment, to);
        if destination != memo.destination || matches!(memo.outcome, Outcome::Flood(_)) {
            memo.destination = destination;
            memo.outcome = self.destined(memo, &ingress, source, destination);
        }
        decision.outcome = memo.outcome;
        decision
    }

    #[inline(always)]
    fn commit(&mut self, memo: &mut Memo, decision: &Decision, cx: &mut Context, frame: Frame, egress: &mut Egress) {
        if decision.learn != Learn::Current {
            self.learn(memo, decision, cx.heads.get(&frame).macs().1);
        }
        match decision.outcome {
            Outcome::Forward(route) => self.send(memo, decision.label, route, cx, frame, egress),
            Outcome::Flood(traffic) => self.flood(memo, decision, traffic, cx, frame, egress),
            Outcome::Drop(reason) => cx.drop_at(memo.origin, frame, reason),
        }
    }

    /// The segment of a tagged frame, if the origin is a member with that tag.
    #[inline]
    fn tagged_segment(&self, memo: &mut Memo, label: Label) -> Option<Segment> {
        if label.vid() != memo.vid {
            let member = self.members.get(memo.origin.index())?.as_ref()?;
            let allowed = member.labels.tagged.as_ref().is_some_and(|vids| vids.has(label.vid()));
            memo.vid = label.vid();
            memo.vid_segment = if allowed { self.segments.segment(label.vid()) } else { None };
        }
        memo.vid_segment
    }

    /// What a source other than the last frame's means: whether the origin may send from it, and what it teaches.
    #[inline]
    fn heard(&self, memo: &Memo, ingress: &Ingress, source: Key) -> Result<Learn, DropReason> {
        if !Mac::from_bits(source.mac()).is_unicast() {
            return Err(DropReason::BadSource);
        }
        if ingress.guard != 0 && source.mac() != ingress.guard {
            return Err(DropReason::SpoofedSource);
        }
        let learn = self.fdb.consider(source, memo.origin, memo.tick);
        match learn {
            Learn::Current | Learn::Renew(_) => Ok(learn),
            Learn::Pinned(_) => Err(DropReason::SpoofedSource),
            Learn::Insert | Learn::Move { .. } if self.is_claimed(memo.origin, ingress, source) => {
                Err(DropReason::SpoofedSource)
            }
            Learn::Insert | Learn::Move { .. } => Ok(learn),
        }
    }

    /// Whether an attached NIC of the segment, and not `origin`, was declared with this address.
    #[cold]
    fn is_claimed(&self, origin: NicId, ingress: &Ingress, source: Key) -> bool {
        ingress.guard != source.mac()
            && self.claims.claimants(source.mac()).any(|nic| {
                let member = self.members.get(nic.index()).and_then(Option::as_ref);
                nic != origin && member.is_some_and(|member| !member.lanes.is_empty() && member.is_in(source.segment()))
            })
    }

    /// The outcome for one station's address.
    #[inline]
    fn destined(&self, memo: &Memo, ingress: &Ingress, source: Key, destination: Key) -> Outcome {
        let nic = if destination == source { Some(memo.origin) } else { self.fdb.find(destination, memo.tick) };
        let Some(nic) = nic else { return self.flooded(memo, destination.segment(), Traffic::Unknown) };
        if nic == memo.origin {
            return Outcome::Drop(DropReason::SamePort);
        }
        match self.route(nic, destination.segment()) {
            None => Outcome::Drop(DropReason::NoDestination),
            Some(route) if route.isolated && ingress.isolated => Outcome::Drop(DropReason::Isolated),
            Some(route) if route.lanes == 0 => Outcome::Drop(DropReason::NotReady),
            Some(route) => Outcome::Forward(route),
        }
    }

    /// The outcome for a frame that goes to everybody.
    fn flooded(&self, memo: &Memo, segment: Segment, traffic: Traffic) -> Outcome {
        let mut receivers = self.receivers(memo.origin, segment);
        if receivers.next().is_none() {
            return Outcome::Drop(DropReason::NoDestination);
        }
        let is_free = traffic == Traffic::Unknown && receivers.next().is_none();
        let member = self.members.get(memo.origin.index()).and_then(Option::as_ref);
        if !is_free && !member.is_some_and(|member| member.pacers.allows(traffic, memo.now)) {
            return Outcome::Drop(traffic.over_budget());
        }
        Outcome::Flood(traffic)
    }

    /// Learns a frame's source, whose address is `from`.
    #[inline(never)]
    fn learn(&mut self, memo: &mut Memo, decision: &Decision, from: u64) {
        let source = Key::new(decision.segment, from);
        if self.fdb.settle(decision.learn, source, memo.origin, memo.tick) {
            memo.source = source;
        }
        if !matches!(decision.learn, Learn::Renew(_)) {
            memo.destination = Key::NONE;
        }
    }

    /// Puts a frame that is labelled `label` into the burst of a lane.
    #[inline]
    fn send(&self, memo: &Memo, label: Label, route: Route, cx: &mut Context, frame: Frame, egress: &mut Egress) {
        if label != route.label
            && let Err(reason) = relabel(cx.heads.get_mut(&frame), label, route.label)
        {
            return cx.drop_at(memo.origin, frame, reason);
        }
        let lane = if route.lanes == 1 { route.lane } else { self.spread(cx, &frame, route) };
        if let Err(frame) = egress.push(lane, frame) {
            cx.drop_at(memo.origin, frame, DropReason::RingFull);
        }
    }

    /// The lane of a NIC with several, by flow.
    #[inline(never)]
    fn spread(&self, cx: &Context, frame: &Frame, route: Route) -> u16 {
        let hash = wire::FlowKey::of(cx.heads.get(frame).bytes()).hash();
        let choice = (u64::from(hash) * u64::from(route.lanes)) >> 32;
        let member = self.members.get(route.nic.index()).and_then(Option::as_ref);
        member.and_then(|member| member.lanes.get(choice as usize)).copied().unwrap_or(route.lane)
    }

    /// Sends a copy to every receiver, and the frame itself to the last.
    #[inline(never)]
    fn flood(
        &mut self,
        memo: &Memo,
        decision: &Decision,
        traffic: Traffic,
        cx: &mut Context,
        frame: Frame,
        egress: &mut Egress,
    ) {
        let is_free = traffic == Traffic::Unknown && self.receivers(memo.origin, decision.segment).nth(1).is_none();
        if !is_free && let Some(Some(member)) = self.members.get_mut(memo.origin.index()) {
            member.pacers.charge(traffic, memo.now);
        }
        let mut last = None;
        for route in self.receivers(memo.origin, decision.segment) {
            let Some(route) = last.replace(route) else { continue };
            match cx.copy(&frame) {
                Some(copy) => self.send(memo, decision.label, route, cx, copy, egress),
                None => return cx.drop_at(memo.origin, frame, DropReason::NoHeads),
            }
        }
        match last {
            Some(route) => self.send(memo, decision.label, route, cx, frame, egress),
            None => cx.drop_at(memo.origin, frame, DropReason::NoDestination),
        }
    }
}

/// Destination and source as [`Mac::to_bits`] has them, and the EtherType as it lies in a little-endian word; nothing without all three.
#[inline(always)]
fn addresses(bytes: &[u8]) -> Option<(u64, u64, u16)> {
    const MAC: u64 = 0xffff_ffff_ffff;
    let header: &[u8; 14] = bytes.first_chunk()?;
    let to = u64::from_le_bytes(*header.first_chunk()?);
    let rest = u64::from_le_bytes(*header.last_chunk()?);
    Some((to & MAC, rest & MAC, (rest >> 48) as u16))
}

//! What is to become of a frame: [`Bridge::decide`], without changing anything.
//!
//! Invariant: a decision to forward or flood names only members of the frame's segment other than its origin, and is within the origin's
//! budgets. It is made from the frame's first bytes, the bridge and the time, and nothing else.
//!
//! Theory of operation: the stages of a decision, each of which may drop:
//!
//! ```text
//!   header      14 bytes (18 with a tag), else Runt
//!   segment     from tag and membership, else VlanNotAllowed, UntaggedNotAllowed
//!   reserved    01:80:C2:00:00:0X stays here, unless the NIC passes it
//!   source      one station's address (BadSource), under guard a declared or static one of this NIC, and nobody else's (SpoofedSource), not one
//!               that moves to and fro (Flapping); where control says who is behind the NIC, nobody who is behind another one that works (SpoofedSource)
//!   inspect     what the packet says of its sender: SpoofedAddress, SpoofedArp, SpoofedNd, RogueDhcp, RogueRa (`inspect.rs`)
//!   learn       the source is behind the origin NIC, unless control says who is
//!   destination known: SamePort, Isolated, NotReady or forward; group or unknown: NoDestination, over budget (Flapping for a source that is held) or flood
//! ```
//!
//! What consecutive frames share is decided once: see `memo.rs`.
//! Read first: IEEE 802.1Q clause 8.6 (the forwarding process).

use wire::{DropReason, Instant, Mac, NicId, Origin, Segment};

pub use crate::bridge::Route;
use crate::{
    bridge::Bridge,
    budget::Traffic,
    fdb::{Key, Learn},
    memo::{Ingress, Memo},
    vlan::{Label, TPID_ON_WIRE},
};

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

impl Bridge {
    /// What would become of a frame that NIC `origin` sent and that begins with `bytes`. Changes nothing.
    pub fn decide(&self, origin: NicId, bytes: &[u8], now: Instant) -> Decision {
        self.judge(&mut self.memo(Origin { nic: origin, lane: 0 }, now), bytes)
    }

    /// The ways a frame takes that `origin` floods in `segment`.
    pub fn receivers(&self, origin: NicId, segment: Segment) -> impl Iterator<Item = Route> {
        let isolated = self.members.get(origin).is_some_and(|member| member.isolated);
        let list = self.receivers.get(usize::from(segment.0)).map_or([].as_slice(), Vec::as_slice);
        list.iter().copied().filter(move |route| route.nic != origin && !(isolated && route.isolated))
    }

    /// What is to become of a frame from the memo's origin that begins with `bytes`.
    pub(crate) fn judge(&self, memo: &mut Memo, bytes: &[u8]) -> Decision {
        let mut decision = Decision {
            segment: Segment::default(),
            label: Label::NONE,
            learn: Learn::Current,
            outcome: Outcome::Drop(DropReason::Runt),
        };
        memo.inspects = false;
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
                self.tagged_segment(memo.origin, label).ok_or(DropReason::VlanNotAllowed)
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
                Ok(learn) => {
                    decision.learn = learn;
                    if let Learn::Held(_) = learn {
                        decision.outcome = Outcome::Drop(DropReason::Flapping);
                        return decision;
                    }
                }
                Err(reason) => {
                    decision.outcome = Outcome::Drop(reason);
                    return decision;
                }
            }
        }

        if ingress.inspection.concerns(tpid) {
            memo.inspects = true;
            if let Err(reason) = self.inspect(memo.origin, decision.segment, bytes) {
                decision.learn = Learn::Current;
                decision.outcome = Outcome::Drop(reason);
                return decision;
            }
        }

        if is_group {
            let traffic = if Mac::from_bits(to).is_broadcast() { Traffic::Broadcast } else { Traffic::Multicast };
            decision.outcome = self.flooded(memo, source, traffic);
            return decision;
        }
        let destination = Key::new(decision.segment, to);
        if destination == source {
            decision.outcome = Outcome::Drop(DropReason::SamePort);
            return decision;
        }
        if destination != memo.destination {
            self.look_up(memo, &ingress, source, destination);
        }
        decision.outcome = memo.outcome;
        decision
    }

    /// The segment of a tagged frame, if the origin is a member with that tag.
    fn tagged_segment(&self, origin: NicId, label: Label) -> Option<Segment> {
        let member = self.members.get(origin)?;
        let allowed = member.labels.tagged.as_ref().is_some_and(|vids| vids.has(label.vid()));
        self.segments.segment(label.vid()).filter(|_| allowed)
    }

    /// What a source other than the last frame's means: whether the origin may send from it, and what it teaches.
    fn heard(&self, memo: &Memo, ingress: &Ingress, source: Key) -> Result<Learn, DropReason> {
        if !Mac::from_bits(source.mac()).is_unicast() {
            return Err(DropReason::BadSource);
        }
        if ingress.guard != 0 && source.mac() != ingress.guard && !self.fdb.is_fixed(source, memo.origin) {
            return Err(DropReason::SpoofedSource);
        }
        if ingress.told {
            let elsewhere = self.fdb.find(source, memo.tick).filter(|nic| *nic != memo.origin);
            let works = |nic| self.members.get(nic).is_some_and(|member| !member.lanes.is_empty());
            let is_spoofed = elsewhere.is_some_and(works) || self.is_claimed(memo.origin, ingress, source);
            return if is_spoofed { Err(DropReason::SpoofedSource) } else { Ok(Learn::Current) };
        }
        let learn = self.fdb.consider(source, memo.origin, memo.tick);
        match learn {
            // Who is held learns nothing, and that it was heard is counted.
            Learn::Current | Learn::Renew(_) | Learn::Held(_) => Ok(learn),
            Learn::Pinned(_) => Err(DropReason::SpoofedSource),
            Learn::Insert | Learn::Move { .. } if self.is_claimed(memo.origin, ingress, source) => {
                Err(DropReason::SpoofedSource)
            }
            Learn::Insert | Learn::Move { .. } => Ok(learn),
        }
    }

    /// Whether an attached NIC of the segment, and not `origin`, was declared with this address.
    fn is_claimed(&self, origin: NicId, ingress: &Ingress, source: Key) -> bool {
        ingress.guard != source.mac()
            && self.claims.claimants(source.mac()).any(|nic| {
                let member = self.members.get(nic);
                nic != origin && member.is_some_and(|member| !member.lanes.is_empty() && member.is_in(source.segment()))
            })
    }

    /// Finds the outcome for one station's address.
    fn look_up(&self, memo: &mut Memo, ingress: &Ingress, source: Key, destination: Key) {
        let segment = destination.segment();
        let Some(nic) = self.fdb.find(destination, memo.tick) else {
            (memo.destination, memo.towards) = (Key::NONE, None);
            memo.outcome = self.flooded(memo, source, Traffic::Unknown);
            return;
        };
        memo.destination = destination;
        if memo.towards != Some((segment, nic)) {
            memo.towards = Some((segment, nic));
            memo.outcome = self.outcome_towards(memo.origin, ingress, segment, nic);
        }
    }

    /// The outcome for the addresses behind one NIC.
    fn outcome_towards(&self, origin: NicId, ingress: &Ingress, segment: Segment, nic: NicId) -> Outcome {
        if nic == origin {
            return Outcome::Drop(DropReason::SamePort);
        }
        match self.route(nic, segment) {
            None => Outcome::Drop(DropReason::NoDestination),
            Some(route) if route.isolated && ingress.isolated => Outcome::Drop(DropReason::Isolated),
            Some(route) if route.lanes == 0 => Outcome::Drop(DropReason::NotReady),
            Some(route) => Outcome::Forward(route),
        }
    }

    /// The outcome for a frame that goes to everybody in its source's segment.
    fn flooded(&self, memo: &Memo, source: Key, traffic: Traffic) -> Outcome {
        let traffic = if self.fdb.is_held(source, memo.tick) { Traffic::Held } else { traffic };
        let segment = source.segment();
        if self.receivers(memo.origin, segment).next().is_none() {
            return Outcome::Drop(DropReason::NoDestination);
        }
        let member = self.members.get(memo.origin);
        if !self.is_free(memo.origin, segment, traffic)
            && !member.is_some_and(|member| member.pacers.allows(memo.lane, traffic, memo.now))
        {
            return Outcome::Drop(traffic.over_budget());
        }
        Outcome::Flood(traffic)
    }

    /// Whether a frame to everybody costs no more than one to a known address: there is one port that may have the station, and it is no tunnel, which
    /// sends it to each of its endpoints.
    pub(crate) fn is_free(&self, origin: NicId, segment: Segment, traffic: Traffic) -> bool {
        let mut receivers = self.receivers(origin, segment);
        let only = receivers.next().filter(|_| traffic == Traffic::Unknown && receivers.next().is_none());
        only.and_then(|only| self.members.get(only.nic)).is_some_and(|only| !only.pacers.is_each())
    }
}

/// Destination and source as [`Mac::to_bits`] has them, and the EtherType as it lies in a little-endian word; nothing without all three.
fn addresses(bytes: &[u8]) -> Option<(u64, u64, u16)> {
    const MAC: u64 = 0xffff_ffff_ffff;
    let header: &[u8; 14] = bytes.first_chunk()?;
    let to = u64::from_le_bytes(*header.first_chunk()?);
    let rest = u64::from_le_bytes(*header.last_chunk()?);
    Some((to & MAC, rest & MAC, (rest >> 48) as u16))
}

//! [`Memo`]: what the last frames of a burst came to.
//!
//! Invariant: it lives for one burst, and for one origin, so that it never outlives a change of what it remembers: whoever learns forgets
//! what learning may have changed. With or without it, a decision is the same.
//!
//! Theory of operation: frames of a burst mostly share their whole Ethernet header with the one before. Such a frame costs two comparisons
//! and takes over the decision, unless that flooded (which is charged to a budget) or taught the bridge something. Of other frames the ones
//! that share the source, or the destination, with the last such frame spare a look into the forwarding database, and those that go to the
//! same NIC a look at how.
//! Read first: [`crate::decide`].

use wire::{DropReason, Instant, Mac, NicId, Origin, Segment};

use crate::{
    bridge::Bridge,
    decide::{Decision, Outcome},
    fdb::{Key, Learn, Tick},
    inspect::{Inspection, is_inspected},
    vlan::{Label, TPID_ON_WIRE},
};

/// See the module's documentation.
pub(crate) struct Memo {
    pub(crate) now: Instant,
    pub(crate) tick: Tick,
    pub(crate) origin: NicId,
    /// The origin's lane: whose budgets are charged.
    pub(crate) lane: u16,
    /// The origin's part of every decision; nothing when it is no member.
    pub(crate) ingress: Option<Ingress>,
    header: Header,
    /// Frames with `header` are inspected one by one.
    pub(crate) inspects: bool,
    /// The decision about frames with `header`.
    pub(crate) decision: Decision,
    /// The source learnt last, behind `origin`.
    pub(crate) source: Key,
    /// The destination looked up last.
    pub(crate) destination: Key,
    /// The NIC it was found behind, and in which segment.
    pub(crate) towards: Option<(Segment, NicId)>,
    /// What came of it.
    pub(crate) outcome: Outcome,
}

/// What a decision needs of the origin.
#[derive(Clone, Copy)]
pub(crate) struct Ingress {
    pub(crate) vlan_aware: bool,
    pub(crate) untagged: Option<Segment>,
    /// [`Mac::to_bits`] of the declared address; zero for none.
    pub(crate) guard: u64,
    pub(crate) inspection: Inspection,
    pub(crate) isolated: bool,
    pub(crate) pass_reserved: bool,
    pub(crate) told: bool,
}

/// All of a frame's first bytes that a decision depends on: bytes 0 to 7, bytes 6 to 13, and the VID if the EtherType is 0x8100.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    front: u64,
    back: u64,
    vid: u16,
}

impl Header {
    /// That of a frame too short to be worth remembering. No other frame has it: the words disagree about bytes 6 and 7.
    const SHORT: Header = Header { front: 0, back: 1, vid: 0 };
    /// No frame's.
    const NONE: Header = Header { front: 0, back: 2, vid: 0 };

    #[inline(always)]
    fn read(bytes: &[u8]) -> Header {
        let (Some(bytes), Some(front)) = (bytes.first_chunk::<18>(), bytes.first_chunk()) else { return Header::SHORT };
        let [_, _, _, _, _, _, back @ .., high, low, _, _] = bytes;
        let (front, back) = (u64::from_le_bytes(*front), u64::from_le_bytes(*back));
        let is_tagged = (back >> 48) as u16 == TPID_ON_WIRE;
        let vid = if is_tagged { Label::of_tag([*high, *low]).vid() } else { 0 };
        Header { front, back, vid }
    }

    #[inline(always)]
    fn is(self, other: Header) -> bool {
        (self.front ^ other.front) | (self.back ^ other.back) | u64::from(self.vid ^ other.vid) == 0
    }
}

impl Memo {
    /// The NIC and lane whose frames it is about.
    #[inline(always)]
    pub(crate) fn whole_origin(&self) -> Origin {
        Origin { nic: self.origin, lane: self.lane }
    }

    /// Whether a frame from `origin` that begins with `bytes` is like the one before.
    #[inline(always)]
    pub(crate) fn covers(&self, origin: Origin, bytes: &[u8]) -> bool {
        origin == self.whole_origin() && Header::read(bytes).is(self.header)
    }

    /// Remembers what was decided about a frame that begins with `bytes`, if it holds for the next such frame.
    #[inline]
    pub(crate) fn remember(&mut self, bytes: &[u8], decision: Decision) {
        let header = Header::read(bytes);
        let holds = decision.learn == Learn::Current
            && !matches!(decision.outcome, Outcome::Flood(_))
            && !matches!(decision.outcome, Outcome::Drop(reason) if is_inspected(reason))
            && !header.is(Header::SHORT);
        self.header = if holds { header } else { Header::NONE };
        self.decision = decision;
    }
}

impl Bridge {
    /// A memo of nothing but the origin.
    pub(crate) fn memo(&self, Origin { nic: origin, lane }: Origin, now: Instant) -> Memo {
        let nowhere = Outcome::Drop(DropReason::NoDestination);
        let member = self.members.get(origin);
        Memo {
            now,
            tick: self.fdb.tick(now),
            origin,
            lane,
            ingress: member.map(|member| Ingress {
                vlan_aware: self.vlan_aware,
                untagged: member.labels.untagged,
                guard: member.guard.map_or(0, Mac::to_bits),
                inspection: self.inspection(member),
                isolated: member.isolated,
                pass_reserved: member.pass_reserved,
                told: member.told,
            }),
            header: Header::NONE,
            inspects: false,
            decision: Decision {
                segment: Segment::default(),
                label: Label::NONE,
                learn: Learn::Current,
                outcome: nowhere,
            },
            source: Key::NONE,
            destination: Key::NONE,
            towards: None,
            outcome: nowhere,
        }
    }
}

//! [`Held`]: packets that wait until it is known who has their next hop.
//!
//! Invariant: at most [`FRAMES`] of them with [`BYTES`] in all, at most [`EACH`] for one address and [`SHARE`] from one NIC ([`OWN_SHARE`] of what came
//! from outside), none for longer than [`PATIENCE`]. They are copies, so nothing lent is kept past its turn; each counts as held in the ledger until
//! it leaves.
//! Read first: RFC 1122 section 2.3.2.2 (to keep at least one).

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use wire::{Context, DropReason, Frame, Instant, NicId, Offload, Origin};

const FRAMES: usize = 128;
const BYTES: usize = 1 << 20;
const EACH: usize = 4;
/// Who scans a network through the router has no more than this of the places, and so of the questions.
const SHARE: usize = 16;
/// What the router's way out gave it is of many senders.
const OWN_SHARE: usize = FRAMES / 2;
const PATIENCE: Duration = Duration::from_secs(3);

struct Waiting {
    next_hop: IpAddr,
    from: Origin,
    since: Instant,
    offload: Offload,
    bytes: Vec<u8>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Held {
    frames: VecDeque<Waiting>,
    bytes: usize,
}

impl Held {
    /// Keeps a copy of `frame` until `next_hop` is known; drops it where there is no room, and then it is false. `own` is the router's NIC.
    pub(crate) fn keep(&mut self, cx: &mut Context, frame: Frame, next_hop: IpAddr, own: NicId) -> bool {
        let head = cx.heads.get(&frame);
        let (len, offload, from) = (head.len(), head.offload, head.origin);
        let count = |wanted: &dyn Fn(&Waiting) -> bool| self.frames.iter().filter(|waiting| wanted(waiting)).count();
        let share = if from.nic == own { OWN_SHARE } else { SHARE };
        if count(&|waiting| waiting.next_hop == next_hop) >= EACH
            || count(&|waiting| waiting.from.nic == from.nic) >= share
            || self.frames.len() >= FRAMES
            || self.bytes + len > BYTES
        {
            cx.drop(frame, DropReason::Unresolved);
            return false;
        }
        let mut bytes = vec![0; len];
        if cx.read_all(&frame, &mut bytes) != Some(len) {
            cx.drop(frame, DropReason::Stale);
            return false;
        }
        cx.ledger.held += 1;
        self.bytes += len;
        self.frames.push_back(Waiting { next_hop, from, since: cx.now, offload, bytes });
        true
    }

    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// When the next one has waited for too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.frames.front().map(|waiting| waiting.since + PATIENCE)
    }

    /// The addresses that are waited for, once each.
    pub(crate) fn next_hops(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.frames.iter().map(|waiting| waiting.next_hop).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Drops what has waited for too long.
    pub(crate) fn sweep(&mut self, cx: &mut Context) {
        while self.deadline().is_some_and(|deadline| deadline <= cx.now)
            && let Some(waiting) = self.frames.pop_front()
        {
            self.bytes -= waiting.bytes.len();
            cx.ledger.held -= 1;
            cx.drop_one(DropReason::Unresolved);
        }
    }

    /// The next frame that waits for `next_hop`, as one of this turn from where it came.
    pub(crate) fn release(&mut self, cx: &mut Context, next_hop: IpAddr) -> Option<Frame> {
        let at = self.frames.iter().position(|waiting| waiting.next_hop == next_hop)?;
        let waiting = self.frames.get(at)?;
        let frame = cx.originate(waiting.from, &waiting.bytes)?;
        cx.heads.get_mut(&frame).offload = waiting.offload;
        let waiting = self.frames.remove(at)?;
        self.bytes -= waiting.bytes.len();
        // It was received long ago.
        cx.ledger.originated -= 1;
        cx.ledger.held -= 1;
        Some(frame)
    }
}

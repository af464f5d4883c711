//! [`Flaps`]: stations that move to and fro, as they do where two bridges are joined twice, and are held where they were.
//!
//! Invariant: bounded, and nothing is allocated for a frame. Who moves no more than [`MOVES`] times in [`WINDOW`] is never held; who is held stays at
//! its home, where it was before it began to move, for [`HOLD`] after its last move.
//!
//! Theory of operation: a guest that is migrated moves once, one whose cable is changed a few times. A frame that goes round a loop moves its source at every
//! turn. Whoever was there first is held to be right: copies come after what they are copies of. A station that pauses is, for as long as it pauses, where
//! its last frame's copy came from, or where a neighbour has used its address; so a pause makes no new home. That is only where it was heard [`LIVED`] after
//! it had moved there. What is held ages like any entry, so a station that has really gone elsewhere is found there when it has been silent for long enough,
//! or when the hold is over. A frame of a station in the ring itself goes round one way all the same, where the hosts of the ring hold it in one direction: so what
//! is held may have few frames copied to everybody (`Traffic::Held` of a bridge), and one frame that is dropped ends its round.
//! Read first: RFC 7432 section 15.1, which does the same between tunnel endpoints, with more patience.

use crate::{Mac, NicId, Segment};

use super::{Tick, table::Key};

/// Moves within [`WINDOW`] seconds that are believed.
pub const MOVES: u32 = 10;
/// Seconds within which moves are counted together.
pub const WINDOW: u32 = 10;
/// Seconds for which a station is held.
pub const HOLD: u32 = 60;
/// Seconds after which a station that is heard where it moved to is at home there.
pub const LIVED: u32 = 60;
/// Seconds for which one that was held is remembered, to be told of.
const REMEMBERED: u32 = 600;
/// Stations watched at a time.
const WATCHED: usize = 64;

/// A station that moved too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// Its segment.
    pub segment: Segment,
    /// Its address.
    pub mac: Mac,
    /// Where it was first, and is held.
    pub home: NicId,
    /// Where else it was heard last.
    pub other: NicId,
    /// Times that it moved, or would have.
    pub moves: u64,
    /// Seconds for which it is held yet.
    pub held: u32,
}

#[derive(Clone, Copy)]
struct Watched {
    key: Key,
    home: NicId,
    other: NicId,
    /// When the first of the moves counted was, and how many there were.
    since: u32,
    count: u32,
    /// When it moved last, and until when it is held; zero: it never was.
    last: u32,
    until: u32,
    moves: u64,
}

/// See the module's documentation.
pub(super) struct Flaps {
    watched: Vec<Watched>,
    /// When the last hold is over.
    until: u32,
}

impl Flaps {
    pub(super) fn new() -> Flaps {
        Flaps { watched: Vec::with_capacity(WATCHED), until: 0 }
    }

    /// Whether a station may not move now.
    #[inline]
    pub(super) fn holds(&self, key: Key, now: Tick) -> bool {
        now.0 < self.until && self.is_held(key, now)
    }

    #[cold]
    fn is_held(&self, key: Key, now: Tick) -> bool {
        self.watched.iter().any(|watched| watched.key == key && now.0 < watched.until)
    }

    /// A station that is held was heard elsewhere.
    pub(super) fn refused(&mut self, key: Key, other: NicId) {
        if let Some(watched) = self.watched.iter_mut().find(|watched| watched.key == key) {
            watched.other = other;
            watched.moves += 1;
        }
    }

    /// A station is about to move from a NIC where it was last heard at `heard`. The NIC that it is held behind if it has moved too often.
    #[cold]
    pub(super) fn moves(
        &mut self,
        key: Key,
        (from, Tick(heard)): (NicId, Tick),
        to: NicId,
        Tick(now): Tick,
    ) -> Option<NicId> {
        let new = Watched { key, home: from, other: to, since: now, count: 0, last: now, until: 0, moves: 0 };
        let at = match self.watched.iter().position(|watched| watched.key == key) {
            Some(at) => at,
            None if self.watched.len() < WATCHED => {
                self.watched.push(new);
                self.watched.len() - 1
            }
            None => {
                // Who has been quiet longest gives way, those that are held last.
                let all = self.watched.iter().enumerate();
                let (at, _) = all.min_by_key(|(_, watched)| (now < watched.until, watched.last))?;
                *self.watched.get_mut(at)? = new;
                at
            }
        };
        let watched = self.watched.get_mut(at)?;
        if now.saturating_sub(watched.since) >= WINDOW {
            (watched.since, watched.count) = (now, 0);
            if heard.saturating_sub(watched.last) >= LIVED {
                watched.home = from;
            }
        }
        watched.count += 1;
        watched.moves += 1;
        watched.last = now;
        if to != watched.home {
            watched.other = to;
        }
        if watched.count <= MOVES {
            return None;
        }
        watched.until = now.saturating_add(HOLD);
        self.until = self.until.max(watched.until);
        (watched.since, watched.count) = (watched.until, 0);
        Some(watched.home)
    }

    /// A station is forgotten, and with it that it moved.
    pub(super) fn forget_station(&mut self, key: Key) {
        self.watched.retain(|watched| watched.key != key);
    }

    /// A NIC is gone: nobody is held there.
    pub(super) fn forget(&mut self, nic: NicId) {
        self.watched.retain(|watched| watched.home != nic && watched.other != nic);
    }

    /// Stations that are held, or were lately.
    pub(super) fn iter(&self, Tick(now): Tick) -> impl Iterator<Item = Flap> {
        let lately = move |watched: &&Watched| watched.until > 0 && now < watched.until.saturating_add(REMEMBERED);
        self.watched.iter().filter(lately).map(move |watched| Flap {
            segment: watched.key.segment(),
            mac: Mac::from_bits(watched.key.mac()),
            home: watched.home,
            other: watched.other,
            moves: watched.moves,
            held: watched.until.saturating_sub(now),
        })
    }
}

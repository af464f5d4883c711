//! [`Cache`]: answers of upstreams, for as long as they say.
//!
//! Invariant: an answer is kept under the whole question that it answers and nothing else is taken out of it, so nobody plants what was not
//! asked. There are never more entries, nor more bytes, than the limits. When there are, the guest whose questions fill most of the cache loses
//! the entry of its that would have ended first. Read first: RFC 1035 section 7.4, RFC 2308 section 5, RFC 8767 (which is not done).

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use wire::Instant;

use super::{Guest, message::Layout};

/// What an entry costs besides its answer and twice its question.
const OVERHEAD: usize = 256;
/// Longest time to keep an answer, and one that says that there is nothing (RFC 2308 section 5).
const MOST: u32 = 86_400;
const MOST_NEGATIVE: u32 = 3600;

struct Entry {
    answer: Vec<u8>,
    layout: Layout,
    stored: Instant,
    /// Its place among those of who asked for it.
    place: (Instant, u64),
    guest: Guest,
}

impl Entry {
    fn bytes(&self, key: &[u8]) -> usize {
        OVERHEAD + self.answer.len() + 2 * key.len()
    }
}

/// The entries of one guest's questions.
#[derive(Default)]
struct Share {
    by_end: BTreeMap<(Instant, u64), Vec<u8>>,
    bytes: usize,
}

/// See the module's documentation.
pub(crate) struct Cache {
    entries: HashMap<Vec<u8>, Entry>,
    shares: HashMap<Guest, Share>,
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
    next: u64,
}

impl Cache {
    pub(crate) fn new(most_entries: usize, most_bytes: usize) -> Cache {
        Cache { entries: HashMap::new(), shares: HashMap::new(), bytes: 0, most_entries, most_bytes, next: 0 }
    }

    /// The answer with its TTLs counted down.
    pub(crate) fn get(&self, key: &[u8], now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(key).filter(|entry| now < entry.place.0)?;
        let mut answer = entry.answer.clone();
        let age = u32::try_from(now.since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        entry.layout.age(&mut answer, age);
        Some(answer)
    }

    /// Keeps an answer for as long as it says.
    pub(crate) fn put(
        &mut self,
        key: Vec<u8>,
        guest: Guest,
        answer: &[u8],
        layout: Layout,
        exists: bool,
        now: Instant,
    ) {
        let most = if exists { MOST } else { MOST_NEGATIVE };
        let seconds = layout.lifetime().unwrap_or(0).min(most);
        if seconds == 0 {
            return;
        }
        self.remove(&key);
        let place = (now + Duration::from_secs(seconds.into()), self.next);
        self.next += 1;
        let entry = Entry { answer: answer.to_vec(), layout, stored: now, place, guest };
        let bytes = entry.bytes(&key);
        if bytes > self.most_bytes / 8 {
            return;
        }
        let share = self.shares.entry(guest).or_default();
        share.by_end.insert(place, key.clone());
        share.bytes += bytes;
        self.bytes += bytes;
        self.entries.insert(key, entry);
        while self.entries.len() > self.most_entries || self.bytes > self.most_bytes {
            let fullest = self.shares.values().max_by_key(|share| share.bytes);
            let Some(victim) = fullest.and_then(|share| share.by_end.values().next()).cloned() else { break };
            self.remove(&victim);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let Some(entry) = self.entries.remove(key) else { return };
        let bytes = entry.bytes(key);
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&entry.guest) {
            share.by_end.remove(&entry.place);
            share.bytes -= bytes;
            if share.by_end.is_empty() {
                self.shares.remove(&entry.guest);
            }
        }
    }

    /// Forgets what has ended.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let ended = |share: &Share| {
            let ended = share.by_end.iter().take_while(|((end, _), _)| *end <= now);
            ended.map(|(_, key)| key.clone()).collect::<Vec<_>>()
        };
        let ended: Vec<Vec<u8>> = self.shares.values().flat_map(ended).collect();
        ended.iter().for_each(|key| self.remove(key));
    }

    /// Forgets everything: other upstreams may say something else.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.shares.clear();
        self.bytes = 0;
    }

    #[cfg(test)]
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

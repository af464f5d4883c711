//! [`Neighbours`]: which MAC has which address of the segment, for what the router itself sends on.
//!
//! Invariant: bounded: a NIC is remembered with at most [`SHARE`] addresses, and one that speaks for more loses its own oldest. An address that
//! the router has leased is behind its client's MAC, whoever else says it is theirs.
//!
//! Theory of operation: the router hears of neighbours where it looks anyway: in ARP messages and neighbour discovery that reach it, and in
//! leases. What is said to all (an announcement after a move) changes what is known of an address, and makes none known. Who is not known is asked for, once a second at most and [`TRIES`] times; the port holds what waits meanwhile. What was
//! heard is believed for [`LIFETIME`], a lease for as long as it lasts; then who it is is asked again.
//! Read first: RFC 1122 section 2.3.2 (ARP caches), RFC 4861 section 7.3 (reachability, of which this is the simple part).

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use wire::{Instant, Mac, NicId};

/// Addresses remembered of one NIC at most.
const SHARE: usize = 256;
/// Addresses that may be asked for at one time.
const ASKED: usize = 256;
/// Questions put before an address counts as nobody's.
const TRIES: u8 = 3;
/// Time between two questions for one address.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a neighbour is believed in.
const LIFETIME: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Known {
    mac: Mac,
    nic: NicId,
    until: Instant,
    /// The router has leased it to that MAC.
    leased: bool,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    put: Instant,
    tries: u8,
}

/// What is known of who an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Behind this MAC, on this NIC.
    Known(Mac, NicId),
    /// To be asked for now.
    Ask,
    /// Has been asked for; an answer may still come.
    Waiting,
    /// Has been asked for in vain.
    Silent,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    known: HashMap<IpAddr, Known>,
    /// Addresses by NIC, the oldest first.
    holders: HashMap<NicId, VecDeque<IpAddr>>,
    asked: HashMap<IpAddr, Question>,
}

impl Neighbours {
    /// Somebody on `nic` has shown that `address` is at `mac`.
    pub(crate) fn heard(&mut self, address: IpAddr, mac: Mac, nic: NicId, now: Instant) {
        match self.known.get(&address) {
            Some(known) if known.leased && now < known.until => {}
            _ => self.put(address, Known { mac, nic, until: now + LIFETIME, leased: false }),
        }
    }

    /// The router has leased `address` to `mac` on `nic`, until then.
    pub(crate) fn leased(&mut self, address: IpAddr, mac: Mac, nic: NicId, until: Instant) {
        self.put(address, Known { mac, nic, until, leased: true });
    }

    /// `address` is leased to nobody any more.
    pub(crate) fn ended(&mut self, address: IpAddr) {
        if let Some(known) = self.known.remove(&address)
            && let Some(held) = self.holders.get_mut(&known.nic)
        {
            held.retain(|other| *other != address);
        }
    }

    fn put(&mut self, address: IpAddr, known: Known) {
        self.asked.remove(&address);
        let before = self.known.insert(address, known);
        if let Some(before) = before {
            if before.nic == known.nic {
                return;
            }
            if let Some(held) = self.holders.get_mut(&before.nic) {
                held.retain(|other| *other != address);
            }
        }
        let held = self.holders.entry(known.nic).or_default();
        held.push_back(address);
        if held.len() > SHARE
            && let Some(oldest) = held.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// The MAC that `address` was last known behind.
    pub(crate) fn mac(&self, address: IpAddr) -> Option<Mac> {
        self.known.get(&address).map(|known| known.mac)
    }

    /// What is known of `address`.
    pub(crate) fn find(&self, address: IpAddr, now: Instant) -> Neighbour {
        if let Some(known) = self.known.get(&address).filter(|known| now < known.until) {
            return Neighbour::Known(known.mac, known.nic);
        }
        match self.asked.get(&address) {
            Some(question) if now < question.put + AGAIN => Neighbour::Waiting,
            Some(question) if question.tries >= TRIES && now < question.put + AGAIN * 10 => Neighbour::Silent,
            _ => Neighbour::Ask,
        }
    }

    /// `address` is being asked for.
    pub(crate) fn asked(&mut self, address: IpAddr, now: Instant) {
        if self.asked.len() >= ASKED
            && !self.asked.contains_key(&address)
            && let Some(oldest) =
                self.asked.iter().min_by_key(|(_, question)| question.put).map(|(address, _)| *address)
        {
            self.asked.remove(&oldest);
        }
        let question = self.asked.entry(address).or_insert(Question { put: now, tries: 0 });
        let again = question.tries >= TRIES;
        *question = Question { put: now, tries: if again { 1 } else { question.tries + 1 } };
    }

    /// Forgets questions that nobody answered, so that there is room for others.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.asked.retain(|_, question| now < question.put + AGAIN * 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: NicId = NicId(1);

    fn mac(n: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, n])
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn an_unknown_address_is_asked_for_three_times_and_then_silent_for_a_while() {
        let mut neighbours = Neighbours::default();
        let mut now = Instant::START + Duration::from_secs(1);
        for _ in 0..TRIES {
            assert_eq!(neighbours.find(address(1), now), Neighbour::Ask);
            neighbours.asked(address(1), now);
            assert_eq!(neighbours.find(address(1), now), Neighbour::Waiting);
            now = now + AGAIN;
        }
        assert_eq!(neighbours.find(address(1), now), Neighbour::Silent);
        now = now + AGAIN * 10;
        assert_eq!(neighbours.find(address(1), now), Neighbour::Ask);
        neighbours.heard(address(1), mac(7), NIC, now);
        assert_eq!(neighbours.find(address(1), now), Neighbour::Known(mac(7), NIC));
        assert_eq!(
            neighbours.find(address(1), now + LIFETIME),
            Neighbour::Ask,
            "who is silent for long is asked again"
        );
    }

    #[test]
    fn a_leased_address_stays_with_its_client() {
        let mut neighbours = Neighbours::default();
        neighbours.leased(address(1), mac(1), NIC, Instant::START + LIFETIME);
        neighbours.heard(address(1), mac(2), NicId(2), Instant::START);
        assert_eq!(neighbours.find(address(1), Instant::START), Neighbour::Known(mac(1), NIC));
        neighbours.heard(address(1), mac(2), NicId(2), Instant::START + LIFETIME);
        let after = Instant::START + LIFETIME;
        assert_eq!(neighbours.find(address(1), after), Neighbour::Known(mac(2), NicId(2)), "the lease is over");
        neighbours.ended(address(1));
        assert_eq!(neighbours.find(address(1), after), Neighbour::Ask);
    }

    #[test]
    fn a_nic_that_speaks_for_many_loses_its_own_oldest_only() {
        let mut neighbours = Neighbours::default();
        neighbours.heard(address(0), mac(0), NicId(0), Instant::START);
        for n in 1..=SHARE as u32 + 1 {
            neighbours.heard(address(n), mac(1), NIC, Instant::START);
        }
        assert_eq!(neighbours.find(address(1), Instant::START), Neighbour::Ask);
        assert_eq!(neighbours.find(address(2), Instant::START), Neighbour::Known(mac(1), NIC));
        assert_eq!(neighbours.find(address(0), Instant::START), Neighbour::Known(mac(0), NicId(0)));
        assert!(neighbours.known.len() <= SHARE + 1);
    }

    #[test]
    fn questions_are_bounded_and_the_latest_are_kept() {
        let mut neighbours = Neighbours::default();
        for n in 0..1000 {
            let now = Instant::START + Duration::from_micros(n.into());
            assert_eq!(neighbours.find(address(n), now), Neighbour::Ask);
            neighbours.asked(address(n), now);
            assert_eq!(neighbours.find(address(n), now), Neighbour::Waiting);
        }
        assert_eq!(neighbours.asked.len(), ASKED);
        neighbours.sweep(Instant::START + AGAIN * 20);
        assert!(neighbours.asked.is_empty());
    }
}

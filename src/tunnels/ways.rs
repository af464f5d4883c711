//! [`Ways`]: what was seen of the ways from endpoints of ours to other hosts, for who shows it.
//!
//! Invariant: of an endpoint there is what its last round saw, and nothing of hosts that it did not ask. Read first: [`crate::paths`].

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::probe::Way;

/// By the endpoint's name and the other host. A copy is the same.
#[derive(Clone, Default)]
pub struct Ways(Arc<Mutex<HashMap<String, HashMap<IpAddr, Way>>>>);

impl Ways {
    /// All that is known of an endpoint's ways is this.
    pub fn set(&self, vtep: &str, ways: HashMap<IpAddr, Way>) {
        self.lock().insert(vtep.to_owned(), ways);
    }

    /// In one word, what was seen of a way.
    pub fn word(&self, vtep: &str, peer: IpAddr) -> &'static str {
        match self.lock().get(vtep).and_then(|ways| ways.get(&peer)) {
            Some(Way::Whole(_)) => "whole",
            Some(Way::Narrow(_)) => "narrow",
            Some(Way::Silent(_)) => "silent",
            None => "untried",
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HashMap<IpAddr, Way>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_that_of_its_endpoint_as_the_last_round_saw_it() {
        let (ways, peer) = (Ways::default(), |n: u8| IpAddr::from([192, 0, 2, n]));
        assert_eq!(ways.word("a", peer(1)), "untried");
        let seen = [(peer(1), Way::Whole(1500)), (peer(2), Way::Narrow(1400)), (peer(3), Way::Silent(1500))];
        ways.set("a", HashMap::from(seen));
        assert_eq!([1, 2, 3, 4].map(|n| ways.word("a", peer(n))), ["whole", "narrow", "silent", "untried"]);
        assert_eq!(ways.word("b", peer(1)), "untried");
        ways.set("a", HashMap::from([seen[1]]));
        assert_eq!([1, 2].map(|n| ways.word("a", peer(n))), ["untried", "narrow"]);
    }
}

//! The ways to other hosts are tried out while the daemon runs, so that networks that stretch over hosts fit through them.
//!
//! Invariant: an endpoint is told only what was seen ([`crate::probe`]); where a host answers no echo request, what the route and its errors say holds.
//! Only hosts that the file or control names are asked, no strangers: whoever forges a source must not have us send to it.
//! Endpoints in networks of ours are left out: their ways are not this host's. Read first: [`crate::probe`], [`crate::tunnels`].

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    config::Vtep,
    probe::{Way, probe},
    tunnels::Tunnels,
};

/// How often the ways are tried.
const PERIOD: Duration = Duration::from_secs(60);
/// How often it is looked for hosts that are new.
const NEWS: Duration = Duration::from_secs(5);

/// What is known of one endpoint's ways.
#[derive(Default)]
struct Known {
    ways: HashMap<IpAddr, Way>,
    /// When all of them are due.
    again: Option<Instant>,
    /// Somebody was told that they cannot be tried.
    refused: bool,
}

/// Begins to try the ways of these endpoints, on a thread of its own that ends with the process.
///
/// # Errors
/// The thread cannot be had.
pub fn watch(vteps: &[Vtep], tunnels: &Tunnels) -> io::Result<()> {
    let own: Vec<Vtep> = vteps.iter().filter(|vtep| vtep.seat.is_none()).cloned().collect();
    let tunnels = tunnels.clone();
    if own.is_empty() {
        return Ok(());
    }
    let turn = move || {
        let mut all: Vec<Known> = own.iter().map(|_| Known::default()).collect();
        loop {
            own.iter().zip(&mut all).for_each(|(vtep, known)| known.look(vtep, &tunnels));
            thread::sleep(NEWS);
        }
    };
    thread::Builder::new().name("paths".into()).spawn(turn).map(drop)
}

impl Known {
    /// Tries the ways of an endpoint that are due: all of them once in a while, new ones at once.
    fn look(&mut self, vtep: &Vtep, tunnels: &Tunnels) {
        let peers = tunnels.remotes(&vtep.name);
        let asked = self.due(&peers, Instant::now());
        if asked.is_empty() {
            return;
        }
        let ways = match probe(vtep.local, &asked) {
            Ok(ways) => ways,
            Err(error) => {
                self.refuse(vtep, &error);
                return tunnels.ways.set(&vtep.name, HashMap::new());
            }
        };
        for (peer, way) in &ways {
            match *way {
                Way::Whole(mtu) => tunnels.path(&vtep.name, *peer, mtu),
                Way::Narrow(mtu) => {
                    if self.ways.get(peer) != Some(way) {
                        tracing::warn!(vtep = vtep.name, %peer, mtu, "longer packets are lost on the way and nobody says so; guests are told");
                    }
                    tunnels.path(&vtep.name, *peer, mtu);
                }
                Way::Silent(_) => {}
            }
        }
        self.learn(&peers, &asked, ways);
        tunnels.ways.set(&vtep.name, self.ways.clone());
    }

    /// Whose ways are to be tried now.
    fn due(&mut self, peers: &[IpAddr], now: Instant) -> Vec<IpAddr> {
        if self.again.is_none_or(|again| again <= now) && !peers.is_empty() {
            self.again = Some(now + PERIOD);
            return peers.to_vec();
        }
        // Where nothing can be tried, new ones cannot either.
        peers.iter().copied().filter(|peer| !self.refused && !self.ways.contains_key(peer)).collect()
    }

    /// What was seen of those asked. Who is no peer any more is remembered no longer; who has no route is looked for again.
    fn learn(&mut self, peers: &[IpAddr], asked: &[IpAddr], ways: Vec<(IpAddr, Way)>) {
        self.refused = false;
        self.ways.retain(|peer, _| peers.contains(peer) && !asked.contains(peer));
        self.ways.extend(ways);
    }

    fn refuse(&mut self, vtep: &Vtep, error: &io::Error) {
        self.ways.clear();
        if std::mem::replace(&mut self.refused, true) {
            return;
        }
        if error.kind() == io::ErrorKind::PermissionDenied {
            tracing::warn!(
                vtep = vtep.name,
                "echo requests are not permitted, so that ways that lose long packets in silence are not found: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (root needs it, too)"
            );
        } else {
            tracing::warn!(vtep = vtep.name, %error, "the ways to other hosts cannot be tried out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_hosts_are_tried_at_once_and_all_of_them_once_a_minute() {
        let (start, peer) = (Instant::now(), |n: u8| IpAddr::from([192, 0, 2, n]));
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut known = Known::default();
        assert!(known.due(&[], start).is_empty());
        assert_eq!(known.due(&[peer(1)], start), [peer(1)]);
        known.learn(&[peer(1)], &[peer(1)], vec![(peer(1), Way::Whole(1500))]);
        assert!(known.due(&[peer(1)], after(5)).is_empty());
        assert_eq!(known.due(&[peer(1), peer(2)], after(10)), [peer(2)]);
        known.learn(&[peer(1), peer(2)], &[peer(2)], vec![(peer(2), Way::Silent(1500))]);
        assert_eq!(known.ways.len(), 2, "what was known of the others stays");
        assert!(known.due(&[peer(1), peer(2)], after(59)).is_empty());
        assert_eq!(known.due(&[peer(2)], after(60)), [peer(2)]);
        known.learn(&[peer(2)], &[peer(2)], vec![(peer(2), Way::Narrow(1400))]);
        assert_eq!(known.ways, HashMap::from([(peer(2), Way::Narrow(1400))]), "the first is no peer any more");
        known.refused = true;
        assert_eq!((known.due(&[peer(3)], after(70)), known.due(&[peer(3)], after(120))), (vec![], vec![peer(3)]));
    }
}

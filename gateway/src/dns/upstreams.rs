//! [`Upstreams`]: the host's resolvers, and which of them to ask next.
//!
//! Invariant: a server that did not answer is asked last for a while, and is asked again: none is given up for good.
//! Read first: RFC 1035 section 7.2.

use std::{net::SocketAddr, time::Duration};

use wire::Instant;

/// How long a server that did not answer is asked last.
const AVOIDED: Duration = Duration::from_secs(15);
/// Servers that are used at most.
const MOST: usize = 8;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    servers: Vec<(SocketAddr, Option<Instant>)>,
}

impl Upstreams {
    /// Other servers from here on; whether they are others. What is known about those that stay is kept.
    pub(crate) fn set(&mut self, servers: impl Iterator<Item = SocketAddr>) -> bool {
        let known = |server| self.servers.iter().find(|(known, _)| *known == server).and_then(|(_, until)| *until);
        let mut new: Vec<(SocketAddr, Option<Instant>)> = Vec::new();
        for server in servers {
            if new.len() < MOST && new.iter().all(|(there, _)| *there != server) {
                new.push((server, known(server)));
            }
        }
        let changed = !new.iter().map(|(server, _)| server).eq(self.servers.iter().map(|(server, _)| server));
        self.servers = new;
        changed
    }

    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|(server, _)| *server).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.servers.len()
    }

    /// The next to ask: of those asked least often so far, the first that is known to answer, else the first.
    pub(crate) fn next(&self, asked: &[SocketAddr], now: Instant) -> Option<SocketAddr> {
        let times = |server: &SocketAddr| asked.iter().filter(|there| *there == server).count();
        let silent = |until: &Option<Instant>| until.is_some_and(|until| now < until);
        let best = self.servers.iter().min_by_key(|(server, until)| (times(server), silent(until)));
        best.map(|(server, _)| *server)
    }

    /// A server answered, whatever it said.
    pub(crate) fn answered(&mut self, server: SocketAddr) {
        self.mark(server, None);
    }

    /// A server did not answer.
    pub(crate) fn silent(&mut self, server: SocketAddr, now: Instant) {
        self.mark(server, Some(now + AVOIDED));
    }

    fn mark(&mut self, server: SocketAddr, until: Option<Instant>) {
        if let Some(known) = self.servers.iter_mut().find(|(known, _)| *known == server) {
            known.1 = until;
        }
    }
}

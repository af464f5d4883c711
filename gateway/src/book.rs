//! [`LeaseBook`]: the leases, for whoever wants to look at them from another thread.
//!
//! Invariant: reading never touches the worker. Once the book has caught up, it shows what the table held at the last change.
//!
//! Theory of operation: [`crate::Gateway::commit`] returns what changed, and the port sends it into a bounded channel; only then is
//! anything allocated or sent, never for a frame that leaves the leases as they are. When the channel is full because nobody reads, changes
//! are not waited for: the port sends the whole table later, once a second at most, until it goes through.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use wire::Instant;

use crate::{
    dhcp::{Event, Lease},
    gateway::Gateway,
};

/// Changes that may wait to be read.
const ROOM: usize = 1024;
/// Time between attempts to send the whole table.
const AGAIN: Duration = Duration::from_secs(1);

enum Entry {
    Change(Event),
    All(Vec<Lease>, Vec<Lease<Ipv6Addr>>),
}

/// Both ends of the way from a port to whoever looks at its leases.
pub fn lease_book() -> (LeaseSender, LeaseBook) {
    let (send, receive) = sync_channel(ROOM);
    (LeaseSender { send, again: None }, LeaseBook { receive, leases: BTreeMap::new(), leases6: BTreeMap::new() })
}

/// The port's end.
#[derive(Debug)]
pub struct LeaseSender {
    send: SyncSender<Entry>,
    /// Changes were lost; when to send the whole table.
    again: Option<Instant>,
}

impl LeaseSender {
    pub(crate) fn changed(&mut self, event: Event, now: Instant) {
        if self.again.is_none() && self.send.try_send(Entry::Change(event)).is_err() {
            self.again = Some(now + AGAIN);
        }
    }

    /// Has the whole table sent at the next turn.
    pub(crate) fn all(&mut self, now: Instant) {
        self.again = Some(now);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    pub(crate) fn catch_up(&mut self, gateway: &Gateway, now: Instant) {
        if self.again.is_none_or(|again| now < again) {
            return;
        }
        let all = Entry::All(gateway.leases().cloned().collect(), gateway.leases6().cloned().collect());
        self.again = match self.send.try_send(all) {
            Err(std::sync::mpsc::TrySendError::Full(_)) => Some(now + AGAIN),
            // When nobody will ever read, nothing needs to be sent.
            Ok(()) | Err(std::sync::mpsc::TrySendError::Disconnected(_)) => None,
        };
    }
}

/// The reader's end: a copy of the table that is brought up to date when it is looked at.
#[derive(Debug)]
pub struct LeaseBook {
    receive: Receiver<Entry>,
    leases: BTreeMap<Ipv4Addr, Lease>,
    leases6: BTreeMap<Ipv6Addr, Lease<Ipv6Addr>>,
}

impl LeaseBook {
    /// Every lease, offer and address put aside, by address. Those whose time is over are still there, remembered for their client.
    pub fn leases(&mut self) -> impl Iterator<Item = &Lease> {
        self.catch_up();
        self.leases.values()
    }

    /// The same of DHCPv6.
    pub fn leases6(&mut self) -> impl Iterator<Item = &Lease<Ipv6Addr>> {
        self.catch_up();
        self.leases6.values()
    }

    fn catch_up(&mut self) {
        for entry in self.receive.try_iter() {
            match entry {
                Entry::Change(Event::V4(event)) => {
                    event.left.and_then(|left| self.leases.remove(&left));
                    self.leases.insert(event.lease.address, event.lease);
                }
                Entry::Change(Event::V6(event)) => {
                    event.left.and_then(|left| self.leases6.remove(&left));
                    self.leases6.insert(event.lease.address, event.lease);
                }
                Entry::All(leases, leases6) => {
                    self.leases = leases.into_iter().map(|lease| (lease.address, lease)).collect();
                    self.leases6 = leases6.into_iter().map(|lease| (lease.address, lease)).collect();
                }
            }
        }
    }
}

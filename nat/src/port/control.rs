//! What control tells the port while it runs, and asks it.
//!
//! Read first: [`crate::control`], [`crate::publish`].

use std::net::{IpAddr, SocketAddr};

use wire::Instant;

use super::PacketPort;
use crate::{
    control::{Command, Line, Publication},
    publish::Forward,
    record::{Endpoint, Protocol, State},
    snapshot::{Entry, Kind},
};

impl PacketPort {
    /// Does what has been told since it was asked last.
    #[inline]
    pub(super) fn obey(&mut self, now: Instant) {
        while let Some(command) = self.inbox.as_ref().and_then(|inbox| inbox.next()) {
            self.command(command, now);
        }
    }

    #[cold]
    fn command(&mut self, command: Command, now: Instant) {
        // Who does not wait for the answer any more does not need it.
        match command {
            Command::Publish(publication, reply) => {
                let _ = reply.send(self.publish(&publication, now));
            }
            Command::Withdraw(publication, reply) => {
                let withdrawn = self.forward_of(&publication).is_ok_and(|forward| self.table.unpublish(&forward) > 0);
                let _ = reply.send(withdrawn);
            }
            Command::Show(reply) => {
                let _ = reply.send(self.lines(now));
            }
            // The host is not reached by this engine but through its link outside, like everybody there.
            Command::HostAddresses(_) => {}
        }
    }

    /// Publishes ports; the client's address is kept.
    pub fn publish(&mut self, publication: &Publication, now: Instant) -> Result<(), String> {
        let forward = self.forward_of(publication)?;
        self.add_nic(forward.nic);
        self.table.publish(&forward, now).map_err(|error| error.to_string())
    }

    fn forward_of(&self, publication: &Publication) -> Result<Forward, String> {
        let Publication { protocol, listen, to, count, nic } = publication;
        let (SocketAddr::V4(listen), SocketAddr::V4(to)) = (listen, to) else {
            return Err("this NAT publishes ports of IPv4 addresses; with prefixes exchanged (NPTv6) every guest has an address of \
                        its own outside and is reached there"
                .to_owned());
        };
        let outside = match *listen.ip() {
            any if any.is_unspecified() => self.table.paired(*to.ip()),
            address => address,
        };
        let nic = nic.or_else(|| self.guests.whose(*to.ip())).ok_or_else(|| {
            format!(
                "it is not known which guest has the address {}: name the guest, or let it send a packet first",
                to.ip()
            )
        })?;
        let last = listen.port().checked_add(count.saturating_sub(1)).filter(|_| *count > 0);
        let last = last.ok_or("the ports to publish must be 1 to 65535, and at least one".to_owned())?;
        let inside = Endpoint::new(*to.ip(), to.port());
        Ok(Forward { protocol: *protocol, outside, ports: listen.port()..=last, inside, nic })
    }

    /// Everything that is remembered, for people and programs.
    pub fn lines(&self, now: Instant) -> Vec<Line> {
        self.table.entries(now).filter(told).map(|entry| line(&entry)).collect()
    }
}

/// Connections tell of their mappings; permits are the table's own business.
fn told(entry: &Entry) -> bool {
    match entry.kind {
        Kind::Mapping => entry.protocol != Protocol::Tcp || entry.state == State::Published,
        Kind::Session => true,
        Kind::Permit => false,
    }
}

fn line(entry: &Entry) -> Line {
    let address = |endpoint: Endpoint| SocketAddr::new(IpAddr::V4(endpoint.address), endpoint.port);
    Line {
        protocol: entry.protocol,
        nic: entry.nic,
        inside: address(entry.inside),
        outside: Some(address(entry.outside)),
        remote: (entry.kind == Kind::Session).then(|| address(entry.remote)),
        state: entry.state.name(),
        expires: entry.expires,
        packets: entry.packets,
        bytes: entry.bytes,
    }
}

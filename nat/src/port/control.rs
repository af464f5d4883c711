//! What control tells the port while it runs, and asks it.
//!
//! Read first: [`crate::control`], [`crate::publish`].

use std::net::{IpAddr, SocketAddr};

use wire::{Instant, NicId};

use super::{
    PacketPort,
    v6::{By, V6},
};
use crate::{
    control::{Command, Line, Publication},
    family::Family,
    publish::Forward,
    record::{Endpoint, Protocol, State},
    snapshot::{Entry, Kind},
    table::NatTable,
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
                let _ = reply.send(self.withdraw(&publication));
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
        let nic = self.holder_of(publication)?;
        self.add_nic(nic);
        match (publication.listen.ip(), publication.to.ip(), &mut self.v6) {
            (IpAddr::V4(listen), IpAddr::V4(to), _) => publish(&mut self.table, publication, (listen, to), nic, now),
            (IpAddr::V6(listen), IpAddr::V6(to), Some(V6 { by: By::Table(table), .. })) => {
                publish(table, publication, (listen, to), nic, now)
            }
            (IpAddr::V6(_), IpAddr::V6(_), Some(_)) => Err("with prefixes exchanged (NPTv6) every guest has an address of its own outside \
                                                            and is reached there; a port can be published on addresses of `outside`"
                .to_owned()),
            (IpAddr::V6(_), IpAddr::V6(_), None) => {
                Err("this NAT has no IPv6 address outside; give it one in `outside`, or publish on an IPv4 address".to_owned())
            }
            (listen, to, _) => Err(format!(
                "{listen} and {to} are of two versions of IP; this NAT rewrites packets and leads no port of one to the other"
            )),
        }
    }

    fn withdraw(&mut self, publication: &Publication) -> bool {
        let Ok(nic) = self.holder_of(publication) else { return false };
        let withdrawn = match (publication.listen.ip(), publication.to.ip(), &mut self.v6) {
            (IpAddr::V4(listen), IpAddr::V4(to), _) => {
                forward(&self.table, publication, (listen, to), nic).map(|forward| self.table.unpublish(&forward))
            }
            (IpAddr::V6(listen), IpAddr::V6(to), Some(V6 { by: By::Table(table), .. })) => {
                forward(table, publication, (listen, to), nic).map(|forward| table.unpublish(&forward))
            }
            _ => return false,
        };
        withdrawn.is_ok_and(|withdrawn| withdrawn > 0)
    }

    /// Whose the inside of a publication is.
    fn holder_of(&self, publication: &Publication) -> Result<NicId, String> {
        let to = publication.to.ip();
        publication.nic.or_else(|| self.guests.whose(to)).ok_or_else(|| {
            format!("it is not known which guest has the address {to}: name the guest, or let it send a packet first")
        })
    }

    /// Everything that is remembered, for people and programs.
    pub fn lines(&self, now: Instant) -> Vec<Line> {
        let of_v6 =
            self.table6().into_iter().flat_map(|table| table.entries(now).filter(told).map(|entry| line(&entry)));
        self.table.entries(now).filter(told).map(|entry| line(&entry)).chain(of_v6).collect()
    }
}

fn publish<A: Family>(
    table: &mut NatTable<A>,
    publication: &Publication,
    ends: (A, A),
    nic: NicId,
    now: Instant,
) -> Result<(), String> {
    let forward = forward(table, publication, ends, nic)?;
    table.publish(&forward, now).map_err(|error| error.to_string())
}

/// What a publication means to a table: on the address outside that the inside one has, where none is named.
fn forward<A: Family>(
    table: &NatTable<A>,
    publication: &Publication,
    (listen, to): (A, A),
    nic: NicId,
) -> Result<Forward<A>, String> {
    let outside = if listen == A::UNSPECIFIED { table.paired(to) } else { listen };
    let first = publication.listen.port();
    let last = first.checked_add(publication.count.saturating_sub(1)).filter(|_| publication.count > 0);
    let last = last.ok_or("the ports to publish must be 1 to 65535, and at least one".to_owned())?;
    let inside = Endpoint::new(to, publication.to.port());
    Ok(Forward { protocol: publication.protocol, outside, ports: first..=last, inside, nic })
}

/// Connections tell of their mappings; permits are the table's own business.
fn told<A>(entry: &Entry<A>) -> bool {
    match entry.kind {
        Kind::Mapping => entry.protocol != Protocol::Tcp || entry.state == State::Published,
        Kind::Session => true,
        Kind::Permit => false,
    }
}

fn line<A: Family>(entry: &Entry<A>) -> Line {
    let address = |endpoint: Endpoint<A>| SocketAddr::from(endpoint);
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

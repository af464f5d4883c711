//! [`Publications`]: UDP ports of the host that lead to guests.
//!
//! Invariant: to the guest every client is a port of the router's own address, so that answers find their way back; the client's address is not
//! kept. Clients of a published port are bounded and forgotten when they were quiet for as long as a mapping may be.
//! Read first: [`super`], [`crate::control::Publication`].

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use sys::inet::udp::{Datagrams, Kind};
use wire::{Instant, Mac, NicId};

use crate::{
    control::{Line, Publication},
    index::splitmix,
    record::Protocol,
    sockets::{
        Hub, SocketsConfig, Token,
        mappings::{Class, Key, Keyed, Mappings, Slot, bits},
    },
};

/// Clients of one published port, and of all of them.
const CLIENTS_OF_ONE: usize = 1024;
const CLIENTS: usize = 8192;
/// Published ports.
const DOORS: usize = 4096;
/// Ports that are tried for a client.
const TRIES: usize = 16;

/// A published port.
struct Door {
    socket: Datagrams,
    of: Publication,
    listen: SocketAddr,
    to: SocketAddr,
    mac: Mac,
    packets: u64,
}

/// Somebody outside who speaks to a published port.
struct Client {
    door: u32,
    address: SocketAddr,
    /// Where the published port leads.
    to: SocketAddr,
    /// The port of the router that it is, to the guest.
    port: u16,
}

/// The guest's endpoint and the router's port.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Back {
    address: u128,
    ports: (u16, u16),
}

/// See the module's documentation.
pub(super) struct Publications {
    doors: Vec<Option<Door>>,
    /// By door, in place of a NIC, and the client's address.
    clients: Mappings<Client>,
    back: HashMap<Back, Slot, Keyed>,
    chance: u64,
    routers: [Option<std::net::IpAddr>; 2],
}

impl Publications {
    pub(super) fn new(config: &SocketsConfig, routers: [Option<std::net::IpAddr>; 2]) -> Publications {
        let lifetimes: [Duration; 2] = [config.udp, config.udp];
        Publications {
            doors: Vec::new(),
            clients: Mappings::new(CLIENTS, CLIENTS_OF_ONE, lifetimes, config.seed ^ 0x444f_4f52),
            back: HashMap::with_hasher(Keyed::new(config.seed ^ 0x4241_434b)),
            chance: config.seed ^ 1,
            routers,
        }
    }

    /// Begins to forward; the error says why not, and nothing has changed then.
    pub(super) fn publish(&mut self, publication: &Publication, hub: &mut Hub) -> Result<(), String> {
        let Publication { listen, to, count, .. } = publication;
        let past = |port: u16| count.checked_sub(1).and_then(|more| port.checked_add(more)).is_none();
        if listen.port() == 0 || to.port() == 0 || past(listen.port()) || past(to.port()) {
            return Err("the ports to publish must be 1 to 65535 on both sides, and at least one".into());
        }
        if self.doors.iter().flatten().any(|door| door.of == *publication) {
            return Err(format!("udp {listen} is published already; withdraw that first"));
        }
        if self.doors.iter().flatten().count() + usize::from(*count) > DOORS {
            return Err(format!("no room for {count} more published ports; {DOORS} are the most"));
        }
        for n in 0..*count {
            let mut at = *listen;
            at.set_port(listen.port() + n);
            let mut inside = *to;
            inside.set_port(to.port() + n);
            if let Err(error) = self.open(publication, at, inside, hub) {
                self.withdraw(publication);
                return Err(format!("cannot publish udp {at}: {error}"));
            }
        }
        Ok(())
    }

    fn open(&mut self, of: &Publication, at: SocketAddr, to: SocketAddr, hub: &mut Hub) -> std::io::Result<()> {
        let kind = if at.is_ipv6() { Kind::Udp6 } else { Kind::Udp4 };
        let socket = Datagrams::open(kind, at, 64, 0)?;
        let place = self.doors.iter().position(Option::is_none).unwrap_or(self.doors.len());
        hub.watch(&socket, Token::Published(place as u32))?;
        let door = Door { socket, of: of.clone(), listen: at, to, mac: Mac::new([0; 6]), packets: 0 };
        match self.doors.get_mut(place) {
            Some(free) => *free = Some(door),
            None => self.doors.push(Some(door)),
        }
        Ok(())
    }

    /// Ends a publication; false when it was not there.
    pub(super) fn withdraw(&mut self, publication: &Publication) -> bool {
        let mut there = false;
        for place in 0..self.doors.len() {
            let Some(door) = self.doors.get_mut(place) else { break };
            if door.as_ref().is_some_and(|door| door.of == *publication) {
                *door = None;
                there = true;
                while let Some(slot) = self.clients.oldest_of(NicId(place as u16)) {
                    self.forget(slot);
                }
            }
        }
        there
    }

    pub(super) fn socket(&mut self, door: u32) -> Option<&mut Datagrams> {
        self.doors.get_mut(door as usize)?.as_mut().map(|door| &mut door.socket)
    }

    /// The published port and the client that a guest's datagram answers, if it does.
    pub(super) fn client(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        nic: NicId,
        mac: Mac,
        now: Instant,
    ) -> Option<(u32, SocketAddr)> {
        if self.back.is_empty() || !self.routers.contains(&Some(destination.ip())) {
            return None;
        }
        let back = Back { address: bits(source.ip()), ports: (source.port(), destination.port()) };
        let slot = *self.back.get(&back)?;
        let Client { door, address, .. } = *self.clients.get(slot)?;
        let open = self.doors.get_mut(door as usize)?.as_mut()?;
        if open.of.nic.is_some_and(|of| of != nic) {
            return None;
        }
        open.mac = mac;
        open.packets += 1;
        self.clients.renew(slot, Class::Long, now);
        Some((door, address))
    }

    /// Where a client's datagram goes and from whom it is to be: the guest's endpoint, its MAC, the router's endpoint.
    pub(super) fn arrival(
        &mut self,
        door: u32,
        from: SocketAddr,
        now: Instant,
    ) -> Option<(SocketAddr, Mac, Option<SocketAddr>)> {
        let key = Key::new(NicId(door as u16), from);
        let Door { to, mac, .. } = *self.doors.get(door as usize)?.as_ref()?;
        let [v4, v6] = self.routers;
        let router = (if to.is_ipv6() { v6 } else { v4 })?;
        let slot = match self.clients.find(key) {
            Some(slot) => slot,
            None => self.admit(door, key, from, to, now)?,
        };
        self.clients.renew(slot, Class::Long, now);
        let port = self.clients.get(slot)?.port;
        if let Some(Some(door)) = self.doors.get_mut(door as usize) {
            door.packets += 1;
        }
        Some((to, mac, Some(SocketAddr::new(router, port))))
    }

    /// A port of the router's for a client that has none.
    fn admit(&mut self, door: u32, key: Key, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<Slot> {
        while let Some(slot) = self.clients.in_the_way(NicId(door as u16)) {
            self.forget(slot);
        }
        let of = |port: u16| Back { address: bits(to.ip()), ports: (to.port(), port) };
        let mut port = from.port();
        let mut tries = 0;
        while port < 1024 || self.back.contains_key(&of(port)) {
            if tries == TRIES {
                return None;
            }
            port = 1024 + (splitmix(&mut self.chance) % 64_512) as u16;
            tries += 1;
        }
        let slot = self.clients.insert(key, Class::Long, Client { door, address: from, to, port }, now).ok()?;
        self.back.insert(of(port), slot);
        Some(slot)
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(Client { to, port, .. }) = self.clients.remove(slot) {
            self.back.remove(&Back { address: bits(to.ip()), ports: (to.port(), port) });
        }
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some(slot) = self.clients.expired(now) {
            self.forget(slot);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.deadline()
    }

    pub(super) fn show(&self, now: Instant, lines: &mut Vec<Line>) {
        let line = |door: &Door, remote, expires| Line {
            protocol: Protocol::Udp,
            nic: door.of.nic.unwrap_or_default(),
            inside: door.to,
            outside: Some(door.listen),
            remote,
            state: "published",
            expires,
            packets: door.packets,
            bytes: 0,
        };
        lines.extend(self.doors.iter().flatten().map(|door| line(door, None, None)));
        for (slot, _, client) in self.clients.iter() {
            let Some(Some(door)) = self.doors.get(client.door as usize) else { continue };
            let expires = self.clients.ends(slot).map(|ends| ends.since(now).as_secs() as u32);
            lines.push(Line { state: "client", packets: 0, ..line(door, Some(client.address), expires) });
        }
    }
}

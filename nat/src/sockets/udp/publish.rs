//! [`Publications`]: UDP ports of the host that lead to guests.
//!
//! Invariant: to the guest every client is a port of the router's own address, so that answers find their way back; the client's address is not
//! kept. Clients of a published port are bounded and forgotten when they were quiet for as long as a mapping may be.
//! Read first: [`super`], [`crate::sockets::doors`].

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use sys::inet::udp::{Datagrams, Kind};
use wire::{
    Instant, Mac, NicId,
    keyed::{Keyed, splitmix},
};

use crate::{
    control::{Line, Publication},
    sockets::{
        Hub, SocketsConfig, Token,
        doors::Doors,
        mappings::{Class, Key, Mappings, Slot, bits},
    },
};

/// Clients of one published port, and of all of them.
const CLIENTS_OF_ONE: usize = 1024;
const CLIENTS: usize = 8192;
/// Ports that are tried for a client.
const TRIES: usize = 16;

/// What a published port is listened at by.
struct Post {
    socket: Datagrams,
    /// The guest's MAC, as it says itself; zero, for the router to find it out, where it is not known which NIC is the guest's: anybody might say so there.
    mac: Mac,
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
    doors: Doors<Post>,
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
            doors: Doors::default(),
            clients: Mappings::new(CLIENTS, CLIENTS_OF_ONE, lifetimes, config.seed ^ 0x444f_4f52),
            back: HashMap::with_hasher(Keyed::new(config.seed ^ 0x4241_434b)),
            chance: config.seed ^ 1,
            routers,
        }
    }

    /// Begins to forward; the error says why not, and nothing has changed then.
    pub(super) fn publish(&mut self, publication: &Publication, hub: &Hub) -> Result<(), String> {
        self.doors.publish(publication, hub, |at, place| {
            let socket = Datagrams::open(if at.is_ipv6() { Kind::Udp6 } else { Kind::Udp4 }, at, 64, 0)?;
            hub.watch(&socket, Token::Published(place))?;
            Ok(Post { socket, mac: Mac::new([0; 6]) })
        })
    }

    /// Ends a publication; false when it was not there.
    pub(super) fn withdraw(&mut self, publication: &Publication) -> bool {
        let closed = self.doors.withdraw(publication);
        for place in &closed {
            while let Some(slot) = self.clients.oldest_of(NicId(*place as u16)) {
                self.forget(slot);
            }
        }
        !closed.is_empty()
    }

    pub(super) fn socket(&mut self, door: u32) -> Option<&mut Datagrams> {
        self.doors.get_mut(door).map(|door| &mut door.socket.socket)
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
        let open = self.doors.get_mut(door)?;
        match open.of.nic {
            Some(of) if of == nic => open.socket.mac = mac,
            Some(_) => return None,
            None => {}
        }
        open.count += 1;
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
        let open = self.doors.get(door)?;
        let (to, mac) = (open.to, open.socket.mac);
        let [v4, v6] = self.routers;
        let router = (if to.is_ipv6() { v6 } else { v4 })?;
        let slot = match self.clients.find(key) {
            Some(slot) => slot,
            None => self.admit(door, key, from, to, now)?,
        };
        self.clients.renew(slot, Class::Long, now);
        let port = self.clients.get(slot)?.port;
        if let Some(open) = self.doors.get_mut(door) {
            open.count += 1;
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
        lines.extend(self.doors.iter().map(|(_, door)| door.line()));
        for (slot, _, client) in self.clients.iter() {
            let Some(door) = self.doors.get(client.door) else { continue };
            let expires = self.clients.ends(slot).map(|ends| ends.since(now).as_secs() as u32);
            lines.push(Line { state: "client", remote: Some(client.address), expires, packets: 0, ..door.line() });
        }
    }
}

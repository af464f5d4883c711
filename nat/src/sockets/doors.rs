//! [`Doors`]: ports of the host that lead to guests, of UDP or TCP, with whatever each is listened at by.
//!
//! Invariant: a publication is open as a whole or not at all, and an error changes nothing. A door keeps its place while it is open; events and connections
//! name it by that.
//! Read first: [`crate::control::Publication`].

use std::{io, net::SocketAddr};

use super::Hub;
use crate::control::{Line, Publication};

/// Published ports, at most.
const MOST: usize = 4096;

/// A published port.
pub(crate) struct Door<S> {
    pub(crate) socket: S,
    pub(crate) of: Publication,
    /// The port of the host, and the endpoint that it leads to.
    pub(crate) listen: SocketAddr,
    pub(crate) to: SocketAddr,
    /// Packets, or connections.
    pub(crate) count: u64,
}

/// See the module's documentation.
pub(crate) struct Doors<S> {
    places: Vec<Option<Door<S>>>,
}

impl<S> Default for Doors<S> {
    fn default() -> Self {
        Doors { places: Vec::new() }
    }
}

impl<S> Doors<S> {
    /// Opens the ports of a publication, each by `open`, which is told the port and its place.
    pub(crate) fn publish(
        &mut self,
        publication: &Publication,
        hub: &Hub,
        open: impl Fn(SocketAddr, u32) -> io::Result<S>,
    ) -> Result<(), String> {
        let Publication { protocol, listen, to, count, .. } = publication;
        let past = |port: u16| count.checked_sub(1).and_then(|more| port.checked_add(more)).is_none();
        if listen.port() == 0 || to.port() == 0 || past(listen.port()) || past(to.port()) {
            return Err("the ports to publish must be 1 to 65535 on both sides, and at least one".into());
        }
        if hub.router(to.is_ipv6()).is_none() {
            return Err(format!("the network has no router of the family of {}", to.ip()));
        }
        if self.iter().any(|(_, door)| door.of == *publication) {
            return Err(format!("{} {listen} is published already; withdraw that first", protocol.name()));
        }
        if self.iter().count() + usize::from(*count) > MOST {
            return Err(format!("no room for {count} more published ports; {MOST} are the most"));
        }
        for n in 0..*count {
            let (mut at, mut inside) = (*listen, *to);
            at.set_port(listen.port() + n);
            inside.set_port(to.port() + n);
            let place = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
            match open(at, place as u32) {
                Ok(socket) => {
                    let door = Door { socket, of: publication.clone(), listen: at, to: inside, count: 0 };
                    match self.places.get_mut(place) {
                        Some(free) => *free = Some(door),
                        None => self.places.push(Some(door)),
                    }
                }
                Err(error) => {
                    self.withdraw(publication);
                    return Err(format!("cannot listen on {} {at}: {} ({error})", protocol.name(), why(&error)));
                }
            }
        }
        Ok(())
    }

    /// Closes the ports of a publication; the places that they had, in order.
    pub(crate) fn withdraw(&mut self, publication: &Publication) -> Vec<u32> {
        let mut closed = Vec::new();
        for (place, door) in self.places.iter_mut().enumerate() {
            if door.take_if(|door| door.of == *publication).is_some() {
                closed.push(place as u32);
            }
        }
        closed
    }

    pub(crate) fn get(&self, place: u32) -> Option<&Door<S>> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut Door<S>> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    /// All that are open, with their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Door<S>)> {
        self.places.iter().enumerate().filter_map(|(place, door)| Some((place as u32, door.as_ref()?)))
    }
}

impl<S> Door<S> {
    /// For people.
    pub(crate) fn line(&self) -> Line {
        Line {
            protocol: self.of.protocol,
            nic: self.of.nic.unwrap_or_default(),
            inside: self.to,
            outside: Some(self.listen),
            remote: None,
            state: "published",
            expires: None,
            packets: self.count,
            bytes: 0,
        }
    }
}

/// What an error means to who wants a port.
fn why(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program has this port",
        io::ErrorKind::AddrNotAvailable => "this host does not have that address",
        io::ErrorKind::PermissionDenied => "ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE",
        _ => "the system refused it",
    }
}

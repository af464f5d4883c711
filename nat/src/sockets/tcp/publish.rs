//! [`Listeners`]: TCP ports of the host that lead to guests.
//!
//! Invariant: to the guest every client is a port of the router's own address; the client's address is not kept. The host accepts before the guest
//! does, as the kernel has no other way; if the guest refuses, the client is reset.
//! Read first: [`super`], [`crate::control::Publication`].

use std::net::SocketAddr;

use sys::inet::tcp::Listener;
use wire::{Context, NicId};

use super::{Flow, FlowKey, State, Tcp, inward};
use crate::{
    control::{Line, Publication},
    record::Protocol,
    sockets::{Hub, Token},
};

/// In place of the NIC of a guest that has not shown where it is.
pub(super) const ANY: NicId = NicId(u16::MAX);
/// Published ports.
const DOORS: usize = 4096;
/// Connections accepted in one look.
const AT_ONCE: usize = 64;
/// Ports that are tried for a client.
const TRIES: usize = 16;

struct Door {
    listener: Listener,
    of: Publication,
    listen: SocketAddr,
    to: SocketAddr,
    accepted: u64,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Listeners {
    doors: Vec<Option<Door>>,
}

impl Listeners {
    fn open(&mut self, of: &Publication, at: SocketAddr, to: SocketAddr, hub: &Hub) -> std::io::Result<()> {
        let listener = Listener::open(at)?;
        let place = self.doors.iter().position(Option::is_none).unwrap_or(self.doors.len());
        hub.watch(&listener, Token::Listener(place as u32))?;
        let door = Door { listener, of: of.clone(), listen: at, to, accepted: 0 };
        match self.doors.get_mut(place) {
            Some(free) => *free = Some(door),
            None => self.doors.push(Some(door)),
        }
        Ok(())
    }

    pub(super) fn show(&self, lines: &mut Vec<Line>) {
        for door in self.doors.iter().flatten() {
            lines.push(Line {
                protocol: Protocol::Tcp,
                nic: door.of.nic.unwrap_or_default(),
                inside: door.to,
                outside: Some(door.listen),
                remote: None,
                state: "published",
                expires: None,
                packets: door.accepted,
                bytes: 0,
            });
        }
    }
}

impl Tcp {
    /// Begins to forward; the error says why not, and nothing has changed then.
    pub(crate) fn publish(&mut self, publication: &Publication, hub: &mut Hub) -> Result<(), String> {
        let Publication { listen, to, count, .. } = publication;
        let past = |port: u16| count.checked_sub(1).and_then(|more| port.checked_add(more)).is_none();
        if listen.port() == 0 || to.port() == 0 || past(listen.port()) || past(to.port()) {
            return Err("the ports to publish must be 1 to 65535 on both sides, and at least one".into());
        }
        if hub.router(to.is_ipv6()).is_none() {
            return Err(format!("the network has no router of the family of {}", to.ip()));
        }
        if self.listeners.doors.iter().flatten().count() + usize::from(*count) > DOORS {
            return Err(format!("no room for {count} more published ports; {DOORS} are the most"));
        }
        for n in 0..*count {
            let (mut at, mut inside) = (*listen, *to);
            at.set_port(listen.port() + n);
            inside.set_port(to.port() + n);
            if let Err(error) = self.listeners.open(publication, at, inside, hub) {
                self.withdraw(publication, hub);
                let what = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "another program has this port",
                    std::io::ErrorKind::AddrNotAvailable => "this host does not have that address",
                    std::io::ErrorKind::PermissionDenied => {
                        "ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE"
                    }
                    _ => "the system refused it",
                };
                return Err(format!("cannot listen on tcp {at}: {what} ({error})"));
            }
        }
        Ok(())
    }

    /// Ends a publication and the connections that came through it; false when it was not there.
    pub(crate) fn withdraw(&mut self, publication: &Publication, hub: &mut Hub) -> bool {
        let mut there = false;
        for place in &mut self.listeners.doors {
            there |= place.take_if(|door| door.of == *publication).is_some();
        }
        let Publication { to, count, .. } = *publication;
        let inside = |flow: &Flow| {
            let port = flow.key.inside.port().wrapping_sub(to.port());
            flow.key.inside.ip() == to.ip() && port < count && Some(flow.key.remote.ip()) == hub.router(to.is_ipv6())
        };
        for slot in self.table.slots(inside) {
            self.abort(slot, hub);
        }
        there
    }

    /// Clients have come to a published port.
    pub(crate) fn accept(&mut self, cx: &mut Context, place: u32, hub: &mut Hub) {
        for _ in 0..AT_ONCE {
            let Some(Some(door)) = self.listeners.doors.get_mut(place as usize) else { return };
            // A client that has gone already is no failure; neither is that there is none.
            let Ok((socket, client)) = door.listener.accept() else { return };
            door.accepted += 1;
            let (to, nic) = (door.to, door.of.nic.unwrap_or(ANY));
            let Some(router) = hub.router(to.is_ipv6()) else { return };
            let Some(key) = self.free_key(nic, to, router, client.port(), hub) else {
                socket.reset();
                continue;
            };
            if !hub.take_descriptor(nic) {
                socket.reset();
                continue;
            }
            let first = hub.chance() as u32;
            let mut flow = Flow::new(key, client, socket, State::Asked, first);
            flow.next = first.wrapping_add(1);
            flow.high = flow.next;
            flow.deadline = cx.now + flow.wait();
            inward::syn(cx, hub, &mut flow);
            let slot = self.enter(flow);
            let socket = self.table.get(slot).and_then(|flow| flow.socket.as_ref());
            if !matches!(socket.map(|socket| hub.watch_changes(socket, Token::Tcp(slot))), Some(Ok(()))) {
                self.abort(slot, hub);
            }
        }
    }

    /// Whose connection a client's is to the guest: from its own port, where that is free.
    fn free_key(
        &self,
        nic: NicId,
        inside: SocketAddr,
        router: std::net::IpAddr,
        wished: u16,
        hub: &mut Hub,
    ) -> Option<FlowKey> {
        let mut port = wished;
        for _ in 0..TRIES {
            let key = FlowKey { nic, inside, remote: SocketAddr::new(router, port) };
            if self.table.find(key).is_none() {
                return Some(key);
            }
            port = 1024 + (hub.chance() % 64_512) as u16;
        }
        None
    }
}

//! TCP ports of the host that lead to guests: [`Listeners`], and the clients that come by them.
//!
//! Invariant: to the guest every client is a port of the router's own address; the client's address is not kept. The host accepts before the guest
//! does, as the kernel has no other way; if the guest refuses, the client is reset.
//! Read first: [`super`], [`crate::sockets::doors`].

use std::net::SocketAddr;

use sys::inet::tcp::Listener;
use wire::{Context, NicId};

use super::{Flow, FlowKey, State, Tcp, inward};
use crate::{
    control::Publication,
    sockets::{Hub, Token, doors::Doors},
};

/// In place of the NIC of a guest that has not shown where it is.
pub(super) const ANY: NicId = NicId(u16::MAX);
/// Connections accepted in one look.
const AT_ONCE: usize = 64;
/// Ports that are tried for a client.
const TRIES: usize = 16;

/// Published ports, each with its listener.
pub(super) type Listeners = Doors<Listener>;

impl Tcp {
    /// Begins to forward; the error says why not, and nothing has changed then.
    pub(crate) fn publish(&mut self, publication: &Publication, hub: &Hub) -> Result<(), String> {
        self.listeners.publish(publication, hub, |at, place| {
            let listener = Listener::open(at)?;
            hub.watch(&listener, Token::Listener(place))?;
            Ok(listener)
        })
    }

    /// Ends a publication and the connections that came through it; false when it was not there.
    pub(crate) fn withdraw(&mut self, publication: &Publication, hub: &mut Hub) -> bool {
        let closed = self.listeners.withdraw(publication);
        for slot in self.table.slots(|flow| flow.door.is_some_and(|door| closed.binary_search(&door).is_ok())) {
            self.abort(slot, hub);
        }
        !closed.is_empty()
    }

    /// Clients have come to a published port.
    pub(crate) fn accept(&mut self, cx: &mut Context, place: u32, hub: &mut Hub) {
        for _ in 0..AT_ONCE {
            let Some(door) = self.listeners.get_mut(place) else { return };
            // A client that has gone already is no failure; neither is that there is none.
            let Ok((socket, client)) = door.socket.accept() else { return };
            door.count += 1;
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
            flow.door = Some(place);
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

//! What UDP and pings do alike with the sockets of guests' endpoints: opening within quotas, closing, and errors that came back.
//!
//! Invariant: a guest that has its quota gives up its own oldest endpoint for a new one, never another's. A descriptor is counted while its mapping
//! is there. An error is read only when there is room to tell it.
//! Read first: [`super::mappings`], [`sys::inet::udp`].

use std::{io, net::SocketAddr};

use sys::inet::udp::{Datagrams, Found, RecvBatch};
use wire::{Context, Instant};

use super::{
    Hub, Token,
    errors::{self, Back},
    mappings::{Class, Key, Mappings, Slot},
};

/// Endpoints closed in one look for old ones: closing takes a system call each, and what is left is for the next look.
const CLOSED: usize = 256;
/// Errors read from one socket in a turn.
const ERRORS: usize = 64;

/// An endpoint that has none gets a socket, and what belongs to it: `make` opens it and has it watched ([`watched`]).
pub(super) fn open<T>(
    mappings: &mut Mappings<T>,
    hub: &mut Hub,
    (key, class): (Key, Class),
    now: Instant,
    make: impl FnOnce(&Hub, Slot) -> io::Result<T>,
) -> io::Result<Slot> {
    let none = io::ErrorKind::QuotaExceeded;
    let nic = key.nic();
    while let Some(slot) = mappings.in_the_way(nic) {
        close(mappings, hub, slot);
    }
    if !hub.take_descriptor(nic) {
        let own = mappings.oldest_of(nic).ok_or(none)?;
        close(mappings, hub, own);
        if !hub.take_descriptor(nic) {
            return Err(none.into());
        }
    }
    let made = make(hub, mappings.next_slot());
    made.and_then(|value| mappings.insert(key, class, value, now).map_err(|_| none.into()))
        .inspect_err(|_| hub.return_descriptor(nic))
}

/// Has a new socket's events told by `token`; its address outside.
pub(super) fn watched(hub: &Hub, socket: &Datagrams, token: Token) -> io::Result<SocketAddr> {
    hub.watch(socket, token)?;
    socket.local()
}

fn close<T>(mappings: &mut Mappings<T>, hub: &mut Hub, slot: Slot) {
    if let Some(key) = mappings.key(slot) {
        mappings.remove(slot);
        hub.return_descriptor(key.nic());
    }
}

/// Closes what was not used for long enough.
pub(super) fn sweep<T>(mappings: &mut Mappings<T>, hub: &mut Hub, now: Instant) {
    for _ in 0..CLOSED {
        let Some(slot) = mappings.expired(now) else { break };
        close(mappings, hub, slot);
    }
}

/// Reads the errors that came back to a socket, as far as there is room to tell them, and has them told; gives the MTU of the last that the host itself
/// found.
pub(super) fn read_errors(
    cx: &mut Context,
    hub: &mut Hub,
    socket: &Datagrams,
    batch: &mut RecvBatch,
    mut tell: impl FnMut(&mut Context, &mut Hub, &Back),
) -> Option<u32> {
    let v6 = socket.kind().is_v6();
    let mut mtu = None;
    for _ in 0..ERRORS {
        if hub.out.room() == 0 {
            break;
        }
        let Ok(Some(error)) = batch.error(socket) else { break };
        if error.found == Found::Here {
            // The call that failed tells the rest.
            mtu = Some(error.info);
            continue;
        }
        let (Some(say), Some(to)) = (errors::from_outside(&error, v6), error.to) else { continue };
        let Some(remote) = hub.seen_as(to, v6) else { continue };
        let offender = error.offender.and_then(|address| hub.seen_as(SocketAddr::new(address, 0), v6));
        let Some(source) = offender.map(|offender| offender.ip()).or_else(|| hub.router(v6)) else { continue };
        tell(cx, hub, &Back { say, source, to, remote, quoted: error.quoted });
    }
    mtu
}

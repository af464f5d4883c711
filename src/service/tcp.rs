//! [`Connections`]: DNS over TCP with guests, on a fixed number of sockets.
//!
//! Invariant: a guest holds at most [`PER_GUEST`] connections. When no socket is left, the oldest connection of the guest that holds most gives way,
//! unless the newcomer holds as many. A connection ends when it says nothing for [`IDLE`], or does not read what it asked for.
//!
//! Theory of operation: all sockets listen on port 53. A packet that opens a connection is looked at before the stack gets it. What is
//! read is put together into messages (two bytes of length before each); what is answered waits in the connection, not in the socket.
//! Read first: RFC 7766 sections 6.2 and 10; RFC 1035 section 4.2.2.

use std::time::Duration;

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp,
    wire::{IpAddress, IpEndpoint},
};
use wire::{Instant, NicId};

use super::stack::PORT;

const SOCKETS: usize = 32;
/// Connections of one guest.
const PER_GUEST: usize = 8;
const IDLE: Duration = Duration::from_secs(10);
/// Bytes in a socket, each way.
const BUFFER: usize = 4096;
/// Longest query. An answer may be as long as its two bytes of length can say.
const LONGEST: usize = 2048;
/// Answers that a guest may leave unread.
const UNREAD: usize = 256 << 10;
/// Queries of one connection that wait at the same time.
const WAITING: usize = 32;
/// Bits in the fourteenth byte of a TCP header.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

struct Connection {
    id: u64,
    nic: NicId,
    peer: IpEndpoint,
    asked: IpAddress,
    heard: Instant,
    read: Vec<u8>,
    unsent: Vec<u8>,
    waiting: usize,
}

struct Slot {
    socket: SocketHandle,
    connection: Option<Connection>,
}

/// See the module's documentation.
pub(super) struct Connections {
    slots: Vec<Slot>,
    next: u64,
}

fn listen(socket: &mut tcp::Socket<'_>) {
    socket.abort();
    // A port that is not zero, of a socket that is closed: it cannot fail.
    let _ = socket.listen(PORT);
}

/// Whether a packet opens a connection: TCP without IPv6 extension headers, SYN and not ACK.
fn opens(packet: &[u8]) -> bool {
    let tcp = match packet.first().map(|first| (first >> 4, usize::from(first & 0xf) * 4)) {
        Some((4, length)) if packet.get(9) == Some(&6) => packet.get(length..),
        Some((6, _)) if packet.get(6) == Some(&6) => packet.get(40..),
        _ => None,
    };
    tcp.and_then(|tcp| tcp.get(13)).is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

impl Connections {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Connections {
        let slot = |_| {
            let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            listen(&mut socket);
            Slot { socket: sockets.add(socket), connection: None }
        };
        Connections { slots: (0..SOCKETS).map(slot).collect(), next: 1 }
    }

    fn held(&self, nic: NicId) -> usize {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).filter(|connection| connection.nic == nic).count()
    }

    /// Whether the stack is to be given a packet from `nic`; makes a socket free where one is needed.
    pub(super) fn admits(&mut self, sockets: &mut SocketSet<'static>, nic: NicId, packet: &[u8], now: Instant) -> bool {
        if !opens(packet) {
            return true;
        }
        self.end_idle(sockets, now);
        let mine = self.held(nic);
        if mine >= PER_GUEST {
            return false;
        }
        if self.slots.iter().any(|slot| slot.connection.is_none()) {
            return true;
        }
        let connections = || self.slots.iter().filter_map(|slot| slot.connection.as_ref());
        let Some(fullest) = connections().map(|connection| connection.nic).max_by_key(|nic| self.held(*nic)) else {
            return false;
        };
        if self.held(fullest) <= mine + 1 {
            return false;
        }
        let oldest = connections().filter(|connection| connection.nic == fullest).map(|connection| connection.id).min();
        let slot = |slot: &&mut Slot| slot.connection.as_ref().map(|connection| connection.id) == oldest;
        if let Some(slot) = self.slots.iter_mut().find(slot) {
            slot.connection = None;
            listen(sockets.get_mut(slot.socket));
        }
        true
    }

    /// Takes what has come: connections, by a packet from `nic`, and whole queries, which `ask` is given.
    pub(super) fn turn(
        &mut self,
        sockets: &mut SocketSet<'static>,
        nic: Option<NicId>,
        now: Instant,
        mut ask: impl FnMut(u64, NicId, IpEndpoint, IpAddress, Vec<u8>),
    ) {
        self.end_idle(sockets, now);
        for slot in &mut self.slots {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(slot.socket);
            if !socket.is_open() {
                slot.connection = None;
                listen(socket);
                continue;
            }
            if slot.connection.is_none()
                && let (Some(nic), Some(peer), Some(local)) = (nic, socket.remote_endpoint(), socket.local_endpoint())
            {
                let id = self.next;
                self.next += 1;
                let (read, unsent) = (Vec::new(), Vec::new());
                let asked = local.addr;
                slot.connection = Some(Connection { id, nic, peer, asked, heard: now, read, unsent, waiting: 0 });
            }
            let Some(connection) = &mut slot.connection else { continue };
            if !connection.take(socket, now, &mut ask) {
                slot.connection = None;
                listen(socket);
            }
        }
    }

    fn end_idle(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        for slot in &mut self.slots {
            if slot.connection.as_ref().is_some_and(|connection| now.since(connection.heard) >= IDLE) {
                slot.connection = None;
                listen(sockets.get_mut(slot.socket));
            }
        }
    }

    /// Puts an answer into its connection, if that is still there.
    pub(super) fn reply(&mut self, id: u64, bytes: &[u8], now: Instant) {
        let mut connections = self.slots.iter_mut().filter_map(|slot| slot.connection.as_mut());
        if let (Some(connection), Ok(length)) =
            (connections.find(|connection| connection.id == id), u16::try_from(bytes.len()))
        {
            connection.heard = now;
            connection.waiting = connection.waiting.saturating_sub(1);
            connection.unsent.extend(length.to_be_bytes());
            connection.unsent.extend(bytes);
        }
    }

    /// Gives sockets what they have room for.
    pub(super) fn write(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        for slot in &mut self.slots {
            let Some(connection) = &mut slot.connection else { continue };
            let socket = sockets.get_mut::<tcp::Socket<'_>>(slot.socket);
            if let Ok(sent @ 1..) = socket.send_slice(&connection.unsent) {
                connection.unsent.drain(..sent);
                connection.heard = now;
            }
            if connection.unsent.len() > UNREAD {
                slot.connection = None;
                listen(socket);
            } else if connection.unsent.is_empty() && connection.waiting == 0 && !socket.may_recv() && socket.may_send()
            {
                // It has said all it has to say, and been told everything.
                socket.close();
            }
        }
    }

    /// How long no connection is idle for too long.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        let heard = self.slots.iter().filter_map(|slot| slot.connection.as_ref()).map(|connection| connection.heard);
        heard.min().map(|heard| IDLE.saturating_sub(now.since(heard)))
    }
}

impl Connection {
    /// Reads queries; false when it says what no client says.
    fn take(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        now: Instant,
        ask: &mut impl FnMut(u64, NicId, IpEndpoint, IpAddress, Vec<u8>),
    ) -> bool {
        loop {
            while let Some((length, rest)) = self.read.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > LONGEST {
                    return false;
                }
                let Some(query) = rest.get(..length).filter(|_| self.waiting < WAITING) else { break };
                let query = query.to_vec();
                self.read.drain(..length + 2);
                self.waiting += 1;
                ask(self.id, self.nic, self.peer, self.asked, query);
            }
            if self.waiting >= WAITING || self.read.len() >= LONGEST + 2 || !socket.can_recv() {
                return true;
            }
            let read = &mut self.read;
            let taken = socket.recv(|bytes| {
                let n = bytes.len().min(LONGEST + 2 - read.len());
                read.extend(bytes.iter().take(n));
                (n, n)
            });
            match taken {
                Ok(1..) => self.heard = now,
                _ => return true,
            }
        }
    }
}

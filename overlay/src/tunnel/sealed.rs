//! [`Sealed`]: a UDP socket of the host that carries the tunnel's packets under seal, as WireGuard does.
//!
//! Invariant: nothing of a network leaves or is taken that is not sealed with a session's key of the endpoint it goes to or comes from. An endpoint has one
//! address; a packet from another one is none of its. What waits for a session is bounded, for each endpoint.
//!
//! Theory of operation: handshakes, sessions, their keys and the window against repeats are boringtun's (its `Tunn`, one for each endpoint). A frame is read into
//! `plain` behind the tunnel's header and those of an IP packet ([`crate::envelope`]), and sealed from there into the room of the door, where
//! packets of one size to one endpoint are one datagram that the kernel cuts. What comes in is opened into `plain` and then taken as any other
//! packet of a tunnel. A frame for an endpoint without a session waits in its `Tunn` while that says hello; it counts as transmitted then. At its
//! start the endpoint says hello to all others, so that those which knew it before it was started again do not seal for the session that is gone.
//! `Tunn` takes a lock of its own for each packet that comes in, which nobody else ever holds, and memory for each frame that waits.
//! Sessions last by the clock of the system and not that of the worker: boringtun has no other.
//! Read first: [`super::sockets`], <https://www.wireguard.com/protocol/>, `docs/decisions/0019-sealed-by-wireguard.md`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
};

use boringtun::noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter};
use sys::inet::udp::{Datagrams, Kind, Outgoing, RecvBatch};
use wire::{Accepts, Context, DropReason, Instant, NicId, Wake};

use super::{
    TTL,
    door::{Contents, Door, Leaving, hear_errors},
    inward::{CE, ECN, Heard, combined, most},
    outward::{Packet, Underlay},
    unwrap::Unwrap,
};
use crate::{
    encap::HEADER,
    envelope::Envelope,
    keys::{PrivateKey, PublicKey},
    remotes::RemoteId,
    vtep::Vtep,
};

/// Bytes that a seal makes a packet longer by: a header of 16, and a tag of 16.
pub(crate) const SEAL: u16 = 32;
/// The longest message of a handshake.
const HELLO: usize = 148;
/// The first byte of a packet with something in it.
const DATA: u8 = 4;
/// Bytes of packets that wait for the socket: as many as a burst of super-frames, nearly.
const ROOM: usize = 1 << 20;
/// Frames that wait for a session with an endpoint, at most. As many as its `Tunn` keeps.
const WAITING: u16 = 256;
/// Messages of handshakes from anywhere that are looked into in a second, before their senders are to show that they are where they say.
const HANDSHAKES: u64 = 100;
/// Endpoints that are greeted in a second.
const GREETINGS: usize = 64;

/// What an endpoint seals with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Its own key.
    pub key: PrivateKey,
    /// UDP port of the tunnel's packets, inside what is sealed.
    pub port: u16,
    /// The endpoints of other hosts, and what they are known by.
    pub peers: Vec<(IpAddr, PublicKey)>,
}

/// Another endpoint.
struct Peer {
    tunn: Tunn,
    /// Frames that wait for a session.
    waiting: u16,
}

/// See the module's documentation.
pub(super) struct Sealed {
    door: Door,
    /// By the numbers of the endpoints.
    peers: Vec<Option<Peer>>,
    /// Up to which of them they have been greeted.
    greeted: usize,
    limiter: Arc<RateLimiter>,
    envelope: Envelope,
    plain: Box<[u8]>,
    came: RecvBatch,
    unwrap: Unwrap,
}

/// What became of a packet.
enum Sent {
    /// So many bytes in the room are to leave; whether they have the packet in them, or say hello while that waits.
    Room { len: usize, data: bool },
    /// It waits.
    Waits,
    /// It is lost.
    Lost,
}

impl Peer {
    /// Seals a packet into `room`.
    fn seal(&mut self, packet: &[u8], room: &mut [u8]) -> Sent {
        match self.tunn.encapsulate(packet, room) {
            TunnResult::WriteToNetwork(bytes) => {
                let data = bytes.first() == Some(&DATA);
                if !data {
                    self.waiting = (self.waiting + 1).min(WAITING);
                }
                Sent::Room { len: bytes.len(), data }
            }
            // It was put into the queue before anything could go wrong.
            TunnResult::Done | TunnResult::Err(_) if self.waiting < WAITING => {
                self.waiting += 1;
                Sent::Waits
            }
            _ => Sent::Lost,
        }
    }
}

impl Underlay for Sealed {
    const ACCEPTS: Accepts = Accepts::NONE;

    fn put(&mut self, cx: &mut Context, vtep: &Vtep, packet: Packet) {
        let Packet { frame, network, way, tos, hash } = packet;
        let front = self.envelope.front() + HEADER;
        let Some(header) = vtep.header(network) else { return cx.drop(frame, DropReason::NotReady) };
        let read = self.plain.get_mut(front..).and_then(|room| cx.read_all(&frame, room));
        let Some(len) = read else { return cx.drop(frame, DropReason::Stale) };
        if let Some(place) = self.plain.get_mut(front - HEADER..front) {
            place.copy_from_slice(&header);
        }
        let remotes = vtep.at_end(network, &way);
        let Some((_, others)) = remotes.split_first() else { return cx.drop(frame, DropReason::NoDestination) };
        // Each packet is a frame of its own to the books.
        cx.ledger.copied += others.len() as u64;
        for remote in remotes.iter().copied() {
            if let Err(reason) = self.send(cx, vtep, remote, (front + len, len), tos, hash) {
                cx.drop_one(reason);
            }
        }
    }

    /// What is sent counts when the kernel has taken it, what waits for a session when it begins to.
    fn end(&mut self, _cx: &mut Context) {}
}

impl Sealed {
    /// Opens the socket of an endpoint.
    pub(super) fn open(vtep: &Vtep, seal: Seal) -> io::Result<Sealed> {
        let kind = if vtep.local().is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
        let mut socket = Datagrams::open(kind, SocketAddr::new(vtep.local(), vtep.port()), TTL, 0)?;
        // The underlay says what is too long for it instead of cutting it.
        socket.set_df(true)?;
        let limiter = Arc::new(RateLimiter::new(&seal.key.public().point(), HANDSHAKES));
        let mut peers = Vec::new();
        for (address, key) in seal.peers {
            let Some(RemoteId(at)) = vtep.remotes.find(address) else { continue };
            let place = usize::from(at);
            if peers.len() <= place {
                peers.resize_with(place + 1, || None);
            }
            let limiter = Some(limiter.clone());
            let tunn = Tunn::new(seal.key.secret(), key.point(), None, None, at.into(), limiter);
            if let Some(place) = peers.get_mut(place) {
                *place = Some(Peer { tunn, waiting: 0 });
            }
        }
        Ok(Sealed {
            door: Door::with_room(socket, ROOM),
            peers,
            greeted: 0,
            limiter,
            envelope: Envelope::new(vtep.local(), seal.port),
            plain: vec![0; wire::MAX_FRAME + 256].into(),
            came: RecvBatch::default(),
            unwrap: Unwrap::default(),
        })
    }

    /// Sends the first `len` bytes of `plain`, in which are so many of a frame, to an endpoint.
    #[inline]
    fn send(
        &mut self,
        cx: &mut Context,
        vtep: &Vtep,
        remote: RemoteId,
        (len, bytes): (usize, usize),
        tos: u8,
        hash: u32,
    ) -> Result<(), DropReason> {
        let Sealed { door, peers, envelope, plain, .. } = self;
        let address = vtep.remotes.get(remote).map(|remote| remote.address).ok_or(DropReason::NoDestination)?;
        let peer = peers.get_mut(usize::from(remote.0)).and_then(Option::as_mut).ok_or(DropReason::UnknownVtep)?;
        let plain = plain.get_mut(..len).ok_or(DropReason::Oversize)?;
        envelope.close(plain, address, tos, hash).ok_or(DropReason::Oversize)?;
        let how = Outgoing { to: (address, vtep.port()).into(), ttl: TTL, tos, segment: 0 };
        let leaving = Leaving { remote, how, nic: cx.nic, frames: 1, bytes };
        let room = room(door, cx, len + usize::from(SEAL)).ok_or(DropReason::NoBuffers)?;
        let (len, data) = match peer.seal(plain, room) {
            Sent::Room { len, data } => (len, data),
            Sent::Waits => {
                cx.transmitted(1, bytes as u64);
                return Ok(());
            }
            Sent::Lost => return Err(DropReason::Unresolved),
        };
        if !data {
            cx.transmitted(1, bytes as u64);
            put_own(door, cx, vtep, remote, len);
            return Ok(());
        }
        door.put(leaving, &Contents::Room(len)).then_some(()).ok_or(DropReason::NoBuffers)
    }

    /// Sends what waits for the socket.
    pub(super) fn flush(&mut self, cx: &mut Context, vtep: &mut Vtep) {
        if self.door.flush(cx) {
            self.hear_errors(vtep, cx.now);
        }
    }

    /// Says what to sleep on.
    pub(super) fn wake(&self, wake: &mut Wake) {
        wake.readable.push(self.door.socket().as_raw_fd());
    }

    #[cold]
    fn hear_errors(&mut self, vtep: &mut Vtep, now: Instant) {
        hear_errors(&mut self.came, self.door.socket(), vtep, now);
    }

    /// What is due once in a while: hello to those that were not greeted yet, new sessions for old ones, a sign of life.
    #[cold]
    pub(super) fn tick(&mut self, cx: &mut Context, vtep: &mut Vtep) {
        self.hear_errors(vtep, cx.now);
        self.limiter.reset_count();
        let greeted = self.greeted;
        self.greeted = greeted.saturating_add(GREETINGS).min(self.peers.len());
        let Sealed { door, peers, .. } = self;
        for (at, peer) in peers.iter_mut().enumerate() {
            let (Some(peer), Some(room)) = (peer, room(door, cx, HELLO)) else { continue };
            let made = match (greeted..self.greeted).contains(&at) {
                true => peer.tunn.format_handshake_initiation(room, false),
                false => peer.tunn.update_timers(room),
            };
            let len = match made {
                TunnResult::WriteToNetwork(bytes) => bytes.len(),
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    peer.waiting = 0;
                    0
                }
                _ => 0,
            };
            let remote = RemoteId(at as u16);
            if let Some(known) = vtep.remotes.get_mut(remote) {
                known.session = peer.tunn.time_since_last_handshake();
            }
            if len > 0 {
                put_own(door, cx, vtep, remote, len);
            }
        }
    }

    /// Takes what has arrived, as far as there is room for frames.
    pub(super) fn come_in(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId]) {
        let nic = cx.nic;
        let mut each = 1;
        while let Some(most) = most(cx, each) {
            match self.came.receive(self.door.socket(), most) {
                Ok(came) => {
                    let before = cx.answers.room();
                    for at in 0..came {
                        self.take(cx, vtep, nics, at);
                        cx.nic = nic;
                    }
                    // What is expected of the next ones is what these were.
                    each = (before - cx.answers.room()).div_ceil(came.max(1)).max(1);
                    if came < most {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Something that was sent earlier did not arrive; what waits is still there.
                Err(_) => {
                    self.hear_errors(vtep, cx.now);
                    break;
                }
            }
        }
    }

    /// Takes a packet of the underlay, or a run of them from one sender.
    fn take(&mut self, cx: &mut Context, vtep: &mut Vtep, nics: &[NicId], at: usize) {
        let Sealed { door, peers, envelope, plain, came, unwrap, .. } = self;
        let Some(packet) = came.get(at) else { return };
        let from = packet.from.ip();
        let id = vtep.remotes.find(from);
        let peer = id.and_then(|id| peers.get_mut(usize::from(id.0))?.as_mut().map(|peer| (id, peer)));
        let size = if packet.segment == 0 { packet.bytes.len() } else { usize::from(packet.segment) };
        let mut heard = Heard::new(vtep.sender(from));
        let mut last = None;
        // Whose a packet is is not known before it is opened.
        let first = nics.first().copied().unwrap_or(cx.nic);
        cx.nic = first;
        let Some((remote, peer)) = peer.filter(|_| packet.from.port() == vtep.port()) else {
            return packet.bytes.chunks(size.max(1)).for_each(|_| cx.lost(DropReason::UnknownVtep));
        };
        for sealed in packet.bytes.chunks(size.max(1)) {
            cx.nic = first;
            let opened = match peer.tunn.decapsulate(Some(from), sealed, plain) {
                TunnResult::WriteToTunnelV4(inside, _) | TunnResult::WriteToTunnelV6(inside, _) => {
                    envelope.open(inside, from)
                }
                TunnResult::WriteToNetwork(answer) => {
                    let len = answer.len();
                    if let Some(room) = room(door, cx, len).and_then(|room| room.get_mut(..len)) {
                        room.copy_from_slice(answer);
                        put_own(door, cx, vtep, remote, len);
                    }
                    send_waiting(door, cx, vtep, remote, peer);
                    continue;
                }
                TunnResult::Done => {
                    send_waiting(door, cx, vtep, remote, peer);
                    continue;
                }
                TunnResult::Err(_) => {
                    cx.lost(DropReason::BadSeal);
                    continue;
                }
            };
            if peer.waiting > 0 {
                send_waiting(door, cx, vtep, remote, peer);
            }
            let Some(opened) = opened else {
                cx.lost(DropReason::BadTunnel);
                continue;
            };
            let Some(bytes) = cx.arena.pool(opened.bytes) else {
                cx.lost(DropReason::NoBuffers);
                continue;
            };
            // Twice wrapped, twice combined.
            let mark = combined(opened.tos & ECN, packet.tos & ECN).unwrap_or(CE);
            if let Some(last) = last.filter(|last| *last != mark) {
                unwrap.finish(cx, last);
            }
            last = Some(mark);
            unwrap.take(cx, (vtep, nics), &mut heard, bytes, mark);
        }
        unwrap.finish(cx, last.unwrap_or(0));
    }
}

/// Room in a door for a packet of so many bytes, or a message of a handshake. A door that is full makes room by letting go.
#[inline]
fn room<'d>(door: &'d mut Door, cx: &mut Context, len: usize) -> Option<&'d mut [u8]> {
    let len = len.max(HELLO);
    if door.room(len).is_none() {
        door.flush(cx);
    }
    door.room(len)
}

/// Lets a message of our own go that is in the room of the door.
fn put_own(door: &mut Door, cx: &Context, vtep: &Vtep, remote: RemoteId, len: usize) {
    let Some(address) = vtep.remotes.get(remote).map(|remote| remote.address) else { return };
    let how = Outgoing { to: (address, vtep.port()).into(), ttl: TTL, tos: 0, segment: 0 };
    // There is room for it: that was asked for.
    let _ = door.put(Leaving { remote, how, nic: cx.nic, frames: 0, bytes: 0 }, &Contents::Room(len));
}

/// Sends the frames that waited for a session. They were counted as they began to.
#[cold]
fn send_waiting(door: &mut Door, cx: &mut Context, vtep: &Vtep, remote: RemoteId, peer: &mut Peer) {
    // Without one that may be used, asking for what waits would turn it round.
    while peer.waiting > 0 && peer.tunn.time_since_last_handshake().is_some() {
        let Some(room) = room(door, cx, wire::MAX_FRAME + 256) else { break };
        // With nothing to open it seals what waits.
        let TunnResult::WriteToNetwork(bytes) = peer.tunn.decapsulate(None, &[], room) else {
            peer.waiting = 0;
            break;
        };
        peer.waiting -= 1;
        let len = bytes.len();
        put_own(door, cx, vtep, remote, len);
    }
}

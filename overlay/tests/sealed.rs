//! A sealed tunnel: what others see of it, and what it takes from them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519,
};
use overlay::{Encapsulation, keys::PrivateKey};
use wire::{DropReason, NicId, Offload};
use world::{Host, Net, Under, address, free_port, host, key_of, settle, udp, vni};

/// An endpoint, and a socket at the address and port of the one that it knows.
fn alone() -> (Host, UdpSocket) {
    let (a, b) = (address(1, false), address(2, false));
    let port = free_port(a);
    let socket = UdpSocket::bind((b, port)).unwrap();
    socket.set_nonblocking(true).unwrap();
    (host(&Under::Sealed, a, port, 1500, &[Net::new(5001, &[b])]), socket)
}

fn heard(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut bytes = [0; 65_536];
    std::iter::from_fn(|| socket.recv(&mut bytes).ok().map(|len| bytes[..len].to_vec())).collect()
}

fn frame() -> (Vec<u8>, Offload) {
    (udp(2, 100, false, true), Offload::NONE)
}

/// The other endpoint, made of boringtun and a socket alone.
struct Other {
    tunn: Tunn,
    socket: UdpSocket,
    to: (IpAddr, u16),
}

impl Other {
    fn new(a: &Host, socket: UdpSocket, key: &PrivateKey) -> Other {
        let vtep = a.port.vtep();
        let secret = |key: &PrivateKey| x25519::StaticSecret::from(bytes_of(key));
        let public = x25519::PublicKey::from(&secret(&key_of(vtep.local())));
        let tunn = Tunn::new(secret(key), public, None, None, 7, None);
        Other { tunn, socket, to: (vtep.local(), vtep.port()) }
    }

    /// Makes a session with the endpoint.
    fn greet(&mut self, a: &mut Host) {
        let mut room = [0; 2048];
        let TunnResult::WriteToNetwork(hello) = self.tunn.format_handshake_initiation(&mut room, true) else {
            panic!("no handshake")
        };
        self.socket.send_to(hello, self.to).unwrap();
        a.turn();
        for message in heard(&self.socket) {
            if let TunnResult::WriteToNetwork(answer) = self.tunn.decapsulate(None, &message, &mut room) {
                self.socket.send_to(answer, self.to).unwrap();
            }
        }
        a.turn();
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut room = [0; 4096];
        let TunnResult::WriteToNetwork(sealed) = self.tunn.encapsulate(packet, &mut room) else { panic!("no session") };
        sealed.to_vec()
    }
}

fn bytes_of(key: &PrivateKey) -> [u8; 32] {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(key.reveal()).unwrap().try_into().unwrap()
}

/// The tunnel's packet, as an IP packet between two addresses.
fn packet(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { panic!("IPv4 only") };
    let inner = [&Encapsulation::Vxlan.header(vni(5001))[..], &udp(1, 100, false, true)].concat();
    let mut bytes = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(50_000, 4789);
    builder.write(&mut bytes, &inner).unwrap();
    bytes
}

#[test]
fn nothing_leaves_in_the_clear() {
    let (a, b) = (address(1, false), address(2, false));
    let (mut one, socket) = alone();
    one.turn();
    let payload = frame().0.split_off(42);
    let shows = |messages: &[Vec<u8>]| {
        messages.iter().any(|bytes| bytes.windows(32).any(|part| payload.get(..32) == Some(part)))
    };
    one.send(0, &[frame()]);
    let before = heard(&socket);
    assert!(!before.is_empty() && before.iter().all(|bytes| bytes.len() == 148), "hello and nothing else");
    let mut other = Other::new(&one, socket, &key_of(b));
    other.greet(&mut one);
    one.send(0, &[frame()]);
    let messages = heard(&other.socket);
    assert!(!shows(&messages));
    // Both that frame, and the one that waited for the session.
    let mut room = [0; 4096];
    let mut opened = Vec::new();
    for message in &messages {
        if let TunnResult::WriteToTunnelV4(inside, from) = other.tunn.decapsulate(None, message, &mut room) {
            assert_eq!(IpAddr::from(from), a);
            opened.push(inside.to_vec());
        }
    }
    assert!(opened.len() == 2 && shows(&opened), "{} packets", opened.len());
    assert_eq!(one.cx.counters(NicId(0)).unwrap().tx_frames, 2);
}

#[test]
fn what_is_sealed_comes_once_and_from_who_has_the_key() {
    let (a, b) = (address(1, false), address(2, false));
    let (mut one, socket) = alone();
    let mut other = Other::new(&one, socket, &key_of(b));
    other.greet(&mut one);
    let sealed = other.seal(&packet(b, a));
    other.socket.send_to(&sealed, other.to).unwrap();
    assert_eq!(one.turn().len(), 1);
    // Once more, changed, and by nobody's key.
    let mut changed = other.seal(&packet(b, a));
    changed[40] ^= 1;
    for bytes in [&sealed, &changed, &vec![4; 200]] {
        other.socket.send_to(bytes, other.to).unwrap();
    }
    assert!(one.turn().is_empty());
    assert_eq!(one.drops(0, DropReason::BadSeal), 3);
    // From another endpoint, or to one, inside the seal.
    for bytes in [packet(address(3, false), a), packet(b, address(3, false)), vec![0x45; 60]] {
        let sealed = other.seal(&bytes);
        other.socket.send_to(&sealed, other.to).unwrap();
    }
    assert!(one.turn().is_empty());
    assert_eq!((one.drops(0, DropReason::BadTunnel), one.drops(0, DropReason::BadSeal)), (2, 4));
    // In the clear, from its address; and under seal from another one.
    let clear = packet(b, a).split_off(28);
    other.socket.send_to(&clear, other.to).unwrap();
    let sealed = other.seal(&packet(b, a));
    UdpSocket::bind((b, 0)).unwrap().send_to(&sealed, other.to).unwrap();
    UdpSocket::bind((address(3, false), 0)).unwrap().send_to(&sealed, other.to).unwrap();
    assert!(one.turn().is_empty());
    assert_eq!((one.drops(0, DropReason::BadSeal), one.drops(0, DropReason::UnknownVtep)), (5, 2));
}

#[test]
fn who_has_another_key_gets_no_session_and_what_waits_is_bounded() {
    let (mut one, socket) = alone();
    let mut other = Other::new(&one, socket, &PrivateKey::new([99; 32]));
    other.greet(&mut one);
    assert_eq!(one.drops(0, DropReason::BadSeal), 1);
    assert!(heard(&other.socket).iter().all(|bytes| bytes.len() == 148), "no answer, only its own hello");
    let frames: Vec<_> = (0..64).map(|_| frame()).collect();
    for _ in 0..5 {
        one.send(0, &frames);
    }
    assert_eq!(one.drops(0, DropReason::Unresolved), 64);
    assert!(heard(&other.socket).len() <= 1);
}

#[test]
fn what_was_sent_too_early_arrives_and_a_peer_that_was_started_again_is_found() {
    let (a, b) = (address(1, false), address(2, false));
    let port = free_port(a);
    let start = |own, other| host(&Under::Sealed, own, port, 1500, &[Net::new(5001, &[other])]);
    let mut one = start(a, b);
    one.send(0, &[frame()]);
    let mut two = start(b, a);
    // The first hello went to nobody; that of the other, as it starts, is answered.
    let mut got = Vec::new();
    for _ in 0..4 {
        got.extend(two.turn());
        one.turn();
    }
    assert_eq!(got.len(), 1, "what waited");
    one.now = one.now + Duration::from_secs(2);
    one.turn();
    assert!(one.port.vtep().remotes.iter().all(|(_, remote)| remote.session.is_some()));
    one.send(0, &[frame()]);
    assert_eq!(two.receive(1)[0].1, frame().0);
    drop(two);
    let mut two = start(b, a);
    settle(&mut [&mut two, &mut one]);
    one.send(0, &[frame()]);
    assert_eq!(two.receive(1)[0].1, frame().0);
}

//! [`Stack`]: the IP stack of one network's router, as far as its services need one.
//!
//! Invariant: who pays for a query is the NIC that its frame came in by, never an address. Nothing grows with what guests send: one
//! datagram is looked at before the next is taken, and what finds no room on the way back is dropped.
//!
//! Theory of operation: frames come over a link and lose their Ethernet header; answers get one with an empty destination, which the
//! router fills in. Frames are given to the stack one by one, so that a new connection's NIC is that of the frame that made it.
//! Read first: [`mod@vswitch::link`], [`super::tcp`].

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use gateway::dns::{Client, Guest, NetworkId};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken},
    socket::udp::{self, UdpMetadata},
    wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint},
};
use vswitch::LinkEnd;
use wire::{
    Instant, NicId,
    layers::{ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use super::tcp::Connections;

/// The port of DNS.
pub(super) const PORT: u16 = 53;
/// Frames taken from a link before other networks have their turn.
const BATCH: usize = 64;
/// Packets that may wait for the link.
const OUTGOING: usize = 256;
/// Datagrams, and bytes of them, that may wait in the stack.
const DATAGRAMS: usize = 64;
const DATAGRAM_BYTES: usize = 64 << 10;
/// Bytes of the headers of IPv6 and UDP.
const HEADERS: u16 = 48;

/// A query and who asks.
pub(super) struct Ask {
    pub(super) client: Client,
    pub(super) bytes: Vec<u8>,
}

/// Packets on their way into and out of the stack.
struct Packets {
    incoming: Option<(NicId, Vec<u8>)>,
    outgoing: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Incoming(NicId, Vec<u8>);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.1)
    }

    fn meta(&self) -> PacketMeta {
        let mut meta = PacketMeta::default();
        meta.id = self.0.0.into();
        meta
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Packets {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.outgoing.len() >= OUTGOING {
            self.outgoing.pop_front();
        }
        let (nic, packet) = self.incoming.take()?;
        Some((Incoming(nic, packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < OUTGOING).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// See the module's documentation.
pub(super) struct Stack {
    network: NetworkId,
    link: LinkEnd,
    packets: Packets,
    interface: Interface,
    sockets: SocketSet<'static>,
    udp: SocketHandle,
    connections: Connections,
}

/// Time as smoltcp has it.
pub(super) fn at(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.nanos() / 1000).unwrap_or(i64::MAX))
}

fn socket_addr(endpoint: IpEndpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr.into(), endpoint.port)
}

impl Stack {
    pub(super) fn new(
        network: NetworkId,
        link: LinkEnd,
        router: &[IpAddr],
        mtu: u16,
        seed: u64,
        now: Instant,
    ) -> Stack {
        let mut packets = Packets { incoming: None, outgoing: VecDeque::new(), mtu: mtu.into() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut packets, at(now));
        for address in router {
            // Everything is behind the router's bridge, or behind the router itself: it knows the ways.
            let (length, route) = match address {
                IpAddr::V4(address) => (32, interface.routes_mut().add_default_ipv4_route(*address).map(drop)),
                IpAddr::V6(address) => (128, interface.routes_mut().add_default_ipv6_route(*address).map(drop)),
            };
            interface.update_ip_addrs(|all| {
                // There is room for four, and a router has three.
                let _ = all.push(IpCidr::new(IpAddress::from(*address), length));
            });
            // A second address of a family finds its route there.
            let _ = route;
        }
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS], vec![0; DATAGRAM_BYTES]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        // A port that is not zero, of a socket that is not bound: it cannot fail.
        let _ = socket.bind(PORT);
        let udp = sockets.add(socket);
        let connections = Connections::new(&mut sockets);
        Stack { network, link, packets, interface, sockets, udp, connections }
    }

    /// Takes what has come over the link; the queries in it. True: there may be more.
    pub(super) fn receive(&mut self, now: Instant, asks: &mut Vec<Ask>) -> bool {
        for _ in 0..BATCH {
            let strip = |nic, frame: &[u8]| (nic, frame.get(ETHERNET_LEN..).unwrap_or_default().to_vec());
            let Some((nic, packet)) = self.link.receive(strip) else { return false };
            if self.connections.admits(&mut self.sockets, nic, &packet, now) {
                self.packets.incoming = Some((nic, packet));
                self.turn(Some(nic), now, asks);
            }
        }
        true
    }

    /// Has the stack do what is due, and takes the queries that have become whole.
    pub(super) fn turn(&mut self, nic: Option<NicId>, now: Instant, asks: &mut Vec<Ask>) {
        self.interface.poll(at(now), &mut self.packets, &mut self.sockets);
        let network = self.network;
        let room = u16::try_from(self.packets.mtu).unwrap_or(u16::MAX).saturating_sub(HEADERS);
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
        while let Ok((bytes, meta)) = socket.recv() {
            let nic = NicId(meta.meta.id as u16);
            let Some(asked) = meta.local_address else { continue };
            let client = Client {
                guest: Guest { network, nic },
                peer: socket_addr(meta.endpoint),
                asked: asked.into(),
                room,
                connection: None,
            };
            asks.push(Ask { client, bytes: bytes.to_vec() });
        }
        self.connections.turn(&mut self.sockets, nic, now, |connection, nic, peer, asked, bytes| {
            let client = Client {
                guest: Guest { network, nic },
                peer: socket_addr(peer),
                asked: asked.into(),
                room,
                connection: Some(connection),
            };
            asks.push(Ask { client, bytes });
        });
    }

    /// Gives an answer to the stack. [`Stack::send`] follows.
    pub(super) fn reply(&mut self, client: &Client, bytes: &[u8], now: Instant) {
        if let Some(connection) = client.connection {
            return self.connections.reply(connection, bytes, now);
        }
        let mut to = UdpMetadata::from(IpEndpoint::from(client.peer));
        to.local_address = Some(client.asked.into());
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
        if !socket.can_send() {
            self.interface.poll(at(now), &mut self.packets, &mut self.sockets);
        }
        // A client whose answer finds no room asks again.
        let _ = self.sockets.get_mut::<udp::Socket<'_>>(self.udp).send_slice(bytes, to);
    }

    /// Sends what the stack has for the network.
    pub(super) fn send(&mut self, now: Instant) {
        self.connections.write(&mut self.sockets, now);
        self.interface.poll(at(now), &mut self.packets, &mut self.sockets);
        let mut frame = Vec::new();
        for packet in self.packets.outgoing.drain(..) {
            let ethertype =
                if packet.first().is_some_and(|first| first >> 4 == 4) { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
            frame.clear();
            frame.resize(ETHERNET_LEN - 2, 0);
            frame.extend(ethertype.to_be_bytes());
            frame.extend(&packet);
            // A full link loses it, as any link would.
            self.link.send(&frame);
        }
        self.link.flush();
    }

    /// How long the stack has nothing to do.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Duration> {
        let stack = self.interface.poll_delay(at(now), &self.sockets).map(Duration::from);
        stack.into_iter().chain(self.connections.rest(now)).min()
    }

    /// Before sleeping; false when something has come over the link.
    pub(super) fn arm(&mut self) -> bool {
        self.link.arm()
    }

    /// After sleeping.
    pub(super) fn disarm(&mut self) {
        self.link.disarm();
    }

    pub(super) fn fd(&self) -> RawFd {
        self.link.as_raw_fd()
    }
}

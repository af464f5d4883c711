//! [`Guest`]: a NIC, an IP stack, and what is done with them.
//!
//! Invariant: everything happens within [`Guest::turn`] and the commands, which call it while they wait; so echo is answered also while a
//! command runs. Read first: [`crate::Platform`].

use alloc::{format, string::String, vec, vec::Vec};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::{dhcpv4, tcp, udp},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress},
};

use crate::{
    command::{Command, CommandError},
    device::{Inbox, Wire},
    load::Sink,
    platform::Platform,
};

/// Echo, both UDP and TCP (RFC 862).
const ECHO: u16 = 7;
/// Streams that are echoed at a time.
const STREAMS: usize = 4;
/// Bytes of each buffer of an echoed stream.
const ECHO_BUFFER: usize = 8192;
/// Frames taken from the NIC in one turn.
const BURST: usize = 64;

/// Turns that empty a full receive ring.
const RING_TURNS: usize = 8;

/// Why [`Guest::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The command `off`.
    Off,
}

/// A guest. See the module's documentation.
pub struct Guest<P> {
    pub(crate) platform: P,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) dhcp: Option<SocketHandle>,
    pub(crate) vlan: Option<u16>,
    pub(crate) sink: Sink,
    inbox: Inbox,
    scratch: Vec<u8>,
    echo: Vec<SocketHandle>,
    datagrams: SocketHandle,
}

impl<P: Platform> Guest<P> {
    /// A guest without an address.
    pub fn new(mut platform: P) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(platform.mac()));
        let mut config = Config::new(mac);
        config.random_seed = platform.random();
        let (mut inbox, mut scratch) = (Inbox::default(), Vec::new());
        let now = Instant::from_micros(platform.now_us() as i64);
        let mut wire = Wire { platform: &mut platform, inbox: &mut inbox, vlan: None, scratch: &mut scratch };
        let interface = Interface::new(config, &mut wire, now);
        let mut sockets = SocketSet::new(vec![]);
        let echo = (0..STREAMS).map(|_| sockets.add(stream(ECHO_BUFFER))).collect();
        let datagrams = sockets.add(datagrams(8, 16_384));
        // A socket that was just made is not bound, and 7 is a port.
        let _ = sockets.get_mut::<udp::Socket>(datagrams).bind(ECHO);
        let sink = Sink::default();
        Guest { platform, interface, sockets, dhcp: None, vlan: None, sink, inbox, scratch, echo, datagrams }
    }

    /// Serves the network and the console until it is told to end.
    pub fn run(&mut self) -> Ended {
        let [a, b, c, d, e, f] = self.platform.mac();
        self.platform.print(&format!("ready mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        loop {
            let busy = self.turn();
            if let Some(line) = self.platform.line() {
                let command = Command::new(&line);
                match command.verb() {
                    "" => {}
                    "off" => {
                        self.platform.print("ok");
                        return Ended::Off;
                    }
                    _ => {
                        let reply = match self.command(command) {
                            Ok(told) => format!("ok {told}"),
                            Err(why) => format!("no {why}"),
                        };
                        self.platform.print(reply.trim_end());
                    }
                }
            } else if !busy {
                let until = self.deadline();
                self.platform.idle(until);
            }
        }
    }

    fn command(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        match command.verb() {
            "address" => self.address(command),
            "dhcp" => self.lease(command),
            "ping" => self.ping(command),
            "udp" => self.datagram(command),
            "tcp" => self.stream(command),
            "fetch" => self.fetch(command),
            "source" => self.source(command),
            "sink" => {
                // What lies in the NIC already counts.
                for _ in 0..RING_TURNS {
                    if !self.turn() {
                        break;
                    }
                }
                let told = self.sink.tell();
                if command.word(0) == Some("clear") {
                    self.sink = Sink::default();
                }
                Ok(told)
            }
            verb => {
                Err(format!("{verb} is no command; address, dhcp, ping, udp, tcp, fetch, source, sink and off are"))
            }
        }
    }

    /// Takes frames in, lets the stack answer, and serves echo. True when there may be more to do at once.
    pub fn turn(&mut self) -> bool {
        let now_us = self.platform.now_us();
        let Guest { platform, sink, inbox, vlan, .. } = self;
        let received = platform.receive(BURST, &mut |header, frame| {
            if !sink.takes(header, frame, now_us) {
                inbox.push(*vlan, frame);
            }
        });
        let now = Instant::from_micros(now_us as i64);
        let mut wire =
            Wire { platform: &mut self.platform, inbox: &mut self.inbox, vlan: self.vlan, scratch: &mut self.scratch };
        let _ = self.interface.poll(now, &mut wire, &mut self.sockets);
        let echoed = self.echo();
        if echoed {
            let mut wire = Wire {
                platform: &mut self.platform,
                inbox: &mut self.inbox,
                vlan: self.vlan,
                scratch: &mut self.scratch,
            };
            let _ = self.interface.poll(now, &mut wire, &mut self.sockets);
        }
        self.platform.flush();
        received > 0 || echoed || !self.inbox.is_empty()
    }

    /// When the stack wants to be called next, whatever happens.
    pub(crate) fn deadline(&mut self) -> Option<u64> {
        let now = Instant::from_micros(self.platform.now_us() as i64);
        let at = self.interface.poll_at(now, &self.sockets)?;
        Some(at.total_micros().max(0) as u64)
    }

    /// Turns until `done` has something, for `ms` milliseconds at most.
    pub(crate) fn until<T>(&mut self, ms: u64, mut done: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let end = self.platform.now_us() + ms * 1000;
        loop {
            let busy = self.turn();
            let found = done(self);
            if found.is_some() {
                // What `done` may have given the stack to send goes out now.
                let _ = self.turn();
                return found;
            }
            if self.platform.now_us() >= end {
                return None;
            }
            if !busy {
                let at = self.deadline().map_or(end, |at| at.min(end));
                self.platform.idle(Some(at));
            }
        }
    }

    /// Sends back what came to the echo port; true when there was something.
    fn echo(&mut self) -> bool {
        let mut echoed = false;
        for handle in &self.echo {
            let socket = self.sockets.get_mut::<tcp::Socket>(*handle);
            if !socket.is_open() {
                // Port 7 is a port and the socket is closed: listening cannot fail.
                let _ = socket.listen(ECHO);
            }
            if socket.can_recv() && socket.can_send() {
                let mut bytes = [0; 2048];
                let room = bytes.len().min(socket.send_capacity() - socket.send_queue());
                let n = bytes.get_mut(..room).and_then(|part| socket.recv_slice(part).ok()).unwrap_or(0);
                // There is room for all of it.
                let _ = socket.send_slice(bytes.get(..n).unwrap_or_default());
                echoed |= n > 0;
            } else if socket.may_send() && !socket.may_recv() && socket.send_queue() == 0 {
                socket.close();
                echoed = true;
            }
        }
        let socket = self.sockets.get_mut::<udp::Socket>(self.datagrams);
        let mut bytes = [0; 1500];
        while socket.can_send()
            && let Ok((n, from)) = socket.recv_slice(&mut bytes)
        {
            // A datagram that has no room is lost, as datagrams are.
            let _ = socket.send_slice(bytes.get(..n).unwrap_or_default(), from.endpoint);
            echoed = true;
        }
        self.renew();
        echoed
    }

    /// Takes over what the DHCP server grants, once a lease was asked for.
    fn renew(&mut self) {
        let Some(handle) = self.dhcp else { return };
        let event = self.sockets.get_mut::<dhcpv4::Socket>(handle).poll();
        match event {
            Some(dhcpv4::Event::Configured(config)) => {
                let (address, router) = (config.address, config.router);
                self.take_address(address.into(), router.map(Into::into));
            }
            Some(dhcpv4::Event::Deconfigured) => self.interface.update_ip_addrs(|addresses| addresses.clear()),
            None => {}
        }
    }
}

/// A TCP socket with buffers of `bytes` each.
pub(crate) fn stream(bytes: usize) -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; bytes]), tcp::SocketBuffer::new(vec![0; bytes]))
}

/// A UDP socket for `packets` datagrams of `bytes` in all, each way.
pub(crate) fn datagrams(packets: usize, bytes: usize) -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; packets], vec![0; bytes]);
    udp::Socket::new(buffer(), buffer())
}

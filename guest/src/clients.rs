//! The commands that use the IP stack: one function each.
//!
//! Invariant: whatever a command adds to the stack it takes away again, also when it fails, but for addresses, routes and the DHCP client.

use alloc::{format, string::String, vec, vec::Vec};

use smoltcp::{
    iface::SocketHandle,
    socket::{dhcpv4, icmp, tcp, udp},
    time::Duration,
    wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint},
};

use crate::{
    command::{Command, CommandError},
    guest::{Guest, datagrams, stream},
    platform::Platform,
};

/// Bytes of each buffer of a client's stream.
const STREAM_BUFFER: usize = 32_768;
/// Bytes of an echo request's payload.
const PING_BYTES: usize = 56;
/// Identifies the echo requests of this guest.
const PING_IDENT: u16 = 0x746c;
/// The first of the ports that clients use.
const FIRST_PORT: u16 = 49_152;

/// Byte `n` of what echo servers are sent.
fn pattern(n: usize) -> u8 {
    (n.wrapping_mul(31) >> 3) as u8
}

impl<P: Platform> Guest<P> {
    /// Carries out `address`.
    pub(crate) fn address(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let address: IpCidr = command.target("an address with its prefix length, for example 10.0.0.1/24")?;
        let via: Option<IpAddress> = match command.text("via") {
            Some(text) => Some(text.parse().map_err(|()| format!("via={text} is no address"))?),
            None => None,
        };
        if let Some(text) = command.text("vlan") {
            let vlan = command.number("vlan", 0u16)?;
            if !(1..=4094).contains(&vlan) {
                return Err(format!("vlan={text}: 1 to 4094 are possible"));
            }
            self.vlan = Some(vlan);
        } else {
            self.vlan = None;
        }
        self.take_address(address, via);
        Ok(format!("{address}"))
    }

    /// Gives the NIC this address, instead of any other of its kind, and a default route.
    pub(crate) fn take_address(&mut self, address: IpCidr, via: Option<IpAddress>) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room for one.
            let _ = addresses.push(address);
        });
        let routes = self.interface.routes_mut();
        // There is room for a default route of either kind.
        let _ = match via {
            Some(IpAddress::Ipv4(via)) => routes.add_default_ipv4_route(via).map(drop),
            Some(IpAddress::Ipv6(via)) => routes.add_default_ipv6_route(via).map(drop),
            None => {
                routes.remove_default_ipv4_route();
                Ok(())
            }
        };
    }

    /// Carries out `dhcp`.
    pub(crate) fn lease(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let ms = command.number("ms", 10_000)?;
        if let Some(handle) = self.dhcp.take() {
            self.sockets.remove(handle);
        }
        self.interface.update_ip_addrs(|addresses| addresses.clear());
        self.dhcp = Some(self.sockets.add(dhcpv4::Socket::new()));
        let address = self.until(ms, |guest| guest.interface.ip_addrs().first().copied());
        address.map(|address| format!("{address}")).ok_or_else(|| format!("no lease within {ms} ms"))
    }

    /// Carries out `ping`.
    pub(crate) fn ping(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let target: IpAddress = command.target("an address")?;
        let IpAddress::Ipv4(_) = target else { return Err(format!("{target}: only IPv4 addresses are pinged")) };
        let count: u16 = command.number("count", 3)?;
        let ms = command.number("ms", 1000)?;
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 512]);
        let handle = self.sockets.add(icmp::Socket::new(buffer(), buffer()));
        // The socket was just made.
        let _ = self.sockets.get_mut::<icmp::Socket>(handle).bind(icmp::Endpoint::Ident(PING_IDENT));
        let mut times = Vec::new();
        for number in 0..count {
            let sent_at = self.platform.now_us();
            self.request_echo(handle, target, number);
            let came = self.until(ms, |guest| {
                let socket = guest.sockets.get_mut::<icmp::Socket>(handle);
                while let Ok((bytes, from)) = socket.recv() {
                    if from == target && echoes(bytes, number) {
                        return Some(guest.platform.now_us());
                    }
                }
                None
            });
            times.extend(came.map(|at| at - sent_at));
        }
        self.sockets.remove(handle);
        let received = times.len() as u64;
        let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) else {
            return Err(format!("{target} answered none of {count} requests"));
        };
        let mean = times.iter().sum::<u64>() / received;
        Ok(format!("sent={count} received={received} min_us={min} mean_us={mean} max_us={max}"))
    }

    fn request_echo(&mut self, handle: SocketHandle, target: IpAddress, number: u16) {
        let data = [0x55; PING_BYTES];
        let request = Icmpv4Repr::EchoRequest { ident: PING_IDENT, seq_no: number, data: &data };
        let socket = self.sockets.get_mut::<icmp::Socket>(handle);
        if let Ok(room) = socket.send(request.buffer_len(), target) {
            request.emit(&mut Icmpv4Packet::new_unchecked(room), &Default::default());
        }
    }

    /// Carries out `udp`.
    pub(crate) fn datagram(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let target: IpEndpoint = command.target("an address with a port, for example 10.0.0.2:7")?;
        let bytes: usize = command.number("bytes", 64)?;
        let ms = command.number("ms", 1000)?;
        if bytes > 1400 {
            return Err(format!("bytes={bytes}: up to 1400 are possible"));
        }
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        let port = self.port();
        let handle = self.sockets.add(datagrams(4, 4096));
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        let sent = socket.bind(port).is_ok() && socket.send_slice(&data, target).is_ok();
        let begun = self.platform.now_us();
        let came = self.until(ms, |guest| {
            let (got, _) = guest.sockets.get_mut::<udp::Socket>(handle).recv().ok()?;
            Some(got == data)
        });
        self.sockets.remove(handle);
        match came {
            Some(true) => Ok(format!("bytes={bytes} us={}", self.platform.now_us() - begun)),
            Some(false) => Err(format!("{target} sent something else back")),
            None if sent => Err(format!("{target} sent nothing back within {ms} ms")),
            None => Err(format!("{target} cannot be sent to")),
        }
    }

    /// Carries out `tcp`.
    pub(crate) fn stream(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let target: IpEndpoint = command.target("an address with a port, for example 10.0.0.2:7")?;
        let bytes: usize = command.number("bytes", 100_000)?;
        let ms = command.number("ms", 10_000)?;
        let handle = self.connect(target)?;
        let begun = self.platform.now_us();
        let (mut sent, mut came) = (0, 0);
        let ended = self.until(ms, |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket>(handle);
            while sent < bytes && socket.can_send() {
                let put = |room: &mut [u8]| {
                    let n = room.len().min(bytes - sent);
                    room.iter_mut().zip(sent..sent + n).for_each(|(place, at)| *place = pattern(at));
                    (n, n)
                };
                sent += socket.send(put).unwrap_or(0);
            }
            while socket.can_recv() {
                let look = |got: &mut [u8]| {
                    let right = got.iter().zip(came..).all(|(byte, at)| *byte == pattern(at));
                    (got.len(), right.then_some(got.len()))
                };
                match socket.recv(look) {
                    Ok(Some(n)) => came += n,
                    _ => return Some(Err("something else came back")),
                }
            }
            if came == bytes {
                return Some(Ok(()));
            }
            let refused = !socket.is_open();
            refused.then_some(Err("the connection was refused or broken"))
        });
        self.hang_up(handle);
        let us = self.platform.now_us() - begun;
        match ended {
            Some(Ok(())) => Ok(format!("bytes={bytes} us={us}")),
            Some(Err(why)) => Err(format!("{target}: {why} after {came} of {bytes} bytes")),
            None => Err(format!("{target}: {came} of {bytes} bytes came back within {ms} ms")),
        }
    }

    /// Carries out `fetch`.
    pub(crate) fn fetch(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let target: IpEndpoint = command.target("an address with a port, for example 10.0.0.2:80")?;
        let path = command.text("path").unwrap_or("/");
        let ms = command.number("ms", 10_000)?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {target}\r\nConnection: close\r\n\r\n");
        let handle = self.connect(target)?;
        let (mut asked, mut bytes, mut start) = (false, 0usize, Vec::new());
        let ended = self.until(ms, |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket>(handle);
            if !asked && socket.can_send() {
                asked = socket.send_slice(request.as_bytes()).is_ok();
            }
            while socket.can_recv() {
                let look = |got: &mut [u8]| {
                    start.extend(got.iter().take(4096usize.saturating_sub(start.len())));
                    (got.len(), got.len())
                };
                bytes += socket.recv(look).unwrap_or(0);
            }
            (!socket.may_recv() && (asked || !socket.is_open())).then_some(())
        });
        self.hang_up(handle);
        let head = start.windows(4).position(|four| four == b"\r\n\r\n");
        let status = core::str::from_utf8(start.get(..12).unwrap_or_default()).ok();
        let status = status.and_then(|line| line.strip_prefix("HTTP/1.")).and_then(|line| line.get(2..));
        match (ended, status, head) {
            (Some(()), Some(status), Some(head)) => Ok(format!("status={status} bytes={}", bytes - head - 4)),
            (Some(()), ..) => Err(format!("{target} does not answer as an HTTP server does ({bytes} bytes came)")),
            (None, ..) => Err(format!("{target}: {bytes} bytes came within {ms} ms, and no end")),
        }
    }

    fn connect(&mut self, target: IpEndpoint) -> Result<SocketHandle, CommandError> {
        let port = self.port();
        let mut socket = stream(STREAM_BUFFER);
        socket.set_timeout(Some(Duration::from_secs(30)));
        let connected = socket.connect(self.interface.context(), target, port);
        connected.map_err(|error| format!("{target}: {error}; has the guest an address?"))?;
        Ok(self.sockets.add(socket))
    }

    /// Ends a client's stream, and forgets it.
    fn hang_up(&mut self, handle: SocketHandle) {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.close();
        let closed = self.until(1000, |guest| {
            let state = guest.sockets.get_mut::<tcp::Socket>(handle).state();
            matches!(state, tcp::State::Closed | tcp::State::TimeWait).then_some(())
        });
        if closed.is_none() {
            self.sockets.get_mut::<tcp::Socket>(handle).abort();
            let _ = self.turn();
        }
        self.sockets.remove(handle);
    }

    /// A port for a client.
    fn port(&mut self) -> u16 {
        FIRST_PORT + (self.platform.random() % u64::from(u16::MAX - FIRST_PORT)) as u16
    }
}

/// Whether an ICMP message is the reply to echo request `number`.
fn echoes(bytes: &[u8], number: u16) -> bool {
    let packet = Icmpv4Packet::new_checked(bytes);
    let message = packet.as_ref().ok().and_then(|packet| Icmpv4Repr::parse(packet, &Default::default()).ok());
    let Some(Icmpv4Repr::EchoReply { ident, seq_no, data }) = message else { return false };
    ident == PING_IDENT && seq_no == number && data == [0x55; PING_BYTES]
}

//! [`Sockets`]: the sockets by which upstreams are asked, one for each exchange.
//!
//! Invariant: nothing here blocks. A UDP socket is connected, so that only who was asked is heard, and its port is the kernel's choice anew for every
//! question. Read first: [`gateway::dns::Resolver`]; RFC 5452 section 9.2, RFC 7766.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use gateway::dns::Resolver;
use mio::{
    Interest, Registry, Token,
    net::{TcpStream, UdpSocket},
};
use wire::Instant;

/// Longest message.
const LONGEST: usize = 65_535;
/// Datagrams taken from one socket at a time.
const DATAGRAMS: usize = 16;

enum Socket {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, unsent: Vec<u8>, read: Vec<u8> },
}

/// See the module's documentation.
pub(super) struct Sockets {
    registry: Registry,
    open: HashMap<u64, (SocketAddr, Socket)>,
    buffer: Box<[u8]>,
}

impl Sockets {
    pub(super) fn new(registry: Registry) -> Sockets {
        Sockets { registry, open: HashMap::new(), buffer: vec![0; LONGEST].into() }
    }

    /// Asks `server` for `exchange`, in the place of whom it asked before.
    ///
    /// # Errors
    /// The server cannot be reached, or there is no socket to be had.
    pub(super) fn ask(&mut self, exchange: u64, server: SocketAddr, tcp: bool, bytes: &[u8]) -> io::Result<()> {
        self.close(exchange);
        let token = Token(exchange as usize);
        let socket = if tcp {
            let mut stream = TcpStream::connect(server)?;
            self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            let length = u16::try_from(bytes.len()).map_err(|_| ErrorKind::InvalidInput)?;
            Socket::Tcp { stream, unsent: [&length.to_be_bytes(), bytes].concat(), read: Vec::new() }
        } else {
            let any = match server {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let mut socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            self.registry.register(&mut socket, token, Interest::READABLE)?;
            socket.send(bytes)?;
            Socket::Udp(socket)
        };
        self.open.insert(exchange, (server, socket));
        Ok(())
    }

    /// Closes the socket of an exchange.
    pub(super) fn close(&mut self, exchange: u64) {
        match self.open.remove(&exchange) {
            Some((_, Socket::Udp(mut socket))) => drop(self.registry.deregister(&mut socket)),
            Some((_, Socket::Tcp { mut stream, .. })) => drop(self.registry.deregister(&mut stream)),
            None => {}
        }
    }

    /// Something has happened on the socket of an exchange.
    pub(super) fn ready(&mut self, exchange: u64, resolver: &mut Resolver, now: Instant) {
        let Sockets { open, buffer, .. } = self;
        let Some((server, socket)) = open.get_mut(&exchange) else { return };
        match socket {
            Socket::Udp(socket) => {
                for _ in 0..DATAGRAMS {
                    match socket.recv(buffer) {
                        Ok(length) => {
                            resolver.answered(exchange, *server, false, buffer.get(..length).unwrap_or_default(), now);
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return resolver.failed(exchange, now),
                    }
                }
                // There is more, and edges are told once.
                let _ = self.registry.reregister(socket, Token(exchange as usize), Interest::READABLE);
            }
            Socket::Tcp { stream, unsent, read } => match talk(stream, unsent, read, buffer) {
                Ok(true) => {
                    resolver.answered(exchange, *server, true, read.get(2..).unwrap_or_default(), now);
                }
                Ok(false) => {}
                Err(_) => resolver.failed(exchange, now),
            },
        }
    }
}

/// Writes and reads as far as it goes; true when the whole answer is there.
fn talk(stream: &mut TcpStream, unsent: &mut Vec<u8>, read: &mut Vec<u8>, buffer: &mut [u8]) -> io::Result<bool> {
    while !unsent.is_empty() {
        match stream.write(unsent) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(sent) => drop(unsent.drain(..sent)),
            // Before it is connected as well.
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::NotConnected].contains(&error.kind()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    loop {
        if let Some((length, rest)) = read.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if rest.len() >= length {
                read.truncate(length + 2);
                return Ok(true);
            }
        }
        match stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => read.extend(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

//! [`Connection`]: one socket, from which messages are assembled and to which replies are sent, without ever waiting.
//!
//! Invariant: at most one message is half read and one reply half sent; descriptors stay with the message they came with, and are closed if
//! it never becomes whole. Read first: vhost-user specification, "Message Specification"; [`sys::socket`] on where descriptors arrive.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, OwnedFd},
};

use mio::net::UnixStream;
use sys::socket::{recv_with_fds, send_with_fds};

use super::{
    message::{HEADER_BYTES, Header, MessageError, Reply},
    request::Request,
};

/// What a look at the socket brought.
#[derive(Debug)]
pub(super) enum Received {
    /// A whole message.
    Message(Header, Result<Request, MessageError>),
    /// Not enough bytes yet.
    Nothing,
    /// The front end has closed its end, or the socket is broken; why, for people.
    Closed(String),
    /// The bytes cannot be a message, so what follows cannot be understood either.
    Garbage(MessageError),
}

/// A socket to a front end. See the module's documentation.
pub(super) struct Connection {
    socket: UnixStream,
    header: [u8; HEADER_BYTES],
    /// The header once it is whole, and the payload, which grows to its size.
    message: Option<(Header, Vec<u8>)>,
    /// Bytes of the header or, once there is one, of the payload.
    have: usize,
    fds: Vec<OwnedFd>,
    reply: Option<Reply>,
    /// Bytes of the reply that are gone.
    sent: usize,
}

impl Connection {
    /// Nothing read, nothing to send.
    pub(super) fn new(socket: UnixStream) -> Self {
        Connection { socket, header: [0; HEADER_BYTES], message: None, have: 0, fds: Vec::new(), reply: None, sent: 0 }
    }

    /// The socket, to register it.
    pub(super) fn socket(&mut self) -> &mut UnixStream {
        &mut self.socket
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_halfway(&self) -> bool {
        self.message.is_some() || self.have > 0
    }

    /// Reads on, until a message is whole or there is nothing left to read.
    pub(super) fn receive(&mut self) -> Received {
        loop {
            let buffer = match &mut self.message {
                None => self.header.get_mut(self.have..),
                Some((_, payload)) => payload.get_mut(self.have..),
            };
            let buffer = buffer.unwrap_or_default();
            if !buffer.is_empty() {
                match recv_with_fds(self.socket.as_fd(), buffer, &mut self.fds) {
                    Ok(outcome) if outcome.truncated => return Received::Garbage(MessageError::TooManyDescriptors),
                    Ok(outcome) if outcome.bytes == 0 => return Received::Closed(self.end()),
                    Ok(outcome) => self.have += outcome.bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
                    Err(error) => return Received::Closed(format!("the connection broke: {error}")),
                }
                continue;
            }
            self.have = 0;
            match self.message.take() {
                None => match Header::parse(&self.header) {
                    Ok(header) => self.message = Some((header, vec![0; header.size as usize])),
                    Err(error) => return Received::Garbage(error),
                },
                Some((header, payload)) => {
                    let fds = std::mem::take(&mut self.fds);
                    return Received::Message(header, Request::parse(header.request, &payload, fds));
                }
            }
        }
    }

    fn end(&self) -> String {
        let half = if self.is_halfway() { " in the middle of a message" } else { "" };
        format!("the front end closed the connection{half}")
    }

    /// Whether a reply still waits for room in the socket.
    pub(super) fn is_sending(&self) -> bool {
        self.reply.is_some()
    }

    /// Begins to send a reply; there is at most one at a time.
    pub(super) fn send(&mut self, reply: Reply) -> io::Result<()> {
        self.reply = Some(reply);
        self.sent = 0;
        self.flush()
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The front end is gone. A full socket is no error.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(reply) = &mut self.reply {
            let rest = reply.bytes.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.reply = None;
                break;
            }
            let fds: Vec<_> = reply.fd.iter().map(AsFd::as_fd).collect();
            match send_with_fds(self.socket.as_fd(), rest, &fds) {
                Ok(bytes) => {
                    self.sent += bytes;
                    reply.fd = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

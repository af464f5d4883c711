//! [`Channel`]: one socket to a back end: a message out, its reply in, without ever waiting.
//!
//! Invariant: at most one message is on its way and one reply due; a reply is read only as far as the question allows, into memory that was
//! there before, and descriptors that come with it are closed. Read first: [`sys::socket`] on where descriptors arrive.

use std::{
    io::ErrorKind,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use sys::socket::{recv_with_fds, send_with_fds};

use super::{
    ask::{Ask, CONFIG, CONFIG_HEADER, Outgoing},
    error::FrontEndError,
};
use crate::vhost_user::message::{HEADER_BYTES, Header};

/// The longest reply that is read.
const LONGEST: usize = (CONFIG_HEADER + CONFIG) as usize;

/// What a look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing is under way, and the back end is still there.
    Idle,
    /// The socket is full.
    Full,
    /// A reply is due and not whole.
    Waiting,
    /// The message is sent and needs no reply.
    Sent(Ask),
    /// The reply is whole: [`Channel::reply`].
    Answered(Ask),
}

/// A socket to a back end. See the module's documentation.
pub(super) struct Channel {
    socket: OwnedFd,
    asked: Option<Ask>,
    out: Option<Outgoing>,
    sent: usize,
    header: [u8; HEADER_BYTES],
    reply: [u8; LONGEST],
    /// Bytes of the reply's payload, once its header is whole.
    size: Option<usize>,
    /// Bytes of the header or of the payload.
    have: usize,
}

impl Channel {
    /// A socket on which nothing was said.
    pub(super) fn new(socket: OwnedFd) -> Self {
        let (header, reply) = ([0; HEADER_BYTES], [0; LONGEST]);
        Channel { socket, asked: None, out: None, sent: 0, header, reply, size: None, have: 0 }
    }

    /// The socket, to sleep on: readable when there is a reply, or an end.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The message that is under way or not answered.
    pub(super) fn asked(&self) -> Option<Ask> {
        self.asked
    }

    /// Takes the next message on; the last one is done.
    pub(super) fn ask(&mut self, ask: Ask, message: Outgoing) {
        (self.asked, self.out, self.sent, self.size, self.have) = (Some(ask), Some(message), 0, None, 0);
    }

    /// The payload of the reply read last.
    pub(super) fn reply(&self) -> &[u8] {
        self.size.and_then(|size| self.reply.get(..size)).unwrap_or_default()
    }

    /// Goes on as far as it can.
    ///
    /// # Errors
    /// The back end is gone, or sent what is not the reply.
    pub(super) fn progress(&mut self) -> Result<Progress, FrontEndError> {
        let Some(ask) = self.asked else { return self.watch() };
        if let Some(message) = &mut self.out {
            while let Some(rest) = message.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
                let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
                match send_with_fds(self.socket.as_fd(), rest, &fds) {
                    Ok(bytes) => {
                        self.sent += bytes;
                        message.fds.clear();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Full),
                    Err(error) => return Err(self.broken(error)),
                }
            }
            let is_answered = message.is_answered;
            self.out = None;
            if !is_answered {
                self.asked = None;
                return Ok(Progress::Sent(ask));
            }
        }
        self.read_reply(ask)
    }

    fn read_reply(&mut self, ask: Ask) -> Result<Progress, FrontEndError> {
        loop {
            let buffer = match self.size {
                None => self.header.get_mut(self.have..),
                Some(size) => self.reply.get_mut(self.have..size),
            };
            let buffer = buffer.unwrap_or_default();
            if !buffer.is_empty() {
                let mut fds = Vec::new();
                match recv_with_fds(self.socket.as_fd(), buffer, &mut fds) {
                    Ok(outcome) if outcome.truncated || !fds.is_empty() => {
                        return Err(FrontEndError::Descriptors(ask.code()));
                    }
                    Ok(outcome) if outcome.bytes == 0 => return Err(FrontEndError::Closed { asked: Some(ask.code()) }),
                    Ok(outcome) => self.have += outcome.bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
                    Err(error) => return Err(self.broken(error)),
                }
                continue;
            }
            if self.size.is_some() {
                self.asked = None;
                return Ok(Progress::Answered(ask));
            }
            let Header { request, size, .. } = Header::parse_reply(&self.header)?;
            let asked = ask.code();
            if request != asked {
                return Err(FrontEndError::OtherReply { asked, got: request });
            }
            let (least, most, expected) = ask.reply_bytes();
            if !(least..=most).contains(&size) {
                return Err(FrontEndError::ReplySize { asked, size, expected });
            }
            (self.size, self.have) = (Some(size as usize), 0);
        }
    }

    /// Looks for an end. Anything else is wrong: a back end speaks when it is asked.
    fn watch(&self) -> Result<Progress, FrontEndError> {
        match recv_with_fds(self.socket.as_fd(), &mut [0], &mut Vec::new()) {
            Ok(outcome) if outcome.bytes == 0 => Err(FrontEndError::Closed { asked: None }),
            Ok(_) => Err(FrontEndError::Unasked),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Progress::Idle),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, error: std::io::Error) -> FrontEndError {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                FrontEndError::Closed { asked: self.asked.map(Ask::code) }
            }
            _ => FrontEndError::Socket(error),
        }
    }
}

//! [`Peer`]: where back ends are, and when to look for the next one.
//!
//! Invariant: between two attempts lies a pause, which doubles up to a second while they fail, whatever the back end does.

use std::{
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::Duration,
};

use wire::Instant;

use super::error::FrontEndError;

/// The first pause between two attempts, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Who connects to whom.
#[derive(Debug)]
pub enum Peer {
    /// The back end listens here.
    Connect(PathBuf),
    /// The back end connects to us, here.
    Listen(UnixListener),
    /// This back end, which is connected already. When it is gone, [`super::FrontEnd::adopt`] takes the next one.
    Stream(UnixStream),
    /// Nobody, until [`super::FrontEnd::adopt`].
    Nobody,
}

/// The search for a back end. See the module's documentation.
#[derive(Debug)]
pub(super) struct Search {
    peer: Peer,
    pause: Duration,
    /// Not before this time.
    at: Option<Instant>,
    /// An attempt was due when last asked, so the listener may be slept on.
    is_due: bool,
}

impl Search {
    /// A search that begins at once.
    pub(super) fn new(peer: Peer) -> Self {
        Search { peer, pause: PAUSE.0, at: None, is_due: false }
    }

    /// This back end next, at once.
    pub(super) fn adopt(&mut self, stream: UnixStream) {
        (self.peer, self.at) = (Peer::Stream(stream), None);
    }

    /// A back end runs: the next pause is a short one again.
    pub(super) fn succeeded(&mut self) {
        self.pause = PAUSE.0;
    }

    /// The back end is gone: a pause begins.
    pub(super) fn failed(&mut self, now: Instant) {
        self.at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.is_due = false;
    }

    /// When to ask again without an event.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.at.filter(|_| !self.is_due)
    }

    /// What becomes readable when a back end connects.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match &self.peer {
            Peer::Listen(listener) if self.is_due => Some(listener.as_fd()),
            _ => None,
        }
    }

    /// A connection, if the pause is over and there is one to be had.
    ///
    /// # Errors
    /// Why there is none. After an error comes [`Search::failed`].
    pub(super) fn find(&mut self, now: Instant) -> Result<Option<OwnedFd>, FrontEndError> {
        if self.at.is_some_and(|at| now < at) {
            return Ok(None);
        }
        self.is_due = true;
        match &self.peer {
            Peer::Nobody => Ok(None),
            Peer::Connect(path) => match mio::net::UnixStream::connect(path) {
                Ok(stream) => Ok(Some(stream.into())),
                Err(error) => Err(FrontEndError::Connect { path: path.clone(), error }),
            },
            Peer::Listen(listener) => {
                listener.set_nonblocking(true).map_err(FrontEndError::Accept)?;
                match listener.accept() {
                    Ok((stream, _)) => Ok(Some(stream.into())),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                    Err(error) => Err(FrontEndError::Accept(error)),
                }
            }
            Peer::Stream(_) => match std::mem::replace(&mut self.peer, Peer::Nobody) {
                Peer::Stream(stream) => Ok(Some(stream.into())),
                _ => Ok(None),
            },
        }
    }
}

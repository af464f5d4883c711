//! [`PortSlot`]: one port of the session thread: its socket, the connection to a front end, the session, and what becomes of them.
//!
//! Invariant: a port has one front end at a time; the next one is heard when every lane of the last is home. What a front end does wrong
//! ends its own connection, with a reason in the port's state.
//!
//! Theory of operation: [`PortSlot::work`] does what can be done now and never waits: reads messages (a bounded number, so that no front
//! end starves the others), lets the session carry them out, sends replies, passes effects on. While the session waits for a lane, or a
//! reply for room, nothing is read: the kernel keeps what the front end sends, and stops it when that is much.

use std::{
    io::{self, ErrorKind},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{
    Interest, Registry, Token,
    net::{UnixListener, UnixStream},
    unix::SourceFd,
};
use sys::eventfd::EventFd;

use super::{
    connection::{Connection, Received},
    device::Device,
    session::{Effect, Session, Step},
    thread::{Homeward, PortOptions, Role},
    wiring::{NicKey, PortState, Wiring},
};
use crate::ring_port::{Lane, RingPort};

/// Messages of one front end before another has its turn.
const MESSAGES: usize = 32;
/// The first pause before connecting again, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// The three tokens of a port, from its first.
pub(super) const TOKENS: usize = 3;
const LISTENER: usize = 0;
const SOCKET: usize = 1;
const CONTROL: usize = 2;

/// What surrounds every port of the thread.
pub(super) struct Around<'a> {
    pub(super) registry: &'a Registry,
    pub(super) wiring: &'a mut dyn Wiring,
    pub(super) homeward: &'a Homeward,
    /// How long half a message may stay half.
    pub(super) patience: Duration,
}

enum Endpoint {
    Server { listener: UnixListener, path: PathBuf },
    Client { path: PathBuf, pause: Duration },
}

struct Link {
    /// Gone once the front end is.
    connection: Option<Connection>,
    session: Session,
    kick: Option<EventFd>,
    kicked: bool,
    waits: bool,
    /// All that the front end has sent was read.
    quiet: bool,
    halfway_since: Option<Instant>,
}

/// One port. See the module's documentation.
pub(super) struct PortSlot {
    pub(super) nic: NicKey,
    name: String,
    device: Arc<Device>,
    endpoint: Endpoint,
    link: Option<Link>,
    /// Tokens of this port: three from this one on.
    token: usize,
    state: Option<PortState>,
    /// Why there is no front end.
    reason: String,
    /// When to look for one again without an event.
    again: Option<Instant>,
    leaving: bool,
}

impl PortSlot {
    /// The port, waiting for a front end.
    pub(super) fn new(options: PortOptions, token: usize, around: &mut Around<'_>) -> io::Result<Self> {
        let PortOptions { nic, name, role, device } = options;
        let (endpoint, reason, again) = match role {
            Role::Server { listener, path } => {
                listener.set_nonblocking(true)?;
                let mut listener = UnixListener::from_std(listener);
                around.registry.register(&mut listener, Token(token + LISTENER), Interest::READABLE)?;
                let reason = format!("no front end has connected to {}", path.display());
                (Endpoint::Server { listener, path }, reason, None)
            }
            Role::Client { path } => {
                let reason = format!("connecting to {}", path.display());
                (Endpoint::Client { path, pause: PAUSE.0 }, reason, Some(Instant::now()))
            }
        };
        let device = Arc::new(device);
        Ok(PortSlot { nic, name, device, endpoint, link: None, token, state: None, reason, again, leaving: false })
    }

    /// One of the port's tokens had an event.
    pub(super) fn event(&mut self, token: usize) {
        if token == self.token + CONTROL
            && let Some(link) = &mut self.link
        {
            link.kicked = true;
        }
    }

    /// A lane came home.
    pub(super) fn home(&mut self, lane: Lane, failure: Option<String>, around: &mut Around<'_>) {
        if let Some(why) = &failure {
            tracing::warn!(port = self.name, lane = lane.index, reason = why, "lane down");
        }
        let Some(link) = &mut self.link else { return };
        let step = link.session.home(lane, failure);
        if link.waits {
            self.take(step, around);
        }
    }

    /// The port is to end; it is gone when [`PortSlot::is_gone`].
    pub(super) fn leave(&mut self, around: &mut Around<'_>) {
        self.leaving = true;
        self.hang_up("the port is being removed".to_owned(), around);
    }

    /// Whether nothing of it is left.
    pub(super) fn is_gone(&self) -> bool {
        self.leaving && self.link.is_none()
    }

    /// Gives the socket back to the system.
    pub(super) fn end(mut self, around: &mut Around<'_>) {
        if let Endpoint::Server { listener, path } = &mut self.endpoint {
            // The descriptor is closed in a moment; what is left in the filesystem would only be in somebody's way.
            let _ = around.registry.deregister(listener);
            let _ = std::fs::remove_file(path);
        }
    }

    /// When the port wants to be worked on without an event.
    pub(super) fn deadline(&self, patience: Duration) -> Option<Instant> {
        match &self.link {
            Some(link) => link.halfway_since.map(|since| since + patience),
            None => self.again.filter(|_| !self.leaving),
        }
    }

    /// Does what can be done now; returns whether there is more to do at once.
    pub(super) fn work(&mut self, around: &mut Around<'_>) -> bool {
        let mut more = self.serve_control(around);
        more |= self.read(around);
        self.pass_on(around);
        if let Some(link) = &self.link
            && link.connection.is_none()
            && link.session.is_home()
        {
            self.link = None;
            self.again = Some(Instant::now() + PAUSE.0);
        }
        if self.link.is_none() && !self.leaving {
            more |= self.meet(around);
        } else {
            self.refuse_others();
        }
        self.tell(around);
        more
    }

    /// Reads messages and carries them out.
    fn read(&mut self, around: &mut Around<'_>) -> bool {
        for _ in 0..MESSAGES {
            let Some(link) = &mut self.link else { return false };
            let Some(connection) = &mut link.connection else { return false };
            link.quiet = false;
            if connection.is_sending()
                && let Err(error) = connection.flush()
            {
                self.hang_up(format!("the front end takes no replies: {error}"), around);
                return false;
            }
            if link.waits || connection.is_sending() {
                return false;
            }
            match connection.receive() {
                Received::Message(header, request) => {
                    link.halfway_since = None;
                    tracing::trace!(port = self.name, ?header, ?request, "message");
                    let step = link.session.message(header, request);
                    self.take(step, around);
                }
                Received::Nothing => {
                    link.quiet = true;
                    let since = connection.is_halfway().then(|| link.halfway_since.unwrap_or_else(Instant::now));
                    link.halfway_since = since;
                    if since.is_some_and(|since| since.elapsed() >= around.patience) {
                        self.hang_up("the front end sent half a message and then nothing".to_owned(), around);
                    }
                    return false;
                }
                Received::Closed(why) => self.hang_up(why, around),
                Received::Garbage(error) => self.hang_up(format!("the front end broke the protocol: {error}"), around),
            }
        }
        true
    }

    fn take(&mut self, step: Step, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        link.waits = matches!(step, Step::Wait);
        let (reply, error) = match step {
            Step::Nothing | Step::Wait => (None, None),
            Step::Reply(reply) => (Some(reply), None),
            Step::End(reply, error) => (reply, Some(error)),
        };
        let sent = match (reply, &mut link.connection) {
            (Some(reply), Some(connection)) => connection.send(reply),
            _ => Ok(()),
        };
        match (error, sent) {
            (Some(error), _) => self.hang_up(format!("the front end broke the protocol: {error}"), around),
            (None, Err(error)) => self.hang_up(format!("the front end takes no replies: {error}"), around),
            (None, Ok(())) => self.pass_on(around),
        }
    }

    fn serve_control(&mut self, around: &mut Around<'_>) -> bool {
        let Some(link) = &mut self.link else { return false };
        if !std::mem::take(&mut link.kicked) {
            return false;
        }
        match link.session.control() {
            Ok(more) => {
                link.kicked = more;
                more
            }
            Err(error) => {
                self.hang_up(format!("the driver broke the rules: {error}"), around);
                false
            }
        }
    }

    /// Ends the connection and asks for all lanes.
    fn hang_up(&mut self, reason: String, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let Some(mut connection) = link.connection.take() else { return };
        tracing::info!(port = self.name, reason, "front end gone");
        // Closing the socket takes it out of the poll, as no other process has this descriptor's file.
        let _ = around.registry.deregister(connection.socket());
        self.reason = reason;
        (link.waits, link.halfway_since) = (false, None);
        link.session.close();
        self.pass_on(around);
    }

    /// Does what the session wants done.
    fn pass_on(&mut self, around: &mut Around<'_>) {
        let Some(link) = &mut self.link else { return };
        let nic = self.nic;
        for effect in link.session.take_effects() {
            match effect {
                Effect::Attach(lane) => {
                    let index = lane.index;
                    let port = RingPort::new(*lane, around.homeward.home(nic));
                    around.wiring.attach(nic, index, Box::new(port));
                }
                Effect::Detach(lane) => around.wiring.detach(nic, lane),
                Effect::Announce(mac) => around.wiring.announce(nic, mac),
                Effect::Filter(filter) => around.wiring.rx_filter(nic, *filter),
                Effect::Pairs(pairs) => around.wiring.pairs(nic, pairs),
                Effect::ControlKick(kick) => {
                    if let Some(old) = link.kick.take() {
                        let _ = around.registry.deregister(&mut SourceFd(&old.as_raw_fd()));
                    }
                    if let Some(new) = &kick {
                        let token = Token(self.token + CONTROL);
                        let added =
                            around.registry.register(&mut SourceFd(&new.as_raw_fd()), token, Interest::READABLE);
                        if let Err(error) = added {
                            tracing::warn!(port = self.name, %error, "the control queue's kick cannot be heard");
                        }
                    }
                    link.kicked = kick.is_some();
                    link.kick = kick;
                }
            }
        }
    }

    /// Looks for a front end.
    fn meet(&mut self, around: &mut Around<'_>) -> bool {
        let now = Instant::now();
        let found = match &mut self.endpoint {
            Endpoint::Server { listener, .. } => match listener.accept() {
                Ok((socket, _)) => Some(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.again = None;
                    None
                }
                Err(error) => {
                    self.reason = format!("no connection can be taken: {error}");
                    self.again = Some(now + PAUSE.1);
                    None
                }
            },
            Endpoint::Client { .. } if self.again.is_some_and(|again| again > now) => None,
            Endpoint::Client { path, pause } => match UnixStream::connect(&*path) {
                Ok(socket) => {
                    *pause = PAUSE.0;
                    Some(socket)
                }
                Err(error) => {
                    self.reason = unreachable_reason(path, &error);
                    self.again = Some(now + *pause);
                    *pause = (*pause * 2).min(PAUSE.1);
                    None
                }
            },
        };
        let Some(mut socket) = found else { return false };
        if let Err(error) = around.registry.register(&mut socket, Token(self.token + SOCKET), BOTH) {
            self.reason = format!("the connection cannot be heard: {error}");
            return false;
        }
        tracing::info!(port = self.name, "front end connected");
        let session = Session::new(self.device.clone());
        let connection = Some(Connection::new(socket));
        self.link = Some(Link {
            connection,
            session,
            kick: None,
            kicked: false,
            waits: false,
            quiet: false,
            halfway_since: None,
        });
        self.again = None;
        true
    }

    /// A second front end is closed at once while the first is there for sure. It is kept waiting while the first may be gone: its last
    /// messages are not read yet, or its lanes come home.
    fn refuse_others(&mut self) {
        let is_taken = self.link.as_ref().is_some_and(|link| link.connection.is_some() && link.quiet);
        if let Endpoint::Server { listener, .. } = &self.endpoint
            && is_taken
        {
            while listener.accept().is_ok() {
                tracing::info!(port = self.name, "second front end refused: the port has one");
            }
        }
    }

    /// Tells the program how the port is doing, if that has changed.
    fn tell(&mut self, around: &mut Around<'_>) {
        let state = match &self.link {
            Some(link) if link.connection.is_some() => {
                if link.waits {
                    return;
                }
                link.session.state()
            }
            _ => PortState::Waiting(self.reason.clone()),
        };
        if self.state.as_ref() != Some(&state) {
            around.wiring.state(self.nic, state.clone());
            self.state = Some(state);
        }
    }
}

fn unreachable_reason(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!("nobody listens at {path} yet"),
        _ => format!("{path} cannot be connected to: {error}"),
    }
}

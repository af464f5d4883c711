//! [`SessionThread`]: the one thread that talks to all front ends.
//!
//! Invariant: it never waits for one front end or one worker, only for all of them at once; every lane is home before the thread ends.
//!
//! Theory of operation: one mio poll over the listeners, the connections, the control queues' kicks and a waker. Lanes come home, and ports
//! come and go, through one channel beside it. A port is worked on when it had an event, a homecoming lane or a deadline, or has said
//! that it is not done ([`PortSlot::work`]).

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token, Waker};

use super::{
    device::Device,
    port::{Around, PortSlot, TOKENS},
    wiring::{NicKey, PortState, Wiring},
};
use crate::ring_port::{Home, Lane};

/// How long half a message may stay half.
const PATIENCE: Duration = Duration::from_secs(10);
const WAKER: Token = Token(0);
const FIRST: usize = 1;

/// Who connects to whom.
#[derive(Debug)]
pub enum Role {
    /// The front end connects to us. The socket file is removed when the port ends.
    Server {
        /// A socket that listens.
        listener: UnixListener,
        /// Where it is.
        path: PathBuf,
    },
    /// We connect to the front end, again and again.
    Client {
        /// Where it listens.
        path: PathBuf,
    },
}

/// A vhost-user port to be served.
#[derive(Debug)]
pub struct PortOptions {
    /// What [`Wiring`] knows it by.
    pub nic: NicKey,
    /// Its name, for logs.
    pub name: String,
    /// Who connects to whom, and where.
    pub role: Role,
    /// What its driver sees.
    pub device: Device,
}

enum Note {
    Add(PortOptions),
    /// The sender is dropped when the port is gone.
    Remove(NicKey, Sender<()>),
    Home(NicKey, Box<Lane>, Option<String>),
    Stop,
}

/// The way home for lanes.
pub(super) struct Homeward {
    notes: Sender<Note>,
    waker: Arc<Waker>,
}

impl Homeward {
    /// The way home for one lane of a NIC.
    pub(super) fn home(&self, nic: NicKey) -> Home {
        let (notes, waker) = (self.notes.clone(), self.waker.clone());
        Box::new(move |lane, failure| {
            // The thread outlives all lanes it has given away, so it hears this.
            if notes.send(Note::Home(nic, Box::new(lane), failure)).is_ok() {
                let _ = waker.wake();
            }
        })
    }
}

/// The state of the thread. See the module's documentation.
pub struct SessionThread {
    poll: Poll,
    notes: Receiver<Note>,
    homeward: Homeward,
    wiring: Box<dyn Wiring>,
    ports: Vec<Option<PortSlot>>,
    /// Ports to work on.
    ready: BTreeSet<usize>,
    removals: Vec<(NicKey, Sender<()>)>,
    patience: Duration,
    stopping: bool,
}

impl SessionThread {
    /// Starts the thread with these ports.
    ///
    /// # Errors
    /// What the system reported: no thread, no descriptors.
    pub fn spawn(ports: Vec<PortOptions>, wiring: Box<dyn Wiring>) -> io::Result<SessionHandle> {
        SessionThread::spawn_with_patience(ports, wiring, PATIENCE)
    }

    /// The same; a front end that sends half a message has this long for the other half.
    ///
    /// # Errors
    /// As for [`SessionThread::spawn`].
    pub fn spawn_with_patience(
        ports: Vec<PortOptions>,
        wiring: Box<dyn Wiring>,
        patience: Duration,
    ) -> io::Result<SessionHandle> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, notes) = channel();
        let homeward = Homeward { notes: sender.clone(), waker: waker.clone() };
        let (ports, added) = (Vec::new(), ports);
        let (ready, removals) = (BTreeSet::new(), Vec::new());
        let mut state =
            SessionThread { poll, notes, homeward, wiring, ports, ready, removals, patience, stopping: false };
        let body = move || {
            added.into_iter().for_each(|options| state.add(options));
            if let Err(error) = state.run() {
                tracing::error!(%error, "the vhost-user thread ended");
            }
        };
        let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(body)?;
        Ok(SessionHandle { notes: sender, waker, thread: Some(thread) })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !(self.stopping && self.ports.iter().all(Option::is_none)) {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                let Some(offset) = event.token().0.checked_sub(FIRST) else { continue };
                let index = offset / TOKENS;
                if let Some(Some(port)) = self.ports.get_mut(index) {
                    port.event(event.token().0);
                    self.ready.insert(index);
                }
            }
            while let Ok(note) = self.notes.try_recv() {
                self.note(note);
            }
            self.find_due();
            for index in std::mem::take(&mut self.ready) {
                self.work(index);
            }
        }
        Ok(())
    }

    /// How long the poll may take.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadlines = self.ports.iter().flatten().filter_map(|port| port.deadline(self.patience));
        deadlines.min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn find_due(&mut self) {
        let now = Instant::now();
        for (index, port) in self.ports.iter().enumerate() {
            if port.as_ref().and_then(|port| port.deadline(self.patience)).is_some_and(|at| at <= now) {
                self.ready.insert(index);
            }
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Add(options) => self.add(options),
            Note::Remove(nic, gone) => {
                // Who waits for a port that is not there hears so at once: `gone` is dropped.
                if let Some(index) = self.index(nic) {
                    self.removals.push((nic, gone));
                    self.with(index, |port, around| port.leave(around));
                }
            }
            Note::Home(nic, lane, failure) => {
                if let Some(index) = self.index(nic) {
                    self.with(index, |port, around| port.home(*lane, failure, around));
                }
            }
            Note::Stop => {
                self.stopping = true;
                for index in 0..self.ports.len() {
                    self.with(index, |port, around| port.leave(around));
                }
            }
        }
    }

    fn index(&self, nic: NicKey) -> Option<usize> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(|port| port.nic == nic))
    }

    /// Does something with a port, which is worked on afterwards.
    fn with(&mut self, index: usize, act: impl FnOnce(&mut PortSlot, &mut Around<'_>)) {
        let mut around = Around {
            registry: self.poll.registry(),
            wiring: &mut *self.wiring,
            homeward: &self.homeward,
            patience: self.patience,
        };
        if let Some(Some(port)) = self.ports.get_mut(index) {
            act(port, &mut around);
            self.ready.insert(index);
        }
    }

    fn work(&mut self, index: usize) {
        let mut around = Around {
            registry: self.poll.registry(),
            wiring: &mut *self.wiring,
            homeward: &self.homeward,
            patience: self.patience,
        };
        let Some(slot) = self.ports.get_mut(index) else { return };
        let Some(port) = slot else { return };
        if port.work(&mut around) {
            self.ready.insert(index);
        }
        if port.is_gone()
            && let Some(port) = slot.take()
        {
            let nic = port.nic;
            port.end(&mut around);
            self.removals.retain(|(removed, _)| *removed != nic);
        }
    }

    fn add(&mut self, options: PortOptions) {
        let nic = options.nic;
        let index = self.ports.iter().position(Option::is_none).unwrap_or_else(|| {
            self.ports.push(None);
            self.ports.len() - 1
        });
        let mut around = Around {
            registry: self.poll.registry(),
            wiring: &mut *self.wiring,
            homeward: &self.homeward,
            patience: self.patience,
        };
        match PortSlot::new(options, FIRST + TOKENS * index, &mut around) {
            Ok(port) if self.stopping => port.end(&mut around),
            Ok(port) => {
                if let Some(slot) = self.ports.get_mut(index) {
                    *slot = Some(port);
                }
                self.ready.insert(index);
            }
            Err(error) => self.wiring.state(nic, PortState::Down(format!("the socket cannot be served: {error}"))),
        }
    }
}

/// The program's end of a [`SessionThread`]. Dropping it ends the thread, as [`SessionHandle::stop`] does.
pub struct SessionHandle {
    notes: Sender<Note>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl SessionHandle {
    fn send(&self, note: Note) {
        // A thread that has ended serves no ports any more, and has said why.
        if self.notes.send(note).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Serves one more port.
    pub fn add_port(&self, options: PortOptions) {
        self.send(Note::Add(options));
    }

    /// Ends a port: its front end is disconnected and its lanes are taken home. When all is done the receiver says that its sender is gone.
    pub fn remove_port(&self, nic: NicKey) -> Receiver<()> {
        let (gone, receiver) = channel();
        self.send(Note::Remove(nic, gone));
        receiver
    }

    /// Ends all ports and the thread. Returns when every lane is home, so the workers must still run, or have dropped their ports.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.send(Note::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the vhost-user thread panicked");
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;

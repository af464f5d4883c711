//! [`Remote`]: a back end in another process, which gets the rings of a machine's NIC by vhost-user and may come and go.
//!
//! Invariant: the machine runs on whatever becomes of the back end; the next one is given the rings where the last one left them. Rings are
//! taken back before [`NicBackEnd::stop`] returns, or the back end is gone. Read first: [`crate::front_end`].
//!
//! Theory of operation: the conversation is a core without threads ([`FrontEnd`]); this is the thread that polls it. The processor's thread
//! only asks for something and waits until the conversation is that far.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use sys::{eventfd::EventFd, poll::Sleep, tsc};
use wire::Instant;

use super::net::{NOT_HERE, NicBackEnd, ReadyNic};
use crate::{
    features::Features,
    front_end::{DeviceMemory, DeviceSetup, FrontEnd, MemoryRegion, Peer, State},
    vhost_user::message::RegionSpec,
};

/// The machine's memory in the numbers of the front end, which nobody dereferences.
const USER: u64 = 0x7000_0000_0000;

struct Shared {
    front: Mutex<FrontEnd>,
    /// The conversation has gone on.
    moved: Condvar,
    wake: EventFd,
    is_over: AtomicBool,
}

impl Shared {
    fn front(&self) -> MutexGuard<'_, FrontEnd> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the conversation is as far as `is_done` says, or `patience` is over.
    fn until(&self, patience: Duration, mut is_done: impl FnMut(&FrontEnd) -> bool) -> bool {
        let front = self.front();
        let waited = self.moved.wait_timeout_while(front, patience, |front| !is_done(front));
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    fn wake(&self) {
        // A full counter has woken the thread already.
        let _ = self.wake.notify();
    }
}

/// See the module's documentation.
pub struct Remote {
    shared: Arc<Shared>,
    features: Features,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    /// Looks for a back end at `peer`, for as long as it takes the first to tell what it offers, at most for `patience`.
    ///
    /// # Errors
    /// None was found in time (`TimedOut`, with the reason of the last attempt), or the system would not give a thread.
    pub fn find(peer: Peer, patience: Duration) -> io::Result<Remote> {
        let shared = Arc::new(Shared {
            front: Mutex::new(FrontEnd::new(peer, Features::VERSION_1)),
            moved: Condvar::new(),
            wake: EventFd::new()?,
            is_over: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("front-end".to_owned()).spawn(move || talk(&theirs))?;
        let mut remote = Remote { shared, features: Features::default(), thread: Some(thread) };
        if !remote.shared.until(patience, |front| front.offer().is_some()) {
            let why = remote.shared.front().failure().map_or("nobody answers".to_owned(), |why| why.to_string());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let offered = remote.shared.front().offer().map_or(Features::default(), |offer| offer.features);
        // Nobody could tell the next back end where a packed ring stands.
        remote.features = NOT_HERE.into_iter().fold(offered, Features::without).without(Features::RING_PACKED);
        Ok(remote)
    }

    /// The longest IP packet that its network takes, in bytes, if it says so.
    pub fn mtu(&self) -> Option<u16> {
        self.shared.front().offer().and_then(|offer| offer.mtu)
    }
}

impl NicBackEnd for Remote {
    fn features(&self) -> Features {
        self.features
    }

    fn start(&mut self, nic: ReadyNic) -> io::Result<()> {
        let size = nic.file.metadata()?.len();
        let spec = RegionSpec { guest: 0, size, user: USER, offset: 0 };
        let file = nic.file.try_clone()?.into();
        let memory = DeviceMemory::new(vec![MemoryRegion { spec, file }]).map_err(io::Error::other)?;
        // What the machine tells by itself, its address and MTU, is no affair of the back end.
        let features = Features(nic.features.0 & self.features.0);
        let setup = DeviceSetup { features, memory, rings: vec![nic.rx, nic.tx] };
        self.shared.front().start(setup).map_err(io::Error::other)?;
        self.shared.wake();
        Ok(())
    }

    fn stop(&mut self) {
        self.shared.front().stop();
        self.shared.wake();
        // The conversation gives up by itself when the back end is silent.
        while !self.shared.until(Duration::from_secs(1), |front| front.state() != State::Stopping) {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return;
            }
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

/// The thread.
fn talk(shared: &Shared) {
    let mut sleep = Sleep::default();
    let mut last = None;
    while !shared.is_over.load(Ordering::Acquire) {
        let now = Instant::from_nanos(tsc::now_ns());
        let (deadline, socket) = {
            let mut front = shared.front();
            let deadline = front.poll(now);
            if last != Some(front.state()) {
                tracing::debug!(state = ?front.state(), failure = ?front.failure(), "the back end");
                last = Some(front.state());
            }
            (deadline, front.socket().map(|socket| socket.as_raw_fd()))
        };
        shared.moved.notify_all();
        // This thread alone polls, so the socket is still the same one.
        let fds = socket.into_iter().chain([shared.wake.as_raw_fd()]);
        if let Err(error) = sleep.wait(fds, deadline.map(|at| at.since(now))) {
            tracing::warn!(%error, "the front end cannot sleep");
        }
        let _ = shared.wake.drain();
    }
}

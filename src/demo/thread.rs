//! [`ThreadGuest`]: the built-in guest in a thread of this process, whose NIC reaches the switch by a vhost-user socket.
//!
//! Invariant: the thread ends when the guest is dropped, at once: from then on its NIC is gone and all its waiting is over.

use std::{
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use guest::{Guest, Header, Platform};
use sys::{eventfd::EventFd, poll::Sleep, tsc};
use vmm::front_end::{Nic, Peer};
use wire::{Instant, Mac, Offload};

/// The longest sleep.
const SLEEP: Duration = Duration::from_millis(500);

/// See the module's documentation.
pub(super) struct ThreadGuest {
    typed: Sender<String>,
    said: Receiver<String>,
    wake: Arc<EventFd>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadGuest {
    /// Starts a guest whose NIC has this address and connects to this socket.
    pub(super) fn start(name: &str, mac: Mac, socket: PathBuf) -> io::Result<Self> {
        let (typed, lines) = channel();
        let (tell, said) = channel();
        let wake = Arc::new(EventFd::new()?);
        let is_over = Arc::new(AtomicBool::new(false));
        let nic = Nic::new(Peer::Connect(socket), mac)?;
        let mut platform = InThread {
            mac,
            nic: Some(nic),
            lines,
            said: tell,
            wake: Arc::clone(&wake),
            is_over: Arc::clone(&is_over),
            sleep: Sleep::default(),
            state: tsc::cycles(),
        };
        let thread = std::thread::Builder::new().name(format!("guest-{name}")).spawn(move || {
            platform.plug_in();
            Guest::new(platform).run();
        })?;
        Ok(ThreadGuest { typed, said, wake, is_over, thread: Some(thread) })
    }

    /// Types a line; false when the guest has ended.
    pub(super) fn type_line(&self, line: &str) -> bool {
        let sent = self.typed.send(line.to_owned()).is_ok();
        // A full counter has woken it already.
        let _ = self.wake.notify();
        sent
    }

    /// The next line that the guest says.
    pub(super) fn read_line(&self, patience: Duration) -> Option<String> {
        self.said.recv_timeout(patience).ok()
    }
}

impl Drop for ThreadGuest {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.wake.notify();
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

/// The platform of a guest in a thread.
struct InThread {
    mac: Mac,
    nic: Option<Nic>,
    lines: Receiver<String>,
    said: Sender<String>,
    wake: Arc<EventFd>,
    is_over: Arc<AtomicBool>,
    sleep: Sleep,
    state: u64,
}

impl InThread {
    fn now(&self) -> Instant {
        Instant::from_nanos(tsc::now_ns())
    }

    /// Waits until the NIC is up: what a guest sends before is lost.
    fn plug_in(&mut self) {
        loop {
            let now = self.now();
            let Some(nic) = self.nic() else { return };
            nic.maintain(now);
            if nic.is_up() {
                return;
            }
            self.idle(None);
        }
    }

    /// The NIC, until the guest's end.
    fn nic(&mut self) -> Option<&mut Nic> {
        if self.is_over.load(Ordering::Acquire) {
            self.nic = None;
        }
        self.nic.as_mut()
    }
}

impl Platform for InThread {
    fn mac(&self) -> guest::Mac {
        self.mac.bytes()
    }

    fn mtu(&self) -> u16 {
        // Without a NIC nothing is sent.
        self.nic.as_ref().map_or(guest::MTU, Nic::mtu)
    }

    fn receive(&mut self, max: usize, each: &mut dyn FnMut(Header, &[u8])) -> usize {
        let now = self.now();
        let Some(nic) = self.nic() else { return 0 };
        nic.maintain(now);
        let received = nic.receive(max, &mut |offload: Offload, frame| {
            let (low, high) = offload.words(0);
            each(Header { low, high }, frame);
        });
        received.unwrap_or_else(|error| {
            tracing::warn!(%error, "the card of a guest in a thread stopped");
            0
        })
    }

    fn send(&mut self, header: Header, parts: &[&[u8]]) -> bool {
        self.nic().is_some_and(|nic| nic.send(Offload::from_words(header.low, header.high), parts))
    }

    fn has_room(&mut self) -> bool {
        self.nic().is_some_and(|nic| nic.has_room())
    }

    fn flush(&mut self) {
        if let Some(nic) = self.nic()
            && let Err(error) = nic.flush()
        {
            tracing::warn!(%error, "the card of a guest in a thread stopped");
        }
    }

    fn now_us(&self) -> u64 {
        // At its end, whatever the guest waits for is over.
        if self.is_over.load(Ordering::Acquire) { u64::MAX / 4 } else { tsc::now_ns() / 1000 }
    }

    fn idle(&mut self, until_us: Option<u64>) {
        let (now, now_us) = (self.now(), self.now_us());
        let Some(nic) = self.nic() else { return };
        let maintenance = nic.maintain(now).map(|at| at.since(now));
        if !nic.want_interrupts(true) {
            let until = until_us.map(|at| Duration::from_micros(at.saturating_sub(now_us)));
            let limit = [until, maintenance].into_iter().flatten().fold(SLEEP, Duration::min);
            let fds: Vec<_> = nic.wait_fds().chain([self.wake.as_raw_fd()]).collect();
            if let Err(error) = self.sleep.wait(fds.into_iter(), Some(limit)) {
                tracing::warn!(%error, "a guest in a thread cannot sleep");
            }
            let _ = self.wake.drain();
        }
        if let Some(nic) = self.nic() {
            nic.want_interrupts(false);
        }
    }

    fn line(&mut self) -> Option<String> {
        if self.is_over.load(Ordering::Acquire) {
            return Some("off".to_owned());
        }
        self.lines.try_recv().ok()
    }

    fn print(&mut self, line: &str) {
        // Nobody may be listening any more.
        let _ = self.said.send(line.to_owned());
    }

    fn random(&mut self) -> u64 {
        // xorshift64*: ports and sequence numbers of a guest that shares our process need no more.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

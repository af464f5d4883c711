//! A worker's thread: rounds while there is work, then spinning, then sleep.
//!
//! Invariant: a change that was sent is seen before the thread sleeps; nothing that arrives between arming notifications and sleeping is
//! missed, because every port looks once more after arming. Read first: [`crate::worker`].

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use sys::{eventfd::EventFd, poll::Sleep, tsc};
use wire::{Instant, Sizes, Wake};

use crate::{
    change::{Change, Failure},
    worker::Worker,
};

/// Rounds between two looks at the system's clock.
const ROUNDS_PER_LOOK: u32 = 256;
/// Pauses of the processor between two looks that find nothing, at most; some tenths of a microsecond in all. With them a generator that
/// shared the rings moved a median of 12.5 instead of 9.9 million frames a second (ten alternated runs, wide spread).
const PAUSES: usize = 8;
/// Frames of the last round for each pause: a driver that sent few is waiting for an answer, and every pause would delay it.
const FRAMES_PER_PAUSE: usize = 8;
/// Time between two rounds of housekeeping, and the longest sleep.
const HOUSEKEEPING: Duration = Duration::from_millis(200);

/// How a worker without work behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Looks for work for this long, then sleeps.
    Adaptive(Duration),
    /// Never sleeps.
    Poll,
    /// Sleeps at once.
    Sleep,
}

/// How to run a worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSpec {
    /// The CPU to stay on; none leaves it to the scheduler.
    pub cpu: Option<usize>,
    /// What to do without work.
    pub idle: Idle,
    /// Memory for one turn.
    pub sizes: Sizes,
}

/// Time from the cycle counter, set right by the system's clock now and then.
struct Ticker {
    at: u64,
    cycles: u64,
    per_cycle: u64,
    looks: u32,
}

impl Ticker {
    fn new() -> Self {
        let hz = u128::from(tsc::cycles_per_second().max(1));
        let per_cycle = ((1_000_000_000u128 << 32) / hz) as u64;
        Ticker { at: tsc::now_ns(), cycles: tsc::cycles(), per_cycle, looks: 0 }
    }

    #[inline]
    fn at(&mut self, cycles: u64) -> Instant {
        self.looks += 1;
        if self.looks >= ROUNDS_PER_LOOK {
            self.looks = 0;
            self.at = self.at.max(tsc::now_ns());
            self.cycles = cycles;
        }
        let passed = (u128::from(cycles.wrapping_sub(self.cycles)) * u128::from(self.per_cycle)) >> 32;
        Instant::from_nanos(self.at + passed as u64)
    }
}

/// The other end of a worker's thread.
pub struct WorkerHandle {
    changes: Sender<Change>,
    poke: Arc<Poke>,
    thread: Option<JoinHandle<()>>,
}

struct Poke {
    waiting: AtomicBool,
    event: EventFd,
}

/// Sends changes to a worker; a copy for every thread that has some.
#[derive(Clone)]
pub struct Changes {
    changes: Sender<Change>,
    poke: Arc<Poke>,
}

impl Changes {
    /// Hands a change over; false when the worker has ended.
    pub fn send(&self, change: Change) -> bool {
        let sent = self.changes.send(change).is_ok();
        self.wake();
        sent
    }

    /// Has the worker look around if it sleeps: after something was put into the inbox of one of its ports.
    pub fn wake(&self) {
        self.poke.waiting.store(true, Ordering::Release);
        // A full counter wakes as well.
        let _ = self.poke.event.notify();
    }
}

impl WorkerHandle {
    /// Starts a worker's thread.
    pub fn spawn(spec: WorkerSpec, failures: Box<dyn FnMut(Failure) + Send>) -> io::Result<Self> {
        let (changes, inbox) = channel();
        let poke = Arc::new(Poke { waiting: AtomicBool::new(false), event: EventFd::new()? });
        let worker = Worker::new(spec.sizes, spec.cpu, failures)?;
        let name = spec.cpu.map_or("worker".to_owned(), |cpu| format!("worker-{cpu}"));
        let theirs = Arc::clone(&poke);
        let thread = std::thread::Builder::new().name(name).spawn(move || run(worker, spec, &inbox, &theirs))?;
        Ok(WorkerHandle { changes, poke, thread: Some(thread) })
    }

    /// A way to send changes.
    pub fn changes(&self) -> Changes {
        Changes { changes: self.changes.clone(), poke: Arc::clone(&self.poke) }
    }

    /// Ends the worker: every port is let go, and the thread is gone when this returns.
    pub fn stop(&mut self) {
        self.changes().send(Change::Stop);
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has let its ports go as well.
            let _ = thread.join();
        }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread: rounds while there is work, then spinning, then sleep.
fn run(mut worker: Worker, spec: WorkerSpec, inbox: &Receiver<Change>, poke: &Poke) {
    if let Some(cpu) = spec.cpu
        && let Err(error) = sys::affinity::pin(cpu)
    {
        tracing::warn!(cpu, %error, "the worker could not be pinned to its CPU and runs where the scheduler puts it");
    }
    let mut ticker = Ticker::new();
    let mut sleep = Sleep::default();
    let mut wake = Wake::default();
    let mut before = tsc::cycles();
    let mut now = ticker.at(before);
    let (mut last_work, mut last_housekeeping) = (now, now);
    let mut pauses = 1;
    loop {
        if poke.waiting.load(Ordering::Relaxed) {
            poke.waiting.store(false, Ordering::Release);
            let _ = poke.event.drain();
            loop {
                let goes_on = match inbox.try_recv() {
                    Ok(change) => worker.apply(change),
                    Err(TryRecvError::Disconnected) => false,
                    Err(TryRecvError::Empty) => break,
                };
                if !goes_on {
                    return;
                }
            }
        }
        let frames = worker.round(now);
        let after = tsc::cycles();
        let spent = after.wrapping_sub(before);
        before = after;
        now = ticker.at(after);
        worker.spent(frames, spent);
        if frames > 0 {
            last_work = now;
            pauses = (frames / FRAMES_PER_PAUSE).clamp(1, PAUSES);
        } else {
            // Looking at once again takes the ring's cache lines from a driver that is just writing to them.
            for _ in 0..pauses {
                std::hint::spin_loop();
            }
        }
        if now.since(last_housekeeping) >= HOUSEKEEPING {
            last_housekeeping = now;
            worker.housekeeping(now);
        }
        let tired = match spec.idle {
            Idle::Poll => false,
            Idle::Sleep => frames == 0,
            Idle::Adaptive(spin) => frames == 0 && now.since(last_work) >= spin,
        };
        if tired {
            if worker.arm(&mut wake) && !poke.waiting.load(Ordering::Acquire) {
                let until = wake.deadline.map_or(HOUSEKEEPING, |at| at.since(now).min(HOUSEKEEPING));
                let fds = wake.readable.iter().copied().chain([poke.event.as_raw_fd()]);
                if let Err(error) = sleep.wait(fds, Some(until)) {
                    tracing::warn!(%error, "sleeping failed; the worker looks for work instead");
                }
            }
            worker.disarm();
            let after = tsc::cycles();
            worker.spent(0, after.wrapping_sub(before));
            before = after;
            now = ticker.at(after);
        }
    }
}

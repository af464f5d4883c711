//! [`Worker`]: the thread that moves frames. Read this file to know what happens to a frame and when.
//!
//! Invariant: everything on a frame's path is owned by one worker and used through `&mut`: no lock, no allocation, no system call per
//! frame. Control comes between turns, as a [`Change`]. A port that fails is detached, alone, with its reason.
//!
//! Theory of operation, one turn:
//!
//! ```text
//!   receive   the ingress port puts up to 64 frames into a burst: heads copied, bodies lent
//!   forward   the bridge finds each frame's segment, learns, looks up, floods; frames land in one burst per egress lane
//!   transmit  each egress port takes its burst: the one copy of the body, straight to where it goes
//!   answers   what ports sent back is forwarded in the same turn, in at most four rounds
//!   release   egress ports first (a last look for room, publish), the ingress port last (what it lent is completed)
//! ```
//!
//! The worker goes round its lanes as long as any has work, then spins for a while, then arms notifications, looks once more and sleeps.

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
use wire::{Burst, Context, DropReason, Instant, NicId, Origin, Port, Sizes, Wake};

use crate::{
    bridge::Bridge,
    change::{BridgeId, Change, Failure, Report},
    egress::Egress,
};

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

/// Rounds in which answers of ports are forwarded within one turn.
const ANSWER_ROUNDS: usize = 4;
/// Turns between two looks at the system's clock.
const TURNS_PER_LOOK: u32 = 256;
/// Time between two rounds of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// Forwarding-table entries looked at in one round of housekeeping.
const SWEEP: usize = 4096;

struct Lane {
    port: Box<dyn Port>,
    nic: NicId,
    number: u16,
}

struct Nic {
    bridge: BridgeId,
    /// This worker's lanes of it, by lane number.
    lanes: Vec<(u16, u16)>,
}

/// The state of a worker's thread. See the module's documentation.
pub struct Worker {
    cx: Context,
    lanes: Vec<Option<Lane>>,
    nics: Vec<Option<Nic>>,
    bridges: Vec<Option<Bridge>>,
    egress: Egress,
    burst: Burst,
    released: Vec<u16>,
    failures: Box<dyn FnMut(Failure) + Send>,
    frames: u64,
    busy: u64,
    idle: u64,
    cpu: Option<usize>,
}

impl Worker {
    /// A worker without bridges. Ports that fail are told to `failures`.
    pub fn new(spec: &WorkerSpec, failures: Box<dyn FnMut(Failure) + Send>) -> io::Result<Self> {
        Ok(Worker {
            cx: Context::new(spec.sizes)?,
            lanes: Vec::new(),
            nics: Vec::new(),
            bridges: Vec::new(),
            egress: Egress::default(),
            burst: Burst::default(),
            released: Vec::new(),
            failures,
            frames: 0,
            busy: 0,
            idle: 0,
            cpu: spec.cpu,
        })
    }

    /// What the worker counted and knows.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    /// One round over all lanes at time `now`: a turn each. Returns the frames received.
    pub fn round(&mut self, now: Instant) -> usize {
        let mut frames = 0;
        for index in 0..self.lanes.len() {
            frames += self.turn(index as u16, now);
        }
        frames
    }

    /// One turn of one lane. Returns the frames received.
    #[inline]
    fn turn(&mut self, index: u16, now: Instant) -> usize {
        let Worker { cx, lanes, nics, bridges, egress, burst, .. } = self;
        let Some(Some(lane)) = lanes.get_mut(usize::from(index)) else { return 0 };
        cx.begin_turn(now);
        cx.nic = lane.nic;
        if let Err(error) = lane.port.receive(cx, burst) {
            for frame in burst.drain() {
                cx.drop(frame, DropReason::NotReady);
            }
            self.fail(index, &error);
            return 0;
        }
        let received = burst.len();
        if received > 0 {
            let bridge = nics.get(lane.nic.index()).and_then(Option::as_ref).map(|nic| nic.bridge.0);
            match bridge.and_then(|id| bridges.get_mut(usize::from(id))).and_then(Option::as_mut) {
                Some(bridge) => bridge.forward(cx, burst, egress),
                None => burst.drain().for_each(|frame| cx.drop(frame, DropReason::NoDestination)),
            }
            self.deliver();
        }
        self.release(index);
        received
    }

    /// Hands the egress bursts to their ports, and forwards what the ports answer.
    fn deliver(&mut self) {
        for _ in 0..=ANSWER_ROUNDS {
            let Worker { cx, lanes, egress, released, .. } = self;
            while let Some(index) = egress.next_touched() {
                let burst = egress.burst(index);
                let Some(Some(lane)) = lanes.get_mut(usize::from(index)) else {
                    burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
                    continue;
                };
                cx.nic = lane.nic;
                let result = lane.port.transmit(cx, burst);
                if !released.contains(&index) {
                    released.push(index);
                }
                if let Err(error) = result {
                    burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
                    self.fail(index, &error);
                    break;
                }
            }
            if self.egress.is_touched() {
                continue;
            }
            if self.cx.answers.is_empty() {
                return;
            }
            self.forward_answers();
        }
        while let Some(frame) = self.cx.answers.pop() {
            self.cx.drop(frame, DropReason::NoBuffers);
        }
        while let Some(index) = self.egress.next_touched() {
            self.egress.burst(index).drain().for_each(|frame| self.cx.drop(frame, DropReason::NoBuffers));
        }
    }

    /// Forwards what ports sent back, each frame as if received where its origin says.
    fn forward_answers(&mut self) {
        let Worker { cx, nics, bridges, egress, burst, .. } = self;
        while let Some(frame) = cx.answers.pop() {
            let nic = cx.heads.get(&frame).origin.nic;
            cx.nic = nic;
            let bridge = nics.get(nic.index()).and_then(Option::as_ref).map(|nic| nic.bridge.0);
            match bridge.and_then(|id| bridges.get_mut(usize::from(id))).and_then(Option::as_mut) {
                Some(bridge) => {
                    let _ = burst.push(frame);
                    bridge.forward(cx, burst, egress);
                }
                None => cx.drop(frame, DropReason::NoDestination),
            }
        }
    }

    /// The end of a turn: egress ports first, the ingress port last.
    #[inline]
    fn release(&mut self, ingress: u16) {
        let mut released = std::mem::take(&mut self.released);
        released.retain(|index| *index != ingress);
        released.push(ingress);
        for index in released.drain(..) {
            let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) else { continue };
            self.cx.nic = lane.nic;
            if let Err(error) = lane.port.release(&mut self.cx) {
                self.fail(index, &error);
            }
        }
        self.released = released;
    }

    /// Detaches a port that failed.
    #[cold]
    fn fail(&mut self, index: u16, error: &io::Error) {
        let Some(lane) = self.lanes.get_mut(usize::from(index)).and_then(Option::take) else { return };
        let failure = Failure { nic: lane.nic, lane: lane.number, reason: error.to_string() };
        self.let_go(index, lane);
        (self.failures)(failure);
    }

    fn let_go(&mut self, index: u16, mut lane: Lane) {
        lane.port.detach(&mut self.cx);
        if let Some(Some(nic)) = self.nics.get_mut(lane.nic.index()) {
            nic.lanes.retain(|(_, place)| *place != index);
        }
        self.tell_lanes(lane.nic);
    }

    /// Tells a NIC's bridge which lanes it has.
    fn tell_lanes(&mut self, id: NicId) {
        let Some(Some(nic)) = self.nics.get(id.index()) else { return };
        let lanes: Vec<u16> = nic.lanes.iter().map(|(_, place)| *place).collect();
        if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(nic.bridge.0)) {
            bridge.set_lanes(id, &lanes);
        }
    }

    /// Carries out a change, between turns. False: the worker is to end.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::AddBridge { id, spec } => *place(&mut self.bridges, id.0) = Some(Bridge::new(spec)),
            Change::RemoveBridge { id } => *place(&mut self.bridges, id.0) = None,
            Change::AddNic { nic, bridge, spec } => {
                self.cx.add_nic(nic);
                if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(bridge.0)) {
                    bridge.add_nic(nic, spec);
                }
                *place(&mut self.nics, nic.0) = Some(Nic { bridge, lanes: Vec::new() });
            }
            Change::RemoveNic { nic } => self.remove_nic(nic),
            Change::AddStatic { bridge, segment, mac, nic } => {
                if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(bridge.0)) {
                    bridge.add_static(segment, mac, nic);
                }
            }
            Change::Attach { nic, lane, port } => self.attach(nic, lane, port),
            Change::Detach { nic, lane } => self.detach(nic, lane),
            Change::Originate { nic, bytes } => self.originate(nic, &bytes),
            Change::Show { reply } => {
                // Nobody waiting for the answer any more is no fault of ours.
                let _ = reply.send(self.report());
            }
            Change::Stop => {
                for index in 0..self.lanes.len() {
                    if let Some(lane) = self.lanes.get_mut(index).and_then(Option::take) {
                        self.let_go(index as u16, lane);
                    }
                }
                return false;
            }
        }
        true
    }

    fn attach(&mut self, nic: NicId, number: u16, port: Box<dyn Port>) {
        self.detach(nic, number);
        if !matches!(self.nics.get(nic.index()), Some(Some(_))) {
            return;
        }
        let index = self.lanes.iter().position(Option::is_none).unwrap_or(self.lanes.len()) as u16;
        let mut lane = Lane { port, nic, number };
        if let Err(error) = lane.port.attach(&mut self.cx) {
            lane.port.detach(&mut self.cx);
            (self.failures)(Failure { nic, lane: number, reason: error.to_string() });
            return;
        }
        *place(&mut self.lanes, index) = Some(lane);
        self.egress.resize(self.lanes.len());
        if self.released.capacity() <= self.lanes.len() {
            self.released.reserve(self.lanes.len() + 1);
        }
        if let Some(Some(nic)) = self.nics.get_mut(nic.index()) {
            nic.lanes.push((number, index));
            nic.lanes.sort_unstable();
        }
        self.tell_lanes(nic);
    }

    fn detach(&mut self, nic: NicId, number: u16) {
        let Some(Some(known)) = self.nics.get(nic.index()) else { return };
        let Some((_, index)) = known.lanes.iter().find(|(lane, _)| *lane == number).copied() else { return };
        if let Some(lane) = self.lanes.get_mut(usize::from(index)).and_then(Option::take) {
            self.let_go(index, lane);
        }
    }

    fn remove_nic(&mut self, nic: NicId) {
        while let Some(Some(known)) = self.nics.get(nic.index())
            && let Some((number, _)) = known.lanes.first().copied()
        {
            self.detach(nic, number);
        }
        if let Some(known) = self.nics.get_mut(nic.index()).and_then(Option::take)
            && let Some(Some(bridge)) = self.bridges.get_mut(usize::from(known.bridge.0))
        {
            bridge.remove_nic(nic);
        }
    }

    /// Sends a frame of our own as if `nic` had sent it.
    fn originate(&mut self, nic: NicId, bytes: &[u8]) {
        self.cx.begin_turn(self.cx.now);
        self.cx.nic = nic;
        if let Some(frame) = self.cx.originate(Origin { nic, lane: 0 }, bytes) {
            let _ = self.cx.answers.push(frame);
            self.deliver();
            let mut released = std::mem::take(&mut self.released);
            for index in released.drain(..) {
                let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) else { continue };
                self.cx.nic = lane.nic;
                if let Err(error) = lane.port.release(&mut self.cx) {
                    self.fail(index, &error);
                }
            }
            self.released = released;
        }
    }

    fn report(&self) -> Report {
        let nics = self.nics.iter().enumerate().filter(|(_, nic)| nic.is_some()).map(|(id, _)| NicId(id as u16));
        Report {
            cpu: self.cpu,
            frames: self.frames,
            busy_cycles: self.busy,
            idle_cycles: self.idle,
            ledger: self.cx.ledger,
            counters: nics.filter_map(|nic| Some((nic, self.cx.counters(nic)?.clone()))).collect(),
            fdb: self
                .bridges
                .iter()
                .enumerate()
                .filter_map(|(id, bridge)| Some((BridgeId(id as u16), bridge.as_ref()?.fdb_entries(self.cx.now))))
                .collect(),
        }
    }

    fn housekeeping(&mut self, now: Instant) {
        self.cx.now = now;
        for bridge in self.bridges.iter_mut().flatten() {
            bridge.sweep(now, SWEEP);
        }
    }

    /// Arms every port's notifications; false when one of them has work already.
    fn arm(&mut self, wake: &mut Wake) -> bool {
        wake.clear();
        self.lanes.iter_mut().flatten().fold(true, |quiet, lane| lane.port.wake(wake) && quiet)
    }

    fn disarm(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            lane.port.awake();
        }
    }
}

/// Place `index` of a table that grows.
fn place<T>(table: &mut Vec<Option<T>>, index: u16) -> &mut Option<T> {
    let index = usize::from(index);
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    &mut table[index]
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
        if self.looks >= TURNS_PER_LOOK {
            self.looks = 0;
            self.at = self.at.max(tsc::now_ns());
            self.cycles = cycles;
        }
        let passed = u128::from(cycles.wrapping_sub(self.cycles)) * u128::from(self.per_cycle) >> 32;
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
        self.poke.waiting.store(true, Ordering::Release);
        // A full counter wakes as well.
        let _ = self.poke.event.notify();
        sent
    }
}

impl WorkerHandle {
    /// Starts a worker's thread.
    pub fn spawn(spec: WorkerSpec, failures: Box<dyn FnMut(Failure) + Send>) -> io::Result<Self> {
        let (changes, inbox) = channel();
        let poke = Arc::new(Poke { waiting: AtomicBool::new(false), event: EventFd::new()? });
        let worker = Worker::new(&spec, failures)?;
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
    loop {
        if poke.waiting.load(Ordering::Relaxed) {
            poke.waiting.store(false, Ordering::Release);
            let _ = poke.event.drain();
            loop {
                match inbox.try_recv() {
                    Ok(change) if worker.apply(change) => {}
                    Ok(_) | Err(TryRecvError::Disconnected) => return,
                    Err(TryRecvError::Empty) => break,
                }
            }
        }
        let frames = worker.round(now);
        let after = tsc::cycles();
        let spent = after.wrapping_sub(before);
        before = after;
        now = ticker.at(after);
        if frames > 0 {
            worker.frames += frames as u64;
            worker.busy += spent;
            last_work = now;
        } else {
            worker.idle += spent;
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
            worker.idle += after.wrapping_sub(before);
            before = after;
            now = ticker.at(after);
        }
    }
}

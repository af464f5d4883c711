//! [`Stand`]: a worker with one bridge, and the guests that load it, as a case wants them.
//!
//! Invariant: the switch is the one that `up` runs: the same worker, bridge and ring ports, attached without a socket. All guests are driven by
//! the calling thread. Every wait has an end, and a port that fails is told with its reason.
//! Read first: [`vmm::load`], [`vswitch::thread`].

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{TryRecvError, sync_channel},
    },
};

use sys::{Lent, MapRef, Room, cpu_time::Thread, tsc};
use vmm::{
    Features,
    load::{Count, Fault, Guest, GuestSpec},
};
use vswitch::{
    BridgeSpec, Membership, NicSpec,
    change::{BridgeId, Change, Report},
    thread::{Idle, WorkerHandle, WorkerSpec},
};
use wire::{BURST, NicId, Sizes, Vid};

use super::{
    case::{Case, Path, What},
    frames::{self, ADDRESSES, SOURCE_PORT_AT},
    machine::Cpus,
};

/// The longest that anything may take which the switch does in microseconds.
const PATIENCE_SECONDS: u64 = 20;
/// Bytes of the receive buffers for super-frames.
const SUPER_BUFFER: u32 = 4096;
const BRIDGE: BridgeId = BridgeId(0);

/// Why a measurement ended.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The system would not give a thread, memory or a CPU.
    #[error("the system refused what the measurement needs: {0}")]
    System(#[from] io::Error),
    /// A CPU that is not there, or not ours.
    #[error("cpu {0} is not among the CPUs this process may use, which are {1:?}")]
    Cpu(usize, Vec<usize>),
    /// The switch broke a rule of a ring: a defect of it.
    #[error("the switch broke a rule of virtio at port {port}: {fault}")]
    Fault {
        /// Which port.
        port: usize,
        /// The rule.
        fault: Fault,
    },
    /// The switch let go of a port.
    #[error("the switch let go of port {0}: {1}")]
    Failed(u16, String),
    /// The switch ended.
    #[error("the switch's worker ended; its message is above")]
    Ended,
    /// Nothing came.
    #[error("{0} did not come about within {PATIENCE_SECONDS} s; is the worker's CPU taken by something else?")]
    Stalled(&'static str),
    /// A result cannot be written.
    #[error("{0}: {1}")]
    File(std::path::PathBuf, io::Error),
    /// The page's template is wrong: a defect of it.
    #[error("the page cannot be made: {0}")]
    Page(#[from] minijinja::Error),
}

/// What changes from frame to frame.
enum Varied {
    Nothing,
    /// Addresses in turn.
    Addresses(Box<[[u8; ADDRESSES]]>),
    /// So many UDP source ports in turn.
    Flows(u16),
}

struct Station {
    guest: Guest,
    varied: Varied,
    turn: usize,
}

impl Station {
    /// Sends up to `max` frames.
    #[inline]
    fn send(&mut self, max: usize) -> Result<usize, Fault> {
        let Station { guest, varied, turn } = self;
        match varied {
            Varied::Nothing => guest.send(max),
            Varied::Addresses(all) => guest.send_with(max, |map, room| {
                if let Some(bytes) = all.get(*turn) {
                    map.write(room, bytes);
                }
                *turn = if *turn + 1 >= all.len() { 0 } else { *turn + 1 };
            }),
            Varied::Flows(flows) => guest.send_with(max, |map, room| {
                map.write(room.after(SOURCE_PORT_AT), &(1000 + *turn as u16).to_be_bytes());
                *turn = (*turn + 1) % usize::from(*flows);
            }),
        }
    }
}

/// See the module's documentation.
pub struct Stand {
    case: Case,
    stations: Vec<Station>,
    worker: WorkerHandle,
    thread: Option<Thread>,
    failed: Arc<Mutex<Option<(u16, String)>>>,
    /// Frames of each pair that are on their way, at most: as many as the receiver has buffers for. Without this, a receiver that is away for
    /// some microseconds loses frames, and the loss is not the switch's.
    window: Option<u64>,
    sent: Vec<u64>,
    received: Vec<u64>,
    /// What was received in all.
    total: Count,
}

/// What was done up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub sent: u64,
    /// What was received.
    pub received: Count,
}

impl Tally {
    /// What was done since `before`.
    pub fn since(self, before: Tally) -> Tally {
        Tally {
            sent: self.sent - before.sent,
            received: Count {
                frames: self.received.frames - before.received.frames,
                bytes: self.received.bytes - before.received.bytes,
            },
        }
    }
}

fn guest_spec(case: &Case) -> GuestSpec {
    let base = GuestSpec::new();
    let longest = case.frame_bytes() + frames::TAG as u32;
    if case.what != What::Throughput {
        return GuestSpec { longest, ..base };
    }
    let offloads = [Features::CSUM, Features::HOST_TSO4, Features::GUEST_CSUM, Features::GUEST_TSO4];
    let features = offloads.into_iter().fold(base.features, Features::with);
    // As many frames as entries at least: 256 of them, 16 MiB a port.
    GuestSpec { features, longest, buffer: SUPER_BUFFER, frames: 0, ..base }
}

fn membership(case: &Case, port: usize) -> Membership {
    match (case.path, Vid::new(frames::VLAN)) {
        (Path::Vlan, Some(vlan)) if frames::is_tagged(case, port) => {
            Membership::Trunk { vlans: vec![vlan], native: None }
        }
        (Path::Vlan, Some(vlan)) => Membership::Access(vlan),
        _ => Membership::Untagged,
    }
}

fn varied(case: &Case, port: usize) -> Varied {
    match case.what {
        What::ScalingMacs => Varied::Addresses((0..case.macs_each()).map(|n| frames::addresses(port, n)).collect()),
        What::ScalingFlows => Varied::Flows(case.flows.clamp(1, 32_768) as u16),
        _ => Varied::Nothing,
    }
}

impl Stand {
    /// Starts the worker, attaches the guests and lets the bridge learn all their addresses.
    ///
    /// # Errors
    /// See [`BenchError`].
    pub fn new(case: Case, cpus: Cpus) -> Result<Stand, BenchError> {
        let ports = usize::from(case.ports);
        let failed = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&failed);
        let sizes = Sizes { heads: (BURST * (1 + ports)).max(Sizes::default().heads), ..Sizes::default() };
        let spec = WorkerSpec { cpu: Some(cpus.worker), idle: Idle::Poll, sizes };
        let worker = WorkerHandle::spawn(
            spec,
            Box::new(move |failure| {
                let mut first = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert((failure.nic.0, failure.reason));
            }),
        )?;
        let changes = worker.changes();
        changes.send(Change::AddBridge { id: BRIDGE, spec: BridgeSpec::new(tsc::cycles()) });
        let mut stations = Vec::with_capacity(ports);
        for port in 0..ports {
            let mut guest = Guest::new(guest_spec(&case))?;
            guest.lay_out(&[frames::frame(&case, port)]);
            let nic = NicId(port as u16);
            let spec = NicSpec { membership: membership(&case, port), ..NicSpec::default() };
            changes.send(Change::AddNic { nic, bridge: BRIDGE, spec });
            changes.send(Change::Attach { nic, lane: 0, port: Box::new(guest.port()?) });
            stations.push(Station { guest, varied: varied(&case, port), turn: 0 });
        }
        let window = matches!(case.what, What::Throughput | What::Loss | What::LatencyHalf).then(|| {
            let spec = guest_spec(&case);
            let buffers = (spec.longest + vmm::ring_port::HEADER_BYTES as u32).div_ceil(spec.buffer);
            u64::from(u32::from(spec.ring) / buffers)
        });
        let mut stand = Stand {
            case,
            stations,
            worker,
            thread: None,
            failed,
            window,
            sent: vec![0; ports],
            received: vec![0; ports],
            total: Count::default(),
        };
        stand.report(|_| Ok(()))?;
        // The worker has its name when it answers.
        stand.thread = Thread::named(&format!("worker-{}", cpus.worker));
        stand.learn()?;
        Ok(stand)
    }

    /// What it is for.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// The worker's thread.
    pub fn worker_thread(&self) -> Option<Thread> {
        self.thread
    }

    /// What was sent and received so far.
    pub fn tally(&self) -> Tally {
        Tally { sent: self.sent.iter().sum(), received: self.total }
    }

    /// Whether `port` sends in this case.
    fn sends(&self, port: usize) -> bool {
        port.is_multiple_of(2) || self.case.direction == super::case::Direction::BothWays
    }

    /// Why the switch does not go on.
    fn trouble(&self, otherwise: &'static str) -> BenchError {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.map_or(BenchError::Stalled(otherwise), |(port, reason)| BenchError::Failed(port, reason))
    }

    /// How many of `max` frames from `port` its window has room for.
    #[inline]
    fn admitted(&self, port: usize, max: usize) -> usize {
        let Some(window) = self.window else { return max };
        let of = |counts: &[u64], port: usize| counts.get(port).copied().unwrap_or(0);
        let on_their_way = of(&self.sent, port).saturating_sub(of(&self.received, frames::partner(port)));
        max.min(window.saturating_sub(on_their_way) as usize)
    }

    /// Sends up to `max` frames from `port`, no more than its window has room for.
    #[inline]
    pub fn send(&mut self, port: usize, max: usize) -> Result<usize, BenchError> {
        let max = self.admitted(port, max);
        let (Some(station), Some(sent)) = (self.stations.get_mut(port), self.sent.get_mut(port)) else { return Ok(0) };
        let n = station.send(max).map_err(|fault| BenchError::Fault { port, fault })?;
        *sent += n as u64;
        Ok(n)
    }

    /// Sends up to `max` frames from every port that sends. Returns how many were sent, and how many that would have been.
    #[inline]
    pub fn send_all(&mut self, max: usize) -> Result<(usize, usize), BenchError> {
        let (mut sent, mut due) = (0, 0);
        for port in 0..self.stations.len() {
            if self.sends(port) {
                sent += self.send(port, max)?;
                due += max;
            }
        }
        Ok((sent, due))
    }

    /// Sends up to `max` frames from `port`, into each of which `stamp` writes.
    #[inline]
    pub fn send_with(
        &mut self,
        port: usize,
        max: usize,
        stamp: impl FnMut(&MapRef<'_>, Room),
    ) -> Result<usize, BenchError> {
        let max = self.admitted(port, max);
        let (Some(station), Some(sent)) = (self.stations.get_mut(port), self.sent.get_mut(port)) else { return Ok(0) };
        let n = station.guest.send_with(max, stamp).map_err(|fault| BenchError::Fault { port, fault })?;
        *sent += n as u64;
        Ok(n)
    }

    /// Receives a burst at `port`, and `look` sees each frame. Returns how many there were.
    #[inline]
    pub fn receive_with(&mut self, port: usize, look: impl FnMut(&MapRef<'_>, Lent)) -> Result<u64, BenchError> {
        let Some(station) = self.stations.get_mut(port) else { return Ok(0) };
        let count = station.guest.receive_with(look).map_err(|fault| BenchError::Fault { port, fault })?;
        self.count(port, count);
        Ok(count.frames)
    }

    /// Receives a burst at `port`. Returns how many frames there were.
    #[inline]
    pub fn receive(&mut self, port: usize) -> Result<u64, BenchError> {
        let Some(station) = self.stations.get_mut(port) else { return Ok(0) };
        let count = station.guest.receive().map_err(|fault| BenchError::Fault { port, fault })?;
        self.count(port, count);
        Ok(count.frames)
    }

    /// Receives a burst at every port. Returns how many frames there were.
    #[inline]
    pub fn receive_all(&mut self) -> Result<u64, BenchError> {
        (0..self.stations.len()).try_fold(0, |frames, port| Ok(frames + self.receive(port)?))
    }

    #[inline]
    fn count(&mut self, port: usize, count: Count) {
        if let Some(received) = self.received.get_mut(port) {
            *received += count.frames;
        }
        self.total += count;
    }

    /// What the worker counted, asked for while `meanwhile` goes on.
    ///
    /// # Errors
    /// See [`BenchError`].
    pub fn report(
        &mut self,
        mut meanwhile: impl FnMut(&mut Stand) -> Result<(), BenchError>,
    ) -> Result<Report, BenchError> {
        let (reply, answer) = sync_channel(1);
        if !self.worker.changes().send(Change::Show { reply }) {
            return Err(BenchError::Ended);
        }
        let deadline = deadline();
        loop {
            match answer.try_recv() {
                Ok(report) => return Ok(report),
                Err(TryRecvError::Disconnected) => return Err(BenchError::Ended),
                Err(TryRecvError::Empty) if tsc::cycles() > deadline => {
                    return Err(self.trouble("an answer of the worker"));
                }
                Err(TryRecvError::Empty) => meanwhile(self)?,
            }
        }
    }

    /// Receives until nothing is on its way any more.
    ///
    /// # Errors
    /// See [`BenchError`].
    pub fn drain(&mut self) -> Result<(), BenchError> {
        let deadline = deadline();
        loop {
            let mut unsent = 0;
            for (port, station) in self.stations.iter_mut().enumerate() {
                unsent += station.guest.unsent().map_err(|fault| BenchError::Fault { port, fault })?;
            }
            // A frame is taken only after it was published at the other end, or dropped.
            let received = self.receive_all()?;
            if unsent == 0 && received == 0 {
                return Ok(());
            }
            if tsc::cycles() > deadline {
                return Err(self.trouble("the end of what was sent"));
            }
        }
    }

    /// Lets the bridge learn every address of every port: those that only receive send first, so that the others flood nothing.
    fn learn(&mut self) -> Result<(), BenchError> {
        let ports = self.stations.len();
        for port in (0..ports).filter(|port| port % 2 == 1).chain((0..ports).filter(|port| port % 2 == 0)) {
            let deadline = deadline();
            let mut left = self.case.macs_each() as usize;
            while left > 0 {
                left -= self.send(port, left.min(BURST))?;
                self.drain()?;
                if tsc::cycles() > deadline {
                    return Err(self.trouble("that addresses are learnt"));
                }
            }
        }
        // Floods count at every port; from here on, what is received was sent.
        self.sent.fill(0);
        self.received.fill(0);
        self.total = Count::default();
        Ok(())
    }
}

fn deadline() -> u64 {
    tsc::cycles() + PATIENCE_SECONDS * tsc::cycles_per_second()
}

/// Frames dropped by the switch, by reason.
pub fn drops(report: &Report) -> BTreeMap<&'static str, u64> {
    let mut drops = BTreeMap::new();
    for (reason, count) in report.counters.iter().flat_map(|(_, counters)| counters.all_drops()) {
        *drops.entry(reason.name()).or_default() += count;
    }
    drops
}

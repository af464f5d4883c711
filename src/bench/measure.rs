//! One repeat of one case: load, and what came of it.
//!
//! Invariant: all that is sent in a repeat is accounted for at its end, when nothing is on its way: received, or dropped by the switch with a
//! reason; the rest is lost, and more than was sent is made up. Read first: [`crate::bench::stand`].
//!
//! Theory of operation: the load begins before the measured time and goes on past it; the worker is asked for its counters while it runs.

use hdrhistogram::Histogram;
use sys::tsc;
use wire::BURST;

use super::{
    case::{Case, Direction, What},
    frames,
    machine::{Cpus, Use, Watch},
    search::{self, Device, Trial},
    stand::{BenchError, Stand, Tally, drops},
    stats::share,
};

/// Frames of a burst under paced load.
const PACED_BURST: usize = 32;
/// Every so many frames under paced load one is timed; no divisor of a burst, so that each place in it has its turn.
const TIMED: u64 = 7;
/// Longest time of a histogram, in nanoseconds.
const LONGEST_NS: u64 = 10_000_000_000;
/// Share of the frames wanted under paced load that may be due at its end, before the rate counts as not offered.
const TOLERATED: f64 = 0.01;
/// A trial of the search for the no-loss rate takes this share of the time of a measurement.
const TRIAL: f64 = 0.5;

/// How long, and where.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The CPUs.
    pub cpus: Cpus,
    /// Seconds of load before.
    pub warm_up: f64,
    /// Seconds measured.
    pub seconds: f64,
}

/// What one repeat gave.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The figure, in the unit of the case; nothing for latencies.
    pub figure: f64,
    /// Times, in nanoseconds.
    pub times: Option<Histogram<u64>>,
    /// Frames sent.
    pub sent: u64,
    /// Frames that were due under paced load and not sent.
    pub missing: f64,
    /// Frames received.
    pub received: u64,
    /// Frames that the switch dropped, with a reason.
    pub dropped: u64,
    /// Share of the worker's time in which it had frames.
    pub worker_busy: f64,
    /// The worker's cycles for a frame.
    pub cycles_per_frame: f64,
    /// What the threads had of their CPUs.
    pub used: Use,
    /// Frames a second offered, in millions; nothing where as many were as were taken.
    pub offered_mpps: Option<f64>,
}

impl Sample {
    /// Frames that went nowhere: sent, not received, not dropped with a reason. Less than zero: made up.
    pub fn lost(&self) -> i64 {
        self.sent as i64 - self.received as i64 - self.dropped as i64
    }
}

/// Measures a case once. `no_loss` is the rate of frames a second for half of which a latency is asked.
///
/// # Errors
/// See [`BenchError`].
pub fn once(case: Case, setting: Setting, no_loss: Option<f64>) -> Result<Sample, BenchError> {
    let mut stand = Stand::new(case, setting.cpus)?;
    let mut offered = None;
    let sample = match case.what {
        What::LatencyIdle => window(&mut stand, setting, &mut Ping { times: histogram()? })?,
        What::LatencyHalf | What::Loss => {
            let no_loss = match no_loss {
                Some(rate) => rate,
                None => no_loss_rate(&mut stand, setting)?,
            };
            let rate = if case.what == What::Loss { no_loss } else { no_loss / 2.0 };
            offered = Some(rate);
            let times = if case.what == What::Loss { None } else { Some(histogram()?) };
            let mut paced = Paced::new(&stand, rate, times);
            window(&mut stand, setting, &mut paced)?
        }
        _ => window(&mut stand, setting, &mut FlatOut)?,
    };
    Ok(match offered {
        // What a no-loss rate is, was found before; the last load only shows what it costs.
        Some(rate) if case.what == What::Loss => {
            Sample { figure: rate / 1e6, offered_mpps: Some(rate / 1e6), ..sample }
        }
        _ => Sample { offered_mpps: offered.map(|rate| rate / 1e6), ..sample },
    })
}

/// The highest rate of frames a second at which nothing is lost.
fn no_loss_rate(stand: &mut Stand, setting: Setting) -> Result<f64, BenchError> {
    let flat_out = window(stand, setting, &mut FlatOut)?;
    let trial = Setting { seconds: setting.seconds * TRIAL, warm_up: setting.warm_up * TRIAL, ..setting };
    let mut device = Switch { stand, setting: trial };
    search::no_loss(&mut device, flat_out.figure * 1e6 * search::HEADROOM)
}

/// The switch as a device under test.
struct Switch<'a> {
    stand: &'a mut Stand,
    setting: Setting,
}

impl Device for Switch<'_> {
    type Error = BenchError;

    fn offer(&mut self, rate: f64) -> Result<Trial, BenchError> {
        let mut paced = Paced::new(self.stand, rate, None);
        let sample = window(self.stand, self.setting, &mut paced)?;
        let offered = sample.missing <= TOLERATED * rate * self.setting.seconds;
        Ok(Trial { offered, lost: sample.sent != sample.received })
    }
}

/// A way to load the stand.
trait Load {
    /// One round: send what is due, receive what is there.
    fn round(&mut self, stand: &mut Stand) -> Result<(), BenchError>;

    /// The measured time begins.
    fn begin(&mut self) {}

    /// The measured time is over: times measured, and frames that were due and not sent.
    fn end(&mut self) -> (Option<Histogram<u64>>, f64) {
        (None, 0.0)
    }
}

/// As much as is taken.
struct FlatOut;

impl Load for FlatOut {
    #[inline]
    fn round(&mut self, stand: &mut Stand) -> Result<(), BenchError> {
        stand.send_all(BURST)?;
        stand.receive_all()?;
        Ok(())
    }
}

/// One frame on its way.
struct Ping {
    times: Histogram<u64>,
}

impl Load for Ping {
    fn round(&mut self, stand: &mut Stand) -> Result<(), BenchError> {
        let begin = tsc::cycles();
        if stand.send(0, 1)? == 0 {
            return Ok(());
        }
        let lost = begin + tsc::cycles_per_second();
        loop {
            let received = stand.receive(1)?;
            let now = tsc::cycles();
            if received > 0 {
                record(&mut self.times, now - begin);
                return Ok(());
            }
            if now > lost {
                return Ok(());
            }
        }
    }

    fn begin(&mut self) {
        self.times.reset();
    }

    fn end(&mut self) -> (Option<Histogram<u64>>, f64) {
        (Some(self.times.clone()), 0.0)
    }
}

/// So many frames a second, in bursts.
struct Paced {
    /// Ticks between two bursts of a port.
    gap: f64,
    /// When the next burst is due.
    next: f64,
    /// Times, where they are asked for; nothing is recorded before the measured time.
    times: Option<Histogram<u64>>,
    measuring: bool,
    /// Frames sent, to choose those that are timed.
    turn: u64,
}

impl Paced {
    /// `rate` frames a second, from all ports that send together.
    fn new(stand: &Stand, rate: f64, times: Option<Histogram<u64>>) -> Paced {
        let senders = match stand.case().direction {
            Direction::OneWay => 1.0,
            Direction::BothWays => 2.0,
        } * f64::from(stand.case().ports / 2);
        let gap = tsc::cycles_per_second() as f64 * PACED_BURST as f64 * senders / rate.max(1.0);
        Paced { gap, next: 0.0, times, measuring: false, turn: 0 }
    }

    /// Frames that should have been sent by now and were not.
    fn missing(&self) -> f64 {
        let behind = (tsc::cycles() as f64 - self.next - self.gap).max(0.0);
        behind / self.gap * PACED_BURST as f64
    }

    /// Sends a burst from port 0, some of its frames with the time in them.
    fn send_timed(&mut self, stand: &mut Stand) -> Result<usize, BenchError> {
        let now = tsc::cycles().to_le_bytes();
        let turn = &mut self.turn;
        stand.send_with(0, PACED_BURST, |map, room| {
            let stamp = if turn.is_multiple_of(TIMED) { now } else { [0; 8] };
            map.write(room.after(frames::STAMP_AT), &stamp);
            *turn += 1;
        })
    }

    /// Receives at port 1 and looks for times.
    fn receive_timed(&mut self, stand: &mut Stand) -> Result<(), BenchError> {
        let Paced { times, measuring, .. } = self;
        let now = tsc::cycles();
        stand.receive_with(1, |map, frame| {
            let mut stamp = [0; 8];
            if let Some(part) = frame.part(frames::STAMP_AT, 8) {
                map.read(part, &mut stamp);
            }
            let then = u64::from_le_bytes(stamp);
            if then != 0
                && *measuring
                && let Some(times) = times
            {
                record(times, now.saturating_sub(then));
            }
        })?;
        Ok(())
    }
}

impl Load for Paced {
    #[inline]
    fn round(&mut self, stand: &mut Stand) -> Result<(), BenchError> {
        let now = tsc::cycles() as f64;
        if self.next == 0.0 {
            self.next = now;
        }
        let timed = self.times.is_some();
        if now >= self.next {
            let (sent, due) = match timed {
                true => (self.send_timed(stand)?, PACED_BURST),
                false => stand.send_all(PACED_BURST)?,
            };
            // What a full ring did not take stays due.
            self.next += self.gap * share(sent as f64, due as f64);
        }
        if timed { self.receive_timed(stand) } else { stand.receive_all().map(drop) }
    }

    fn begin(&mut self) {
        self.measuring = true;
        // What the warm-up did not get sent is not made up for in the measured time.
        self.next = tsc::cycles() as f64;
    }

    fn end(&mut self) -> (Option<Histogram<u64>>, f64) {
        (self.times.take(), self.missing())
    }
}

fn run(stand: &mut Stand, load: &mut impl Load, seconds: f64) -> Result<(), BenchError> {
    let until = tsc::cycles() + (seconds * tsc::cycles_per_second() as f64) as u64;
    while tsc::cycles() < until {
        load.round(stand)?;
    }
    Ok(())
}

/// Warms up, measures, and accounts for every frame.
fn window(stand: &mut Stand, setting: Setting, load: &mut impl Load) -> Result<Sample, BenchError> {
    stand.drain()?;
    let (first, dropped_before) = (stand.tally(), dropped(stand)?);
    run(stand, load, setting.warm_up)?;
    let before = stand.report(|stand| load.round(stand))?;
    load.begin();
    let (watch, from, begin) = (Watch::begin(setting.cpus, stand.worker_thread()), stand.tally(), tsc::cycles());
    run(stand, load, setting.seconds)?;
    let (ticks, to, used) = (tsc::cycles() - begin, stand.tally(), watch.used());
    let (times, missing) = load.end();
    let after = stand.report(|stand| load.round(stand))?;
    stand.drain()?;
    let all = stand.tally().since(first);
    let seconds = ticks as f64 / tsc::cycles_per_second() as f64;
    let busy = (after.busy_cycles - before.busy_cycles) as f64;
    let idle = (after.idle_cycles - before.idle_cycles) as f64;
    Ok(Sample {
        figure: figure(stand.case(), to.since(from), seconds),
        times,
        missing,
        sent: all.sent,
        received: all.received.frames,
        dropped: dropped(stand)?.saturating_sub(dropped_before),
        worker_busy: share(busy, busy + idle),
        cycles_per_frame: share(busy, (after.frames - before.frames) as f64),
        used,
        offered_mpps: None,
    })
}

fn dropped(stand: &mut Stand) -> Result<u64, BenchError> {
    let report = stand.report(|_| Ok(()))?;
    Ok(drops(&report).values().sum())
}

fn figure(case: &Case, done: Tally, seconds: f64) -> f64 {
    match case.what {
        What::Throughput => share(done.received.bytes as f64 * 8.0 / 1e9, seconds),
        _ => share(done.received.frames as f64 / 1e6, seconds),
    }
}

fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_max(LONGEST_NS, 3).map_err(|error| std::io::Error::other(error.to_string()).into())
}

fn record(times: &mut Histogram<u64>, ticks: u64) {
    let ns = u128::from(ticks) * 1_000_000_000 / u128::from(tsc::cycles_per_second());
    times.saturating_record(ns as u64);
}

//! [`Results`]: what a run gave, in the shape of `--json`, and the tables that people read.
//!
//! Invariant: every case of a run has one row; every number carries its unit in its name or beside it.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    case::{Case, What},
    machine::{Cpus, Host},
    measure::Sample,
    stats::Spread,
};
use crate::table::Table;

/// Share of the worker's time in which it must have had frames, for the switch to be the limit of a rate.
const SATURATED: f64 = 0.97;

/// How a run was made.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// Seconds measured in each repeat.
    pub seconds: f64,
    /// Seconds of load before.
    pub warm_up_seconds: f64,
    /// Repeats of each case.
    pub repeats: u32,
}

/// What both threads did while a case was measured: medians of the repeats, sums of frames.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Effort {
    /// Repeats.
    pub repeats: usize,
    /// Share of the worker's time in which it had frames.
    pub worker_busy: f64,
    /// Share of the time for which the worker's thread ran.
    pub worker_cpu: f64,
    /// Ticks of the cycle counter that the worker spent on a frame.
    pub cycles_per_frame: f64,
    /// Share of the time for which the generator's thread ran.
    pub generator_cpu: f64,
    /// Share of the two CPUs that the hypervisor took, at worst.
    pub steal: f64,
    /// Frames sent, warm-up included.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Frames that the switch dropped and gave a reason for.
    pub frames_dropped: u64,
    /// Frames that went nowhere; below zero: made up. Anything but zero is a defect.
    pub frames_lost: i64,
    /// Something else was in the way in at least one repeat.
    pub disturbed: bool,
    /// In how many.
    pub disturbed_repeats: usize,
}

impl Effort {
    fn of(samples: &[Sample]) -> Effort {
        let median = |figure: fn(&Sample) -> f64| round(Spread::of(samples.iter().map(figure)).median);
        let disturbed_repeats = samples.iter().filter(|sample| sample.used.is_disturbed()).count();
        Effort {
            repeats: samples.len(),
            worker_busy: median(|sample| sample.worker_busy),
            worker_cpu: median(|sample| sample.used.worker),
            cycles_per_frame: median(|sample| sample.cycles_per_frame),
            generator_cpu: median(|sample| sample.used.generator),
            steal: round(Spread::of(samples.iter().map(|sample| sample.used.steal)).max),
            frames_sent: samples.iter().map(|sample| sample.sent).sum(),
            frames_received: samples.iter().map(|sample| sample.received).sum(),
            frames_dropped: samples.iter().map(|sample| sample.dropped).sum(),
            frames_lost: samples.iter().map(Sample::lost).sum(),
            disturbed: disturbed_repeats > 0,
            disturbed_repeats,
        }
    }
}

/// A case whose figure is a rate.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which.
    #[serde(flatten)]
    pub case: Case,
    /// Of median, min and max: millions of frames a second, or 10^9 bits of Ethernet without FCS a second.
    pub unit: &'static str,
    /// The figures.
    #[serde(flatten)]
    pub spread: Spread,
    /// What it took.
    #[serde(flatten)]
    pub effort: Effort,
}

/// A case whose figure is a distribution of times, all repeats together.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyRow {
    /// Which.
    #[serde(flatten)]
    pub case: Case,
    /// Millions of frames a second; nothing with one frame on its way.
    pub offered_mpps: Option<f64>,
    /// Frames timed.
    pub frames_timed: u64,
    /// Half of them took no longer.
    pub p50_us: f64,
    /// The same of the repeat with the least.
    pub p50_min_us: f64,
    /// The same of the repeat with the greatest.
    pub p50_max_us: f64,
    /// Nine in ten.
    pub p90_us: f64,
    /// 99 in 100.
    pub p99_us: f64,
    /// 999 in 1000.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// What it took.
    #[serde(flatten)]
    pub effort: Effort,
    /// Percentile and time, for the plot.
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The machine.
    pub host: Host,
    /// Where the threads ran.
    pub cpus: Cpus,
    /// How it was measured.
    pub settings: Settings,
    /// Rates.
    pub rows: Vec<Row>,
    /// Times.
    pub latency: Vec<LatencyRow>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Four digits behind the point are more than any of these figures is good for.
fn round(figure: f64) -> f64 {
    (figure * 1e4).round() / 1e4
}

fn latency(case: Case, samples: &[Sample]) -> LatencyRow {
    let us = |ns: u64| round(ns as f64 / 1000.0);
    let each: Vec<&Histogram<u64>> = samples.iter().filter_map(|sample| sample.times.as_ref()).collect();
    let mut all = each.first().map(|times| Histogram::new_from(times));
    if let Some(all) = &mut all {
        // All were made with the same bounds.
        each.iter().for_each(|times| {
            let _ = all.add(*times);
        });
    }
    let at = |quantile: f64| all.as_ref().map_or(0.0, |all| us(all.value_at_quantile(quantile)));
    let medians = Spread::of(each.iter().map(|times| us(times.value_at_quantile(0.5))));
    // From the half on, every step halves what is left: as far as there are frames to fill it.
    let timed = all.as_ref().map_or(0, Histogram::len);
    let steps = (0..=(timed.max(1).ilog2() * 4)).map(|step| 1.0 - 0.5f64.powf(f64::from(step) / 4.0));
    LatencyRow {
        case,
        offered_mpps: samples.first().and_then(|sample| sample.offered_mpps).map(round),
        frames_timed: timed,
        p50_us: at(0.5),
        p50_min_us: medians.min,
        p50_max_us: medians.max,
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: all.as_ref().map_or(0.0, |all| us(all.max())),
        effort: Effort::of(samples),
        curve: if timed == 0 { Vec::new() } else { steps.map(|quantile| (quantile, at(quantile))).collect() },
    }
}

impl Results {
    /// Of the samples of each case.
    pub fn new(host: Host, cpus: Cpus, settings: Settings, measured: &[(Case, Vec<Sample>)]) -> Results {
        let mut results = Results { host, cpus, settings, rows: Vec::new(), latency: Vec::new(), notes: Vec::new() };
        for (case, samples) in measured {
            if case.what.is_latency() {
                results.latency.push(latency(*case, samples));
                continue;
            }
            let Spread { median, min, max } = Spread::of(samples.iter().map(|sample| sample.figure));
            let spread = Spread { median: round(median), min: round(min), max: round(max) };
            results.rows.push(Row { case: *case, unit: case.what.unit(), spread, effort: Effort::of(samples) });
        }
        results.notes = results.remarks();
        results
    }

    /// What both kinds of row have.
    fn efforts(&self) -> impl Iterator<Item = (&Case, &Effort)> {
        let rows = self.rows.iter().map(|row| (&row.case, &row.effort));
        rows.chain(self.latency.iter().map(|row| (&row.case, &row.effort)))
    }

    fn remarks(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.cpus.are_one() {
            notes.push(format!(
                "generator and switch shared CPU {}: these figures say next to nothing; give two with --cpus",
                self.cpus.worker
            ));
        }
        if cfg!(debug_assertions) {
            notes.push("this is a build for debugging: rates are a fraction of those of a release build".to_owned());
        }
        let disturbed = self.efforts().filter(|(_, effort)| effort.disturbed).count();
        if disturbed > 0 {
            notes.push(format!(
                "disturbed: in {disturbed} of {} rows a thread had less than 90 % of its CPU in some repeat, or the hypervisor \
                 took time; their lower ends say more of the machine than of the switch",
                self.efforts().count()
            ));
        }
        let lost: i64 = self.efforts().map(|(_, effort)| effort.frames_lost.abs()).sum();
        if lost > 0 {
            notes.push(format!("{lost} frames were lost without a reason, or made up: a defect of this program"));
        }
        let generator =
            |row: &&Row| !matches!(row.case.what, What::Loss | What::Throughput) && row.effort.worker_busy < SATURATED;
        let limited = self.rows.iter().filter(generator).count();
        if limited > 0 {
            notes.push(format!(
                "in {limited} rows the worker was busy for less than {:.0} % of the time: there, the generator or the way between \
                 the two CPUs was the limit, and the switch alone is faster",
                SATURATED * 100.0
            ));
        }
        let dropped: u64 =
            self.rows.iter().filter(|row| row.case.what != What::Loss).map(|row| row.effort.frames_dropped).sum();
        if dropped > 0 {
            notes.push(format!("{dropped} frames found a full ring while sent as fast as possible, and were dropped"));
        }
        notes
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn mark(effort: &Effort) -> String {
    match effort.disturbed_repeats {
        0 => String::new(),
        n => format!("disturbed {n}/{}", effort.repeats),
    }
}

/// Heads of the table of rates, as [`Table`] takes them.
pub const RATE_HEADS: [&str; 15] = [
    "WHAT",
    "PATH",
    ">SIZE",
    "DIRECTION",
    ">PORTS",
    ">MACS",
    ">FLOWS",
    ">MEDIAN",
    ">MIN",
    ">MAX",
    "UNIT",
    ">BUSY",
    ">CYCLES/FRAME",
    ">GENERATOR",
    "REMARK",
];
/// Heads of the table of latencies.
pub const LATENCY_HEADS: [&str; 12] = [
    "WHAT",
    ">SIZE",
    ">OFFERED",
    ">P50 us",
    ">MIN..MAX",
    ">P90 us",
    ">P99 us",
    ">P99.9 us",
    ">MAX us",
    ">FRAMES",
    ">BUSY",
    "REMARK",
];

impl Row {
    /// As people read it, under [`RATE_HEADS`].
    pub fn cells(&self) -> [String; 15] {
        let Row { case, unit, spread, effort } = self;
        let figure = |figure: f64| format!("{figure:.2}");
        [
            case.what.title().to_owned(),
            case.path.word().to_owned(),
            case.size_bytes.to_string(),
            case.direction.word().to_owned(),
            case.ports.to_string(),
            case.macs.to_string(),
            case.flows.to_string(),
            figure(spread.median),
            figure(spread.min),
            figure(spread.max),
            (*unit).to_owned(),
            percent(effort.worker_busy),
            format!("{:.0}", effort.cycles_per_frame),
            percent(effort.generator_cpu),
            mark(effort),
        ]
    }
}

impl LatencyRow {
    /// As people read it, under [`LATENCY_HEADS`].
    pub fn cells(&self) -> [String; 12] {
        let us = |us: f64| format!("{us:.2}");
        [
            self.case.what.title().to_owned(),
            self.case.size_bytes.to_string(),
            self.offered_mpps.map_or(String::new(), |mpps| format!("{mpps:.2} Mpps")),
            us(self.p50_us),
            format!("{:.2}..{:.2}", self.p50_min_us, self.p50_max_us),
            us(self.p90_us),
            us(self.p99_us),
            us(self.p999_us),
            us(self.max_us),
            crate::table::count(self.frames_timed),
            percent(self.effort.worker_busy),
            mark(&self.effort),
        ]
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { seconds, repeats, .. } = self.settings;
        writeln!(
            f,
            "{}, {}; generator on CPU {}, switch on CPU {}; medians of {repeats} x {seconds} s",
            self.host.name, self.host.processor, self.cpus.generator, self.cpus.worker
        )?;
        if !self.rows.is_empty() {
            let mut table = Table::new(&RATE_HEADS);
            self.rows.iter().for_each(|row| table.row(row.cells()));
            write!(f, "\n{table}")?;
        }
        if !self.latency.is_empty() {
            let mut table = Table::new(&LATENCY_HEADS);
            self.latency.iter().for_each(|row| table.row(row.cells()));
            write!(f, "\n{table}")?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

#[cfg(test)]
mod tests;

//! `bench`: measures packet rate, throughput and latency of the switch on this machine.
//!
//! Invariant: nothing of the machine is changed, nothing need be installed, and no root is needed: two threads, one that loads and one that
//! switches, and memory between them. Read in this order: [`case`] (what is measured), [`stand`] (switch and guests), [`measure`] (one
//! repeat), [`report`] (what comes of it).
//!
//! Theory of operation: repeats go round by round over all cases, so that a change of the machine within minutes spreads over all of them
//! instead of over one; every repeat has a fresh switch and fresh memory.

mod case;
mod frames;
mod html;
mod machine;
mod measure;
mod report;
mod search;
mod stand;
mod stats;

use std::{collections::HashMap, fs, io};

use indicatif::{ProgressBar, ProgressStyle};

use self::{
    case::{Case, What},
    machine::{Cpus, Host},
    measure::{Sample, Setting},
    report::{Results, Settings},
};
use crate::args::{BenchArguments, Measurement};

pub use self::stand::BenchError;

/// The part of the measured time for which a load goes on before, within bounds in seconds.
const WARM_UP: (f64, f64, f64) = (0.4, 0.02, 0.5);

/// Measures, and returns the table or JSON.
///
/// # Errors
/// See [`BenchError`].
pub fn run(arguments: &BenchArguments, host: String, json: bool) -> Result<String, BenchError> {
    let cpus = match arguments.cpus {
        Some((generator, worker)) => Cpus { generator, worker },
        None => Cpus::here()?,
    };
    let allowed = sys::affinity::allowed_cpus()?;
    if let Some(cpu) = [cpus.generator, cpus.worker].into_iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(BenchError::Cpu(cpu, allowed));
    }
    if let Some(file) = &arguments.html {
        // Better now than after all that work.
        let opened = fs::OpenOptions::new().append(true).create(true).open(file);
        opened.map_err(|error| BenchError::File(file.clone(), error))?;
    }
    let settings = settings(arguments);
    let cases = case::plan(arguments.what.unwrap_or(Measurement::All));
    let bar = progress(cases.len() as u64 * u64::from(settings.repeats));
    let generator = {
        let (cases, bar) = (cases.clone(), bar.clone());
        std::thread::Builder::new()
            .name("generator".to_owned())
            .spawn(move || generate(&cases, cpus, settings, &bar))?
    };
    let measured = generator.join().unwrap_or(Err(BenchError::Ended));
    bar.finish_and_clear();
    let results = Results::new(Host::here(host), cpus, settings, &measured?);
    if let Some(file) = &arguments.html {
        fs::write(file, html::page(&results)?).map_err(|error| BenchError::File(file.clone(), error))?;
    }
    Ok(match json {
        true => serde_json::to_string(&results).map_err(io::Error::from)? + "\n",
        false => results.to_string(),
    })
}

fn settings(arguments: &BenchArguments) -> Settings {
    // Without a kind, a look at everything within a minute; with one, time to be exact.
    let (seconds, repeats) = if arguments.what.is_some() { (1.0, 5) } else { (0.25, 3) };
    let seconds = arguments.seconds.unwrap_or(seconds);
    let (part, least, most) = WARM_UP;
    let warm_up_seconds = (seconds * part).clamp(least, most);
    Settings { seconds, warm_up_seconds, repeats: arguments.repeats.unwrap_or(repeats) }
}

/// A bar on stderr, if that is a terminal.
fn progress(samples: u64) -> ProgressBar {
    let bar = ProgressBar::new(samples);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta} left  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The generator's thread: all repeats of all cases.
fn generate(
    cases: &[Case],
    cpus: Cpus,
    settings: Settings,
    bar: &ProgressBar,
) -> Result<Vec<(Case, Vec<Sample>)>, BenchError> {
    sys::affinity::pin(cpus.generator)?;
    let setting = Setting { cpus, warm_up: settings.warm_up_seconds, seconds: settings.seconds };
    let mut measured: Vec<(Case, Vec<Sample>)> = cases.iter().map(|case| (*case, Vec::new())).collect();
    // Frames a second without loss, by size.
    let mut no_loss: HashMap<u32, f64> = HashMap::new();
    for _ in 0..settings.repeats {
        for (case, samples) in &mut measured {
            bar.set_message(case.title());
            let known = no_loss.get(&case.size_bytes).copied().filter(|_| case.what == What::LatencyHalf);
            let sample = measure::once(*case, setting, known)?;
            match (case.what, sample.offered_mpps) {
                (What::Loss, Some(mpps)) => drop(no_loss.insert(case.size_bytes, mpps * 1e6)),
                (What::LatencyHalf, Some(mpps)) => drop(no_loss.insert(case.size_bytes, mpps * 2e6)),
                _ => {}
            }
            samples.push(sample);
            bar.inc(1);
        }
    }
    Ok(measured)
}

//! The machine that is measured on: which CPUs, how much of them the threads got, what the hypervisor took.
//!
//! Invariant: nothing of the machine is changed but where our own threads run.
//! Read first: proc_stat(5); [`sys::cpu_time`].

use std::fs;

use serde::Serialize;
use sys::{affinity, cpu_time::Thread, tsc};

use super::stats::share;

/// A thread that had less than this share of its CPU was disturbed.
pub const UNDISTURBED: f64 = 0.9;
/// Steal is counted in hundredths of a second, so in a short time one of them says little: this share of both CPUs is tolerated.
const TOLERATED_STEAL: f64 = 0.01;

/// The CPUs of the two threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cpus {
    /// The generator's.
    pub generator: usize,
    /// The worker's.
    pub worker: usize,
}

impl Cpus {
    /// The first two CPUs that this process may use, or the only one for both.
    ///
    /// # Errors
    /// The system does not say which it may use.
    pub fn here() -> std::io::Result<Cpus> {
        let allowed = affinity::allowed_cpus()?;
        let generator = allowed.first().copied().unwrap_or(0);
        Ok(Cpus { generator, worker: allowed.get(1).copied().unwrap_or(generator) })
    }

    /// Both threads share one CPU.
    pub fn are_one(&self) -> bool {
        self.generator == self.worker
    }
}

/// Where and on what the figures were taken.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The processor, as it calls itself.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus_allowed: usize,
    /// Ticks of the cycle counter a second: the unit of `cycles_per_frame`.
    pub tsc_hz: u64,
    /// This program's version.
    pub trunkline: &'static str,
}

impl Host {
    /// This one.
    pub fn here(name: String) -> Host {
        let first_line = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
        let model = |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Host {
            name,
            processor: info.lines().find_map(model).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").map(first_line).unwrap_or_default(),
            cpus_allowed: affinity::allowed_cpus().map_or(0, |cpus| cpus.len()),
            tsc_hz: tsc::cycles_per_second(),
            trunkline: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// What was used up to a moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    ns: u64,
    generator_ns: u64,
    worker_ns: u64,
    stolen: u64,
}

/// Looks at the use of CPUs from its making on.
pub struct Watch {
    cpus: Cpus,
    worker: Option<Thread>,
    begin: Moment,
}

/// What a [`Watch`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Use {
    /// Share of the time for which the generator's thread ran.
    pub generator: f64,
    /// The same of the worker's thread.
    pub worker: f64,
    /// Share of the two CPUs' time that the hypervisor gave to others.
    pub steal: f64,
}

impl Use {
    /// Whether something else on the machine was in the way.
    pub fn is_disturbed(&self) -> bool {
        self.generator < UNDISTURBED || self.worker < UNDISTURBED || self.steal > TOLERATED_STEAL
    }
}

impl Watch {
    /// Begins. The calling thread is the generator.
    pub fn begin(cpus: Cpus, worker: Option<Thread>) -> Watch {
        Watch { cpus, worker, begin: Moment::now(cpus, worker) }
    }

    /// What was used since.
    pub fn used(&self) -> Use {
        let (from, to) = (self.begin, Moment::now(self.cpus, self.worker));
        let ns = to.ns.saturating_sub(from.ns) as f64;
        let steal_ns = to.stolen.saturating_sub(from.stolen) as f64 * 1e7;
        Use {
            generator: share(to.generator_ns.saturating_sub(from.generator_ns) as f64, ns).min(1.0),
            worker: share(to.worker_ns.saturating_sub(from.worker_ns) as f64, ns).min(1.0),
            steal: share(steal_ns, 2.0 * ns),
        }
    }
}

impl Moment {
    fn now(cpus: Cpus, worker: Option<Thread>) -> Moment {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Moment {
            stolen: stolen(&stat, cpus.generator) + stolen(&stat, cpus.worker),
            worker_ns: worker.and_then(|thread| thread.cpu_ns().ok()).unwrap_or(0),
            generator_ns: Thread::this().cpu_ns().unwrap_or(0),
            ns: tsc::now_ns(),
        }
    }
}

/// Hundredths of a second that the hypervisor took from a CPU, by the text of /proc/stat.
fn stolen(stat: &str, cpu: usize) -> u64 {
    let name = format!("cpu{cpu}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name));
    line.and_then(|line| line.split_ascii_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_read_of_the_right_cpu() {
        let stat = "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 7 18 0 0\ncpu10 1 2 3 4 5 6 7 28 0 0\n";
        assert_eq!([0, 1, 10, 7].map(|cpu| stolen(stat, cpu)), [8, 18, 28, 0]);
    }

    #[test]
    fn less_than_nine_tenths_or_steal_is_a_disturbance() {
        let good = Use { generator: 0.99, worker: 0.95, steal: 0.0 };
        assert!(!good.is_disturbed());
        assert!(Use { generator: 0.89, ..good }.is_disturbed());
        assert!(Use { worker: 0.5, ..good }.is_disturbed());
        assert!(Use { steal: 0.02, ..good }.is_disturbed());
    }
}

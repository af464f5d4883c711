//! Time for the data path: a cycle counter that costs a few nanoseconds to read, its rate, and the monotonic clock.
//!
//! Invariant: [`cycles`] never goes back on one CPU, and on machines with an invariant counter (every x86-64 and AArch64
//! server of the last decade) ticks at one rate on all of them, asleep or busy. The counter's unit is its own tick, not
//! the core's clock cycle.
//!
//! Read first: Intel SDM volume 3, "Time-Stamp Counter"; Arm ARM, CNTVCT_EL0 and CNTFRQ_EL0; clock_gettime(2).

use std::sync::OnceLock;

/// The cycle counter's value, in ticks since an arbitrary moment.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: RDTSC is available to user space on every x86-64 that Linux runs on, unless a process forbids it to itself.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The cycle counter's value, in ticks since an arbitrary moment.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub fn cycles() -> u64 {
    let ticks: u64;
    // SAFETY: Linux lets user space read CNTVCT_EL0; the read touches neither memory nor flags.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks
}

/// The cycle counter's value, in ticks since an arbitrary moment: on this architecture the monotonic clock.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn cycles() -> u64 {
    now_ns()
}

/// Ticks of [`cycles`] per second. The first call measures it against the monotonic clock, which takes 20 ms of busy
/// waiting; make it at start.
pub fn cycles_per_second() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| measure(20_000_000))
}

/// Nanoseconds of CLOCK_MONOTONIC: since an arbitrary moment, steered by NTP in rate, never set back.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid to write. CLOCK_MONOTONIC exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Counts ticks for `duration` nanoseconds.
fn measure(duration: u64) -> u64 {
    let (start_ns, start) = sample();
    while now_ns().saturating_sub(start_ns) < duration {
        std::hint::spin_loop();
    }
    let (end_ns, end) = sample();
    let (ticks, ns) = (end.saturating_sub(start), end_ns.saturating_sub(start_ns).max(1));
    let rate = u128::from(ticks) * 1_000_000_000 / u128::from(ns);
    u64::try_from(rate).unwrap_or(u64::MAX).max(1)
}

/// Both clocks at nearly the same moment: of several tries the one that was interrupted least.
fn sample() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = cycles();
        let ns = now_ns();
        let spent = cycles().saturating_sub(before);
        if spent < best.0 {
            best = (spent, ns, before + spent / 2);
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let (ticks, ns) = (cycles(), now_ns());
        while now_ns() == ns {
            std::hint::spin_loop();
        }
        assert!(cycles() > ticks && now_ns() > ns);
    }

    #[test]
    fn the_rate_is_that_of_a_computer_and_stays() {
        let rate = cycles_per_second();
        assert!((1_000_000..=10_000_000_000).contains(&rate), "{rate}");
        assert_eq!(cycles_per_second(), rate);
    }
}

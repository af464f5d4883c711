//! Which CPU a thread runs on, and what it is called in `top`.
//!
//! Invariant: everything here concerns the calling thread only.
//!
//! Read first: sched_setaffinity(2), pthread_setname_np(3).

use std::ffi::CString;
use std::io::{self, ErrorKind};

use crate::call::check;

const BITS: usize = usize::BITS as usize;
/// CPU numbers below this can be named: the most that any Linux is built for.
const CPUS: usize = 8192;

type Mask = [usize; CPUS / BITS];

/// Lets the calling thread run on `cpu` only.
///
/// # Errors
/// `InvalidInput`, naming the CPUs that are allowed, if this one is not (it does not exist, is offline, or the process
/// is confined to others by a cpuset); else what sched_setaffinity(2) reported.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut mask: Mask = [0; CPUS / BITS];
    let Some(word) = mask.get_mut(cpu / BITS) else { return Err(not_allowed(cpu)) };
    *word = 1 << (cpu % BITS);
    // SAFETY: the mask is valid to read for its whole size, and 0 means the calling thread.
    let status = unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), mask.as_ptr().cast()) };
    match check(status) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(not_allowed(cpu)),
        Err(error) => Err(error),
    }
}

/// The CPUs that the calling thread may run on, in ascending order.
///
/// # Errors
/// What sched_getaffinity(2) reported.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let mut mask: Mask = [0; CPUS / BITS];
    // SAFETY: the mask is valid to write for its whole size, and 0 means the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size_of::<Mask>(), mask.as_mut_ptr().cast()) })?;
    let allowed = |cpu: &usize| mask.get(cpu / BITS).is_some_and(|word| word >> (cpu % BITS) & 1 == 1);
    Ok((0..CPUS).filter(allowed).collect())
}

/// Names the calling thread. Linux keeps the first 15 bytes.
///
/// # Errors
/// `InvalidInput` if the name holds a zero byte; else what prctl(2) reported.
pub fn set_thread_name(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: PR_SET_NAME reads a C string of any length and truncates it.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })?;
    Ok(())
}

fn not_allowed(cpu: usize) -> io::Error {
    let allowed = allowed_cpus().unwrap_or_default();
    let reason = format!("cpu {cpu} is not among the CPUs this process may use, which are {allowed:?}");
    io::Error::new(ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_that_cpu_only() {
        let all = allowed_cpus().unwrap();
        let last = *all.last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin(last).unwrap();
            allowed_cpus().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert_eq!(allowed_cpus().unwrap(), all);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_and_the_others_are_named() {
        for cpu in [CPUS - 1, CPUS, usize::MAX] {
            let error = pin(cpu).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("{:?}", allowed_cpus().unwrap())), "{error}");
        }
    }

    #[test]
    fn a_name_is_cut_to_what_linux_keeps() {
        let name = std::thread::spawn(|| {
            set_thread_name("trunkline-worker-0").unwrap();
            std::fs::read_to_string("/proc/thread-self/comm").unwrap()
        });
        assert_eq!(name.join().unwrap(), "trunkline-worke\n");
        assert_eq!(set_thread_name("a\0b").unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

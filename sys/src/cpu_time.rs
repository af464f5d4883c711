//! How long a thread has had a CPU.
//!
//! Invariant: nothing here changes anything; a thread is named by its number, which /proc/self/task lists.
//!
//! Read first: clock_gettime(2), pthread_getcpuclockid(3), proc_pid_task(5).

use std::{fs, io};

use crate::call::check;

/// A thread of this process, by its number in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread(libc::pid_t);

impl Thread {
    /// The calling thread.
    pub fn this() -> Thread {
        // SAFETY: gettid(2) has no preconditions.
        Thread(unsafe { libc::gettid() })
    }

    /// A living thread of this process that `top` shows by this name (of which Linux keeps 15 bytes); nothing when there is none.
    pub fn named(name: &str) -> Option<Thread> {
        let short = name.as_bytes().get(..15).unwrap_or(name.as_bytes());
        let called = |entry: fs::DirEntry| {
            let comm = fs::read(entry.path().join("comm")).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            (comm.strip_suffix(b"\n") == Some(short)).then_some(Thread(number))
        };
        fs::read_dir("/proc/self/task").ok()?.filter_map(Result::ok).find_map(called)
    }

    /// Nanoseconds for which it has run on any CPU.
    ///
    /// # Errors
    /// It is gone, or what clock_gettime(2) reported.
    pub fn cpu_ns(self) -> io::Result<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // A thread's CPU clock, as pthread_getcpuclockid(3) makes it of the thread's number: bit 2 says thread, 2 below it says run time.
        let clock = !self.0 << 3 | 6;
        // SAFETY: `time` is valid to write; a clock that does not exist is an error.
        check(unsafe { libc::clock_gettime(clock, &mut time) })?;
        Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_uses_its_cpu_and_another_does_not() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let idler = std::thread::Builder::new().name("idler-of-the-test".to_owned());
        let idler = idler.spawn(move || {
            ready.send(Thread::this()).unwrap();
            let _ = stopped.recv();
        });
        let idle = is_ready.recv().unwrap();
        assert_eq!(Thread::named("idler-of-the-test"), Some(idle));
        let this = Thread::this();
        let (mine, before) = (this.cpu_ns().unwrap(), idle.cpu_ns().unwrap());
        while this.cpu_ns().unwrap() < mine + 20_000_000 {
            std::hint::spin_loop();
        }
        let idled = idle.cpu_ns().unwrap() - before;
        assert!(idled < 20_000_000, "a waiting thread ran for {idled} ns");
        drop(stop);
        idler.unwrap().join().unwrap();
        assert!(idle.cpu_ns().is_err() && Thread::named("idler-of-the-test").is_none());
    }
}

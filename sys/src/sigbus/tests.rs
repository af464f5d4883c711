//! Faults inside and outside registered mappings. What must end the process happens in a second run of this test binary.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use super::*;
use crate::memory::{Mapping, anonymous_file};
use crate::testing::{read, write};

const LEN: usize = 16 * 4096;
/// Chooses what the second run does.
const ROLE: &str = "TRUNKLINE_TEST_SIGBUS_ROLE";

/// A mapping whose file is cut to nothing after it was mapped.
fn truncated() -> Mapping {
    let file = anonymous_file("truncated", LEN as u64).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, LEN as u64).unwrap();
    File::from(file).set_len(0).unwrap();
    mapping
}

#[test]
fn a_read_fault_sees_zeros_and_marks_the_mapping_dead() {
    let before = deaths();
    let (mapping, healthy) =
        (truncated(), Mapping::shared(anonymous_file("ok", 4096).unwrap().as_fd(), 0, 4096).unwrap());
    write(&healthy, 9, 9);
    assert!(!mapping.is_dead());
    assert_eq!(read(&mapping, 5000), 0);
    assert!(mapping.is_dead() && !healthy.is_dead());
    assert!(deaths() > before);
    assert_eq!((read(&mapping, LEN - 1), read(&healthy, 9)), (0, 9));
}

#[test]
fn a_write_fault_is_absorbed() {
    let mapping = truncated();
    write(&mapping, LEN - 1, 7);
    assert!(mapping.is_dead());
    assert_eq!((read(&mapping, LEN - 1), read(&mapping, 0)), (7, 0));
}

#[test]
fn errno_of_the_interrupted_code_survives() {
    let mapping = truncated();
    // SAFETY: the errno location of the calling thread is always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; the read faults between the two accesses of errno.
    unsafe { errno.write_volatile(libc::ENOTTY) };
    read(&mapping, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { errno.read_volatile() }, libc::ENOTTY);
    assert!(mapping.is_dead());
}

#[test]
fn threads_fault_in_one_mapping_while_others_come_and_go() {
    for _ in 0..50 {
        let (shared, barrier) = (Arc::new(truncated()), Arc::new(Barrier::new(6)));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (shared, barrier) = (Arc::clone(&shared), Arc::clone(&barrier));
                scope.spawn(move || {
                    barrier.wait();
                    for page in 0..16 {
                        let offset = ((page + thread * 4) % 16) * 4096;
                        if thread % 2 == 0 { assert_eq!(read(&shared, offset), 0) } else { write(&shared, offset, 0) }
                    }
                });
            }
            for _ in 0..2 {
                let barrier = Arc::clone(&barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..20 {
                        let own = truncated();
                        write(&own, 4096, 1);
                        assert_eq!((read(&own, 4096), own.is_dead()), (1, true));
                    }
                });
            }
        });
        assert!(shared.is_dead());
    }
}

#[test]
fn a_slot_is_given_back_and_starts_alive() {
    let first = truncated();
    read(&first, 0);
    drop(first);
    let all: Vec<_> = (0..64).map(|_| truncated()).collect();
    assert!(all.iter().all(|mapping| !mapping.is_dead()));
}

#[test]
fn a_fault_outside_and_a_sent_signal_end_the_process_as_usual() {
    if let Ok(role) = std::env::var(ROLE) {
        return second_run(&role);
    }
    for role in ["fault", "fault-default", "sent-default"] {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sigbus::tests::a_fault_outside_and_a_sent_signal_end_the_process_as_usual"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{role}: {status}");
    }
}

fn second_run(role: &str) {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is valid to read; this process exists to die and needs no core file.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core) }).unwrap();
    if role.ends_with("default") {
        // SAFETY: no action of this process depends on SIGBUS yet.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    let absorbed = truncated();
    read(&absorbed, 0);
    assert!(absorbed.is_dead());
    if role.starts_with("sent") {
        // SAFETY: sends a signal to this very thread.
        unsafe { libc::raise(libc::SIGBUS) };
    } else {
        let file = File::from(anonymous_file("outside", 4096).unwrap());
        // SAFETY: a new mapping at an address that the kernel chooses.
        let outside = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            libc::mmap(null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(outside, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        // SAFETY: the page is mapped; that its file has ended is the point.
        unsafe { outside.cast::<u8>().read_volatile() };
    }
    std::process::exit(0);
}

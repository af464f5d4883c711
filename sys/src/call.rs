//! What every system call here shares: turning the C error convention into `io::Result`, and starting a call again
//! after a signal. Read first: errno(3), signal(7) on EINTR.

use std::io;

/// The signed integers that system calls return, with -1 for "look at errno".
pub(crate) trait Status: Copy {
    /// Whether this is the -1 of a failed call.
    fn failed(self) -> bool;
}

impl Status for libc::c_int {
    fn failed(self) -> bool {
        self == -1
    }
}

impl Status for libc::ssize_t {
    fn failed(self) -> bool {
        self == -1
    }
}

/// The result of a call that reports failure as -1 and a reason in errno.
pub(crate) fn check<T: Status>(status: T) -> io::Result<T> {
    if status.failed() { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// Repeats `call` for as long as a signal interrupts it. Only for calls that cannot block, so that no stream of
/// signals can hold the caller up for long.
pub(crate) fn retry<T: Status>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_is_an_error_and_anything_else_a_value() {
        assert_eq!(check(7).unwrap(), 7);
        // SAFETY: closing a descriptor number that cannot exist only sets errno.
        assert_eq!(check(unsafe { libc::close(-1) }).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut calls = 0;
        let status = retry(|| {
            calls += 1;
            if calls < 3 {
                // SAFETY: the errno location of the calling thread is always valid to write.
                unsafe { *libc::__errno_location() = libc::EINTR };
                return -1;
            }
            5
        });
        assert_eq!((status.unwrap(), calls), (5, 3));
    }
}

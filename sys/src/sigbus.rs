//! Survives the loss of mapped memory: a process-wide SIGBUS action that turns a fault inside a registered mapping into
//! zeros and a flag.
//!
//! A guest's memory is a file that a hostile vhost-user peer shares with us. When the peer truncates the file, the next
//! access beyond its new end raises SIGBUS, which would end the whole program. The same happens when hugepages run out,
//! when the disk under a journal fails, or when the machine reports broken memory.
//!
//! # Theory of operation
//!
//! A fixed table holds a slot per registered mapping: start, length, dead flag. Registration and removal are serialised
//! by a mutex. The signal action takes no lock: each slot carries a version that is odd while the slot is written, and
//! the action believes a slot only if its version was even and the same before and after reading it.
//!
//! On a fault the action looks for the slot that holds the fault address, sets that slot's dead flag, maps private
//! zero-filled memory over the *whole* mapping and returns; the access runs again and sees zeros (or writes to memory
//! that nobody shares). After its turn the owner asks [`Mapping::is_dead`](crate::memory::Mapping::is_dead) and takes its
//! port down. One look at [`deaths`] per turn tells whether any flag needs looking at.
//!
//! Why this is sound against registration on other threads: the faulting thread is using a mapping, so the owner of that
//! mapping is borrowed and cannot unregister or unmap it before the access ends; its slot therefore stays unchanged for
//! as long as the action runs. Every other slot that is read unchanged describes a mapping that existed while it was
//! read, because a mapping is registered after `mmap` and unregistered before `munmap`; it cannot overlap the faulting
//! one, so the address is found in the right slot or in none.
//!
//! A fault anywhere else, a SIGBUS sent by a process, and an unaligned access go to the action that was installed before
//! ours, or to the default action: the program ends by SIGBUS as it would without this module. Faults that the kernel
//! takes on our behalf (`writev` or `sendmsg` from a mapping) raise no signal; they fail with `EFAULT`.
//!
//! Read first: sigaction(2), signal-safety(7), mmap(2) on SIGBUS.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::call::check;

/// How many mappings can be registered at a time. A vhost-user session has at most 509 regions, usually 1 to 8.
pub const SLOTS: usize = 8192;

/// One registered mapping. `len == 0` marks a free slot.
struct Slot {
    /// Odd while `start` and `len` are being written; grows with every change.
    version: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    dead: AtomicBool,
}

impl Slot {
    const fn free() -> Slot {
        Slot {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        }
    }

    /// Replaces the range. The caller holds the mutex of [`FREE`], so there is one writer.
    fn set(&self, start: usize, len: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range, if it did not change while it was read.
    fn get(&self) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let unchanged = before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before;
        unchanged.then_some(range)
    }
}

/// The slots that are free to take: those given back, and the first one never taken.
struct FreeSlots {
    returned: Vec<usize>,
    unused: usize,
}

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];
static FREE: Mutex<FreeSlots> = Mutex::new(FreeSlots { returned: Vec::new(), unused: 0 });
static DEATHS: AtomicU64 = AtomicU64::new(0);
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// How many faults have been turned into zeros since the program started. A worker compares it with the value it saw in
/// the turn before: unchanged means that no mapping died.
pub fn deaths() -> u64 {
    DEATHS.load(Ordering::Acquire)
}

/// Installs the SIGBUS action, once per process. Registering a mapping does this by itself; call it early so that an
/// action installed later by other code does not end up beneath ours.
///
/// # Errors
/// What sigaction(2) reported the first time it was tried.
pub fn install() -> io::Result<()> {
    let result = INSTALLED.get_or_init(|| take_over().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    result.map_err(io::Error::from_raw_os_error)
}

fn take_over() -> io::Result<()> {
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only asks; `previous` is valid to write.
    check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) })?;
    // SAFETY: sigaction(2) succeeded and has filled it.
    PREVIOUS.get_or_init(|| unsafe { previous.assume_init() });
    // SAFETY: all zeros is a valid sigaction: default action, no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and calls only async-signal-safe functions.
    check(unsafe { libc::sigaction(libc::SIGBUS, &action, null_mut()) })?;
    Ok(())
}

/// The registration of one mapping; dropping it removes the mapping from the table.
#[derive(Debug)]
pub(crate) struct Registration {
    slot: usize,
}

impl Registration {
    /// Puts `len` bytes at `start` under the care of the SIGBUS action.
    ///
    /// # Errors
    /// `OutOfMemory` if all [`SLOTS`] are taken; what sigaction(2) reports.
    ///
    /// # Safety
    /// The range is one mapping of its own made with mmap(2), aligned to its page size at both ends, that may be
    /// replaced by private zero-filled memory at any time. It stays mapped until the registration has been dropped, and
    /// is not accessed while or after that happens.
    pub(crate) unsafe fn new(start: usize, len: usize) -> io::Result<Registration> {
        install()?;
        let mut free = free_slots();
        let slot = match free.returned.pop() {
            Some(slot) => slot,
            None => {
                let slot = free.unused;
                free.unused = (slot + 1).min(SLOTS);
                slot
            }
        };
        let Some(entry) = TABLE.get(slot) else {
            let reason = format!("{SLOTS} memory regions are mapped already, which is the most this program serves");
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, reason));
        };
        entry.dead.store(false, Ordering::Relaxed);
        entry.set(start, len);
        Ok(Registration { slot })
    }

    /// Whether a fault has replaced the mapping by zeros.
    pub(crate) fn is_dead(&self) -> bool {
        TABLE.get(self.slot).is_some_and(|slot| slot.dead.load(Ordering::Acquire))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut free = free_slots();
        if let Some(slot) = TABLE.get(self.slot) {
            slot.set(0, 0);
            free.returned.push(self.slot);
        }
    }
}

fn free_slots() -> MutexGuard<'static, FreeSlots> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot whose mapping holds `address`.
fn find(address: usize) -> Option<(&'static Slot, usize, usize)> {
    TABLE.iter().find_map(|slot| {
        let (start, len) = slot.get()?;
        (address.wrapping_sub(start) < len).then_some((slot, start, len))
    })
}

/// The signal action. Runs on the faulting thread; nothing in it allocates, locks or panics.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the location of the calling thread's errno is always valid; it is restored for the interrupted code.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO action, and both codes below carry an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let replaced = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) && replace(address);
    if !replaced {
        pass_on(signal, info, context, code);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Maps zeros over the registered mapping that holds `address`. False if there is none or the kernel refuses.
fn replace(address: usize) -> bool {
    const PAGE: usize = 4096;
    let Some((slot, start, len)) = find(address) else { return false };
    // The flag goes first: whoever reads one of the zeros can also see why.
    slot.dead.store(true, Ordering::Release);
    DEATHS.fetch_add(1, Ordering::AcqRel);
    // Under strict overcommit the whole may be refused; the page of the fault is then enough to carry on.
    map_zeros(start, len) || map_zeros(address & !(PAGE - 1), PAGE)
}

/// Replaces a range by private zero-filled memory with the raw system call: the C library's wrapper may take locks.
fn map_zeros(start: usize, len: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range lies in a mapping whose registration allows it to be replaced at any time.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, start, len, access, flags, -1, 0) };
    mapped != -1
}

/// Does what would have happened without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, code: libc::c_int) {
    type Plain = extern "C" fn(libc::c_int);
    type WithInfo = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    // Codes above zero come from the kernel: the access runs again after we return. Others were sent by a process.
    let fault = code > 0;
    let previous = PREVIOUS.get().map_or((libc::SIG_DFL, 0), |action| (action.sa_sigaction, action.sa_flags));
    match previous {
        (libc::SIG_IGN, _) if !fault => {}
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // SAFETY: signal(2) and raise(3) are async-signal-safe. The raised signal waits until we return.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        (action, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: sigaction(2) reported this address as an action with the SA_SIGINFO signature.
            let action: WithInfo = unsafe { std::mem::transmute(action) };
            action(signal, info, context);
        }
        (action, _) => {
            // SAFETY: sigaction(2) reported this address as an action that takes the signal number only.
            let action: Plain = unsafe { std::mem::transmute(action) };
            action(signal);
        }
    }
}

#[cfg(test)]
mod tests;

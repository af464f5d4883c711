//! Virtual machines of KVM: memory, doorbells, and a way to get a thread out of `KVM_RUN`.
//!
//! Invariant: memory that a virtual machine can reach stays mapped for as long as one of its processors can run: every [`Vcpu`] keeps it. What
//! needs no care of this kind is used as kvm-ioctls has it. Read first: Documentation/virt/kvm/api.rst in the Linux sources.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, FromRawFd, IntoRawFd},
    ptr::null_mut,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use kvm_bindings::{KvmIrqRouting, kvm_irq_routing_entry, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd as TheirEventFd;

use crate::{eventfd::EventFd, memory::Mapping};

/// Where the local APIC listens for messages (Intel SDM volume 3, section 12.11.1).
const MSI_ADDRESS: u32 = 0xfee0_0000;

struct Inner {
    fd: VmFd,
    memory: Mutex<Vec<Arc<Mapping>>>,
}

/// A virtual machine with local APIC and interrupt routing in the kernel, without memory or processors yet.
#[derive(Clone)]
pub struct Vm(Arc<Inner>);

impl Vm {
    /// Makes one.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn new(kvm: &Kvm) -> io::Result<Vm> {
        let fd = kvm.create_vm()?;
        fd.create_irq_chip()?;
        Ok(Vm(Arc::new(Inner { fd, memory: Mutex::new(Vec::new()) })))
    }

    /// Puts all of `mapping` to guest physical address `guest`, as the next memory slot.
    ///
    /// # Errors
    /// What the kernel reports: overlap with another slot, or no multiple of the page size.
    pub fn add_memory(&self, guest: u64, mapping: Arc<Mapping>) -> io::Result<()> {
        let mut memory = self.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let region = kvm_userspace_memory_region {
            slot: memory.len() as u32,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: mapping.len() as u64,
            userspace_addr: mapping.ptr().as_ptr().expose_provenance() as u64,
        };
        // SAFETY: the range is that of the mapping, to which no Rust reference exists (see `Mapping::ptr`), and which lives as long as
        // this virtual machine and its processors: `Inner` keeps it and closes its descriptor first.
        unsafe { self.0.fd.set_user_memory_region(region) }?;
        memory.push(mapping);
        Ok(())
    }

    /// A processor.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn vcpu(&self, id: u64) -> io::Result<Vcpu> {
        Ok(Vcpu { fd: self.0.fd.create_vcpu(id)?, _vm: self.clone() })
    }

    /// Rings `bell` when the guest stores the 32-bit `value` at guest physical address `at`; the store ends there.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn ring_on_store(&self, at: u64, value: u32, bell: &EventFd) -> io::Result<()> {
        Ok(self.0.fd.register_ioevent(&theirs(bell)?, &IoEventAddress::Mmio(at), value)?)
    }

    /// Raises interrupt line `line` when somebody rings `bell`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn interrupt_on_ring(&self, line: u32, bell: &EventFd) -> io::Result<()> {
        Ok(self.0.fd.register_irqfd(&theirs(bell)?, line)?)
    }

    /// Routes interrupt lines, instead of whatever was routed before: each (line, vector) to processor 0, edge-triggered.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn route(&self, lines: &[(u32, u8)]) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = lines
            .iter()
            .map(|(line, vector)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi: *line,
                    type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
                    ..Default::default()
                };
                entry.u.msi.address_lo = MSI_ADDRESS;
                entry.u.msi.data = u32::from(*vector);
                entry
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.0.fd.set_gsi_routing(&routing)?)
    }
}

/// A processor of a virtual machine, which it keeps.
pub struct Vcpu {
    fd: VcpuFd,
    _vm: Vm,
}

impl Vcpu {
    /// The processor, to set up.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// The processor, to run.
    pub fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}

/// The same counter as kvm-ioctls wants it. The kernel takes hold of the counter, so this descriptor may be closed again.
fn theirs(bell: &EventFd) -> io::Result<TheirEventFd> {
    let fd = bell.as_fd().try_clone_to_owned()?.into_raw_fd();
    // SAFETY: the descriptor was just made and is given away here.
    Ok(unsafe { TheirEventFd::from_raw_fd(fd) })
}

/// The signal that gets a thread out of a system call and does nothing else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zero bytes are a valid `sigaction`: no flags (so system calls are not restarted), an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as *const () as usize;
        // SAFETY: the handler does nothing, so it may run at any time.
        unsafe { libc::sigaction(signal(), &action, null_mut()) };
    });
}

/// A thread that may sit in `KVM_RUN`.
#[derive(Clone, Copy, Debug)]
pub struct Runner(libc::pid_t);

impl Runner {
    /// The calling thread.
    pub fn here() -> Runner {
        install();
        // SAFETY: no preconditions.
        Runner(unsafe { libc::gettid() })
    }

    /// Interrupts a system call of that thread, if it sits in one now. Called again and again until the thread has heard of it otherwise.
    pub fn interrupt(self) {
        // SAFETY: the kernel checks that the thread is one of this process; a thread that has ended is an error that means nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, signal()) };
    }
}

/// Interrupts the thread that made it, again and again, until it is dropped.
pub struct Ticks(libc::timer_t);

// SAFETY: a timer's id may be used from any thread of the process.
unsafe impl Send for Ticks {}

impl Ticks {
    /// Every `period` from now on, in the calling thread.
    ///
    /// # Errors
    /// What timer_create(2) and timer_settime(2) report.
    pub fn every(period: Duration) -> io::Result<Ticks> {
        let runner = Runner::here();
        // SAFETY: all zero bytes are a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = runner.0;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both structures are valid for the call.
        crate::call::check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) })?;
        // SAFETY: timer_create(2) succeeded and has filled it in.
        let ticks = Ticks(unsafe { timer.assume_init() });
        let every =
            libc::timespec { tv_sec: period.as_secs() as libc::time_t, tv_nsec: period.subsec_nanos() as libc::c_long };
        let spec = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: the timer was just made; the old setting is not asked for.
        crate::call::check(unsafe { libc::timer_settime(ticks.0, 0, &spec, null_mut()) })?;
        Ok(ticks)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_get_a_thread_out_of_a_system_call() {
        let ticks = Ticks::every(Duration::from_millis(2)).unwrap();
        for _ in 0..3 {
            // SAFETY: no descriptors, no time limit; ends when a signal comes.
            let n = unsafe { libc::poll(null_mut(), 0, -1) };
            assert_eq!((n, io::Error::last_os_error().kind()), (-1, io::ErrorKind::Interrupted));
        }
        drop(ticks);
    }
}

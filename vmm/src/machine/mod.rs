//! [`Machine`]: a small virtual machine of KVM with one processor, for the built-in guest: a NIC, a console, entropy, and nothing else.
//!
//! Invariant: whatever runs inside, the machine ends with a reason and leaves nothing behind, and nobody else notices; its memory is
//! unmapped after its rings have come home and its processor has stopped. It does not try to run Linux, see
//! `docs/decisions/0007-a-small-machine.md`. Read in this order: this file, `run.rs` (the processor's thread), `boot.rs`, `mmio.rs`, `net.rs`.
//!
//! Theory of operation: registers of devices are loads and stores that leave the guest and are answered by the processor's thread
//! (`mmio.rs`). Kicks of the NIC do not: the kernel turns the store into a ring of an eventfd, and the back end's ring of another into an
//! interrupt. Lines of the console go to a channel; lines typed into it may come from any thread.

mod boot;
mod image;
mod mmio;
mod net;
mod remote;
mod run;
mod slow;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use kvm_ioctls::Kvm;
use sys::{
    eventfd::EventFd,
    kvm::{Runner, Vm},
};
use wire::Mac;

pub use net::{InSwitch, NicBackEnd, ReadyNic};
pub use remote::Remote;

use image::Memory;
use mmio::Mmio;
use net::Net;
use slow::{Console, Entropy};

/// The built-in guest as a program, see the crate `guest`.
pub static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// Least memory of a machine, in bytes.
pub const MIN_MEMORY: u64 = 4 << 20;
/// Most memory of a machine, in bytes: devices lie above.
pub const MAX_MEMORY: u64 = 2 << 30;

/// Guest physical address of the first device's registers; each device has a page.
const DEVICES: u64 = 0xd000_0000;
const NET: u64 = 0;
const CONSOLE: u64 = 1;
const ENTROPY: u64 = 2;
/// Interrupt lines: receive queue, transmit queue, console and entropy. All raise the same vector; the guest looks at everything.
const LINES: [u32; 4] = [32, 33, 34, 35];

/// What a machine is to be.
pub struct MachineSpec {
    /// For log lines and the thread's name.
    pub name: String,
    /// Bytes of memory, a multiple of the page size from [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: u64,
    /// The ELF program to run.
    pub image: Arc<[u8]>,
    /// The NIC's address.
    pub mac: Mac,
    /// The NIC's MTU in bytes, if it names one.
    pub mtu: Option<u16>,
    /// A guest that shows no life for this long is ended; neither may it take longer to start its NIC.
    pub patience: Duration,
}

impl MachineSpec {
    /// The built-in guest in 8 MiB.
    pub fn built_in(name: &str, mac: Mac) -> Self {
        MachineSpec {
            name: name.to_owned(),
            memory: 8 << 20,
            image: GUEST.into(),
            mac,
            mtu: None,
            patience: Duration::from_secs(5),
        }
    }
}

/// Why a machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM is missing, or this user may not use it.
    #[error(
        "/dev/kvm cannot be used: {0}; load the kernel's kvm module, and be root or in the group that owns /dev/kvm"
    )]
    Kvm(io::Error),
    /// The memory size is out of bounds.
    #[error("a machine of {0} bytes of memory; allowed are {MIN_MEMORY} to {MAX_MEMORY}, in whole pages")]
    Memory(u64),
    /// The program cannot be run.
    #[error("the guest's image: {0}")]
    Image(String),
    /// The system would not give what the machine needs.
    #[error("the machine cannot be made: {0}")]
    System(#[from] io::Error),
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The guest turned itself off.
    #[error("the guest turned itself off")]
    Off,
    /// [`Machine::stop`].
    #[error("the machine was stopped")]
    Stopped,
    /// The guest said that something is wrong.
    #[error("the guest gave up: {0}")]
    GaveUp(String),
    /// A fault that the guest has no answer to.
    #[error("the guest ran into fault {vector} at {address:#x}")]
    Fault {
        /// Its number (Intel SDM volume 3, table 6-1).
        vector: u8,
        /// Where, or 0 when that cannot be told.
        address: u64,
    },
    /// The guest touched an address where there is nothing.
    #[error("the guest used address {0:#x}, where there is neither memory nor a device")]
    Nowhere(u64),
    /// No sign of life.
    #[error("the guest showed no sign of life for {patience:?}, and is at {address:#x}")]
    Hung {
        /// For how long.
        patience: Duration,
        /// Where it is, or 0 when that cannot be told.
        address: u64,
    },
    /// The guest's driver never started the NIC.
    #[error("the guest did not start its network device within {0:?}")]
    NeverReady(Duration),
    /// The driver was ready with what no device can run with.
    #[error("the guest started its network device wrongly: {0}")]
    BadDriver(String),
    /// The driver resets a device again and again.
    #[error("the guest resets a device in a loop")]
    ResetsInALoop,
    /// KVM cannot run the guest any further.
    #[error("the processor stopped: {0}")]
    Processor(String),
}

/// The devices, shared between the processor's thread and whoever types.
struct Devices {
    net: Mutex<Mmio<Net>>,
    console: Mutex<Mmio<Console>>,
    entropy: Mutex<Mmio<Entropy>>,
}

/// Locks a device; one whose user panicked is as good as before, for guests may leave it in any state as well.
fn lock<T>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running machine. It ends when it is dropped.
pub struct Machine {
    devices: Arc<Devices>,
    lines: Receiver<String>,
    stop: Arc<AtomicBool>,
    runner: Runner,
    thread: Option<JoinHandle<Ended>>,
    ended: Option<Ended>,
}

impl Machine {
    /// Starts a machine whose NIC's rings go to `back_end`.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing then runs.
    pub fn start(spec: MachineSpec, back_end: Box<dyn NicBackEnd>) -> Result<Machine, MachineError> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&spec.memory) || !spec.memory.is_multiple_of(4096) {
            return Err(MachineError::Memory(spec.memory));
        }
        let kvm = Kvm::new().map_err(|error| MachineError::Kvm(error.into()))?;
        let vm = Vm::new(&kvm)?;
        let memory = Memory::new(spec.memory)?;
        vm.add_memory(0, Arc::clone(&memory.mapping))?;
        let loaded = image::load(&memory, &spec.image)?;
        let bell = EventFd::new;
        let bells = [[bell()?, bell()?], [bell()?, bell()?]];
        let (console_call, entropy_call) = (bell()?, bell()?);
        vm.route(&LINES.map(|line| (line, boot::DEVICE_VECTOR)))?;
        let [[_, rx_call], [_, tx_call]] = &bells;
        for (line, call) in LINES.into_iter().zip([rx_call, tx_call, &console_call, &entropy_call]) {
            vm.interrupt_on_ring(line, call)?;
        }
        for (queue, [kick, _]) in (0..).zip(&bells) {
            vm.ring_on_store(address(NET) + mmio::QUEUE_NOTIFY, queue, kick)?;
        }
        let vcpu = vm.vcpu(0)?;
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(io::Error::from)?;
        vcpu.fd().set_cpuid2(&cpuid).map_err(io::Error::from)?;
        let facts = boot::Facts {
            entry: loaded.entry,
            free: loaded.free,
            tsc_hz: sys::tsc::cycles_per_second(),
            devices: [NET, CONSOLE, ENTROPY].map(address),
        };
        boot::prepare(&memory, &vcpu, &facts)?;

        let (said, lines) = channel();
        let (guest, file) = (Arc::clone(&memory.guest), Arc::clone(&memory.file));
        let net = Net::new((guest, file), bells, spec.mac, spec.mtu, back_end);
        let devices = Arc::new(Devices {
            net: Mutex::new(Mmio::new(net)),
            console: Mutex::new(Mmio::new(Console::new(Arc::clone(&memory.map), console_call, said))),
            entropy: Mutex::new(Mmio::new(Entropy::new(Arc::clone(&memory.map), entropy_call)?)),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = channel();
        let processor = run::Processor::new(vcpu, memory, Arc::clone(&devices), Arc::clone(&stop), spec.patience);
        let name = spec.name;
        let thread = std::thread::Builder::new().name(format!("vcpu-{name}")).spawn(move || {
            // Whoever starts the machine waits for this one message.
            let _ = tell.send(Runner::here());
            let ended = processor.run();
            match &ended {
                Ended::Off | Ended::Stopped => tracing::debug!(machine = name, "{ended}"),
                _ => tracing::warn!(machine = name, "{ended}"),
            }
            ended
        })?;
        let runner = told.recv().map_err(io::Error::other)?;
        Ok(Machine { devices, lines, stop, runner, thread: Some(thread), ended: None })
    }

    /// Types a line into the console; false when the guest reads nothing and too much waits.
    pub fn type_line(&self, line: &str) -> bool {
        lock(&self.devices.console).device.type_line(line)
    }

    /// The next line that the guest writes, within `patience`; nothing when there is none or the machine has ended.
    pub fn read_line(&self, patience: Duration) -> Option<String> {
        let until = Instant::now() + patience;
        loop {
            // A machine that has ended keeps its devices, and with them the other end of the channel, until it is dropped.
            let slice = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50));
            match self.lines.recv_timeout(slice) {
                Ok(line) => return Some(line),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.is_running() && Instant::now() < until => {}
                Err(RecvTimeoutError::Timeout) => return self.lines.try_recv().ok(),
            }
        }
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the machine's end.
    pub fn wait(&mut self) -> Ended {
        if let Some(thread) = self.thread.take() {
            let crashed = |_| Ended::Processor("its thread panicked".to_owned());
            self.ended = Some(thread.join().unwrap_or_else(crashed));
        }
        self.ended.clone().unwrap_or(Ended::Stopped)
    }

    /// Ends the machine, whatever it does, and waits for that.
    pub fn stop(&mut self) -> Ended {
        self.stop.store(true, Ordering::Release);
        while self.is_running() {
            self.runner.interrupt();
            // The thread may have been on its way into the guest: then it has to be interrupted again.
            std::thread::park_timeout(Duration::from_millis(1));
        }
        self.wait()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Guest physical address of a device's registers.
fn address(device: u64) -> u64 {
    DEVICES + device * mmio::REGISTERS
}

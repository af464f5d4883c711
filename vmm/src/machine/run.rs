//! The processor's thread: runs the guest, answers what leaves it, watches that it lives.
//!
//! Invariant: it returns with a reason, and by then every device has stopped.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvm_ioctls::VcpuExit;
use sys::kvm::{Ticks, Vcpu};

use super::{
    CONSOLE, DEVICES, Devices, ENTROPY, Ended, NET, boot,
    image::Memory,
    lock,
    mmio::{self, Trouble},
};

/// How often the guest's life is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes of text by port output that are kept for the reason of the end.
const TEXT: usize = 2000;

/// What the thread works with.
pub(super) struct Processor {
    vcpu: Vcpu,
    memory: Memory,
    devices: Arc<Devices>,
    stop: Arc<AtomicBool>,
    patience: Duration,
    text: Vec<u8>,
    begun: Instant,
    beat: (Option<u64>, Instant),
    was_ready: bool,
}

/// What an exit asks for, without its borrow of the processor.
enum Exit {
    Goes,
    Interrupted,
    Fault(u8),
    Ends(Ended),
}

impl Processor {
    pub(super) fn new(
        vcpu: Vcpu,
        memory: Memory,
        devices: Arc<Devices>,
        stop: Arc<AtomicBool>,
        patience: Duration,
    ) -> Self {
        let now = Instant::now();
        let (text, beat) = (Vec::new(), (None, now));
        Processor { vcpu, memory, devices, stop, patience, text, begun: now, beat, was_ready: false }
    }

    /// Runs the guest to its end.
    pub(super) fn run(mut self) -> Ended {
        let ended = match Ticks::every(LOOK) {
            Ok(_ticks) => self.turn(),
            Err(error) => Ended::Processor(format!("no timer for its watchdog: {error}")),
        };
        let Devices { net, console, entropy } = &*self.devices;
        lock(net).end();
        lock(console).end();
        lock(entropy).end();
        ended
    }

    fn turn(&mut self) -> Ended {
        loop {
            match self.step() {
                Exit::Goes => {}
                Exit::Interrupted => {
                    if let Some(ended) = self.look() {
                        return ended;
                    }
                }
                Exit::Fault(vector) => {
                    let address = boot::fault_address(&self.memory, &self.vcpu, vector).unwrap_or(0);
                    return Ended::Fault { vector, address };
                }
                Exit::Ends(ended) => return ended,
            }
        }
    }

    /// Runs the guest until it leaves, and answers that.
    fn step(&mut self) -> Exit {
        let Processor { vcpu, devices, text, .. } = self;
        match vcpu.fd_mut().run() {
            Ok(VcpuExit::MmioRead(at, into)) => match place(at) {
                Some((NET, offset)) => lock(&devices.net).read(offset, into),
                Some((CONSOLE, offset)) => lock(&devices.console).read(offset, into),
                Some((ENTROPY, offset)) => lock(&devices.entropy).read(offset, into),
                _ => return Exit::Ends(Ended::Nowhere(at)),
            },
            Ok(VcpuExit::MmioWrite(at, bytes)) => {
                let written = match place(at) {
                    Some((NET, offset)) => {
                        let mut net = lock(&devices.net);
                        let written = net.write(offset, bytes);
                        if let Some(why) = net.failed() {
                            return Exit::Ends(Ended::BadDriver(why.to_owned()));
                        }
                        written
                    }
                    Some((CONSOLE, offset)) => lock(&devices.console).write(offset, bytes),
                    Some((ENTROPY, offset)) => lock(&devices.entropy).write(offset, bytes),
                    _ => return Exit::Ends(Ended::Nowhere(at)),
                };
                if let Err(Trouble::ResetsInALoop) = written {
                    return Exit::Ends(Ended::ResetsInALoop);
                }
            }
            Ok(VcpuExit::IoOut(boot::CONSOLE_PORT, bytes)) => {
                text.extend(bytes.iter().take(TEXT.saturating_sub(text.len())));
            }
            Ok(VcpuExit::IoOut(boot::FAULT_PORT, bytes)) => return Exit::Fault(bytes.first().copied().unwrap_or(0)),
            Ok(VcpuExit::IoOut(boot::END_PORT, bytes)) => {
                return Exit::Ends(match bytes.first() {
                    Some(0) => Ended::Off,
                    _ => Ended::GaveUp(String::from_utf8_lossy(text).trim_end().to_owned()),
                });
            }
            // Other ports lead nowhere and read as they do on a bus without devices.
            Ok(VcpuExit::IoOut(..)) => {}
            Ok(VcpuExit::IoIn(_, into)) => into.fill(0xff),
            Ok(VcpuExit::Intr) => return Exit::Interrupted,
            Ok(VcpuExit::Shutdown) => return Exit::Ends(Ended::Processor("a fault within a fault".to_owned())),
            Ok(VcpuExit::InternalError) => {
                let what = "KVM cannot carry out what the guest jumped to".to_owned();
                return Exit::Ends(Ended::Processor(what));
            }
            Ok(other) => return Exit::Ends(Ended::Processor(format!("KVM reports {other:?}"))),
            Err(error) => {
                let error = io::Error::from(error);
                return match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Exit::Interrupted,
                    _ => Exit::Ends(Ended::Processor(format!("KVM reports: {error}"))),
                };
            }
        }
        // A guest that leaves all the time is interrupted by nothing else.
        if self.stop.load(Ordering::Relaxed) { Exit::Interrupted } else { Exit::Goes }
    }

    /// Looks whether the guest is to end, or should.
    fn look(&mut self) -> Option<Ended> {
        if self.stop.load(Ordering::Acquire) {
            return Some(Ended::Stopped);
        }
        let now = Instant::now();
        let beat = boot::beat(&self.memory);
        if beat != self.beat.0 {
            self.beat = (beat, now);
        }
        self.was_ready |= lock(&self.devices.net).is_running();
        if !self.was_ready && now.duration_since(self.begun) > self.patience {
            return Some(Ended::NeverReady(self.patience));
        }
        let is_hung = now.duration_since(self.beat.1) > self.patience;
        let address = || self.vcpu.fd().get_regs().map_or(0, |regs| regs.rip);
        is_hung.then(|| Ended::Hung { patience: self.patience, address: address() })
    }
}

/// The device whose registers are at a guest address, and where in them.
fn place(at: u64) -> Option<(u64, u64)> {
    let offset = at.checked_sub(DEVICES)?;
    Some((offset / mmio::REGISTERS, offset % mmio::REGISTERS))
}

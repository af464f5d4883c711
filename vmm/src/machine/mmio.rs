//! [`Mmio`]: the registers of one virtio device, as its driver sees them (virtio 1.2 section 4.2.2, version 2).
//!
//! Invariant: whatever a guest writes, and in whatever order, changes this one device only: unknown registers read as zero and swallow
//! writes, queue numbers are checked, and a device runs only between `DRIVER_OK` and the next reset. Rings are not touched here.

use std::io;

use crate::features::Features;

/// Bytes of a device's registers, configuration space included.
pub(super) const REGISTERS: u64 = 0x1000;
/// Resets after which a guest is taken to be out of its mind.
const MAX_RESETS: u32 = 1000;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0x4b4e_524c;
const INTERRUPT_USED: u32 = 1;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;

const CONFIG: u64 = 0x100;
/// Where a driver tells of new buffers.
pub(super) const QUEUE_NOTIFY: u64 = 0x050;

/// One queue as the driver set it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// What is behind the registers.
pub(super) trait Device: Send {
    /// The device id (virtio 1.2 section 5).
    fn id(&self) -> u32;
    /// What the driver may choose from.
    fn features(&self) -> Features;
    /// The configuration space; bytes past its end read as zero.
    fn config(&self) -> &[u8];
    /// Most entries of each queue; as many queues as there are elements.
    fn queues(&self) -> &'static [u16];
    /// The driver is ready. On an error the device needs a reset.
    fn start(&mut self, features: Features, queues: &[QueueRegisters]) -> io::Result<()>;
    /// The driver has added buffers to a queue; what nobody else listens to comes here.
    fn notified(&mut self, queue: usize);
    /// The driver has given up the device: when this returns, its rings are not touched any more.
    fn stop(&mut self);
}

/// What went beyond a device's own affairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The driver resets the device again and again.
    ResetsInALoop,
}

/// The registers.
pub(super) struct Mmio<D> {
    pub(super) device: D,
    status: u32,
    device_features_half: u32,
    driver_features_half: u32,
    driver_features: u64,
    queue: u32,
    queues: Vec<QueueRegisters>,
    resets: u32,
    failed: Option<String>,
}

impl<D: Device> Mmio<D> {
    pub(super) fn new(device: D) -> Self {
        let queues = vec![QueueRegisters::default(); device.queues().len()];
        Mmio {
            device,
            status: 0,
            device_features_half: 0,
            driver_features_half: 0,
            driver_features: 0,
            queue: 0,
            queues,
            resets: 0,
            failed: None,
        }
    }

    /// Whether the driver has finished its set-up and the device runs.
    pub(super) fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Why the device could not start when the driver was ready.
    pub(super) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Ends the device, whatever state it is in.
    pub(super) fn end(&mut self) {
        if self.is_running() {
            self.device.stop();
        }
        self.status = 0;
    }

    /// A load of `into.len()` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let config = self.device.config();
            let rest = config.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
            into.iter_mut().zip(rest.iter().copied().chain(std::iter::repeat(0))).for_each(|(to, byte)| *to = byte);
            return;
        }
        let queue = self.queues.get(self.queue as usize);
        let value = match offset {
            0x000 => MAGIC,
            0x004 => VERSION,
            0x008 => self.device.id(),
            0x00c => VENDOR,
            0x010 => half(self.device.features().0, self.device_features_half),
            0x034 => self.device.queues().get(self.queue as usize).map_or(0, |most| u32::from(*most)),
            0x044 => queue.map_or(0, |queue| u32::from(queue.ready)),
            // Interrupts are messages and stand for used buffers, always.
            0x060 => INTERRUPT_USED,
            0x070 => self.status,
            _ => 0,
        };
        into.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
    }

    /// A store of `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        // All registers are 32 bits wide (section 4.2.2.2), and no configuration space here has anything to write.
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return Ok(()) };
        let value = u32::from_le_bytes(bytes);
        let is_running = self.is_running();
        let queue = self.queues.get_mut(self.queue as usize).filter(|_| !is_running);
        match (offset, queue) {
            (0x014, _) => self.device_features_half = value,
            (0x020, _) if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_features_half, value);
            }
            (0x024, _) => self.driver_features_half = value,
            (0x030, _) => self.queue = value,
            (0x038, Some(queue)) => queue.size = u16::try_from(value).unwrap_or(0),
            (0x044, Some(queue)) => queue.ready = value & 1 != 0,
            (0x044, _) if value & 1 == 0 => self.stop_queue(),
            (QUEUE_NOTIFY, _) if is_running => self.device.notified(value as usize),
            (0x070, _) => return self.set_status(value),
            (0x080, Some(queue)) => set_half(&mut queue.descriptors, 0, value),
            (0x084, Some(queue)) => set_half(&mut queue.descriptors, 1, value),
            (0x090, Some(queue)) => set_half(&mut queue.driver, 0, value),
            (0x094, Some(queue)) => set_half(&mut queue.driver, 1, value),
            (0x0a0, Some(queue)) => set_half(&mut queue.device, 0, value),
            (0x0a4, Some(queue)) => set_half(&mut queue.device, 1, value),
            _ => {}
        }
        Ok(())
    }

    /// The driver takes a queue back while the device runs. No device here runs without one of its queues, so it needs a reset then.
    fn stop_queue(&mut self) {
        if self.is_running() {
            self.device.stop();
            self.status |= NEEDS_RESET;
        }
        if let Some(queue) = self.queues.get_mut(self.queue as usize) {
            queue.ready = false;
        }
    }

    fn set_status(&mut self, value: u32) -> Result<(), Trouble> {
        if value == 0 {
            self.end();
            self.queues.fill(QueueRegisters::default());
            (self.driver_features, self.queue) = (0, 0);
            self.failed = None;
            self.resets += 1;
            return if self.resets > MAX_RESETS { Err(Trouble::ResetsInALoop) } else { Ok(()) };
        }
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        let set = value & known & !self.status;
        self.status |= value & known;
        let features = Features(self.driver_features);
        if set & FEATURES_OK != 0 && !(self.device.features().has(features) && features.has(Features::VERSION_1)) {
            self.status &= !FEATURES_OK;
        }
        if set & DRIVER_OK != 0 {
            let started = if self.status & FEATURES_OK == 0 {
                Err(io::Error::other("the driver was ready before it had agreed on features"))
            } else {
                self.device.start(features, &self.queues)
            };
            if let Err(error) = started {
                self.status |= NEEDS_RESET;
                self.failed = Some(error.to_string());
            }
        }
        Ok(())
    }
}

fn half(word: u64, which: u32) -> u32 {
    match which {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

fn set_half(word: &mut u64, which: u32, value: u32) {
    match which {
        0 => *word = *word & !0xffff_ffff | u64::from(value),
        1 => *word = *word & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

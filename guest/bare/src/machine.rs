//! What the machine gives: a page of facts, ports to talk to, interrupts that are counted, a timer.
//!
//! Invariant: agrees with `vmm/src/machine/boot.rs`, which has the other side of every constant here.

use core::{
    arch::asm,
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// What the first word of the page says: the layout below.
const MAGIC: u64 = 0x3174_7365_7567_6c74;
/// Text for whoever watches the machine.
const CONSOLE_PORT: u16 = 0xe9;
/// The guest ends.
const END_PORT: u16 = 0xf5;
/// Ended as told.
pub const OFF: u8 = 0;
/// Ended because something was wrong; the console has said what.
pub const PANICKED: u8 = 1;
/// Registers of the local APIC (Intel SDM volume 3, chapter 12).
const LAPIC: usize = 0xfee0_0000;
const LVT_TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const DIVIDE: usize = 0x3e0;
/// The timer's interrupt; its stub counts like any other.
const TIMER_VECTOR: u32 = 0x31;
/// The timer counts nanoseconds divided by 16 (KVM's local APIC has a bus of 1 GHz).
const TIMER_NS: u64 = 16;

/// The page of facts.
#[repr(C)]
pub struct Info {
    magic: u64,
    /// Bytes of memory, from address 0.
    pub memory: u64,
    /// The first byte behind the program.
    pub free: u64,
    /// Cycles of the time-stamp counter in a second.
    pub tsc_hz: u64,
    /// Addresses of the virtio-mmio devices: network, console, entropy.
    pub devices: [u64; 3],
    interrupts: AtomicU32,
    _pad: u32,
    beat: AtomicU64,
}

impl Info {
    /// Whether the page has the layout we know.
    pub fn is_known(&self) -> bool {
        self.magic == MAGIC
    }

    /// Interrupts so far, modulo 2^32.
    pub fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::Acquire)
    }

    /// Shows the machine's watchdog that we live.
    pub fn beat(&self) {
        self.beat.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sleeps until an interrupt, unless there was one since `seen` was read.
pub fn halt(seen: u32) {
    // SAFETY: in user mode `hlt` is a fault that the machine's stub answers: it compares `edi` with the counter, sleeps in ring 0 if nothing
    // came in between, and goes on behind the instruction. It keeps all registers.
    unsafe { asm!("hlt", in("edi") seen, options(nostack)) };
}

/// Asks for an interrupt in so many microseconds.
pub fn set_timer(us: u64) {
    let count = u32::try_from(us.saturating_mul(1000) / TIMER_NS).unwrap_or(u32::MAX).max(1);
    let registers = [(DIVIDE, 0b0011), (LVT_TIMER, TIMER_VECTOR), (INITIAL_COUNT, count)];
    for (register, value) in registers {
        // SAFETY: the page of the local APIC is mapped for us at its usual address, and these registers take any value.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(LAPIC + register).write_volatile(value) };
    }
}

/// The time-stamp counter.
pub fn cycles() -> u64 {
    // SAFETY: reading the counter touches no memory, and the machine allows it in user mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ends the machine.
pub fn end(code: u8) -> ! {
    loop {
        // SAFETY: user mode may use ports here (IOPL 3); the machine never comes back from this one.
        unsafe { asm!("out dx, al", in("dx") END_PORT, in("al") code, options(nomem, nostack)) };
    }
}

/// Text by port output: needs nothing, and is slow.
pub struct EarlyConsole;

impl fmt::Write for EarlyConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: `rep outsb` reads the `len` bytes of `text` and writes them to the port, which user mode may use (IOPL 3).
        unsafe {
            asm!(
                "rep outsb",
                in("dx") CONSOLE_PORT, inout("rsi") text.as_ptr() => _, inout("rcx") text.len() => _,
                options(readonly, nostack, preserves_flags)
            );
        }
        Ok(())
    }
}

//! The built-in guest as a freestanding program: no operating system beneath it, 64-bit, in user mode (CPL3) from its first instruction.
//!
//! Invariant: whatever needs ring 0 is left to the machine's stubs (`vmm/src/machine/boot.rs`): interrupts, and `hlt`. Memory is mapped at its
//! own address. The program ends by a byte to the port that says how.
//!
//! Read in this order: `machine.rs` (what the machine gives us), `nic.rs`, `platform.rs` (all of it put together for [`guest::Guest`]).

#![no_std]
#![no_main]

extern crate alloc;

mod machine;
mod mem;
mod nic;
mod platform;

use core::{fmt::Write, panic::PanicInfo};

use guest::{Ended, Guest};
use machine::{EarlyConsole, Info, end};
use platform::Bare;

/// Where the machine begins: the stack is made, `info` tells the rest.
///
/// # Safety
/// Called once, by the machine, with the address of the page it has filled in.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _start(info: *const Info) -> ! {
    // SAFETY: the machine has written the page before we run and only changes the one counter in it that is read by volatile reads.
    let info = unsafe { &*info };
    if !info.is_known() {
        end(machine::PANICKED);
    }
    mem::init(info);
    match Bare::new(info) {
        Ok(platform) => match Guest::new(platform).run() {
            Ended::Off => end(machine::OFF),
        },
        Err(why) => {
            // Nobody is left to be told if this fails.
            let _ = writeln!(EarlyConsole, "the guest cannot start: {why}");
            end(machine::PANICKED)
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // As above.
    let _ = writeln!(EarlyConsole, "the guest panicked: {info}");
    end(machine::PANICKED)
}

//! How a guest finds its processor and its memory: 64-bit mode, user mode (CPL3), memory mapped at its own address, stubs for ring 0.
//!
//! Invariant: everything below [`LOW`] is laid out here; the image lies above. Agrees with `guest/bare/src/machine.rs`.
//! Read first: Intel SDM volume 3, chapters 3 (segments), 4 (paging), 6 (interrupts).
//!
//! Theory of operation: some hosts run the guest's user mode at full speed and emulate its ring 0 at about a microsecond an instruction, so the
//! guest runs in user mode from the first instruction, with the right to use ports (IOPL 3). Ring 0 has three stubs of some bytes: one counts an
//! interrupt and ends it, one answers the fault that `hlt` is in user mode by sleeping in ring 0, and one tells us of any other fault.

use std::io;

use kvm_bindings::{kvm_regs, kvm_segment};
use sys::kvm::Vcpu;

use super::image::Memory;

/// The image may be loaded from here on.
pub(super) const LOW: u64 = 0x20_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STUBS: u64 = 0x3000;
const INFO: u64 = 0x5000;
const PAGES: u64 = 0x6000;
/// Both stacks grow down from here; the lower one is ring 0's.
const RING0_STACK: u64 = 0x1_0000;
/// The task: where ring 0's stack is, and a bit for every port, all clear, so that user mode may use it.
const TSS: u64 = 0x2_0000;
const TASK_BYTES: u32 = 0x68;
const PORT_BITS: u32 = 65_536 / 8;
/// The byte of ones behind the port bits is part of the task (Intel SDM volume 1, section 19.5.2).
const TASK_LIMIT: u32 = TASK_BYTES + PORT_BITS;
const STACK: u64 = 0x10_0000;

/// Bytes of the memory that page tables map: 4 GiB, so that devices are in it.
const MAPPED: u64 = 1 << 32;
const LARGE_PAGE: u64 = 1 << 21;

/// What the first word of the page of facts says.
const MAGIC: u64 = 0x3174_7365_7567_6c74;
const INTERRUPTS_AT: u64 = INFO + 56;
const BEAT_AT: u64 = INFO + 64;

const KERNEL_CODE: u16 = 0x08;
const USER_DATA: u16 = 0x20 | 3;
const USER_CODE: u16 = 0x28 | 3;
const TASK: u16 = 0x30;
/// Descriptors of the selectors above, the last two being the task's.
const DESCRIPTORS: [u64; 6] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];

/// The vector of device interrupts, and of the timer.
pub(super) const DEVICE_VECTOR: u8 = 0x30;
const TIMER_VECTOR: u8 = 0x31;
/// A guest writes how it ends to this port.
pub(super) const END_PORT: u16 = 0xf5;
/// The stub of a fault writes its number to this port.
pub(super) const FAULT_PORT: u16 = 0xf4;
/// Text.
pub(super) const CONSOLE_PORT: u16 = 0xe9;

const GENERAL_PROTECTION: u8 = 13;
/// Faults, with a bit for each that has an error code beneath its frame (Intel SDM volume 3, table 6-1).
const FAULTS: u8 = 32;
const WITH_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

const COUNT_STUB: u64 = STUBS;
const HALT_STUB: u64 = STUBS + 0x40;
const FAULT_STUBS: u64 = STUBS + 0x100;
const STUB_BYTES: u64 = 16;
const EOI: u64 = 0xfee0_00b0;

/// What a guest is told.
pub(super) struct Facts {
    pub(super) entry: u64,
    /// First byte behind the image.
    pub(super) free: u64,
    pub(super) tsc_hz: u64,
    pub(super) devices: [u64; 3],
}

/// Lays out low memory and sets the processor to the image's entry.
pub(super) fn prepare(memory: &Memory, vcpu: &Vcpu, facts: &Facts) -> io::Result<()> {
    write_tables(memory)?;
    write_stubs(memory)?;
    let words = [MAGIC, memory.bytes(), facts.free, facts.tsc_hz].into_iter().chain(facts.devices);
    memory.write(INFO, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;

    let mut special = vcpu.fd().get_sregs()?;
    let segment = |selector: u16, type_: u8, dpl: u8, long: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    };
    special.cs = segment(USER_CODE, 11, 3, true);
    let data = segment(USER_DATA, 3, 3, false);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr =
        kvm_segment { base: TSS, limit: TASK_LIMIT, selector: TASK, type_: 11, present: 1, ..Default::default() };
    (special.gdt.base, special.gdt.limit) = (GDT, 8 * 8 - 1);
    (special.idt.base, special.idt.limit) = (IDT, 256 * 16 - 1);
    // Paging, numeric errors, extension type, monitor coprocessor, protection.
    special.cr0 = 0x8000_0033;
    special.cr3 = PAGES;
    // Physical address extension, SSE and its exceptions.
    special.cr4 = 0x620;
    // Long mode enabled and active, no-execute, system calls.
    special.efer = 0xd01;
    vcpu.fd().set_sregs(&special)?;
    let regs = kvm_regs {
        rip: facts.entry,
        // As if called: the return address, which nobody uses, leaves the stack 8 bytes off a multiple of 16.
        rsp: STACK - 8,
        rdi: INFO,
        // Interrupts on, ports for user mode.
        rflags: 0x3202,
        ..Default::default()
    };
    vcpu.fd().set_regs(&regs)?;

    let mut lapic = vcpu.fd().get_lapic()?;
    // Spurious interrupt vector register: the APIC is on.
    for (at, byte) in (0xf0..).zip(0x1ff_u32.to_le_bytes()) {
        if let Some(place) = lapic.regs.get_mut(at) {
            *place = byte as _;
        }
    }
    Ok(vcpu.fd().set_lapic(&lapic)?)
}

/// Segments, task, interrupt gates and page tables.
fn write_tables(memory: &Memory) -> io::Result<()> {
    let limit = u64::from(TASK_LIMIT);
    let task = [0x0000_8900_0000_0000 | limit | (TSS & 0xff_ffff) << 16 | (TSS >> 24 & 0xff) << 56, TSS >> 32];
    let gdt: Vec<u8> = DESCRIPTORS.into_iter().chain(task).flat_map(u64::to_le_bytes).collect();
    memory.write(GDT, &gdt)?;
    memory.write(TSS + 4, &RING0_STACK.to_le_bytes())?;
    memory.write(TSS + 0x66, &(TASK_BYTES as u16).to_le_bytes())?;
    memory.write(TSS + u64::from(TASK_LIMIT), &[0xff])?;

    for vector in 0..=u8::MAX {
        let stub = match vector {
            GENERAL_PROTECTION => HALT_STUB,
            fault if fault < FAULTS => FAULT_STUBS + u64::from(fault) * STUB_BYTES,
            _ => COUNT_STUB,
        };
        // An interrupt gate; breakpoints (3) may come from user mode.
        let kind: u64 = if vector == 3 { 0xee } else { 0x8e };
        let low = stub & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 40 | (stub >> 16 & 0xffff) << 48;
        let gate: Vec<u8> = [low, stub >> 32].into_iter().flat_map(u64::to_le_bytes).collect();
        memory.write(IDT + u64::from(vector) * 16, &gate)?;
    }

    // Present, writable, for user mode; the leaves are large pages.
    let (table, leaf) = (0x07, 0x87);
    let directories = MAPPED >> 30;
    memory.write(PAGES, &((PAGES + 0x1000) | table).to_le_bytes())?;
    for n in 0..directories {
        memory.write(PAGES + 0x1000 + n * 8, &((PAGES + 0x2000 + n * 0x1000) | table).to_le_bytes())?;
    }
    let leaves: Vec<u8> = (0..MAPPED / LARGE_PAGE).flat_map(|n| ((n * LARGE_PAGE) | leaf).to_le_bytes()).collect();
    memory.write(PAGES + 0x2000, &leaves)
}

/// Ring 0's few instructions.
fn write_stubs(memory: &Memory) -> io::Result<()> {
    let count = [
        &[0x50, 0x48, 0xb8][..], // push rax; mov rax, counter
        &INTERRUPTS_AT.to_le_bytes(),
        &[0xff, 0x00, 0x48, 0xb8], // inc dword [rax]; mov rax, end of interrupt
        &EOI.to_le_bytes(),
        &[0xc7, 0x00, 0, 0, 0, 0, 0x58, 0x48, 0xcf], // mov dword [rax], 0; pop rax; iretq
    ]
    .concat();
    memory.write(COUNT_STUB, &count)?;
    let sleep = [
        &[0x48, 0xff, 0x44, 0x24, 0x10, 0x48, 0xb8][..], // inc qword [rsp + 16], past the hlt; mov rax, counter
        &INTERRUPTS_AT.to_le_bytes(),
        &[0x8b, 0x00, 0x39, 0xf8, 0x75, 0x03], // mov eax, [rax]; cmp eax, edi; jne +3: one came since the guest has looked
        &[0xfb, 0xf4, 0xfa],                   // sti; hlt; cli
        &[0x58, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf], // pop rax; add rsp, 8 (the error code); iretq
    ]
    .concat();
    let look = [
        &[0x50, 0x48, 0x8b, 0x44, 0x24, 0x10][..], // push rax; mov rax, [rsp + 16], where the fault was
        &[0x80, 0x38, 0xf4, 0x75, sleep.len() as u8], // cmp byte [rax], hlt; jne to the end
    ]
    .concat();
    let halt = [&look[..], &sleep, &[0x58], &tell(GENERAL_PROTECTION)].concat();
    memory.write(HALT_STUB, &halt)?;
    for fault in 0..FAULTS {
        memory.write(FAULT_STUBS + u64::from(fault) * STUB_BYTES, &tell(fault))?;
    }
    Ok(())
}

/// mov al, fault; out port, al; hlt: we do not come back from the port.
fn tell(fault: u8) -> [u8; 5] {
    [0xb0, fault, 0xe6, FAULT_PORT as u8, 0xf4]
}

/// Where fault `vector` happened, whose stub has just told us of it.
pub(super) fn fault_address(memory: &Memory, vcpu: &Vcpu, vector: u8) -> Option<u64> {
    let frame = vcpu.fd().get_regs().ok()?.rsp;
    let code = if WITH_CODE >> (vector & 31) & 1 != 0 { 8 } else { 0 };
    memory.word(frame.checked_add(code)?)
}

/// A number that changes while the guest lives.
pub(super) fn beat(memory: &Memory) -> Option<u64> {
    memory.word(BEAT_AT)
}

/// The timer interrupts like a device.
const _: () = assert!(TIMER_VECTOR > DEVICE_VECTOR && FAULT_STUBS + 32 * STUB_BYTES <= INFO);

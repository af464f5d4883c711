//! Memory: the heap, what the compiler calls for copies, and pages for virtio-drivers.
//!
//! Invariant: the heap is all memory behind the program, used by nobody else; memory is mapped at its own address, so an address is what
//! devices use too.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::{alloc::Layout, arch::asm, ptr::NonNull};

use linked_list_allocator::LockedHeap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::machine::Info;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its memory.
pub fn init(info: &Info) {
    let (from, to) = (info.free as usize, info.memory as usize);
    // SAFETY: the machine says that `from` to `to` is memory that nobody uses, and this is called once.
    unsafe { HEAP.lock().init(core::ptr::with_exposed_provenance_mut(from), to - from) };
}

/// Memory as virtio-drivers wants it.
pub struct Identity;

fn pages(count: usize) -> Layout {
    Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).unwrap_or(Layout::new::<u8>())
}

// SAFETY: pages come from the heap, zeroed, aligned and used by nobody else until given back; addresses are physical ones.
unsafe impl Hal for Identity {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not of size zero: virtio-drivers asks for one page at least.
        let start = unsafe { alloc_zeroed(pages(count)) };
        let Some(start) = NonNull::new(start) else { panic!("no memory for {count} pages of a virtqueue") };
        (start.as_ptr().expose_provenance() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, count: usize) -> i32 {
        // SAFETY: the caller gives back what `dma_alloc` gave, with the same count.
        unsafe { dealloc(start.as_ptr(), pages(count)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        match NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize)) {
            Some(at) => at,
            None => panic!("a device at address 0"),
        }
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: `n` bytes at both, which do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _, options(nostack, preserves_flags));
    }
    to
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: `n` bytes at both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: forwards is right: the destination does not begin inside the source.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the source's end is overwritten last when going backwards; the direction flag is put back.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _, inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _,
            inout("rcx") n => _, options(nostack)
        );
    }
    to
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: `n` bytes there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: forwarded to the caller.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") n => _, options(nostack, preserves_flags));
    }
    to
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: `n` bytes at both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for at in 0..n {
        // SAFETY: `at` is below `n`. Volatile, so that the loop is not made into a call to this very function.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: `n` bytes at both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: forwarded to the caller.
    unsafe { memcmp(a, b, n) }
}

/// Called by compiled code, as in C.
///
/// # Safety
/// As in C: a byte of zero ends the text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: forwarded to the caller.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Named by the compiled core library; never called, for a panic aborts.
#[unsafe(no_mangle)]
pub extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
pub extern "C" fn _Unwind_Resume() -> ! {
    crate::machine::end(crate::machine::PANICKED)
}

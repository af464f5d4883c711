//! [`CountingAllocator`]: the system's allocator, counting; for tests which show that a path does not allocate.
//!
//! Invariant: counting allocates nothing and is per thread, so that other threads of a test program do not disturb.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Allocations and reallocations of this thread since it started, while [`CountingAllocator`] is the program's allocator.
pub fn count() -> u64 {
    COUNT.try_with(Cell::get).unwrap_or(0)
}

fn count_one() {
    // A thread that is ending has no counter any more, and nobody who would ask for it.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

/// The allocator for `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: forwarded to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: forwarded to the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count_one();
        // SAFETY: forwarded to the caller.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: forwarded to the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

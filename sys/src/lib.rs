//! Beneath everything: memory that others write to, and the operating system.
//!
//! The only crate of Trunkline that may hold `unsafe`. Each block says why it is sound; everything public is safe to call with any
//! arguments. Read first: [`guest`] (guest memory and what is lent from it), [`arena`] (what a worker may dereference), [`split`] and
//! [`packed`] (rings).

pub mod arena;
mod copy;
pub mod guest;
pub mod packed;
pub mod split;
pub mod words;

pub mod affinity;
#[cfg(feature = "testing")]
pub mod allocations;
mod call;
pub mod cpu_time;
pub mod epoll;
pub mod eventfd;
pub mod huge;
pub mod inet;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
pub mod memory;
pub mod netns;
pub mod packet;
pub mod poll;
pub mod process;
pub mod sigbus;
pub mod socket;
pub mod spsc;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod tsc;

/// Asks for the cache line that a value begins in, to use it soon.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    copy::prefetch_read(std::ptr::from_ref(value).cast());
}

pub use guest::{GuestMemory, Lent, MapRef, Region, Room};

//! Once made, a table allocates nothing: not for new mappings, not when full, not for fragments, errors, unsolicited SYNs or sweeps. The suite is in
//! `suites/no_allocation.rs`, for either version of IP.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use sys::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/no_allocation.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/no_allocation.rs"]
mod v6;

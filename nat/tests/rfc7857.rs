//! RFC 7857 over IPv4 and over IPv6: the suite is in `suites/rfc7857.rs`.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/rfc7857.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/rfc7857.rs"]
mod v6;

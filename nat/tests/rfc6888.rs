//! RFC 6888 (carrier-grade NAT) over IPv4 and over IPv6: the suite is in `suites/rfc6888.rs`.

#![allow(clippy::duplicate_mod, clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

macro_rules! family {
    () => {
        use crate::common::v4::*;
    };
}
#[path = "suites/rfc6888.rs"]
mod v4;

macro_rules! family {
    () => {
        use crate::common::v6::*;
    };
}
#[path = "suites/rfc6888.rs"]
mod v6;

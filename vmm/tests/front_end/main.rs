//! Our front end against our back end (real sockets, real sessions, ring ports turned by hand), against a device that others wrote, and
//! against the clock.

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod again;
mod broken;
mod foreign;
mod frames;
mod life;
mod script;
mod switch;

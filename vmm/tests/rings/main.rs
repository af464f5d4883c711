//! The device half of virtqueues and the port made of it, against the driver half, a foreign implementation, and drivers that break rules.
//!
//! Read first: [`pair`] (two guests and one worker's turn), then [`frames`].

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod frames;
mod hostile;
mod interleavings;
mod memory;
mod oracle;
mod pair;

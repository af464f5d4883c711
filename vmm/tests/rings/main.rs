//! The device half of virtqueues and the port made of it, against the driver half, a foreign implementation, and drivers that break rules.
//!
//! Read first: [`pair`] (two guests and one worker's turn), then [`frames`].

mod frames;
mod hostile;
mod interleavings;
mod memory;
mod pair;

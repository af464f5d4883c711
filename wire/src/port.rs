//! [`Port`]: what a frame comes in by and goes out by. One port is one lane (queue pair) of a NIC.
//!
//! Invariant: a port takes every frame it is given; what it cannot pass on at once it keeps until `release` and then passes on or drops
//! with a reason. An `Err` means that the port is broken: the worker detaches it, and only it. Read first: [`crate::frame`].

use std::{io, os::fd::RawFd};

use crate::{clock::Instant, context::Context, frame::Burst};

/// What a worker that found no work sleeps on.
#[derive(Debug, Default)]
pub struct Wake {
    /// Descriptors whose becoming readable ends the sleep.
    pub readable: Vec<RawFd>,
    /// The latest time to wake up.
    pub deadline: Option<Instant>,
}

impl Wake {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.deadline = None;
    }

    /// Wakes up no later than `at`.
    pub fn by(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }
}

/// One lane of a NIC, or something stacked on one.
pub trait Port: Send {
    /// Called once, between turns, when a worker takes the port on: the place to hand guest memory to the arena.
    fn attach(&mut self, _cx: &mut Context) -> io::Result<()> {
        Ok(())
    }

    /// Called once, between turns, before a worker lets the port go: the place to take guest memory out of the arena.
    fn detach(&mut self, _cx: &mut Context) {}

    /// Puts what came in, up to a burst, into `burst`, which is empty. A port with NICs in several bridges (a tunnel, a router) puts it among the
    /// context's answers instead, each frame with the NIC that it came in by.
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()>;

    /// Takes all of `burst`. A leaf keeps what does not fit until [`Port::release`].
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()>;

    /// The end of a turn: egress ports first, while bodies are still lent (a last look for room, then `Drop(RingFull)`), the ingress port
    /// last (what it received is completed).
    fn release(&mut self, cx: &mut Context) -> io::Result<()>;

    /// Arms notifications and says what to sleep on; false when work came in meanwhile.
    fn wake(&mut self, wake: &mut Wake) -> bool;

    /// The sleep, or the wish for one, is over: notifications are not needed while polling.
    fn awake(&mut self) {}
}

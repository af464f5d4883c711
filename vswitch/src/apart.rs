//! [`Apart`]: a port that takes nothing from one other NIC of its bridge.
//!
//! Invariant: that of the port it is stacked on; a frame from that NIC is a counted drop.
//!
//! Where two ports lead to the same place by two ways, what comes in by one must not go out by the other: so it is with the host's TAP and the
//! uplink of a network that shares the host's NIC ([`crate::mac_nat`]). Read first: [`wire::port`].

use std::io;

use wire::{Burst, Context, DropReason, NicId, Port, Wake};

/// See the module's documentation.
pub struct Apart {
    port: Box<dyn Port>,
    from: NicId,
    /// Between calls empty.
    passing: Burst,
}

impl Apart {
    /// `port`, without what comes from the NIC `from`.
    pub fn new(port: Box<dyn Port>, from: NicId) -> Apart {
        Apart { port, from, passing: Burst::default() }
    }
}

impl Port for Apart {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.port.attach(cx)
    }

    fn detach(&mut self, cx: &mut Context) {
        self.port.detach(cx);
    }

    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        self.port.receive(cx, burst)
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            if cx.heads.get(&frame).origin.nic == self.from {
                cx.drop(frame, DropReason::Isolated);
            } else {
                // As many frames as came fit.
                let _ = self.passing.push(frame);
            }
        }
        let result = self.port.transmit(cx, &mut self.passing);
        // Of a port that failed, what it did not take.
        self.passing.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
        result
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        self.port.release(cx)
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        self.port.wake(wake)
    }

    fn awake(&mut self) {
        self.port.awake();
    }
}

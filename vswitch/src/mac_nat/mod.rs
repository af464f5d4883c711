//! [`MacNatPort`]: an uplink for many guests with one MAC on the air, where a NIC (Wi-Fi) sends with no MAC but its own.
//!
//! Invariant: no frame leaves through the uplink with a source other than its MAC. Untagged frames only.
//!
//! Theory of operation: stacked on the uplink's port. A frame from a guest is changed in its head and handed on; what the uplink received
//! is given the MAC of the guest that it is for, and the bridge does the rest. The body is never looked at. Frames between guests do not come
//! here. The host is reached over a TAP of its own in the same bridge (docs/decisions/0014-mac-nat-and-the-host.md): control hears by a
//! [`remote`] which addresses there are, and says which are the host's.
//! Read first: [`core`], [`holders`], [`wire::port`].

pub mod core;
pub mod holders;
pub mod remote;

use std::{io, net::IpAddr};

use wire::{Burst, Context, Mac, Port, Wake};

use self::{core::MacNat, remote::Inbox};

/// See the module's documentation.
pub struct MacNatPort {
    uplink: Box<dyn Port>,
    nat: MacNat,
    inbox: Option<Inbox>,
    /// Between calls empty.
    passing: Burst,
}

impl MacNatPort {
    /// An uplink with this MAC. `reserved`, the host's own addresses and its routers', never is a guest's.
    pub fn new(uplink: Box<dyn Port>, mac: Mac, reserved: Vec<IpAddr>) -> MacNatPort {
        MacNatPort { uplink, nat: MacNat::new(mac, reserved), inbox: None, passing: Burst::default() }
    }

    /// The same, that control hears of and speaks to.
    pub fn with_inbox(self, inbox: Inbox) -> MacNatPort {
        MacNatPort { inbox: Some(inbox), ..self }
    }

    /// What it knows.
    pub fn nat(&self) -> &MacNat {
        &self.nat
    }

    fn settle(&mut self, cx: &Context) {
        if let Some(inbox) = &mut self.inbox {
            inbox.settle(self.nat.holders_mut(), cx.now);
        }
    }
}

impl Port for MacNatPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.uplink.attach(cx)
    }

    fn detach(&mut self, cx: &mut Context) {
        self.uplink.detach(cx);
    }

    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        self.uplink.receive(cx, &mut self.passing)?;
        for frame in self.passing.drain() {
            let head = cx.heads.get_mut(&frame);
            match self.nat.inbound(head.bytes(), cx.now) {
                Ok(rewrite) => {
                    rewrite.apply(head.bytes_mut());
                    // As many frames as came fit.
                    let _ = burst.push(frame);
                }
                Err(reason) => cx.drop(frame, reason),
            }
        }
        self.settle(cx);
        Ok(())
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        self.settle(cx);
        for frame in burst.drain() {
            let now = cx.now;
            let head = cx.heads.get_mut(&frame);
            let (len, nic, owed) = (head.len(), head.origin.nic, head.offload.needs_checksum());
            match self.nat.outbound(head.bytes(), len, nic, owed, now) {
                Ok((rewrite, learnt)) => {
                    rewrite.apply(head.bytes_mut());
                    if let Some(learnt) = learnt {
                        self.nat.learn(learnt, now);
                    }
                    // As many frames as came fit.
                    let _ = self.passing.push(frame);
                }
                Err(reason) => cx.drop(frame, reason),
            }
        }
        let result = self.uplink.transmit(cx, &mut self.passing);
        // Of an uplink that failed, what it did not take.
        self.passing.drain().for_each(|frame| cx.drop(frame, wire::DropReason::NotReady));
        result
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        self.uplink.release(cx)
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        if let Some(inbox) = &self.inbox {
            inbox.wake(self.nat.holders(), wake);
        }
        self.uplink.wake(wake)
    }

    fn awake(&mut self) {
        self.uplink.awake();
    }
}

#[cfg(test)]
mod tests;

//! [`GatewayPort`]: the router of a segment, or of several that it joins, as a port of their bridges.
//!
//! Invariant: every frame that is transmitted to the port ends here: answered (it counts as transmitted, the answer as originated), handed to
//! a port behind, sent on into another of its segments, or dropped with a reason. For ARP, echo and neighbour discovery nothing is
//! allocated; for DHCP only what has to be remembered.
//!
//! Theory of operation: each segment has a [`Leg`] with a NIC of its own, and a way out may have a NIC outside besides; `cx.nic` says which of them
//! the port is called for. What goes into a segment goes through `cx.answers`, each frame from the NIC of its leg, so that the worker
//! forwards it in the right bridge in the same turn.
//! Read first: [`wire::port`], [`Leg`].

use std::{io, net::IpAddr};

use wire::{Burst, Context, DropReason, Frame, NicId, Port, Wake};

use crate::{
    crossing,
    gateway::Gateway,
    leg::{Fate, Leg},
};

/// See the module's documentation.
pub struct GatewayPort {
    legs: Vec<Leg>,
    /// NICs outside, and whose way out they are.
    outside: Vec<(NicId, usize)>,
    attached: usize,
}

impl GatewayPort {
    /// The router with these legs. It is attached once for each leg, in their order, and then once for each NIC that a way out has outside.
    pub fn new(legs: Vec<Leg>) -> Self {
        GatewayPort { legs, outside: Vec::new(), attached: 0 }
    }

    /// How many NICs it is to be attached to.
    pub fn nics(&self) -> usize {
        self.legs.len() + self.legs.iter().map(|leg| leg.outside_nics).sum::<usize>()
    }

    /// The routers of its legs.
    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.legs.iter().map(Leg::gateway)
    }

    /// The leg that the `nth` attachment to a NIC outside belongs to.
    fn owner(&self, nth: usize) -> Option<usize> {
        let owners = self.legs.iter().enumerate();
        owners.flat_map(|(at, leg)| std::iter::repeat_n(at, leg.outside_nics)).nth(nth)
    }

    /// Takes a packet for `to` from the segment of one leg into that of another.
    fn cross(&mut self, cx: &mut Context, at: usize, frame: Frame, to: IpAddr) {
        let other = self.legs.iter().enumerate().position(|(other, leg)| other != at && leg.has(to));
        let Some(Ok([from, into])) = other.map(|other| self.legs.get_disjoint_mut([at, other])) else {
            return cx.drop(frame, DropReason::NoRoute);
        };
        crossing::cross(cx, frame, to, from, into);
    }

    /// Calls `act` for every leg, as its NIC.
    fn each(
        &mut self,
        cx: &mut Context,
        mut act: impl FnMut(&mut Leg, &mut Context) -> io::Result<()>,
    ) -> io::Result<()> {
        let nic = cx.nic;
        let mut result = Ok(());
        for leg in &mut self.legs {
            cx.nic = leg.origin.nic;
            result = result.and(act(leg, cx));
        }
        cx.nic = nic;
        result
    }
}

impl Port for GatewayPort {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        let nth = self.attached;
        self.attached += 1;
        if let Some(leg) = self.legs.get_mut(nth) {
            return leg.attach(cx);
        }
        let owner = self.owner(nth - self.legs.len()).ok_or(io::ErrorKind::InvalidInput)?;
        self.outside.push((cx.nic, owner));
        match self.legs.get_mut(owner).and_then(|leg| leg.way_out.as_mut()) {
            Some(port) => port.attach(cx),
            None => Ok(()),
        }
    }

    fn detach(&mut self, cx: &mut Context) {
        self.legs.iter_mut().for_each(|leg| leg.detach(cx));
    }

    fn receive(&mut self, cx: &mut Context, _burst: &mut Burst) -> io::Result<()> {
        self.each(cx, Leg::receive)
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let nic = cx.nic;
        let Some(at) = self.legs.iter().position(|leg| leg.origin.nic == nic) else {
            let owner = self.outside.iter().find(|(outside, _)| *outside == nic).map(|(_, owner)| *owner);
            return match owner.and_then(|owner| self.legs.get_mut(owner)) {
                Some(leg) => leg.come_in(cx, burst),
                None => Ok(()),
            };
        };
        for frame in burst.drain() {
            let Some(leg) = self.legs.get_mut(at) else { break };
            if let Fate::Elsewhere(frame, to) = leg.take(cx, frame) {
                self.cross(cx, at, frame, to);
            }
        }
        self.legs.get_mut(at).map_or(Ok(()), |leg| leg.hand_on(cx))
    }

    fn release(&mut self, cx: &mut Context) -> io::Result<()> {
        self.each(cx, Leg::release)
    }

    fn wake(&mut self, wake: &mut Wake) -> bool {
        self.legs.iter_mut().all(|leg| leg.wake(wake))
    }

    fn awake(&mut self) {
        self.legs.iter_mut().for_each(Leg::awake);
    }
}

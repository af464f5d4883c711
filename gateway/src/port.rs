//! [`GatewayPort`]: the router of a segment, or of several that it joins, as a port of their bridges.
//!
//! Invariant: every frame that is transmitted to the port ends here: answered (it counts as transmitted, the answer as originated), handed to
//! a port behind, sent on into another of its segments, or dropped with a reason. For ARP, echo and neighbour discovery nothing is
//! allocated; for DHCP only what has to be remembered.
//!
//! Theory of operation: each segment has a [`Leg`] with a NIC of its own, and a way out may have a NIC outside besides; `cx.nic` says which of them
//! the port is called for. What goes into a segment goes through `cx.answers`, each frame from the NIC of its leg, so that the worker
//! forwards it in the right bridge in the same turn. Legs may share the way out of one of them, which is then called as that leg; what it gives
//! back is sorted by whose segment has the destination.
//! Read first: [`wire::port`], [`Leg`].

use std::{io, net::IpAddr};

use wire::{Burst, Context, DropReason, Frame, NicId, Port, Wake};

use crate::{
    crossing,
    gateway::Gateway,
    head::destination,
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
    pub fn new(mut legs: Vec<Leg>) -> Self {
        let owners: Vec<usize> = legs.iter().filter_map(|leg| leg.way_out.owner()).collect();
        for owner in owners {
            if let Some(leg) = legs.get_mut(owner) {
                leg.is_shared = true;
            }
        }
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

    /// Hands what leg `at` was given to the ports behind it.
    fn hand_on(&mut self, cx: &mut Context, at: usize) -> io::Result<()> {
        let Some(leg) = self.legs.get_mut(at) else { return Ok(()) };
        let nic = std::mem::replace(&mut cx.nic, leg.origin.nic);
        let result = leg.hand_on(cx);
        cx.nic = nic;
        self.lead_home(cx, at);
        result
    }

    /// Puts what the way out of leg `at` gave back for other segments into these.
    fn lead_home(&mut self, cx: &mut Context, at: usize) {
        let Some(leg) = self.legs.get_mut(at).filter(|leg| !leg.strays.is_empty()) else { return };
        let mut strays = std::mem::take(&mut leg.strays);
        let nic = cx.nic;
        for frame in strays.drain() {
            let to = destination(cx.heads.get(&frame).bytes());
            let leg = to.and_then(|to| {
                let leg = self.legs.iter_mut().find(|leg| leg.way_out.owner() == Some(at) && leg.has(to))?;
                Some((leg, to))
            });
            match leg {
                Some((leg, to)) => {
                    cx.nic = leg.origin.nic;
                    cx.heads.get_mut(&frame).origin = leg.origin;
                    leg.deliver(cx, frame, to);
                }
                None => cx.drop(frame, DropReason::NoRoute),
            }
        }
        cx.nic = nic;
        if let Some(leg) = self.legs.get_mut(at) {
            leg.strays = strays;
        }
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
        match self.legs.get_mut(owner).and_then(|leg| leg.way_out.own()) {
            Some(port) => port.attach(cx),
            None => Ok(()),
        }
    }

    fn detach(&mut self, cx: &mut Context) {
        self.legs.iter_mut().for_each(|leg| leg.detach(cx));
    }

    fn receive(&mut self, cx: &mut Context, _burst: &mut Burst) -> io::Result<()> {
        let result = self.each(cx, Leg::receive);
        for at in 0..self.legs.len() {
            self.lead_home(cx, at);
        }
        result
    }

    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let nic = cx.nic;
        let Some(at) = self.legs.iter().position(|leg| leg.origin.nic == nic) else {
            let owner = self.outside.iter().find(|(outside, _)| *outside == nic).map(|(_, owner)| *owner);
            let Some(owner) = owner else { return Ok(()) };
            let result = self.legs.get_mut(owner).map_or(Ok(()), |leg| leg.come_in(cx, burst));
            self.lead_home(cx, owner);
            return result;
        };
        if let Some(leg) = self.legs.get_mut(at) {
            leg.look_out();
        }
        let mut out_by = None;
        for frame in burst.drain() {
            let Some(leg) = self.legs.get_mut(at) else { break };
            match leg.take(cx, frame) {
                Fate::Settled => {}
                Fate::Elsewhere(frame, to) => self.cross(cx, at, frame, to),
                Fate::Out(frame, owner) => {
                    out_by = Some(owner);
                    match self.legs.get_mut(owner) {
                        Some(leg) => leg.go_out(cx, frame),
                        None => cx.drop(frame, DropReason::NoRoute),
                    }
                }
            }
        }
        let result = out_by.map_or(Ok(()), |owner| self.hand_on(cx, owner));
        result.and(self.hand_on(cx, at))
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

//! What a [`Bridge`] does with a frame.
//!
//! Invariant: a frame never goes back to the NIC it came from, never to a NIC outside its segment, and ends in an egress burst or with a
//! counted reason at its origin. No allocation, no lock, no system call.
//!
//! Theory of operation: for every frame of a burst, `judge` says what is to become of it and `commit` makes it happen; frames that are like
//! the one before take over what was judged of that. A trace of a frame, [`Bridge::decide`], asks the same `judge`, so it is the decision
//! of the very code that forwards.
//! Read first: [`crate::decide`].

use wire::{Burst, Context, DropReason, Frame, NicId};

use crate::{
    bridge::{Bridge, Route},
    budget::Traffic,
    decide::{Decision, Outcome},
    egress::Egress,
    fdb::{Key, Learn},
    memo::Memo,
    vlan::{Label, relabel},
};

impl Bridge {
    /// Forwards all frames of `burst` into `egress`; each leaves by the lanes of other NICs or ends with a reason.
    pub fn forward(&mut self, cx: &mut Context, burst: &mut Burst, egress: &mut Egress) {
        let Some(first) = burst.iter().next() else { return };
        let mut memo = self.memo(cx.heads.get(first).origin, cx.now);
        for frame in burst.drain() {
            let head = cx.heads.get_mut(&frame);
            if memo.covers(head.origin, head.bytes()) {
                head.segment = memo.decision.segment;
                head.tagged = memo.decision.label.is_tagged();
                if memo.inspects
                    && let Err(reason) = self.inspect(memo.origin, memo.decision.segment, head.bytes())
                {
                    cx.drop_at(memo.origin, frame, reason);
                    continue;
                }
                self.commit(&memo, &memo.decision, cx, frame, egress);
            } else {
                self.forward_other(&mut memo, cx, frame, egress);
            }
        }
    }

    /// Forwards a frame that is not like the one before.
    #[inline(never)]
    fn forward_other(&mut self, memo: &mut Memo, cx: &mut Context, frame: Frame, egress: &mut Egress) {
        let head = cx.heads.get_mut(&frame);
        if head.origin != memo.whole_origin() {
            *memo = self.memo(head.origin, cx.now);
        }
        let decision = self.judge(memo, head.bytes());
        head.segment = decision.segment;
        head.tagged = decision.label.is_tagged();
        memo.remember(head.bytes(), decision);
        if decision.learn != Learn::Current {
            let (_, from) = head.macs();
            self.learn(memo, &decision, from);
        }
        self.commit(memo, &decision, cx, frame, egress);
    }

    #[inline(always)]
    fn commit(&mut self, memo: &Memo, decision: &Decision, cx: &mut Context, frame: Frame, egress: &mut Egress) {
        match decision.outcome {
            Outcome::Forward(route) => self.send(memo.origin, decision.label, route, cx, frame, egress),
            Outcome::Flood(traffic) => self.flood(memo, decision, traffic, cx, frame, egress),
            Outcome::Drop(reason) => cx.drop_at(memo.origin, frame, reason),
        }
    }

    /// Learns a frame's source, whose address is `from`.
    fn learn(&mut self, memo: &mut Memo, decision: &Decision, from: u64) {
        let source = Key::new(decision.segment, from);
        if self.fdb.settle(decision.learn, source, memo.origin, memo.tick) {
            memo.source = source;
        }
        if !matches!(decision.learn, Learn::Renew(_)) {
            memo.destination = Key::NONE;
        }
    }

    /// Puts a frame that is labelled `label` into the burst of a lane.
    #[inline(always)]
    fn send(&self, origin: NicId, label: Label, route: Route, cx: &mut Context, frame: Frame, egress: &mut Egress) {
        if label != route.label || route.lanes != 1 {
            return self.send_changed(origin, label, route, cx, frame, egress);
        }
        if let Err(frame) = egress.push(route.lane, frame) {
            cx.drop_at(origin, frame, DropReason::RingFull);
        }
    }

    /// [`Bridge::send`] where the label differs or there are several lanes.
    #[inline(never)]
    fn send_changed(
        &self,
        origin: NicId,
        label: Label,
        route: Route,
        cx: &mut Context,
        frame: Frame,
        egress: &mut Egress,
    ) {
        if let Err(reason) = relabel(cx.heads.get_mut(&frame), label, route.label) {
            return cx.drop_at(origin, frame, reason);
        }
        let lane = if route.lanes == 1 { route.lane } else { self.spread(cx, &frame, route) };
        if let Err(frame) = egress.push(lane, frame) {
            cx.drop_at(origin, frame, DropReason::RingFull);
        }
    }

    /// The lane of a NIC with several, by flow.
    fn spread(&self, cx: &Context, frame: &Frame, route: Route) -> u16 {
        let hash = wire::FlowKey::of(cx.heads.get(frame).bytes()).hash();
        let choice = (u64::from(hash) * u64::from(route.lanes)) >> 32;
        let member = self.members.get(route.nic);
        member.and_then(|member| member.lanes.get(choice as usize)).copied().unwrap_or(route.lane)
    }

    /// Sends a copy to every receiver, and the frame itself to the last.
    #[inline(never)]
    fn flood(
        &mut self,
        memo: &Memo,
        decision: &Decision,
        traffic: Traffic,
        cx: &mut Context,
        frame: Frame,
        egress: &mut Egress,
    ) {
        if !self.is_free(memo.origin, decision.segment, traffic)
            && let Some(member) = self.members.get_mut(memo.origin)
        {
            member.pacers.charge(memo.lane, traffic, memo.now);
        }
        let mut last = None;
        for route in self.receivers(memo.origin, decision.segment) {
            let Some(route) = last.replace(route) else { continue };
            match cx.copy(&frame) {
                Some(copy) => self.send(memo.origin, decision.label, route, cx, copy, egress),
                None => return cx.drop_at(memo.origin, frame, DropReason::NoHeads),
            }
        }
        match last {
            Some(route) => self.send(memo.origin, decision.label, route, cx, frame, egress),
            None => cx.drop_at(memo.origin, frame, DropReason::NoDestination),
        }
    }
}

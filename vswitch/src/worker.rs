//! [`Worker`]: the thread that moves frames. Read this file to know what happens to a frame and when.
//!
//! Invariant: everything on a frame's path is owned by one worker and used through `&mut`: no lock, no allocation, no system call per
//! frame. Control comes between turns, as a [`Change`]. A port that fails is detached, alone, with its reason.
//!
//! Theory of operation, one turn:
//!
//! ```text
//!   receive   the ingress port puts up to 64 frames into a burst: heads copied, bodies lent; a tunnel or router puts its frames among the answers
//!   forward   the bridge finds each frame's segment, learns, looks up, floods; frames land in one burst per egress lane
//!   transmit  each egress port takes its burst: the one copy of the body, straight to where it goes
//!   answers   what ports sent back is forwarded in the same turn, in at most four rounds; what is left is dropped (NoBuffers)
//!   release   egress ports first (a last look for room, publish; sockets copy and send here), the ingress port last (what it lent is completed)
//! ```
//!
//! How rounds, spinning and sleep follow one another is in [`crate::thread`].

use std::io;

use wire::{ANSWERS, BURST, Burst, Context, DropReason, Instant, NicId, Origin, Port, Sizes, Wake, filter::RxFilter};

use crate::{
    bridge::Bridge,
    change::{BridgeId, Change, Failure, Report},
    egress::Egress,
};

/// Rounds in which answers of ports are forwarded within one turn.
const ANSWER_ROUNDS: usize = 4;
/// Forwarding-table entries looked at in one round of housekeeping.
const SWEEP: usize = 4096;

struct Lane {
    /// None where the port of another lane serves this one, too.
    port: Option<Box<dyn Port>>,
    /// The lane whose port that is.
    served_by: u16,
    nic: NicId,
    number: u16,
}

struct Nic {
    bridge: BridgeId,
    /// This worker's lanes of it, by lane number.
    lanes: Vec<(u16, u16)>,
    /// What its driver does not want; nothing when it takes everything.
    filter: Option<Box<RxFilter>>,
    /// Lanes that its driver uses.
    pairs: u16,
}

/// The state of a worker's thread. See the module's documentation.
pub struct Worker {
    cx: Context,
    lanes: Vec<Option<Lane>>,
    nics: Vec<Option<Nic>>,
    bridges: Vec<Option<Bridge>>,
    egress: Egress,
    burst: Burst,
    /// What answers are put into while others are forwarded.
    spare: Option<Box<Burst<ANSWERS>>>,
    released: Vec<u16>,
    /// Ports that failed in this turn: their places, themselves, why.
    failed: Vec<(u16, Lane, String)>,
    failures: Box<dyn FnMut(Failure) + Send>,
    frames: u64,
    busy: u64,
    idle: u64,
    cpu: Option<usize>,
}

impl Worker {
    /// A worker without bridges. Ports that fail are told to `failures`.
    pub fn new(sizes: Sizes, cpu: Option<usize>, failures: Box<dyn FnMut(Failure) + Send>) -> io::Result<Self> {
        Ok(Worker {
            cx: Context::new(sizes)?,
            lanes: Vec::new(),
            nics: Vec::new(),
            bridges: Vec::new(),
            egress: Egress::default(),
            burst: Burst::default(),
            spare: Some(Box::default()),
            released: Vec::new(),
            failed: Vec::new(),
            failures,
            frames: 0,
            busy: 0,
            idle: 0,
            cpu,
        })
    }

    /// What the worker counted and knows.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    /// Counts the cycles of a round that received `frames`, or found nothing to do.
    #[inline]
    pub(crate) fn spent(&mut self, frames: usize, cycles: u64) {
        if frames > 0 {
            self.frames += frames as u64;
            self.busy += cycles;
        } else {
            self.idle += cycles;
        }
    }

    /// One round over all lanes at time `now`: a turn each. Returns the frames received.
    pub fn round(&mut self, now: Instant) -> usize {
        let mut frames = 0;
        for index in 0..self.lanes.len() {
            frames += self.turn(index as u16, now);
        }
        frames
    }

    /// One turn of one lane. Returns the frames received.
    #[inline]
    fn turn(&mut self, index: u16, now: Instant) -> usize {
        let Worker { cx, lanes, nics, bridges, egress, burst, .. } = self;
        let Some(Some(Lane { port: Some(port), nic, .. })) = lanes.get_mut(usize::from(index)) else { return 0 };
        let nic = *nic;
        cx.begin_turn(now);
        cx.nic = nic;
        if let Err(error) = port.receive(cx, burst) {
            for frame in burst.drain() {
                cx.drop(frame, DropReason::NotReady);
            }
            self.fail(index, &error);
            self.let_failed_go();
            return 0;
        }
        let received = burst.len() + cx.answers.len();
        if received > 0 {
            let bridge = nics.get(nic.index()).and_then(Option::as_ref).map(|nic| nic.bridge.0);
            match bridge.and_then(|id| bridges.get_mut(usize::from(id))).and_then(Option::as_mut) {
                Some(bridge) => bridge.forward(cx, burst, egress),
                None => burst.drain().for_each(|frame| cx.drop(frame, DropReason::NoDestination)),
            }
            self.deliver();
        }
        self.release(Some(index));
        received
    }

    /// Hands the egress bursts to their ports, and forwards what the ports answer.
    #[inline]
    fn deliver(&mut self) {
        for _ in 0..ANSWER_ROUNDS {
            while let Some(index) = self.egress.next_touched() {
                self.transmit(index);
            }
            if self.cx.answers.is_empty() {
                return;
            }
            self.forward_answers();
        }
        while let Some(index) = self.egress.next_touched() {
            self.transmit(index);
        }
        while let Some(frame) = self.cx.answers.pop() {
            self.cx.drop(frame, DropReason::NoBuffers);
        }
    }

    /// Hands the burst of one egress lane to its port.
    #[inline]
    fn transmit(&mut self, index: u16) {
        let Worker { cx, lanes, nics, egress, released, .. } = self;
        let burst = egress.burst(index);
        let Some(Some(Lane { served_by: index, nic, .. })) = lanes.get(usize::from(index)) else {
            return burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
        };
        let (index, nic) = (*index, *nic);
        cx.nic = nic;
        if let Some(Some(Nic { filter: Some(filter), .. })) = nics.get(nic.index()) {
            filter.drop_unwanted(cx, burst);
        }
        let Some(Some(Lane { port: Some(port), .. })) = lanes.get_mut(usize::from(index)) else {
            return burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
        };
        let result = port.transmit(cx, burst);
        if !released.contains(&index) {
            released.push(index);
        }
        if let Err(error) = result {
            burst.drain().for_each(|frame| cx.drop(frame, DropReason::NotReady));
            self.fail(index, &error);
        }
    }

    /// Forwards what ports sent back, in the order in which they sent it, each frame as if received where its origin says. What follows one
    /// another from the same NIC is forwarded as one burst; before more than a burst could meet at one lane, the lanes are served.
    fn forward_answers(&mut self) {
        let spare = self.spare.take().unwrap_or_default();
        let mut answers = std::mem::replace(&mut self.cx.answers, spare);
        let mut frames = answers.drain().peekable();
        let mut waiting = 0;
        while let Some(first) = frames.next() {
            let Worker { cx, nics, bridges, egress, burst, .. } = self;
            let nic = cx.heads.get(&first).origin.nic;
            let _ = burst.push(first);
            while burst.room() > 0
                && let Some(next) = frames.next_if(|next| cx.heads.get(next).origin.nic == nic)
            {
                let _ = burst.push(next);
            }
            cx.nic = nic;
            waiting += burst.len();
            let bridge = nics.get(nic.index()).and_then(Option::as_ref).map(|nic| nic.bridge.0);
            match bridge.and_then(|id| bridges.get_mut(usize::from(id))).and_then(Option::as_mut) {
                Some(bridge) => bridge.forward(cx, burst, egress),
                None => burst.drain().for_each(|frame| cx.drop(frame, DropReason::NoDestination)),
            }
            if waiting + frames.len().min(BURST) > BURST {
                waiting = 0;
                while let Some(index) = self.egress.next_touched() {
                    self.transmit(index);
                }
            }
        }
        self.spare = Some(answers);
    }

    /// The end of a turn: egress ports first, the ingress port last.
    #[inline]
    fn release(&mut self, ingress: Option<u16>) {
        let mut released = std::mem::take(&mut self.released);
        if let Some(ingress) = ingress {
            released.retain(|index| *index != ingress);
            released.push(ingress);
        }
        for index in released.drain(..) {
            let Some(Some(Lane { port: Some(port), nic, .. })) = self.lanes.get_mut(usize::from(index)) else {
                continue;
            };
            self.cx.nic = *nic;
            if let Err(error) = port.release(&mut self.cx) {
                self.fail(index, &error);
            }
        }
        self.released = released;
        if !self.failed.is_empty() {
            self.let_failed_go();
        }
    }

    /// Takes a port that failed out of the turn. It is let go when the turn is over: what it has lent to others is still good.
    #[cold]
    fn fail(&mut self, index: u16, error: &io::Error) {
        let Some(lane) = self.lanes.get_mut(usize::from(index)).and_then(Option::take) else { return };
        self.failed.push((index, lane, error.to_string()));
    }

    /// Lets go of the ports that failed in the turn that is over.
    #[cold]
    fn let_failed_go(&mut self) {
        while let Some((index, lane, reason)) = self.failed.pop() {
            let failure = Failure { nic: lane.nic, lane: lane.number, reason };
            self.let_go(index, lane);
            (self.failures)(failure);
        }
    }

    fn let_go(&mut self, index: u16, lane: Lane) {
        self.cx.nic = lane.nic;
        if let Some(mut port) = lane.port {
            port.detach(&mut self.cx);
        }
        self.forget_lane(index, lane.nic);
        // Lanes that it served as well end with it.
        for at in 0..self.lanes.len() {
            if let Some(place) = self.lanes.get_mut(at)
                && let Some(served) = place.take_if(|lane| lane.port.is_none() && lane.served_by == index)
            {
                self.forget_lane(at as u16, served.nic);
            }
        }
    }

    fn forget_lane(&mut self, index: u16, id: NicId) {
        if let Some(Some(nic)) = self.nics.get_mut(id.index()) {
            nic.lanes.retain(|(_, place)| *place != index);
        }
        self.tell_lanes(id);
    }

    /// Tells a NIC's bridge which lanes it has.
    fn tell_lanes(&mut self, id: NicId) {
        let Some(Some(nic)) = self.nics.get(id.index()) else { return };
        let lanes: Vec<u16> =
            nic.lanes.iter().filter(|(number, _)| *number < nic.pairs).map(|(_, place)| *place).collect();
        if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(nic.bridge.0)) {
            bridge.set_lanes(id, &lanes);
        }
    }

    /// Carries out a change, between turns. False: the worker is to end.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::AddBridge { id, spec } => *place(&mut self.bridges, id.0) = Some(Bridge::new(spec)),
            Change::RemoveBridge { id } => *place(&mut self.bridges, id.0) = None,
            Change::AddNic { nic, bridge, spec } => {
                self.cx.add_nic(nic);
                if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(bridge.0)) {
                    bridge.add_nic(nic, spec);
                }
                *place(&mut self.nics, nic.0) = Some(Nic { bridge, lanes: Vec::new(), filter: None, pairs: u16::MAX });
            }
            Change::SetAddresses { nic, addresses } => {
                self.bridge_of(nic).into_iter().for_each(|bridge| bridge.set_addresses(nic, &addresses));
            }
            Change::RemoveNic { nic } => self.remove_nic(nic),
            Change::AddStatic { bridge, vlan, mac, nic, reply } => {
                if let Some(Some(bridge)) = self.bridges.get_mut(usize::from(bridge.0)) {
                    // Nobody waiting for the answer any more is no fault of ours.
                    let _ = reply.send(bridge.add_static(vlan, mac, nic));
                }
            }
            Change::Tell { nic, vlan, stations } => {
                let Some(bridge) = self.bridge_of(nic) else { return true };
                for (mac, is_there) in stations {
                    if is_there { bridge.tell(vlan, mac, nic) } else { bridge.untell(vlan, mac, nic) }
                }
            }
            Change::Forget { nic, vlan, mac } => {
                self.bridge_of(nic).into_iter().for_each(|bridge| bridge.forget_station(vlan, mac));
            }
            Change::Attach { nic, lane, port } => self.attach(nic, lane, port),
            Change::AttachToo { nic, to } => self.attach_too(nic, to),
            Change::Detach { nic, lane } => self.detach(nic, lane),
            Change::Filter { nic, filter } => {
                if let Some(Some(nic)) = self.nics.get_mut(nic.index()) {
                    nic.filter = (!filter.is_open()).then_some(filter);
                }
            }
            Change::Pairs { nic, pairs } => {
                if let Some(Some(nic)) = self.nics.get_mut(nic.index()) {
                    nic.pairs = pairs;
                }
                self.tell_lanes(nic);
            }
            Change::Originate { nic, bytes } => self.originate(nic, &bytes),
            Change::Show { reply } => {
                // Nobody waiting for the answer any more is no fault of ours.
                let _ = reply.send(self.report());
            }
            Change::Stop => {
                for index in 0..self.lanes.len() {
                    if let Some(lane) = self.lanes.get_mut(index).and_then(Option::take) {
                        self.let_go(index as u16, lane);
                    }
                }
                return false;
            }
        }
        true
    }

    fn bridge_of(&mut self, nic: NicId) -> Option<&mut Bridge> {
        let at = self.nics.get(nic.index())?.as_ref()?.bridge;
        self.bridges.get_mut(usize::from(at.0))?.as_mut()
    }

    fn attach(&mut self, nic: NicId, number: u16, port: Box<dyn Port>) {
        self.detach(nic, number);
        let index = self.free_place();
        self.enter(index, Lane { port: Some(port), served_by: index, nic, number });
    }

    /// The first lane of `nic` is served by the port of the first lane of `to`.
    fn attach_too(&mut self, nic: NicId, to: NicId) {
        self.detach(nic, 0);
        let first = self.nics.get(to.index()).and_then(Option::as_ref).and_then(|nic| nic.lanes.first());
        if let Some((_, served_by)) = first.copied() {
            let index = self.free_place();
            self.enter(index, Lane { port: None, served_by, nic, number: 0 });
        }
    }

    fn free_place(&self) -> u16 {
        self.lanes.iter().position(Option::is_none).unwrap_or(self.lanes.len()) as u16
    }

    /// A lane begins at a free place, once its port has agreed.
    fn enter(&mut self, index: u16, lane: Lane) {
        if !matches!(self.nics.get(lane.nic.index()), Some(Some(_))) {
            return;
        }
        let Lane { served_by, nic, number, .. } = lane;
        *place(&mut self.lanes, index) = Some(lane);
        self.cx.nic = nic;
        let Some(Some(Lane { port: Some(port), .. })) = self.lanes.get_mut(usize::from(served_by)) else { return };
        if let Err(error) = port.attach(&mut self.cx) {
            if served_by == index {
                port.detach(&mut self.cx);
            }
            *place(&mut self.lanes, index) = None;
            (self.failures)(Failure { nic, lane: number, reason: error.to_string() });
            return;
        }
        self.egress.resize(self.lanes.len());
        if self.released.capacity() <= self.lanes.len() {
            self.released.reserve(self.lanes.len() + 1);
        }
        if let Some(Some(known)) = self.nics.get_mut(nic.index()) {
            known.lanes.push((number, index));
            known.lanes.sort_unstable();
        }
        self.tell_lanes(nic);
    }

    fn detach(&mut self, nic: NicId, number: u16) {
        let Some(Some(known)) = self.nics.get(nic.index()) else { return };
        let Some((_, index)) = known.lanes.iter().find(|(lane, _)| *lane == number).copied() else { return };
        if let Some(lane) = self.lanes.get_mut(usize::from(index)).and_then(Option::take) {
            self.let_go(index, lane);
        }
    }

    fn remove_nic(&mut self, nic: NicId) {
        while let Some(Some(known)) = self.nics.get(nic.index())
            && let Some((number, _)) = known.lanes.first().copied()
        {
            self.detach(nic, number);
        }
        if let Some(known) = self.nics.get_mut(nic.index()).and_then(Option::take)
            && let Some(Some(bridge)) = self.bridges.get_mut(usize::from(known.bridge.0))
        {
            bridge.remove_nic(nic);
        }
    }

    /// Sends a frame of our own as if `nic` had sent it.
    fn originate(&mut self, nic: NicId, bytes: &[u8]) {
        self.cx.begin_turn(self.cx.now);
        self.cx.nic = nic;
        if let Some(frame) = self.cx.originate(Origin { nic, lane: 0 }, bytes) {
            let _ = self.cx.answers.push(frame);
            self.deliver();
            self.release(None);
        }
    }

    fn report(&self) -> Report {
        let nics = self.nics.iter().enumerate().filter(|(_, nic)| nic.is_some()).map(|(id, _)| NicId(id as u16));
        Report {
            cpu: self.cpu,
            frames: self.frames,
            busy_cycles: self.busy,
            idle_cycles: self.idle,
            ledger: self.cx.ledger,
            counters: nics.filter_map(|nic| Some((nic, self.cx.counters(nic)?.clone()))).collect(),
            fdb: self
                .bridges
                .iter()
                .enumerate()
                .filter_map(|(id, bridge)| Some((BridgeId(id as u16), bridge.as_ref()?.fdb_entries(self.cx.now))))
                .collect(),
            flapping: self.bridges.iter().flatten().flat_map(|bridge| bridge.flapping(self.cx.now)).collect(),
        }
    }

    /// What is done now and then, between turns.
    pub(crate) fn housekeeping(&mut self, now: Instant) {
        self.cx.now = now;
        for bridge in self.bridges.iter_mut().flatten() {
            bridge.sweep(now, SWEEP);
        }
    }

    /// Arms every port's notifications; false when one of them has work already.
    pub(crate) fn arm(&mut self, wake: &mut Wake) -> bool {
        wake.clear();
        self.ports().all(|port| port.wake(wake))
    }

    /// The sleep, or the wish for one, is over.
    pub(crate) fn disarm(&mut self) {
        self.ports().for_each(|port| port.awake());
    }

    fn ports(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.lanes.iter_mut().flatten().filter_map(|lane| lane.port.as_mut())
    }
}

/// Place `index` of a table that grows.
fn place<T>(table: &mut Vec<Option<T>>, index: u16) -> &mut Option<T> {
    let index = usize::from(index);
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    &mut table[index]
}

#[cfg(test)]
mod tests;

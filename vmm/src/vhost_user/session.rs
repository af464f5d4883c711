//! [`Session`]: the conversation with one front end, without its socket: messages and homecoming lanes in, replies and effects out.
//!
//! Invariant: what a running lane uses (memory, addresses, doorbells, features, log) changes only while the lane is home; what a worker holds
//! is never touched. A message that needs a lane home waits for it, and so do the messages after it.
//! Read first: vhost-user specification, "Ring states", "REPLY_ACK" and "Migration"; then [`super::request`] and [`super::vring`].
//!
//! Theory of operation: ring `2i` (frames to the guest) and `2i + 1` (from the guest) make lane `i`. After each message `settle` looks at
//! every lane that is home and gives those to the switch that have a ring to run. The next message that changes such a lane asks for it
//! back ([`Effect::Detach`]) and is kept; [`Session::home`] goes on with it. A lane that the worker gave back because its driver broke a
//! rule stays home until all its rings were stopped and started anew. Bases, doorbells and journals come home with the rings.

use std::{os::fd::OwnedFd, sync::Arc};

use sys::eventfd::EventFd;
use wire::Mac;

use super::{
    control::{Change, Control, ControlQueue},
    device::{Device, protocol},
    error::SessionError,
    inflight::Inflight,
    message::{Header, MessageError, Reply, code},
    request::Request,
    table::MemoryTable,
    vring::Vring,
    wiring::{PortState, RxFilter},
};
use crate::{features::Features, ring_port::Lane, virtqueue::DeviceQueue};

/// What a message leads to, as far as its sender is concerned.
#[derive(Debug)]
pub enum Step {
    /// Nothing to say.
    Nothing,
    /// A reply is owed.
    Reply(Reply),
    /// Lanes must come home first; no message may follow until [`Session::home`] has returned another step.
    Wait,
    /// The session is over, after this reply if there is one.
    End(Option<Reply>, SessionError),
}

/// What a session wants done.
pub enum Effect {
    /// The lane is ready to run.
    Attach(Box<Lane>),
    /// This lane is wanted back.
    Detach(u16),
    /// The guest with this address has moved here.
    Announce(Mac),
    /// The driver wants other frames.
    Filter(Box<RxFilter>),
    /// The driver uses this many queue pairs.
    Pairs(u16),
    /// The control queue's kick is another one: [`Session::control`] is to be called when it is rung. Nothing: there is none.
    ControlKick(Option<EventFd>),
}

/// Why a lane of a legacy driver does not run.
const LEGACY: &str = "the driver knows neither virtio 1 nor mergeable buffers, so its frames have a header of 10 bytes, \
                      which is not supported; use a driver for virtio 1 (2013 or later)";

/// Where a lane is.
enum LaneAt {
    Home,
    Away,
    /// Asked for, not yet here.
    Leaving,
    /// Given back by the worker for this reason.
    Failed(String),
}

/// Which lanes a request needs home.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Lane(u16),
    All,
}

/// The state of one connection. See the module's documentation.
pub struct Session {
    pub(super) device: Arc<Device>,
    pub(super) features: Option<Features>,
    pub(super) protocol: u64,
    pub(super) table: MemoryTable,
    pub(super) rings: Vec<Vring>,
    pub(super) mtu: Option<u16>,
    pub(super) mac: Option<Mac>,
    pub(super) status: u8,
    pub(super) inflight: Option<Inflight>,
    /// Held open, since front ends complain when it closes.
    pub(super) back_channel: Option<OwnedFd>,
    pub(super) effects: Vec<Effect>,
    lanes: Vec<LaneAt>,
    control: Control,
    control_queue: Option<ControlQueue>,
    pending: Option<(Header, Request, Needs)>,
    closing: bool,
}

impl Session {
    /// A session that has not heard anything, for this device.
    pub fn new(device: Arc<Device>) -> Self {
        let pairs = device.pairs();
        let journal = |ring: u16| {
            device.journal.as_ref().map(|path| {
                let mut path = path.clone().into_os_string();
                path.push(format!(".{ring}"));
                path.into()
            })
        };
        Session {
            features: None,
            protocol: 0,
            table: MemoryTable::default(),
            rings: (0..=2 * pairs).map(|ring| Vring::new(ring, journal(ring))).collect(),
            mtu: device.mtu,
            mac: device.mac,
            status: 0,
            inflight: None,
            back_channel: None,
            effects: Vec::new(),
            lanes: (0..pairs).map(|_| LaneAt::Home).collect(),
            control: Control::new(Features::default(), pairs, None),
            control_queue: None,
            pending: None,
            closing: false,
            device,
        }
    }

    /// One message of the front end.
    pub fn message(&mut self, header: Header, request: Result<Request, MessageError>) -> Step {
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.step(header, Err(error.into())),
        };
        match self.needs(&request) {
            Ok(needs) => {
                self.recall(needs);
                self.pending = Some((header, request, needs));
                self.proceed()
            }
            Err(error) => self.step(header, Err(error)),
        }
    }

    /// A lane came home, with a reason if the worker gave it up. The step belongs to the message that waited.
    pub fn home(&mut self, lane: Lane, failure: Option<String>) -> Step {
        let index = lane.index;
        let (rx, tx) = (usize::from(2 * index), usize::from(2 * index + 1));
        for (ring, queue) in [(rx, lane.rx), (tx, lane.tx)] {
            if let (Some(ring), Some(queue)) = (self.rings.get_mut(ring), queue) {
                ring.take_home(queue);
            }
        }
        if let Some(at) = self.lanes.get_mut(usize::from(index)) {
            let unasked = matches!(at, LaneAt::Away).then(|| "the switch gave the port back".to_owned());
            *at = failure.or(unasked).map_or(LaneAt::Home, LaneAt::Failed);
            if let LaneAt::Failed(_) = at {
                for ring in self.rings.iter().skip(rx).take(2) {
                    // A front end that does not listen is told nothing.
                    let _ = ring.err.as_ref().map(EventFd::notify);
                }
            }
        }
        self.proceed()
    }

    /// The control queue's kick was rung; returns whether more commands wait than were served.
    ///
    /// # Errors
    /// The driver broke a rule of the control queue, which ends the session.
    pub fn control(&mut self) -> Result<bool, SessionError> {
        let Some(queue) = &mut self.control_queue else { return Ok(false) };
        let (changes, more) = queue.serve(&mut self.control)?;
        self.effects.extend(changes.into_iter().map(|change| match change {
            Change::Filter(filter) => Effect::Filter(filter),
            Change::Pairs(pairs) => Effect::Pairs(pairs),
        }));
        Ok(more)
    }

    /// The front end is gone, or to be rid of: asks for all lanes. The session can go once [`Session::is_home`].
    pub fn close(&mut self) {
        self.closing = true;
        self.pending = None;
        self.stop_control();
        self.recall(Needs::All);
    }

    /// Whether no worker holds a lane.
    pub fn is_home(&self) -> bool {
        self.lanes.iter().all(|at| matches!(at, LaneAt::Home | LaneAt::Failed(_)))
    }

    /// What is to be done, in this order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// How the port is doing.
    pub fn state(&self) -> PortState {
        let failed = self.lanes.iter().find_map(|at| if let LaneAt::Failed(why) = at { Some(why) } else { None });
        if let Some(why) = failed {
            PortState::Down(why.clone())
        } else if self.lanes.iter().any(|at| matches!(at, LaneAt::Away | LaneAt::Leaving)) {
            PortState::Up
        } else if let Some(ring) = self.rings.iter().find(|ring| ring.lost) {
            PortState::Waiting(format!("the front end removed the memory of ring {}", ring.index))
        } else {
            PortState::Waiting("a front end is connected; its driver has not started and enabled the rings".to_owned())
        }
    }

    /// Whether a lane's driver broke a rule and it has not been started anew.
    pub(super) fn has_failed(&self) -> bool {
        self.lanes.iter().any(|at| matches!(at, LaneAt::Failed(_)))
    }

    /// What the driver agreed on, nothing before it said.
    pub(super) fn agreed(&self) -> Features {
        self.features.unwrap_or_default()
    }

    pub(super) fn ring(&mut self, ring: u16) -> Result<&mut Vring, SessionError> {
        let last = self.rings.len().saturating_sub(1) as u16;
        self.rings.get_mut(usize::from(ring)).ok_or(SessionError::NoRing { ring, last })
    }

    /// Stops a ring; a failed lane without a started ring may run again.
    pub(super) fn stop(&mut self, ring: u16) {
        if let Some(vring) = self.rings.get_mut(usize::from(ring)) {
            vring.stop();
        }
        let first = usize::from(ring & !1);
        if self.rings.iter().skip(first).take(2).all(|ring| !ring.started)
            && let Some(at @ LaneAt::Failed(_)) = self.lanes.get_mut(usize::from(ring / 2))
        {
            *at = LaneAt::Home;
        }
    }

    /// The ring that is the control queue (virtio 1.2 section 5.1.2: behind all pairs, or behind the first without MQ).
    fn control_ring(&self) -> Option<u16> {
        let features = self.features?;
        let pairs = if features.has(Features::MQ) { self.device.pairs() } else { 1 };
        features.has(Features::CTRL_VQ).then_some(2 * pairs)
    }

    /// Which lanes must be home before this request can be carried out.
    fn needs(&mut self, request: &Request) -> Result<Needs, SessionError> {
        let all = |change: bool| if change { Needs::All } else { Needs::Nothing };
        let (ring, change) = match request {
            Request::SetMemTable(_) | Request::AddMemReg(..) | Request::RemMemReg(_) => return Ok(Needs::All),
            Request::ResetDevice | Request::ResetOwner | Request::SetStatus(0) => return Ok(Needs::All),
            Request::SetLogBase { .. } => return Ok(all(self.agreed().has(Features::LOG_ALL))),
            Request::SetFeatures(features) => {
                let enables = !features.has(Features::PROTOCOL_FEATURES) && self.rings.iter().any(|r| !r.enabled);
                return Ok(all(self.features != Some(*features) || enables));
            }
            Request::SetVringNum { ring, entries } => (*ring, self.ring(*ring)?.size != *entries),
            Request::SetVringAddr { ring, address } => (*ring, self.ring(*ring)?.address != Some(*address)),
            Request::SetVringEnable { ring, enable } => (*ring, self.ring(*ring)?.enabled != *enable),
            Request::SetVringBase { ring, .. }
            | Request::GetVringBase { ring }
            | Request::SetVringKick { ring, .. }
            | Request::SetVringCall { ring, .. } => (*ring, true),
            _ => return Ok(Needs::Nothing),
        };
        let starts = matches!(request, Request::SetVringKick { .. });
        Ok(if starts || (change && self.ring(ring)?.started) { Needs::Lane(ring / 2) } else { Needs::Nothing })
    }

    fn covers(needs: Needs, lane: u16) -> bool {
        needs == Needs::All || needs == Needs::Lane(lane)
    }

    fn recall(&mut self, needs: Needs) {
        for (lane, at) in (0..).zip(&mut self.lanes) {
            if Self::covers(needs, lane) && matches!(at, LaneAt::Away) {
                *at = LaneAt::Leaving;
                self.effects.push(Effect::Detach(lane));
            }
        }
    }

    /// Carries out the message that waits, if all it needs is home.
    fn proceed(&mut self) -> Step {
        let needs = self.pending.as_ref().map_or(Needs::Nothing, |(_, _, needs)| *needs);
        let away = |at: &LaneAt| matches!(at, LaneAt::Away | LaneAt::Leaving);
        if (0..).zip(&self.lanes).any(|(lane, at)| Self::covers(needs, lane) && away(at)) {
            return Step::Wait;
        }
        let Some((header, request, _)) = self.pending.take() else {
            // Nobody waits: a lane came home by itself, or the session is closing.
            return Step::Nothing;
        };
        if self.control_ring().is_some_and(|ring| Self::covers(needs, ring / 2)) {
            self.stop_control();
        }
        let outcome = self.carry_out(header, request).and_then(|reply| self.settle().map(|()| reply));
        self.step(header, outcome)
    }

    /// What the sender of a message is told.
    fn step(&self, header: Header, outcome: Result<Option<Reply>, SessionError>) -> Step {
        let asked = header.need_reply && self.protocol & protocol::REPLY_ACK != 0;
        let word = |value| asked.then(|| Reply::word(header.request, value));
        match outcome {
            Ok(Some(reply)) => Step::Reply(reply),
            Ok(None) => word(0).map_or(Step::Nothing, Step::Reply),
            Err(error) if asked && error.is_refusal() && !replies(header.request) => {
                tracing::warn!(%error, "request refused");
                word(1).map_or(Step::Nothing, Step::Reply)
            }
            Err(error) => Step::End(word(1).filter(|_| !replies(header.request)), error),
        }
    }

    /// Gives every lane that is home and has a ring to run to the switch, and serves the control queue.
    fn settle(&mut self) -> Result<(), SessionError> {
        let (Some(features), Some(memory), false) = (self.features, self.table.memory().cloned(), self.closing) else {
            return Ok(());
        };
        let control = self.control_ring();
        for (index, at) in (0..).zip(&mut self.lanes) {
            if !matches!(at, LaneAt::Home) {
                continue;
            }
            let mut lane = Lane { index, memory: memory.clone(), features, rx: None, tx: None };
            for (ring, slot) in [(2 * index, &mut lane.rx), (2 * index + 1, &mut lane.tx)] {
                if let Some(vring) = self.rings.get_mut(usize::from(ring))
                    && Some(ring) != control
                {
                    *slot = runnable(vring, &memory, features, self.inflight.as_ref())?;
                }
            }
            let runs = lane.rx.is_some() || lane.tx.is_some();
            if runs && !features.has(Features::VERSION_1) && !features.has(Features::MRG_RXBUF) {
                *at = LaneAt::Failed(LEGACY.to_owned());
            } else if runs {
                *at = LaneAt::Away;
                self.effects.push(Effect::Attach(Box::new(lane)));
            }
        }
        let Some(vring) = control.and_then(|ring| self.rings.get_mut(usize::from(ring))) else { return Ok(()) };
        if self.control_queue.is_none()
            && let Some(queue) = runnable(vring, &memory, features, None)?
        {
            let queue = ControlQueue::new(queue, memory)?;
            self.effects.push(Effect::ControlKick(queue.kick()));
            self.control_queue = Some(queue);
            self.control()?;
        }
        Ok(())
    }

    /// Takes the control queue out of service; `settle` puts it back.
    fn stop_control(&mut self) {
        if let Some(queue) = self.control_queue.take() {
            self.effects.push(Effect::ControlKick(None));
            if let Some(vring) = self.control_ring().and_then(|ring| self.rings.get_mut(usize::from(ring))) {
                vring.take_home(queue.into_queue());
            }
        }
    }

    /// Whether the control queue runs.
    pub(super) fn has_control(&self) -> bool {
        self.control_queue.is_some()
    }

    /// The driver starts anew: what it asked for by the control queue is forgotten.
    pub(super) fn reset_control(&mut self) {
        let mac = self.mac.filter(|_| self.agreed().has(Features::MAC));
        self.control = Control::new(self.agreed(), self.device.pairs(), mac);
        self.effects.push(Effect::Filter(Box::new(self.control.filter().clone())));
        self.effects.push(Effect::Pairs(self.control.first_pairs()));
    }
}

/// The queue made of a ring that is to run; nothing when it is not, or waits for its memory.
fn runnable(
    vring: &mut Vring,
    memory: &Arc<sys::GuestMemory>,
    features: Features,
    inflight: Option<&Inflight>,
) -> Result<Option<DeviceQueue>, SessionError> {
    if !vring.is_complete() || !vring.enabled {
        return Ok(None);
    }
    match vring.make(memory, features, inflight) {
        Ok(queue) => {
            vring.lost = false;
            Ok(Some(queue))
        }
        Err(_) if vring.lost => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a request has a reply of its own, which an acknowledgement would be mistaken for.
pub(crate) fn replies(request: u32) -> bool {
    matches!(
        request,
        code::GET_FEATURES
            | code::GET_PROTOCOL_FEATURES
            | code::GET_QUEUE_NUM
            | code::GET_VRING_BASE
            | code::GET_CONFIG
            | code::GET_INFLIGHT_FD
            | code::GET_MAX_MEM_SLOTS
            | code::GET_STATUS
            | code::SET_LOG_BASE
    )
}

#[cfg(test)]
mod tests;

//! [`FrontEnd`]: the conversation with one back end after another, for one device.
//!
//! Invariant: a back end is given the rings only when it offers what the driver agreed on, and where they stand is known. However it ends,
//! the device that was started stays set up, and is given to the next back end.
//! Read first: vhost-user specification, "Starting and stopping rings", "REPLY_ACK"; then [`super::setup`].
//!
//! Theory of operation: a core without threads, clocks or sleeps. [`FrontEnd::poll`] does what can be done at the time it is told and says
//! when it wants to be called again; [`FrontEnd::socket`] says what else to sleep on. Messages are a script, one after the other, each
//! after the reply to the last: the greeting, then, once the device is started, what sets the rings up. The order is the specification's:
//! features before rings, memory before addresses, kick last of a ring's own, enabled when all rings are whole.
//!
//! ```text
//!   Absent -> Greeting -> Ready <-> Starting -> Running        any error: Absent, and after a pause Greeting again
//!                           ^ \-> NeedsReset      |
//!                           +------ Stopping <----+
//! ```

use std::{
    collections::VecDeque,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    time::Duration,
};

use wire::Instant;

use super::{
    ask::{Ask, PROTOCOL, status},
    channel::{Channel, Progress},
    error::FrontEndError,
    offer::{Offer, configuration, offers},
    peer::{Peer, Search},
    setup::DeviceSetup,
};
use crate::{
    features::Features,
    vhost_user::{
        device::{MAX_PAIRS, protocol},
        message::Fields,
        session::replies,
    },
};

/// How long a back end may take to answer: it waits for its workers to let go of rings, no longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to try again to send into a full socket.
const FULL: Duration = Duration::from_millis(10);

/// How far the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No back end is connected; [`FrontEnd::failure`] says why, if there ever was one.
    Absent,
    /// It is asked what it offers.
    Greeting,
    /// It waits for a device to be started.
    Ready,
    /// It is given the device.
    Starting,
    /// It has the rings.
    Running,
    /// It is asked for the rings.
    Stopping,
    /// There is a device, but nobody knows where its rings stand ([`FrontEnd::failure`] says more). The device asks its driver for a reset
    /// (virtio 1.2 section 2.1.2, `DEVICE_NEEDS_RESET`), then is stopped and started anew; or who knows the positions says them to
    /// [`FrontEnd::restart`].
    NeedsReset,
}

/// One device and its back end. See the module's documentation.
pub struct FrontEnd {
    search: Search,
    required: Features,
    channel: Option<Channel>,
    script: VecDeque<Ask>,
    /// When the message that is under way was sent.
    asked_at: Instant,
    is_full: bool,
    state: State,
    offered: Features,
    protocol: u64,
    /// What was said of it so far; `offer` once the greeting is over.
    draft: Offer,
    offer: Option<Offer>,
    setup: Option<DeviceSetup>,
    /// A back end has had the rings, so their bases are not those they were set up with.
    was_given: bool,
    bases: Vec<u32>,
    failure: Option<FrontEndError>,
    starts: u64,
    connections: u64,
}

impl FrontEnd {
    /// A front end that looks for back ends at `peer`, and turns those away that do not offer all of `required`.
    pub fn new(peer: Peer, required: Features) -> Self {
        FrontEnd {
            search: Search::new(peer),
            required,
            channel: None,
            script: VecDeque::new(),
            asked_at: Instant::START,
            is_full: false,
            state: State::Absent,
            offered: Features::default(),
            protocol: 0,
            draft: Offer::default(),
            offer: None,
            setup: None,
            was_given: false,
            bases: Vec::new(),
            failure: None,
            starts: 0,
            connections: 0,
        }
    }

    /// Takes a back end that is connected already, in the place of the one there is.
    pub fn adopt(&mut self, stream: UnixStream) {
        self.search.adopt(stream);
        self.hang_up();
    }

    /// How far the conversation is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why the last connection or attempt ended, or why the device needs a reset. Stays until the device runs again.
    pub fn failure(&self) -> Option<&FrontEndError> {
        self.failure.as_ref()
    }

    /// What the back end offers, or the last one did. Nothing before the first greeting.
    pub fn offer(&self) -> Option<&Offer> {
        self.offer.as_ref()
    }

    /// How often a device was given to a back end.
    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// What to sleep on, besides the deadline: the socket, or what a back end connects to. It may be another one after each
    /// [`FrontEnd::poll`]; who registers it (epoll) does so anew when [`FrontEnd::connections`] has changed.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(Channel::socket).or_else(|| self.search.listener())
    }

    /// How many sockets there were, the end of one counted too.
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// Where the rings stood when the device was stopped, as [`super::RingSetup::base`] has it.
    pub fn bases(&self) -> &[u32] {
        &self.bases
    }

    /// Gives the device to the back end, now or when there is one, and to every one that comes after it. Bases count for the first; for
    /// those that follow a back end which has gone, split rings are started at their used index, and with packed rings the device
    /// [needs a reset](State::NeedsReset). (A back end that keeps the positions of packed rings itself would go on where it was,
    /// whatever it is told; but nobody can know from here whether it does.)
    ///
    /// # Errors
    /// There is a device already, a ring is not where a ring can be, or the features are not on offer; nothing changes.
    pub fn start(&mut self, setup: DeviceSetup) -> Result<(), FrontEndError> {
        if self.setup.is_some() {
            return Err(FrontEndError::Running);
        }
        setup.check()?;
        if let Some(offer) = &self.offer {
            offers(offer.features, setup.features)?;
        }
        (self.setup, self.was_given) = (Some(setup), false);
        if self.state == State::Ready {
            self.begin();
        }
        Ok(())
    }

    /// Starts a device that needs a reset again, at these positions.
    ///
    /// # Errors
    /// There is no device, or not one position for each of its rings.
    pub fn restart(&mut self, bases: &[u32]) -> Result<(), FrontEndError> {
        let rings = self.setup.as_mut().map(|setup| &mut setup.rings);
        match rings {
            Some(rings) if rings.len() == bases.len() => {
                rings.iter_mut().zip(bases).for_each(|(ring, base)| ring.base = *base);
            }
            rings => {
                return Err(FrontEndError::Positions {
                    given: bases.len(),
                    rings: rings.map_or(0, |rings| rings.len()),
                });
            }
        }
        self.was_given = false;
        if self.state == State::NeedsReset {
            self.begin();
        }
        Ok(())
    }

    /// Takes the rings back. When the state is [`State::Ready`] (or [`State::Absent`], if the back end went instead of answering), nobody
    /// uses them any more.
    pub fn stop(&mut self) {
        let Some(setup) = &self.setup else { return };
        self.script.clear();
        match self.state {
            State::Starting | State::Running => {
                self.script.extend((0..setup.rings.len() as u16).map(Ask::Stop));
                if self.protocol & protocol::STATUS != 0 {
                    self.script.push_back(Ask::Status(0));
                }
                self.bases.clear();
                self.state = State::Stopping;
            }
            State::NeedsReset => {
                (self.state, self.setup) = (State::Ready, None);
            }
            _ => self.setup = None,
        }
    }

    /// Does what can be done now; returns when to call again at the latest. Makes a few system calls, one when all is quiet: call it when
    /// [`FrontEnd::socket`] is readable and at the deadline, and at times while too busy to sleep.
    pub fn poll(&mut self, now: Instant) -> Option<Instant> {
        loop {
            match self.advance(now) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.search.failed(now);
                    self.failure = Some(error);
                    self.hang_up();
                }
            }
        }
        match &self.channel {
            None => self.search.deadline(),
            Some(_) if self.is_full => Some(now + FULL),
            Some(channel) => channel.asked().map(|_| self.asked_at + PATIENCE),
        }
    }

    fn hang_up(&mut self) {
        if self.channel.take().is_some() {
            self.connections += 1;
        }
        self.script.clear();
        if self.state == State::Stopping {
            self.setup = None;
        }
        (self.state, self.is_full) = (State::Absent, false);
    }

    /// One step. False: there is nothing to do now.
    fn advance(&mut self, now: Instant) -> Result<bool, FrontEndError> {
        let Some(channel) = &mut self.channel else {
            let Some(socket) = self.search.find(now)? else { return Ok(false) };
            self.channel = Some(Channel::new(socket));
            self.connections += 1;
            (self.state, self.protocol) = (State::Greeting, 0);
            self.script.push_back(Ask::Features);
            return Ok(true);
        };
        let progress = channel.progress()?;
        self.is_full = progress == Progress::Full;
        match progress {
            Progress::Full | Progress::Waiting => {
                let waited = now.since(self.asked_at);
                match channel.asked() {
                    Some(ask) if waited >= PATIENCE => {
                        Err(FrontEndError::Silent { asked: ask.code(), seconds: waited.as_secs() })
                    }
                    _ => Ok(false),
                }
            }
            Progress::Answered(ask) => self.answered(ask).map(|()| true),
            Progress::Sent(ask) => {
                if let Ask::AgreeProtocol(bits) = ask {
                    self.protocol = bits;
                }
                Ok(true)
            }
            Progress::Idle => match self.script.pop_front() {
                Some(ask) => {
                    let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
                    let message = ask.message(acknowledged, self.setup.as_ref()).map_err(FrontEndError::Socket)?;
                    self.was_given |= matches!(ask, Ask::Kick(_));
                    self.asked_at = now;
                    channel.ask(ask, message);
                    Ok(true)
                }
                None => self.script_is_over(),
            },
        }
    }

    fn script_is_over(&mut self) -> Result<bool, FrontEndError> {
        match self.state {
            State::Greeting => {
                (self.state, self.offer) = (State::Ready, Some(self.draft));
                if let Some(setup) = &self.setup {
                    offers(self.offered, setup.features)?;
                    self.begin();
                }
            }
            State::Starting => {
                self.state = State::Running;
                self.search.succeeded();
                self.failure = None;
                self.starts += 1;
                // Whoever rang for the back end that has gone, or waits for its call, would otherwise wait for ever.
                for ring in self.setup.iter().flat_map(|setup| &setup.rings) {
                    ring.kick.notify().and_then(|()| ring.call.notify()).map_err(FrontEndError::Socket)?;
                }
            }
            State::Stopping => (self.state, self.setup) = (State::Ready, None),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Begins to give the device to the back end, if it is known where its rings stand.
    fn begin(&mut self) {
        let Some(setup) = &mut self.setup else { return };
        if self.was_given
            && let Err(error) = setup.resume()
        {
            (self.state, self.failure) = (State::NeedsReset, Some(error));
            return;
        }
        self.state = State::Starting;
        let features = setup.features.with(self.offered_between_us());
        self.script.push_back(Ask::Agree(features));
        let status = |bits| (self.protocol & protocol::STATUS != 0).then_some(Ask::Status(bits));
        let found = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.script.extend(status(found));
        self.script.push_back(Ask::Memory);
        let rings = 0..self.setup.as_ref().map_or(0, |setup| setup.rings.len()) as u16;
        for ring in rings.clone() {
            let whole = [Ask::Size(ring), Ask::Base(ring), Ask::Address(ring), Ask::Call(ring), Ask::Kick(ring)];
            self.script.extend(whole);
        }
        // Without protocol features rings are enabled from the start.
        if self.offered.has(Features::PROTOCOL_FEATURES) {
            self.script.extend(rings.map(Ask::Enable));
        }
        let status = |bits| (self.protocol & protocol::STATUS != 0).then_some(Ask::Status(bits));
        self.script.extend(status(found | status::DRIVER_OK));
    }

    /// Features that are no business of the driver.
    fn offered_between_us(&self) -> Features {
        Features(self.offered.0 & Features::PROTOCOL_FEATURES.0)
    }

    fn answered(&mut self, ask: Ask) -> Result<(), FrontEndError> {
        let Some(channel) = &self.channel else { return Ok(()) };
        let mut fields = Fields(channel.reply());
        let asked = ask.code();
        match ask {
            Ask::Features => {
                self.offered = Features(fields.u64());
                offers(self.offered, self.required)?;
                let features = self.offered.without(Features::PROTOCOL_FEATURES.with(Features::LOG_ALL));
                self.draft = Offer { features, mac: None, mtu: None, pairs: 1 };
                let first =
                    if self.offered.has(Features::PROTOCOL_FEATURES) { Ask::ProtocolFeatures } else { Ask::Owner };
                self.script.push_back(first);
            }
            Ask::ProtocolFeatures => {
                let bits = fields.u64() & PROTOCOL;
                self.script.extend([Ask::AgreeProtocol(bits), Ask::Owner]);
                if bits & protocol::MQ != 0 {
                    self.script.push_back(Ask::Pairs);
                }
                if bits & protocol::CONFIG != 0 {
                    self.script.push_back(Ask::Config);
                }
            }
            Ask::Pairs => {
                let value = fields.u64();
                if value == 0 {
                    let (what, allowed) = ("queue pairs", "1 or more");
                    return Err(FrontEndError::Value { asked, what, value, allowed });
                }
                self.draft.pairs = u16::try_from(value).unwrap_or(MAX_PAIRS).min(MAX_PAIRS);
            }
            Ask::Config => {
                (self.draft.mac, self.draft.mtu) = configuration(channel.reply(), self.offered)?;
            }
            Ask::Stop(ring) => {
                let (index, base) = (fields.u32(), fields.u32());
                if index != u32::from(ring) {
                    let (what, allowed) = ("ring", "the one that was asked for");
                    return Err(FrontEndError::Value { asked, what, value: u64::from(index), allowed });
                }
                let is_packed = self.setup.as_ref().is_some_and(DeviceSetup::is_packed);
                if !is_packed && base > u32::from(u16::MAX) {
                    let (what, allowed) = ("base of a split ring", "0 to 0xffff");
                    return Err(FrontEndError::Value { asked, what, value: u64::from(base), allowed });
                }
                self.bases.push(base);
            }
            _ if !replies(asked) => match fields.u64() {
                0 => {}
                code => return Err(FrontEndError::Refused { asked, code }),
            },
            _ => {}
        }
        Ok(())
    }
}

//! [`run`]: the loop that holds a speaker and [`Evpn`] together, and goes on when the speaker goes.
//!
//! Invariant: what the tunnel was told stays while there is no speaker. Once there is one, everything of ours has been announced to it before its routes are
//! read, and what it does not know after half a minute is forgotten. What is wrong with a speaker is said once, not each time that it is tried.
//!
//! Theory of operation: the watch begins before the snapshot is taken, and is read after it, so that nothing falls between the two: what changes meanwhile waits in the
//! watch. A speaker that was started anew knows nothing before its sessions are up, so the sweep waits. One that hangs is found by a question every few seconds. Read first: [`crate::decide`], [`crate::speaker`].

use std::{
    collections::HashSet,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{Receiver, UnboundedReceiver},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};
use wire::{Clock, Instant, Mac, SystemClock, Vni};

use crate::{
    action::Action,
    decide::{Evpn, Most},
    route::{Prefix, Rd, Route, RouteError},
    speaker::{self, About, BATCH, DEADLINE, Either, LONG_DEADLINE, Speaker, SpeakerError, Told, within},
};

/// What an endpoint is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The unix socket of the speaker's API.
    pub speaker: PathBuf,
    /// The number of the autonomous system.
    pub asn: u32,
    /// The endpoint's address in the underlay.
    pub local: IpAddr,
    /// Its networks, each with a number that no other network of this host has.
    pub networks: Vec<(Vni, u16)>,
    /// The numbers of networks of other endpoints, whose routes are theirs to take back.
    pub others: HashSet<u16>,
}

/// What is known on this host. A port is a number that the caller gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A station was heard at a port.
    Heard(Vni, Mac, u32),
    /// A station is configured at a port that has come up.
    Declared {
        /// Its network.
        vni: Vni,
        /// The station.
        mac: Mac,
        /// The port.
        port: u32,
        /// It is there for good.
        sticky: bool,
    },
    /// A station of this host has an IP address.
    Addressed(Vni, Mac, IpAddr),
    /// A port went down.
    Down(u32),
    /// These are all stations that were heard and not forgotten.
    Present(Vec<(Vni, Mac, u32)>),
    /// It is over: what was announced is withdrawn.
    End,
}

/// How it goes, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The speaker that there is.
    pub speaker: Option<About>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Routes of other hosts in our networks.
    pub routes: usize,
    /// Routes that were not believed or found no room, since the start.
    pub refused: u64,
    /// The last of those, in words.
    pub refusal: Option<String>,
    /// Stations that were in two places at once, the last ones.
    pub duplicates: Vec<Duplicate>,
}

/// A station that was in two places at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Its network.
    pub vni: Vni,
    /// Its address.
    pub mac: Mac,
    /// The endpoint where it stays, and the one where it was before; that of this host: here.
    pub between: [IpAddr; 2],
    /// How often this was seen.
    pub times: u64,
    /// When it was seen last; it stays where it is for [`crate::decide::HOLD`].
    pub seen: std::time::Instant,
}

/// A status that is written by the loop and read by others.
pub type Shared = Arc<Mutex<Status>>;

/// Before a speaker is tried again, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often a speaker is asked whether it is there, in ticks.
const ASKED: u32 = 5;
/// How long routes count on that a speaker which is there again does not have yet: its own sessions take a while to come up (RFC 4724 section 4.1 has the same).
const STALE: Duration = Duration::from_secs(30);
/// Inputs taken in one go.
const MOST: usize = 256;
/// Duplicates that are remembered.
const DUPLICATES: usize = 16;
/// How often the log is told of what others can make happen again and again.
const SAYING: Duration = Duration::from_secs(10);

/// What is said in the log at most every ten seconds.
#[derive(Clone, Copy)]
enum Saying {
    Refused,
    Duplicate,
    Sticky,
}

/// Everything but the speaker.
struct Core<F> {
    config: Config,
    evpn: Evpn,
    inputs: Receiver<Input>,
    ports: UnboundedReceiver<Input>,
    act: F,
    status: Shared,
    clock: SystemClock,
    /// Routes that were not believed.
    refused: u64,
    /// By [`Saying`], when it was last said.
    logged: [Option<Instant>; 3],
    over: bool,
}

/// Runs until [`Input::End`], or until the other ends of `inputs` and `ports` are gone. What the tunnel is to do is given to `act`, in order. `inputs` may be slow to be taken;
/// `ports` is for what must not be lost.
pub async fn run(
    config: Config,
    inputs: Receiver<Input>,
    ports: UnboundedReceiver<Input>,
    act: impl FnMut(&[Action]),
    status: Shared,
) {
    let evpn = Evpn::new(config.local, &config.networks, Most::default());
    let clock = SystemClock::new();
    let mut core = Core { config, evpn, inputs, ports, act, status, clock, refused: 0, logged: [None; 3], over: false };
    let mut pause = PAUSE.0;
    let mut said = String::new();
    loop {
        let (path, local) = (core.config.speaker.clone(), core.config.local);
        let Some(opened) = core.meanwhile(speaker::open(&path, local)).await else { return };
        let opened = opened.and_then(|(speaker, about)| match core.config.asn {
            asn if asn == about.asn => Ok((speaker, about)),
            asn => Err(SpeakerError::As(about.asn, asn)),
        });
        let error = match opened {
            Ok((speaker, about)) => {
                let ended = match speaker {
                    Either::V3(speaker) => core.serve(speaker, about).await,
                    Either::V4(speaker) => core.serve(speaker, about).await,
                };
                if core.lock().speaker.take().is_some() {
                    (pause, said) = (PAUSE.0, String::new());
                }
                match ended {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let words = error.to_string();
        if said != words {
            let local = core.config.local;
            warn!(%local, speaker = %path.display(), reason = words, "no BGP speaker: the tunnel keeps what it knows, and it is tried again");
            said.clone_from(&words);
        }
        core.lock().reason = Some(words);
        if core.meanwhile(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

impl<F: FnMut(&[Action])> Core<F> {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something and takes inputs meanwhile, without a speaker; nothing: it is over.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = std::pin::pin!(what);
        let mut ticks = interval(TICK);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Some(done),
                input = self.ports.recv() => self.take(input?),
                _ = ticks.tick() => self.evpn.tick(self.clock.now()),
                input = self.inputs.recv() => self.take(input?),
            }
            self.settle();
            if self.over {
                return None;
            }
        }
    }

    fn take(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Heard(vni, mac, port) => self.evpn.heard(vni, mac, port, now),
            Input::Declared { vni, mac, port, sticky } => self.evpn.declared(vni, mac, port, sticky, now),
            Input::Addressed(vni, mac, ip) => self.evpn.addressed(vni, mac, ip),
            Input::Down(port) => self.evpn.down(port, now),
            Input::Present(all) => self.evpn.present(&all, now),
            Input::End => self.over = true,
        }
    }

    /// Has the tunnel do what was decided, and says what is for people; what is for the speaker comes back.
    fn settle(&mut self) -> Vec<Action> {
        let (outward, inward): (Vec<Action>, Vec<Action>) = self
            .evpn
            .take()
            .into_iter()
            .partition(|action| matches!(action, Action::Announce(_) | Action::Withdraw(_)));
        for action in &inward {
            match action {
                Action::Duplicate(vni, mac, between) => {
                    if self.says(Saying::Duplicate) {
                        warn!(%vni, %mac, "a station is in two places at once: it stays where it is for a while; look for a loop, or for one address given twice");
                    }
                    let mut status = self.lock();
                    let known = status.duplicates.iter().position(|one| (one.vni, one.mac) == (*vni, *mac));
                    let times = known.map_or(0, |at| status.duplicates.remove(at).times) + 1;
                    let seen = std::time::Instant::now();
                    status.duplicates.push(Duplicate { vni: *vni, mac: *mac, between: *between, times, seen });
                    if status.duplicates.len() > DUPLICATES {
                        status.duplicates.remove(0);
                    }
                }
                Action::Sticky(vni, mac, at) if self.says(Saying::Sticky) => {
                    warn!(%vni, %mac, %at, "a station that does not move was heard here: it is not announced");
                }
                _ => {}
            }
        }
        if !inward.is_empty() {
            (self.act)(&inward);
        }
        let (routes, full) = self.evpn.count();
        let refused = self.refused + full;
        let mut status = self.lock();
        status.routes = routes;
        if full > 0 && status.refused < refused && status.refusal.is_none() {
            status.refusal = Some("there are too many of them".to_owned());
        }
        status.refused = refused;
        outward
    }

    /// Takes what the speaker tells of other hosts' routes.
    fn hear(&mut self, told: Told) {
        let now = self.clock.now();
        match told {
            Told::Route(route) => self.evpn.learn(&route, now),
            Told::Withdrawn(prefix) => self.evpn.forget(&prefix, now),
            Told::Own(..) => {}
            Told::Refused(prefix, error) => {
                if let Some(prefix) = &prefix {
                    self.evpn.forget(prefix, now);
                }
                self.refuse(prefix, error);
            }
        }
    }

    /// Whether the log is to be told of something of which there may be much.
    fn says(&mut self, what: Saying) -> bool {
        let now = self.clock.now();
        let Some(logged) = self.logged.get_mut(what as usize) else { return false };
        let says = logged.is_none_or(|logged| now.since(logged) >= SAYING);
        if says {
            *logged = Some(now);
        }
        says
    }

    fn refuse(&mut self, prefix: Option<Prefix>, error: RouteError) {
        self.refused += 1;
        let what = prefix.map_or("a route".to_owned(), |prefix| prefix.to_string());
        let words = format!("{what}: {error}");
        if self.says(Saying::Refused) {
            warn!(route = what, reason = %error, count = self.refused, "a route of another host is not believed, as if it were withdrawn");
        }
        self.lock().refusal = Some(words);
    }

    /// Tells the speaker.
    async fn tell(&self, speaker: &mut impl Speaker, actions: Vec<Action>) -> Result<(), SpeakerError> {
        let mut routes: Vec<Route> = Vec::new();
        for action in actions {
            match action {
                Action::Announce(route) => routes.push(route),
                Action::Withdraw(prefix) => {
                    // In the order in which it was decided.
                    self.announce(speaker, std::mem::take(&mut routes)).await?;
                    within("withdrawing a route", DEADLINE, speaker.withdraw(&prefix)).await?;
                }
                _ => {}
            }
        }
        self.announce(speaker, routes).await
    }

    async fn announce(&self, speaker: &mut impl Speaker, routes: Vec<Route>) -> Result<(), SpeakerError> {
        if routes.is_empty() {
            return Ok(());
        }
        let limit = if routes.len() > BATCH { LONG_DEADLINE } else { DEADLINE };
        within("announcing routes", limit, speaker.announce(routes)).await
    }

    /// Goes on with a speaker until it fails, or all is over.
    async fn serve<S: Speaker>(&mut self, mut speaker: S, about: About) -> Result<(), SpeakerError> {
        let began = self.clock.now();
        self.evpn.set_router(about.router);
        // All of it follows.
        drop(self.settle());
        let own = self.evpn.own();
        let announced = own.len();
        self.announce(&mut speaker, own).await?;
        let mut watch = within("watching routes", DEADLINE, speaker.watch()).await?;
        self.evpn.begin();
        let (mut listed, mut ours) = (0, Vec::new());
        let hear = |told| {
            listed += 1;
            match told {
                Told::Own(prefix, Some(next_hop)) if next_hop == self.config.local => ours.push(prefix),
                told => self.hear(told),
            }
        };
        within("listing routes", LONG_DEADLINE, speaker.snapshot(hear)).await?;
        let left = self.left_over(ours, &about);
        let mut sweep = Some(self.clock.now() + STALE);
        for prefix in &left {
            within("withdrawing a route", DEADLINE, speaker.withdraw(prefix)).await?;
        }
        let outward = self.settle();
        {
            let mut status = self.lock();
            (status.speaker, status.reason) = (Some(about.clone()), None);
        }
        let ms = self.clock.now().since(began).as_millis() as u64;
        let (local, router, asn) = (self.config.local, about.router, about.asn);
        info!(%local, generation = %about.generation, %router, asn, announced, listed, left = left.len(), ms, "the BGP speaker knows our stations, and we know its routes");
        self.tell(&mut speaker, outward).await?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ticked, mut some) = (0, Vec::with_capacity(MOST));
        loop {
            tokio::select! {
                input = self.ports.recv() => match input {
                    Some(input) => self.take(input),
                    None => return Ok(()),
                },
                input = self.inputs.recv() => match input {
                    Some(input) => some.push(input),
                    None => return Ok(()),
                },
                event = watch.message() => {
                    let gone = |why: String| SpeakerError::Failed("watching routes", why);
                    match event {
                        Ok(Some(event)) => speaker.read(event).into_iter().for_each(|told| self.hear(told)),
                        Ok(None) => return Err(gone("the speaker has ended".to_owned())),
                        Err(status) => return Err(gone(status.message().to_owned())),
                    }
                }
                _ = ticks.tick() => {
                    let now = self.clock.now();
                    self.evpn.tick(now);
                    if sweep.take_if(|at| now >= *at).is_some() {
                        let swept = self.evpn.sweep(now);
                        info!(%local, swept, "routes that the speaker does not have any more are forgotten");
                    }
                    ticked += 1;
                    if ticked % ASKED == 0 {
                        let now = within("asking who it is", DEADLINE, speaker.about()).await?;
                        if now != about {
                            return Err(SpeakerError::Failed("asking who it is", "it is another one than before".to_owned()));
                        }
                    }
                }
            }
            // What else is there already goes to the speaker in the same call.
            while some.len() < MOST
                && let Ok(input) = self.inputs.try_recv()
            {
                some.push(input);
            }
            // That a port went down was told before anything that was heard when it was up again.
            while let Ok(input) = self.ports.try_recv() {
                self.take(input);
            }
            some.drain(..).for_each(|input| self.take(input));
            let outward = self.settle();
            if self.over {
                let own = self.evpn.own().into_iter().map(|route| Action::Withdraw(route.prefix)).collect();
                return tokio::time::timeout(DEADLINE, self.tell(&mut speaker, own)).await.unwrap_or(Ok(()));
            }
            self.tell(&mut speaker, outward).await?;
        }
    }

    /// What an earlier one of us has put in that is no more, of all that is there with our address.
    fn left_over(&self, mut ours: Vec<Prefix>, about: &About) -> Vec<Prefix> {
        let own: HashSet<Prefix> = self.evpn.own().into_iter().map(|route| route.prefix).collect();
        ours.retain(|prefix| {
            let (Prefix::Station { rd, .. } | Prefix::Endpoint { rd, .. }) = prefix;
            let is_of_us = |number| !self.config.others.contains(number);
            !own.contains(prefix)
                && matches!(rd, Rd::Address(router, number) if *router == about.router && is_of_us(number))
        });
        ours
    }
}

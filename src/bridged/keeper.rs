//! The keeper: a small process that joins a NIC to a bridge, watches, and puts everything back when the daemon ends, however it ends.
//!
//! Invariant: it changes nothing before it has the lock of the saved state, and ends only when the NIC is as it was, or after saying why not.
//!
//! Theory of operation: `trunkline keeper FILE` is started by the daemon before anything is changed. Its standard input is a pipe that the
//! daemon holds: its end is the daemon's. On standard output it says `up` when the bridge has taken over, or `down` and a reason when it
//! has not, or does no longer. Neighbours that answered before must answer after: the gateways of the NIC's routes, where there
//! are none that answer, any neighbour that was known. For a while after the switch-over they are asked again and again, for some switches
//! shut a port only when they have seen what is behind it. Signals that end a service are passed over: the pipe tells.
//!
//! Read first: [`super::moving`], [`super::probe`].

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::IpAddr,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use super::{
    address, link, moving,
    netlink::Netlink,
    probe,
    saved::{self, Saved},
};

/// How long neighbours may take to answer before the switch-over: it is only worth while to ask for those who do.
const BEFORE: Duration = Duration::from_secs(2);
/// How long they may be silent after it.
const SILENCE: Duration = Duration::from_secs(5);
/// How long after the switch-over they are watched.
const WATCH: Duration = Duration::from_secs(30);
/// How often they are asked meanwhile.
const ASKING: Duration = Duration::from_secs(1);
/// How long to wait for whoever has the lock.
const LOCKED: Duration = Duration::from_secs(10);

/// Who must answer.
#[derive(Debug, Default)]
struct Witnesses {
    asked: Vec<IpAddr>,
    /// All of them must, not just one.
    all: bool,
}

impl Witnesses {
    /// Those who answer now, on the NIC.
    fn find(netlink: &mut Netlink, saved: &Saved) -> io::Result<Witnesses> {
        let mut routes = saved.routes()?;
        routes.sort_by_key(|route| !address::is_default(route));
        let gateways: BTreeSet<IpAddr> = routes.iter().filter_map(address::gateway_of).collect();
        let gateways: Vec<IpAddr> = gateways.into_iter().collect();
        let answering = probe::answering(netlink, saved.index, &gateways, BEFORE)?;
        if !answering.is_empty() {
            return Ok(Witnesses { asked: answering.into_iter().collect(), all: true });
        }
        let known = probe::known(netlink, saved.index)?;
        let answering = probe::answering(netlink, saved.index, &known, BEFORE)?;
        Ok(Witnesses { asked: answering.into_iter().collect(), all: false })
    }

    /// Nothing when enough of them answer in time, else who does not.
    fn silent(&self, netlink: &mut Netlink, index: u32, patience: Duration) -> io::Result<Option<String>> {
        let heard = probe::answering(netlink, index, &self.asked, patience)?;
        let silent: Vec<String> =
            self.asked.iter().filter(|address| !heard.contains(address)).map(IpAddr::to_string).collect();
        let enough = if self.all { silent.is_empty() } else { !heard.is_empty() || self.asked.is_empty() };
        Ok(Some(silent.join(", ")).filter(|_| !enough))
    }
}

/// What `trunkline keeper FILE` does.
///
/// # Errors
/// The NIC is not as it was, and why.
pub fn run(file: &Path) -> io::Result<()> {
    sys::process::outlive_signals();
    let ended = end_of_input();
    let _lock = saved::lock(file, LOCKED)?;
    let Some(mut saved) = saved::load(file)? else { return Ok(()) };
    let mut netlink = Netlink::open()?;
    let done = hold(&mut netlink, file, &mut saved, &ended);
    let notes = moving::back(&mut netlink, file, &saved);
    if let Err(error) = &notes {
        tracing::error!(
            network = saved.network, %error,
            "{} is not as it was; `trunkline doctor --repair` tries again", saved.nic
        );
    }
    for note in notes.iter().flatten() {
        tracing::warn!(network = saved.network, "{note}");
    }
    if let Err(reason) = done {
        say(&format!("down {reason}"));
    }
    notes.map(|_| tracing::info!(network = saved.network, "{} is as it was", saved.nic))
}

/// Has the bridge take over, and returns when that is to end; an error says why it must.
fn hold(netlink: &mut Netlink, file: &Path, saved: &mut Saved, ended: &Receiver<()>) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let witnesses = match saved.switched {
        // Taken over from a keeper that was killed: whether it went well is settled.
        true => Witnesses::default(),
        false => {
            let witnesses = Witnesses::find(netlink, saved).map_err(text)?;
            moving::there(netlink, file, saved).map_err(text)?;
            witnesses
        }
    };
    let bridge = link::named(netlink, &saved.bridge).map_err(text)?;
    let index = bridge.ok_or_else(|| format!("the bridge {} is gone", saved.bridge))?.index;
    let silent = |who: String| {
        format!("{who} answered before {} was joined to a bridge and not after; everything is moved back", saved.nic)
    };
    if let Some(who) = witnesses.silent(netlink, index, SILENCE).map_err(text)? {
        return Err(silent(who));
    }
    let watched = match witnesses.asked.is_empty() {
        true => "no neighbour answered before, so whether any does now is not known".to_owned(),
        false => {
            let names: Vec<String> = witnesses.asked.iter().map(IpAddr::to_string).collect();
            format!("{} answered before and after", names.join(", "))
        }
    };
    say(&format!("up {watched}"));
    let (begin, mut heard) = (Instant::now(), Instant::now());
    loop {
        let is_watching = !witnesses.asked.is_empty() && begin.elapsed() < WATCH;
        let waited =
            if is_watching { ended.recv_timeout(ASKING) } else { ended.recv().map_err(RecvTimeoutError::from) };
        if !matches!(waited, Err(RecvTimeoutError::Timeout)) {
            return Ok(());
        }
        match witnesses.silent(netlink, index, ASKING).map_err(text)? {
            None => heard = Instant::now(),
            Some(who) if heard.elapsed() > SILENCE => return Err(silent(who)),
            Some(_) => {}
        }
    }
}

/// Tells when standard input ends.
fn end_of_input() -> Receiver<()> {
    let (tell, ended) = channel();
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        while matches!(input.read(&mut [0; 64]), Ok(1..)) {}
        // The receiver may have gone already.
        let _ = tell.send(());
    });
    ended
}

/// A line for the daemon; one that is gone does not listen.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", line.replace('\n', " ")).and_then(|()| out.flush());
}

//! [`Uplinks`]: the interfaces and TAPs of the host by which networks behind address translation by packets go out, opened when they are there.
//!
//! Invariant: an uplink that is not there costs its own network the way out, and nobody else anything: the network's router tells guests that nothing
//! leads out. It is told once, and looked for again every [`AGAIN`]; so is one that goes while it is used.
//!
//! Theory of operation: the NICs of the router, outside and of the uplink are there from the start, and only the last one's port comes and goes. Legs are told by
//! a flag that they look at, once for each burst.
//! Read first: [`crate::engines`], [`crate::routers`].

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vswitch::{change::Change, thread::Changes};
use wire::{Mac, NicId};

use crate::{
    config::{Name, Via},
    engines,
    place::On,
};

/// Time between two looks for an uplink.
const AGAIN: Duration = Duration::from_secs(5);

/// An uplink of a network.
pub struct Uplink {
    /// Whose way out it is.
    pub network: Name,
    /// What it is.
    pub via: Via,
    /// The address that the network has outside.
    pub mac: Mac,
    /// Its worker and its NIC there.
    pub at: On<NicId>,
    /// Whether it is there, for the router.
    pub leads: Arc<AtomicBool>,
}

struct Known {
    uplink: Uplink,
    inbox: Changes,
    /// Why it is not there, and when to look again.
    lacking: Option<(String, Instant)>,
}

/// The uplinks of all networks, for any thread.
#[derive(Clone, Default)]
pub struct Uplinks(Arc<Mutex<Vec<Known>>>);

impl Uplinks {
    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an uplink, now or when it is there, and attaches it by `inbox`, its worker's.
    pub fn add(&self, uplink: Uplink, inbox: &Changes) {
        let lacking = Some(("not looked for yet".to_owned(), Instant::now()));
        let (mac, via, at) = (uplink.mac, uplink.via.clone(), uplink.at);
        self.lock().push(Known { uplink, inbox: inbox.clone(), lacking });
        if let Err(reason) = self.open(&via, mac, at) {
            self.lack(at, reason, "no way out; the other networks run, and it is looked for again");
        }
    }

    /// Looks for those that are due.
    pub fn look(&self) {
        let due = |known: &Known| {
            let (_, again) = known.lacking.as_ref()?;
            (*again <= Instant::now()).then(|| (known.uplink.via.clone(), known.uplink.mac, known.uplink.at))
        };
        // Opening takes its time: no worker that has one to report is to wait for it.
        let all: Vec<(Via, Mac, On<NicId>)> = self.lock().iter().filter_map(due).collect();
        for (via, mac, at) in all {
            match self.open(&via, mac, at) {
                Ok(network) => tracing::info!(%network, "the way out is there"),
                Err(reason) => self.again(at, reason),
            }
        }
    }

    /// Opens one and attaches it; the network whose it is, or why not.
    fn open(&self, via: &Via, mac: Mac, at: On<NicId>) -> Result<Name, String> {
        let port = engines::uplink(via, mac).map_err(|error| error.to_string())?;
        let mut all = self.lock();
        let known = all.iter_mut().find(|known| known.uplink.at == at).ok_or("it is nobody's")?;
        known.inbox.send(Change::Attach { nic: at.1, lane: 0, port });
        known.uplink.leads.store(true, Ordering::Relaxed);
        known.lacking = None;
        Ok(known.uplink.network.clone())
    }

    fn again(&self, at: On<NicId>, reason: String) {
        if let Some(known) = self.lock().iter_mut().find(|known| known.uplink.at == at) {
            known.lacking = Some((reason, Instant::now() + AGAIN));
        }
    }

    fn lack(&self, at: On<NicId>, reason: String, what: &'static str) -> bool {
        let mut all = self.lock();
        let Some(known) = all.iter_mut().find(|known| known.uplink.at == at) else { return false };
        tracing::error!(network = %known.uplink.network, reason, "{what}");
        known.uplink.leads.store(false, Ordering::Relaxed);
        known.lacking = Some((reason, Instant::now() + AGAIN));
        true
    }

    /// The port of this NIC failed; false when it is no uplink's.
    pub fn failed(&self, at: On<NicId>, reason: &str) -> bool {
        self.lack(at, reason.to_owned(), "the way out is gone; it is looked for again")
    }

    /// Why a network has no way out now.
    pub fn lacks(&self, network: &Name) -> Option<String> {
        let all = self.lock();
        let known = all.iter().find(|known| known.uplink.network == *network)?;
        known.lacking.as_ref().map(|(reason, _)| format!("no way out: {reason}"))
    }
}

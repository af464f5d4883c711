//! [`Station`]: what is known of one station of a network: who says that it is where, and where it was decided to be.
//!
//! Invariant: plain data; [`crate::decide`] changes it. Read first: [`crate::decide`].

use std::net::IpAddr;

use wire::{Instant, Mac, Vni};

use crate::route::{Mobility, Prefix, Rd, Route};

/// Where a station is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Where {
    /// Nobody says.
    #[default]
    Nowhere,
    /// On this host.
    Here,
    /// Behind another host's endpoint.
    There(IpAddr),
}

/// What this host knows of a station that is, or was, here.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// The port that it was heard at.
    pub(crate) heard: Option<u32>,
    /// The port that it is declared at, while that is up.
    pub(crate) declared: Option<u32>,
    pub(crate) sticky: bool,
    pub(crate) sequence: u32,
    /// Somebody else has it by now: it counts again once it is heard.
    pub(crate) lost: bool,
}

impl Local {
    pub(crate) fn mobility(&self) -> Mobility {
        Mobility { sequence: self.sequence, sticky: self.sticky }
    }

    /// Nothing says any more that it is here.
    pub(crate) fn is_gone(&self) -> bool {
        self.heard.is_none() && self.declared.is_none()
    }

    /// Forgets what ports said; true when anything was.
    pub(crate) fn forget(&mut self, of: impl Fn(u32) -> bool) -> bool {
        let heard = self.heard.take_if(|port| of(*port)).is_some();
        self.declared.take_if(|port| of(*port)).is_some() || heard
    }
}

#[derive(Debug, Default)]
pub(crate) struct Station {
    pub(crate) local: Option<Local>,
    /// Its routes of other hosts.
    pub(crate) remote: Vec<Prefix>,
    pub(crate) at: Where,
    /// Addresses that are announced, the oldest first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Addresses that the tunnel was told of.
    pub(crate) neighbours: Vec<IpAddr>,
    /// When it moved, up to [`crate::decide::MOVES`] times.
    pub(crate) moves: Vec<Instant>,
    /// It stays where it is until then.
    pub(crate) frozen: Option<Instant>,
}

impl Station {
    /// What is announced of it: itself, then itself with each of its addresses.
    pub(crate) fn routes(&self, vni: Vni, mac: Mac, rd: Rd, local: IpAddr) -> impl Iterator<Item = Route> {
        let mobility = self.local.as_ref().map(Local::mobility).unwrap_or_default();
        let addresses = std::iter::once(None).chain(self.addresses.iter().copied().map(Some));
        addresses.map(move |ip| {
            let prefix = Prefix::Station { rd, tag: 0, mac, ip };
            Route { prefix, vni, next_hop: local, mobility }
        })
    }

    /// Nobody says anything of it.
    pub(crate) fn is_nothing(&self) -> bool {
        self.local.is_none() && self.remote.is_empty()
    }
}

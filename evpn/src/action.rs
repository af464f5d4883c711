//! [`Action`]: what follows from what was decided.
//!
//! Invariant: plain data. Read first: [`crate::decide`].

use std::net::IpAddr;

use wire::{Mac, Vni};

use crate::route::{Prefix, Route};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the others, or tell them anew.
    Announce(Route),
    /// Tell the others that it is no more.
    Withdraw(Prefix),
    /// An endpoint takes part in a network.
    Join(Vni, IpAddr),
    /// It does so no longer.
    Part(Vni, IpAddr),
    /// A station is behind an endpoint.
    Place(Vni, Mac, IpAddr),
    /// A station is behind no endpoint any more.
    Forget(Vni, Mac),
    /// An IP address is that of a station behind an endpoint.
    PlaceNeighbour(Vni, IpAddr, Mac),
    /// It is so no longer.
    ForgetNeighbour(Vni, IpAddr),
    /// A station is not here any more: when it is heard here, it has come back.
    ForgetLocal(Vni, Mac),
    /// A station is in two places at once and stays where it is for a while: to be told to people. The endpoint where it stays, and the one where it
    /// was before; our own address: here.
    Duplicate(Vni, Mac, [IpAddr; 2]),
    /// A station that does not move is at that endpoint, and was heard here: to be told to people.
    Sticky(Vni, Mac, IpAddr),
}

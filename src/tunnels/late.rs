//! Tunnel endpoints that could not be made, since their address was not there or their UDP port taken: they are tried again until they can.
//!
//! Invariant: one that is tried again costs nobody else anything; why it is not there is told once, and again when that is another thing.
//! Read first: [`super`]; [`crate::uplinks`] does the same for ways out.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Own, Tunnels, begin, own_ports};
use crate::{
    announce,
    config::Config,
    model::PortState,
    switch::{Place, States},
};

/// Time between two tries.
const AGAIN: Duration = Duration::from_secs(5);

/// Endpoints that are not there, by name: why, and when to try again.
pub type Lacking = HashMap<String, (String, Instant)>;

/// An endpoint could not be made.
pub(super) fn lacks(own: &Own<'_>, reason: String, states: &States, tunnels: &Tunnels) {
    let name = &own.vtep.name;
    let before = tunnels.lacking().insert(name.clone(), (reason.clone(), Instant::now() + AGAIN));
    if before.is_none_or(|(before, _)| before != reason) {
        tracing::error!(
            vtep = name,
            reason,
            "networks do not reach other hosts; everything else runs, and it is tried again"
        );
    }
    let told = format!("tunnel endpoint {name}: {reason}; it is tried again every {} s", AGAIN.as_secs());
    own.ports.iter().chain(&own.seat).for_each(|at| states.set(*at, PortState::Down, Some(told.clone())));
}

/// Tries those again that are due.
pub fn look(config: &Config, places: impl FnOnce() -> Vec<Place>, states: &States, tunnels: &Tunnels) {
    let now = Instant::now();
    let due: Vec<String> =
        tunnels.lacking().iter().filter(|(_, (_, again))| *again <= now).map(|(name, _)| name.clone()).collect();
    if due.is_empty() {
        return;
    }
    let places = places();
    for own in own_ports(config).into_iter().filter(|own| due.contains(&own.vtep.name)) {
        match begin(config, &own, &places, states, tunnels) {
            Ok(()) => {
                tunnels.lacking().remove(&own.vtep.name);
                // Who came up before could not be announced by it.
                announce::taps(config, &places, states);
            }
            Err(error) => lacks(&own, error.to_string(), states, tunnels),
        }
    }
}

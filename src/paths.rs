//! The ways to other hosts are tried out while the daemon runs, so that networks that stretch over hosts fit through them.
//!
//! Invariant: an endpoint is told only what was seen ([`crate::probe`]); where a host answers no echo request, what the route and its errors say holds.
//! Only hosts that the file or control names are asked, no strangers: whoever forges a source must not have us send to it.
//! Endpoints in networks of ours are left out: their ways are not this host's. Read first: [`crate::probe`], [`crate::tunnels`].

use std::{collections::HashMap, io, net::IpAddr, thread, time::Duration};

use crate::{
    config::Vtep,
    probe::{Way, probe},
    tunnels::Tunnels,
};

/// How often the ways are tried.
const PERIOD: Duration = Duration::from_secs(60);

/// Begins to try the ways of these endpoints, on a thread of its own that ends with the process.
///
/// # Errors
/// The thread cannot be had.
pub fn watch(vteps: &[Vtep], tunnels: &Tunnels) -> io::Result<()> {
    let own: Vec<Vtep> = vteps.iter().filter(|vtep| vtep.seat.is_none()).cloned().collect();
    let tunnels = tunnels.clone();
    if own.is_empty() {
        return Ok(());
    }
    let turn = move || {
        let mut told = vec![HashMap::new(); own.len()];
        loop {
            own.iter().zip(&mut told).for_each(|(vtep, told)| look(vtep, &tunnels, told));
            thread::sleep(PERIOD);
        }
    };
    thread::Builder::new().name("paths".into()).spawn(turn).map(drop)
}

/// Tries the ways of one endpoint. `told` is what was said of them the last time, so that it is said once.
fn look(vtep: &Vtep, tunnels: &Tunnels, told: &mut HashMap<IpAddr, Way>) {
    let peers = tunnels.remotes(&vtep.name);
    let ways = match probe(vtep.local, &peers) {
        Ok(ways) => ways,
        Err(error) => {
            tracing::debug!(vtep = vtep.name, %error, "the ways to other hosts cannot be tried out");
            return;
        }
    };
    // Who is no peer any more is remembered no longer.
    let before = std::mem::replace(told, ways.iter().copied().collect());
    for (peer, way) in ways {
        let is_new = before.get(&peer) != Some(&way);
        match way {
            Way::Whole(mtu) => tunnels.path(&vtep.name, peer, mtu),
            Way::Narrow(mtu) => {
                if is_new {
                    tracing::warn!(vtep = vtep.name, %peer, mtu, "longer packets are lost on the way and nobody says so; guests are told");
                }
                tunnels.path(&vtep.name, peer, mtu);
            }
            Way::Silent(_) => {}
        }
    }
}

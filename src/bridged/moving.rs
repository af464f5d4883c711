//! The switch-over of a NIC to a bridge, and the way back.
//!
//! Invariant: at every moment the host has its addresses and routes on one of the two or on both; each step of the way back can be done
//! again, so it may begin wherever the way there, or a way back before, has ended.
//!
//! Theory of operation. There: a bridge with the NIC's MAC is made and set up, the NIC joins it, addresses and routes are added to the bridge
//! and then taken from the NIC. The switch-over takes some tens of system calls. Packets of the host find a way throughout: IPv4 and IPv6
//! allow one address and several routes to the same place at once on two interfaces. Back: the same the other way round, after a look at what
//! is there by now. What others did meanwhile to a bridge of ours is kept: addresses and routes that they added move to the NIC, those that they removed stay
//! removed, and where they put interfaces of their own into the bridge, it stays.

use std::{io, path::Path};

use super::{
    address,
    link::{self, Link},
    netlink::Netlink,
    saved::{self, Saved},
};

/// Moves the NIC's addresses and routes to a new bridge that it joins with our TAP.
///
/// # Errors
/// The step that failed, and why. The caller undoes the others by [`back`].
pub fn there(netlink: &mut Netlink, file: &Path, saved: &mut Saved) -> io::Result<()> {
    let step = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {}", explain(error)));
    let nic = nic(netlink, saved)?.ok_or_else(|| io::Error::other(format!("the interface {} is gone", saved.nic)))?;
    let made = link::add_bridge(netlink, &saved.bridge, &nic, &saved.alias());
    let bridge = made.map_err(|error| step(&format!("cannot make the bridge {}", saved.bridge), error))?;
    link::copy_settings(&saved.nic, &saved.bridge);
    let cannot = |error| step(&format!("cannot join {} to {}", saved.nic, saved.bridge), error);
    let tap = link::named(netlink, &saved.tap)?;
    let tap = tap.ok_or_else(|| io::Error::other(format!("the TAP {} is gone", saved.tap)))?;
    link::set_master(netlink, tap.index, bridge.index).map_err(cannot)?;
    link::set_up(netlink, bridge.index, true).map_err(cannot)?;
    link::set_up(netlink, nic.index, true).map_err(cannot)?;
    link::set_master(netlink, nic.index, bridge.index).map_err(cannot)?;
    let (addresses, routes) = (saved.addresses()?, saved.routes()?);
    let place = (bridge.index, saved.nic.as_str(), saved.bridge.as_str());
    for address in &addresses {
        let what = || format!("cannot give {} to {}", address::address_text(address), saved.bridge);
        address::add_address(netlink, address, place, true).map_err(|error| step(&what(), error))?;
    }
    for route in &routes {
        let what = || format!("cannot move the route {} to {}", address::route_text(route), saved.bridge);
        address::add_route(netlink, route, bridge.index).map_err(|error| step(&what(), error))?;
    }
    for route in &routes {
        address::delete_route(netlink, route, nic.index).map_err(cannot)?;
    }
    // Backwards: a primary IPv4 address takes its secondaries with it.
    for address in addresses.iter().rev() {
        address::delete_address(netlink, address, nic.index).map_err(cannot)?;
    }
    saved.switched = true;
    saved::store(file, saved)
}

/// Puts everything back, and removes the file. Returns what people should know: what is not as it was, and why.
///
/// # Errors
/// What the system reports; the file stays, and this may be called again.
pub fn back(netlink: &mut Netlink, file: &Path, saved: &Saved) -> io::Result<Vec<String>> {
    let mut notes = Vec::new();
    if saved.boot != saved::boot() {
        notes.push(format!("network {}: the host was booted meanwhile, nothing is to be put back", saved.network));
        saved::remove(file)?;
        return Ok(notes);
    }
    if saved.netns != saved::netns() {
        let text = format!("{} was joined in another network namespace ({}); run this there", saved.nic, saved.netns);
        return Err(io::Error::other(text));
    }
    let bridge = link::named(netlink, &saved.bridge)?.filter(|link| link.bridge && link.alias == saved.alias());
    let Some(nic) = nic(netlink, saved)? else {
        notes.push(format!("the interface {} is gone; its addresses go with the bridge", saved.nic));
        if let Some(bridge) = bridge {
            remove_bridge(netlink, saved, &bridge, None, &mut notes)?;
        }
        saved::remove(file)?;
        return Ok(notes);
    };
    if let Some(master) = nic.master.filter(|master| bridge.as_ref().is_none_or(|bridge| bridge.index != *master)) {
        let all = link::all(netlink)?;
        let name = all.iter().find(|link| link.index == master).map_or("?", |link| link.name.as_str());
        notes.push(format!(
            "{} is part of {name} by now: it and the bridge {} stay as they are",
            saved.nic, saved.bridge
        ));
        saved::remove(file)?;
        return Ok(notes);
    }
    return_addresses(netlink, saved, &nic, bridge.as_ref(), &mut notes)?;
    if let Some(bridge) = bridge {
        remove_bridge(netlink, saved, &bridge, Some(&nic), &mut notes)?;
    }
    if !saved.up {
        link::set_up(netlink, nic.index, false)?;
    }
    saved::remove(file)?;
    Ok(notes)
}

/// Gives the NIC its addresses and routes, takes it out of the bridge, and takes them from the bridge.
fn return_addresses(
    netlink: &mut Netlink,
    saved: &Saved,
    nic: &Link,
    bridge: Option<&Link>,
    notes: &mut Vec<String>,
) -> io::Result<()> {
    let (had, had_routes) = (saved.addresses()?, saved.routes()?);
    let (now, now_routes) = match bridge {
        Some(bridge) => (address::addresses(netlink, bridge.index)?, address::routes(netlink, bridge.index)?),
        None => Default::default(),
    };
    let on_nic = address::addresses(netlink, nic.index)?;
    // What somebody took from a bridge that had it, is not to come back; a bridge that is gone or was not ready took nothing.
    let removable = bridge.is_some() && saved.switched;
    let passed = saved::uptime_s().saturating_sub(saved.uptime_s);
    let to_nic = (nic.index, saved.bridge.as_str(), saved.nic.as_str());
    for address in &had {
        let text = address::address_text(address);
        let there = now.iter().find(|other| address::same_address(address, other));
        let lifetimes = match there {
            Some(other) => Some(address::lifetimes(other)),
            None if on_nic.iter().any(|other| address::same_address(address, other)) => continue,
            None if removable => {
                notes.push(format!("{text} was taken from {} meanwhile and is not put back", saved.bridge));
                continue;
            }
            None => address::aged(address::lifetimes(address), passed),
        };
        let Some(lifetimes) = lifetimes else { continue };
        let address = address::with_lifetimes(address.clone(), lifetimes);
        match there.is_some_and(address::is_verified) {
            // What the bridge had a moment ago nobody else has; the host is not to wait until IPv6 has asked.
            true => address::put_back(netlink, &address, to_nic)?,
            false => address::add_address(netlink, &address, to_nic, false)?,
        }
    }
    for address in now.iter().filter(|address| !had.iter().any(|other| address::same_address(address, other))) {
        notes.push(format!(
            "{} came to {} meanwhile and moves to {}",
            address::address_text(address),
            saved.bridge,
            saved.nic
        ));
        address::put_back(netlink, address, to_nic)?;
    }
    for route in &had_routes {
        let there = now_routes.iter().any(|other| address::same_route(route, other));
        if removable && !there {
            notes.push(format!("the route {} was removed meanwhile and is not put back", address::route_text(route)));
        } else if let Err(error) = address::add_route(netlink, route, nic.index) {
            // Without an address that was removed meanwhile its routes may be impossible.
            notes.push(format!("the route {} cannot be put back: {error}", address::route_text(route)));
        }
    }
    for route in now_routes.iter().filter(|route| !had_routes.iter().any(|other| address::same_route(route, other))) {
        let text = address::route_text(route);
        match address::add_route(netlink, route, nic.index) {
            Ok(()) => notes.push(format!("the route {text} came meanwhile and moves to {}", saved.nic)),
            Err(error) => notes.push(format!("the route {text} came meanwhile and cannot move: {error}")),
        }
    }
    let Some(bridge) = bridge else { return Ok(()) };
    if nic.master.is_some() {
        link::set_master(netlink, nic.index, 0)?;
    }
    for route in &now_routes {
        address::delete_route(netlink, route, bridge.index)?;
    }
    for address in now.iter().rev() {
        address::delete_address(netlink, address, bridge.index)?;
    }
    Ok(())
}

/// Removes our bridge, unless somebody else has interfaces in it.
fn remove_bridge(
    netlink: &mut Netlink,
    saved: &Saved,
    bridge: &Link,
    nic: Option<&Link>,
    notes: &mut Vec<String>,
) -> io::Result<()> {
    let mut others = link::all(netlink)?;
    others.retain(|link| {
        link.master == Some(bridge.index) && link.name != saved.tap && nic.is_none_or(|nic| nic.index != link.index)
    });
    if others.is_empty() {
        return link::delete(netlink, bridge.index);
    }
    let names: Vec<&str> = others.iter().map(|link| link.name.as_str()).collect();
    notes.push(format!(
        "the bridge {} stays, without {}: others joined it ({})",
        bridge.name,
        saved.nic,
        names.join(", ")
    ));
    Ok(())
}

/// The NIC, by its number: it may have another name by now.
fn nic(netlink: &mut Netlink, saved: &Saved) -> io::Result<Option<Link>> {
    Ok(link::all(netlink)?.into_iter().find(|link| link.index == saved.index))
}

/// What the kernel's answer means here.
fn explain(error: io::Error) -> String {
    match error.raw_os_error() {
        Some(1 | 13) => {
            "it needs CAP_NET_ADMIN: run as root, or grant it (systemd: AmbientCapabilities=CAP_NET_ADMIN)".to_owned()
        }
        Some(16) => "it is in use by a macvlan, an ipvlan or another switch on top of it; remove that first".to_owned(),
        Some(95) => "the kernel has no bridge module; load it (`modprobe bridge`)".to_owned(),
        _ => error.to_string(),
    }
}

//! What a Linux guest sees of each mode: an address by DHCP and one that it makes itself, names, transfers both ways, pings, the truth about
//! what is not there, connections from outside. One suite, over the modes and over guests in QEMU and in User-mode Linux, on the
//! host that runs the router and on another that its network stretches to.
//!
//! Read first: [`world`], where everything is; [`suite`], what is asked of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

#[path = "../lab/mod.rs"]
mod lab;
mod suite;
mod world;

use lab::qemu::{GuestSpec, NicSpec, Qemu};
use lab::uml::Uml;
use lab::{Lab, Unable, require};
use world::{Mode, World};

fn in_qemu(lab: &Lab, mode: Mode) -> Result<(), Unable> {
    let world = World::new(lab, mode)?;
    let guest = Qemu::boot(lab, GuestSpec::new("g", vec![NicSpec::new(lab.path("g.sock"), "52:54:00:00:00:01")]))?;
    suite::run(lab, &world, &guest, 100);
    Ok(())
}

fn in_uml(lab: &Lab, mode: Mode) -> Result<(), Unable> {
    let world = World::new(lab, mode)?;
    let guest = Uml::boot(lab, "g", &[lab.path("g.sock")])?;
    // Its processes pay for each system call.
    suite::run(lab, &world, &guest, 25);
    Ok(())
}

/// The guest on another host than the router.
fn on_another_host(lab: &Lab, mode: Mode) -> Result<(), Unable> {
    let world = World::stretched(lab, mode)?;
    let guest = Uml::boot(lab, "g", &[lab.path("g.sock")])?;
    suite::run(lab, &world, &guest, 25);
    Ok(())
}

#[test]
fn sockets_a_guest_in_qemu_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_qemu(&lab, Mode::Sockets));
}

#[test]
fn sockets_a_user_mode_linux_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_uml(&lab, Mode::Sockets));
}

#[test]
fn packet_a_guest_in_qemu_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_qemu(&lab, Mode::Packet));
}

#[test]
fn packet_a_user_mode_linux_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_uml(&lab, Mode::Packet));
}

#[test]
fn host_only_a_guest_in_qemu_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_qemu(&lab, Mode::HostOnly));
}

#[test]
fn host_only_a_user_mode_linux_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_uml(&lab, Mode::HostOnly));
}

#[test]
fn sockets_a_guest_on_another_host_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(on_another_host(&lab, Mode::Sockets));
}

#[test]
fn packet_a_guest_on_another_host_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(on_another_host(&lab, Mode::Packet));
}

#[test]
fn host_only_a_guest_on_another_host_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(on_another_host(&lab, Mode::HostOnly));
}

#[test]
fn bridged_by_a_nic_a_guest_in_qemu_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_qemu(&lab, Mode::BridgedNic));
}

#[test]
fn bridged_by_a_bridge_a_user_mode_linux_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_uml(&lab, Mode::Bridged));
}

#[test]
fn bridged_by_mac_nat_a_guest_in_qemu_has_all_it_needs() {
    let lab = require!(Lab::new());
    require!(in_qemu(&lab, Mode::MacNat));
}

//! The switch: bridges, what they know, and the worker that drives them.
//!
//! Read in this order: [`membership`] (which segments a NIC is in), [`fdb`] (who is where; it lies in `wire`, as tunnels learn with it, too), [`decide`] and
//! [`forward`] (what happens to a frame), [`bridge`] (what control sees), [`egress`] (where frames wait for their port).

pub mod apart;
pub mod bridge;
pub mod budget;
pub mod change;
pub mod decide;
pub mod egress;
pub mod forward;
pub mod guard;
pub mod host;
mod inspect;
pub mod link;
pub mod mac_nat;
pub mod membership;
mod memo;
pub mod thread;
pub mod vlan;
pub mod worker;

#[cfg(test)]
mod testing;

pub use bridge::{Bridge, BridgeSpec, FdbEntry, NicSpec};
pub use budget::{Budget, Budgets, Traffic};
pub use decide::{Decision, Outcome, Route};
pub use egress::Egress;
pub use guard::Role;
pub use link::{LinkEnd, LinkPort, LinkSpec, link, link_to_thread};
pub use membership::Membership;
pub use wire::fdb::{self, Fdb, FdbStats, StaticError};

//! [`Wiring`]: what a session needs of the switch, and what it tells it.
//!
//! Invariant: a lane is attached at most once at a time, and after `detach` its port comes back by being dropped, at some later time.
//! The session never waits inside a call; so neither may an implementation. Read first: [`crate::ring_port`].

pub use wire::filter::{RxFilter, VlanSet};
use wire::{Mac, Port};

/// Which NIC, by a number of the program's choice that stays the same for as long as the port exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicKey(pub u32);

/// How a port is doing, in the words of `show ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Nobody is connected, or the guest's driver has not started; the text says which and why.
    Waiting(String),
    /// At least one lane forwards.
    Up,
    /// The guest or its front end broke a rule; the text says which. Mends itself when the driver starts anew.
    Down(String),
}

/// The way from sessions to the switch.
pub trait Wiring: Send {
    /// Gives a lane to the switch.
    fn attach(&mut self, nic: NicKey, lane: u16, port: Box<dyn Port>);

    /// Asks for a lane back. It comes home when its port is dropped.
    fn detach(&mut self, nic: NicKey, lane: u16);

    /// A guest has moved here: the switch and everybody behind it is to learn where `mac` is (`SEND_RARP`).
    fn announce(&mut self, nic: NicKey, mac: Mac);

    /// The port's state is another one.
    fn state(&mut self, nic: NicKey, state: PortState);

    /// The driver wants other frames than before.
    fn rx_filter(&mut self, nic: NicKey, filter: RxFilter);

    /// The driver uses this many queue pairs, the first ones.
    fn pairs(&mut self, nic: NicKey, pairs: u16);
}

//! [`WayOut`]: what lies behind a leg.
//!
//! Invariant: a port is behind one leg; legs that share it name that one. Read first: [`crate::Leg`].

use wire::Port;

/// See the module's documentation.
pub(crate) enum WayOut {
    /// Nothing leads out.
    Nothing,
    /// A port of its own.
    Own(Box<dyn Port>),
    /// That of the leg with this number.
    Of(usize),
}

impl WayOut {
    /// The leg's own.
    pub(crate) fn own(&mut self) -> Option<&mut Box<dyn Port>> {
        match self {
            WayOut::Own(port) => Some(port),
            WayOut::Nothing | WayOut::Of(_) => None,
        }
    }

    /// Whose it is, if not the leg's own.
    pub(crate) fn owner(&self) -> Option<usize> {
        match self {
            WayOut::Of(owner) => Some(*owner),
            WayOut::Nothing | WayOut::Own(_) => None,
        }
    }
}

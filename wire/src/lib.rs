//! The ground floor of Trunkline: what a frame is, what a port is, and the arithmetic of headers.
//!
//! Read in this order: [`frame`] (a handle, a head of our own, a body that is lent), [`port`] (the one trait everything meets in),
//! [`context`] (what a turn works with), [`verdict`] (how frames end); [`fdb`] is the table that bridges and tunnels keep stations in. Everything here is without I/O and is told the time ([`clock`]); `sys` lies
//! beneath and holds every line of `unsafe`.
//!
//! ```text
//!   turn:   receive -> forward -> transmit ... -> release (egress ports, then the ingress port)
//!   frame:  handle {slot, turn} -> head in the arena {offload, origin, segment, 80 B headroom, up to 128 B} -> body pieces, lent
//! ```

mod addr;
mod by_nic;
pub mod bytes;
pub mod checksum;
pub mod clock;
pub mod coalesce;
pub mod context;
pub mod fdb;
pub mod filter;
pub mod fit;
pub mod flow;
pub mod frame;
pub mod heaviest;
pub mod icmp;
pub mod inbox;
pub mod inferred;
pub mod keyed;
pub mod layers;
pub mod lists;
pub mod offload;
pub mod port;
pub mod reassembly;
pub mod segmentation;
pub mod span;
pub mod verdict;

pub use addr::{ALL_NODES, AddrError, Mac, Vid, Vni, solicited_node};
pub use by_nic::ByNic;
pub use clock::{Clock, Instant, SystemClock, VirtualClock};
pub use context::{Context, Heads, Ledger, Sizes};
pub use flow::FlowKey;
pub use frame::{ANSWERS, BURST, Burst, Drain, Frame, HEAD_BYTES, Head, MAX_FRAME, NicId, Origin, Segment, Tag};
pub use layers::{L3, Layers};
pub use offload::{Accepts, Gso, Offload};
pub use port::{Port, Wake};
pub use verdict::{Counters, DropReason, Verdict};

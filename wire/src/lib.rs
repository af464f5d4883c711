//! Ground floor.

mod addr;
pub use addr::{AddrError, Mac, Vid, Vni};

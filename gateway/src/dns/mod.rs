//! DNS for the guests of routed networks: their own names answered here, everything else asked of the host's resolvers.
//!
//! Invariant: nothing here opens a socket, reads a clock or panics, whatever bytes come from either side. A guest is answered about the names of
//! its own network and of those that it may see, never about others. Every table is bounded, and what is full takes from whoever holds
//! most.
//!
//! Read in this order: `message` (a query, and where things lie in an answer), `zones` (whose name is what), [`Resolver`] (what is asked
//! upstream, and who waits for it), `cache`. RFC 1034, RFC 1035; RFC 6891 (EDNS), RFC 2308 (negative answers), RFC 5452 (answers that somebody
//! else made up), RFC 6761 and RFC 6303 (names that stay here), RFC 7766 (TCP).
//!
//! ```text
//!   guest -> Resolver::ask -> zones -> cache -> an exchange with an upstream: Action::Send
//!   guest <- Action::Reply <- Resolver::answered <- upstream
//! ```

mod cache;
mod message;
mod resolv_conf;
mod resolver;
mod reverse;
mod upstreams;
mod zones;

#[cfg(test)]
mod tests;

pub use resolv_conf::{name_servers, parse_server};
pub use resolver::{Limits, Resolver};
pub use zones::{LeasedName, NetworkNames};

use std::net::{IpAddr, SocketAddr};

use wire::NicId;

/// A network, by its place among those that the resolver was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u16);

/// Who pays for a query: a NIC of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guest {
    /// The network it asks from.
    pub network: NetworkId,
    /// Its NIC.
    pub nic: NicId,
}

/// Who asks, and where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Who pays.
    pub guest: Guest,
    /// The address and port that the query came from.
    pub peer: SocketAddr,
    /// The router's address that was asked: the answer comes from it.
    pub asked: IpAddr,
    /// Bytes of the longest answer that gets through to it by UDP.
    pub room: u16,
    /// The connection, where it came by TCP, as whoever holds it numbers it.
    pub connection: Option<u64>,
}

/// What is to be done, in the order in which [`Resolver::next_action`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// These bytes to a client.
    Reply {
        /// Who asked.
        client: Client,
        /// The message, without the length that TCP puts before it.
        bytes: Vec<u8>,
    },
    /// These bytes to an upstream, from a new socket on a port that nobody can guess. A socket that the exchange has already is closed.
    Send {
        /// Which exchange.
        exchange: u64,
        /// Where to.
        server: SocketAddr,
        /// By TCP.
        tcp: bool,
        /// The message, without the length that TCP puts before it.
        bytes: Vec<u8>,
    },
    /// An exchange is over: its socket is closed.
    Close {
        /// Which one.
        exchange: u64,
    },
    /// No upstream answers: worth a line in the log. At most once a minute.
    Unanswered {
        /// Those that were asked; empty when there are none to ask.
        servers: Vec<SocketAddr>,
    },
}

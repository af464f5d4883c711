//! [`NameServers`]: whom the host asks, as it changes.
//!
//! Invariant: a file that cannot be read, or is just being written, changes nothing; one without servers means that there are none.
//! Read first: resolv.conf(5).

use std::{
    fs::File,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use gateway::dns;

/// Bytes of the file that are looked at.
const LONGEST: u64 = 64 << 10;

/// Where the servers come from.
#[derive(Clone, Debug)]
pub enum NameServers {
    /// These.
    Given(Vec<SocketAddr>),
    /// A resolv.conf(5).
    File(PathBuf),
}

impl NameServers {
    /// The servers as they are now; nothing when that cannot be told.
    pub(super) fn read(&self) -> Option<Vec<SocketAddr>> {
        match self {
            NameServers::Given(servers) => Some(servers.clone()),
            NameServers::File(path) => {
                let mut text = String::new();
                File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
                Some(dns::name_servers(&text, scope))
            }
        }
    }
}

/// The number of an interface.
pub fn scope(interface: &str) -> Option<u32> {
    let name = Path::new(interface).file_name().filter(|name| *name == interface)?;
    std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex")).ok()?.trim().parse().ok()
}

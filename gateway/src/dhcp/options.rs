//! [`Options`]: the options of an answer, in the client's order, as far as there is room.
//!
//! Invariant: an option is written whole or not at all; what is longer than 255 bytes is cut into several of the same code, which the
//! client puts together (RFC 3396). The end option always has room.
//! Read first: RFC 2132, RFC 3397 (search list), RFC 3442 (routes).

use std::net::Ipv4Addr;

use super::DhcpConfig;
use crate::config::{ConfigError, RouterV4, encode_name};

pub(crate) const MASK: u8 = 1;
pub(crate) const HOST_NAME: u8 = 12;

/// The options that are the same for every client, in the order in which they are sent to one who does not say what it wants.
pub(crate) fn fixed(dhcp: &DhcpConfig, router: &RouterV4, mtu: u16) -> Result<Vec<(u8, Vec<u8>)>, ConfigError> {
    let addresses = |list: &[Ipv4Addr]| list.iter().flat_map(|address| address.octets()).collect::<Vec<u8>>();
    let mut search = Vec::new();
    for name in &dhcp.search {
        encode_name(name, &mut search)?;
    }
    let options = [
        (MASK, router.mask().octets().to_vec()),
        (121, routes(dhcp, router)),
        (3, if dhcp.router { router.address.octets().to_vec() } else { Vec::new() }),
        (6, addresses(&dhcp.dns)),
        (15, dhcp.domain.as_deref().unwrap_or_default().as_bytes().to_vec()),
        (26, mtu.to_be_bytes().to_vec()),
        (28, router.broadcast().octets().to_vec()),
        (42, addresses(&dhcp.ntp)),
        (119, search),
    ];
    Ok(options.into_iter().filter(|(_, value)| !value.is_empty()).collect())
}

/// RFC 3442: prefix length, as many bytes of the network as matter, router.
fn routes(dhcp: &DhcpConfig, router: &RouterV4) -> Vec<u8> {
    let mut bytes = Vec::new();
    let own = super::Route { network: Ipv4Addr::UNSPECIFIED, prefix: 0, via: router.address };
    let has_default = dhcp.routes.iter().any(|route| route.prefix == 0);
    let default = (dhcp.router && !dhcp.routes.is_empty() && !has_default).then_some(&own);
    for route in dhcp.routes.iter().chain(default) {
        let prefix = route.prefix.min(32);
        bytes.push(prefix);
        bytes.extend(route.network.octets().iter().take(usize::from(prefix).div_ceil(8)));
        bytes.extend(route.via.octets());
    }
    bytes
}

/// Appends options up to a limit.
pub(crate) struct Options<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    /// Bytes before the limit that are for options that come last.
    kept: usize,
}

impl<'a> Options<'a> {
    /// Options at the end of `out`, which is to be no longer than `limit`.
    pub(crate) fn new(out: &'a mut Vec<u8>, limit: usize) -> Self {
        Options { out, limit: limit.saturating_sub(1), kept: 0 }
    }

    /// Keeps `bytes` for options that come last; none, when these are added.
    pub(crate) fn keep(&mut self, bytes: usize) {
        self.kept = bytes;
    }

    pub(crate) fn add(&mut self, code: u8, value: &[u8]) {
        let pieces = value.chunks(255);
        if self.out.len() + value.len() + 2 * pieces.len() > self.limit.saturating_sub(self.kept) {
            return;
        }
        for piece in pieces {
            self.out.extend_from_slice(&[code, piece.len() as u8]);
            self.out.extend_from_slice(piece);
        }
    }

    pub(crate) fn end(self) {
        self.out.push(255);
    }
}

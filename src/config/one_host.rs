//! Addresses of hosts in the underlay: what `local`, `peers` and `gateway` of tunnel endpoints may be.
//!
//! Invariant: an address that passes means one host, and the same one wherever in the file it stands. Read first: RFC 6890 (what is whose),
//! RFC 4007 section 6 (an address of a link means nothing without its interface).

use std::net::IpAddr;

use super::{error::Fault, reader::Entry};

/// Reads the address of one host, which stands alone.
pub(super) fn read(entry: &Entry<'_>) -> Result<IpAddr, Fault> {
    let help = "write an IP address and nothing else, for example \"192.0.2.2\": no name of a host, no port (that is the key `port`) and no \
                length of a prefix (which belongs to `local` of an endpoint with `network`)";
    let address = entry.text().and_then(|_| entry.parse().map_err(|fault| fault.help(help)))?;
    check(entry, address)
}

/// Reads an address that a socket of this host is to have.
pub(super) fn own(entry: &Entry<'_>) -> Result<IpAddr, Fault> {
    let address = read(entry)?;
    if is_of_a_link(address) { Err(of_a_link(entry, address)) } else { Ok(address) }
}

/// The address, if it can be that of one host.
pub(super) fn check(entry: &Entry<'_>, address: IpAddr) -> Result<IpAddr, Fault> {
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::from([255; 4]) {
        return Err(entry.fault(format!("{address} is not the address of one host")));
    }
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(Ok(address), |v4| {
            Err(entry.fault(format!("{address} is an IPv4 address in the clothes of IPv6; write {v4}")))
        }),
        IpAddr::V4(_) => Ok(address),
    }
}

/// The address of another host, if packets from `local` can have a way there.
pub(super) fn reachable(entry: &Entry<'_>, local: IpAddr, peer: IpAddr) -> Result<IpAddr, Fault> {
    if peer == local {
        let what = format!("{peer} is this host's own tunnel endpoint; `peers` names the other hosts only");
        return Err(entry.fault(what));
    }
    if peer.is_ipv4() != local.is_ipv4() {
        let what = format!("{peer} cannot be reached from {local}: one is IPv4, the other IPv6");
        return Err(entry.fault(what));
    }
    if peer.is_loopback() && !local.is_loopback() {
        let what = format!("{peer} is this host itself, not another one");
        return Err(entry.fault(what).help("`peers` names the addresses that the other hosts give as `local`"));
    }
    // An endpoint in a network of ours is on one link only, too.
    if is_of_a_link(peer) && !is_of_a_link(local) { Err(of_a_link(entry, peer)) } else { Ok(peer) }
}

fn is_of_a_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn of_a_link(entry: &Entry<'_>, address: IpAddr) -> Fault {
    let what = format!("{address} means something on one link only, and no interface can be named with it");
    entry.fault(what).help("give the hosts addresses of a prefix of their own, for example in fd00::/8")
}

#[cfg(test)]
mod tests {
    use super::super::tests::are_told;

    #[test]
    fn addresses_that_are_not_one_others() {
        let cases = [
            ("[\"hv2\"]", "no name of a host"),
            ("[\"192.0.2.2:4789\"]", "that is the key `port`"),
            ("[\"192.0.2.2/24\"]", "no length of a prefix"),
            ("[7]", "a string is needed"),
            ("[\"192.0.2.1\"]", "own tunnel endpoint"),
            ("[\"fd00::1\"]", "IPv4, the other IPv6"),
            ("[\"::ffff:192.0.2.2\"]", "write 192.0.2.2"),
            ("[\"127.0.0.2\"]", "this host itself"),
            ("[\"224.0.0.5\"]", "address of one host"),
        ];
        let texts = cases
            .map(|(peers, _)| format!("[networks.t]\noverlay = {{ vni = 1, local = \"192.0.2.1\", peers = {peers} }}"));
        for (text, (_, what)) in texts.iter().zip(cases) {
            are_told(&[(text, 2, "networks.t.overlay.peers[0]", what)]);
        }
        let text = "[networks.t]\noverlay = { vni = 1, local = \"fd00::1\", peers = [\"fe80::1\"] }";
        are_told(&[(text, 2, "networks.t.overlay.peers[0]", "on one link only")]);
        let local = |text: &str| format!("[networks.t]\noverlay = {{ vni = 1, local = \"{text}\" }}");
        for (address, what) in [
            ("0.0.0.0", "address of one host"),
            ("fe80::1%eth0", "no name of a host"),
            ("fe80::1", "on one link only"),
            ("192.0.2.1/24", "with `network`"),
        ] {
            are_told(&[(&local(address), 2, "networks.t.overlay.local", what)]);
        }
    }
}

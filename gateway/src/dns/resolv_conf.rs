//! The name servers of a resolv.conf(5), and addresses of servers as people write them.
//!
//! Invariant: a line that says nothing we understand is as if it were not there. `search`, `options` and the rest are for programs on the host: what
//! guests ask is whole names. Read first: resolv.conf(5); RFC 4007 section 11 (`%` and the zone of an address).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

const PORT: u16 = 53;

/// The servers that a file names, in its order. `scope` gives the number of an interface.
pub fn name_servers(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    servers.filter_map(|server| parse_server(server, &scope)).collect()
}

/// A server as `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`, `fe80::1%eth0` or `[fe80::1%eth0]:5353`; without a port it is 53.
/// Nothing when it is none of these, or no single host.
pub fn parse_server(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address, if port.is_empty() { PORT } else { port.strip_prefix(':')?.parse().ok()? })
        }
        None => match text.split_once(':') {
            Some((address, port)) if !port.contains(':') && !address.is_empty() => (address, port.parse().ok()?),
            _ => (text, PORT),
        },
    };
    let server = match address.split_once('%') {
        Some((address, zone)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            let zone = zone.parse().ok().or_else(|| scope(zone))?;
            SocketAddr::V6(SocketAddrV6::new(address, port, 0, zone))
        }
        None => SocketAddr::new(address.parse::<IpAddr>().ok()?, port),
    };
    let ip = server.ip();
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    (port != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast).then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_names_servers() {
        let text = "# nameserver 9.9.9.9\nsearch corp.example\nnameserver 192.0.2.1 # ours\n\tnameserver  fe80::1%eth7\n\
                    nameserver fe80::2%3\nnameserver fe80::3%gone\nnameserver nonsense\nnameserver\noptions ndots:5\n\
                    nameserver 2001:db8::35\nnameserver 0.0.0.0\nnameservers 192.0.2.9\n; nameserver 192.0.2.8";
        let servers = name_servers(text, |name| (name == "eth7").then_some(7));
        let texts: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[fe80::1%7]:53", "[fe80::2%3]:53", "[2001:db8::35]:53"]);
        assert_eq!(name_servers("", |_| None), []);
    }

    #[test]
    fn a_server_may_have_a_port() {
        let parse = |text| parse_server(text, |_| Some(4)).map(|server| server.to_string());
        assert_eq!(parse("192.0.2.1:5353").unwrap(), "192.0.2.1:5353");
        assert_eq!(parse("[2001:db8::1]:5353").unwrap(), "[2001:db8::1]:5353");
        assert_eq!(parse("[fe80::1%eth0]").unwrap(), "[fe80::1%4]:53");
        for wrong in ["", ":", "192.0.2.1:", "192.0.2.1:0", "[::1", "[::1]5", "192.0.2.1%eth0", "ff02::1", "x:53"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

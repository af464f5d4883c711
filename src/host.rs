//! What this host is: the addresses it has, the descriptors it lets a process have.
//!
//! Invariant: everything here reads, and changes nothing but this process. Read first: proc_pid_net(5), getrlimit(2).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Every address of this network namespace, without the loopback network's, which nobody reaches from elsewhere.
pub fn addresses() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut all: Vec<IpAddr> = local_v4(&v4).into_iter().map(IpAddr::V4).collect();
    all.extend(local_v6(&v6).into_iter().map(IpAddr::V6));
    all.sort_unstable();
    all.dedup();
    all
}

/// How many descriptors this process may have open; raises that to what it may be raised to.
pub fn descriptors() -> usize {
    let limit = sys::process::raise_descriptor_limit();
    limit.map_or(1024, |limit| usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 20))
}

/// The addresses that the trie of routes has as local: a line with the address, and after it lines with what it is.
fn local_v4(trie: &str) -> Vec<Ipv4Addr> {
    let mut all = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            all.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    all
}

/// The addresses of a table in which each line begins with one, in hexadecimal without colons.
fn local_v6(table: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| {
        let bits = u128::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some(Ipv6Addr::from(bits)).filter(|address| !address.is_loopback())
    };
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_read_and_others_are_not() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 192.0.2.0/24 2 0 2\n        \
                    |-- 192.0.2.0\n           /24 link UNICAST\nLocal:\n        |-- 192.0.2.7\n           /32 host LOCAL\n        \
                    |-- 192.0.2.255\n           /32 link BROADCAST\n        |-- 127.0.0.1\n           /32 host LOCAL\n";
        assert_eq!(local_v4(trie), [Ipv4Addr::new(192, 0, 2, 7)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe80000000000000000000fffe000001 02 40 20 80     eth0\nnonsense\n";
        assert_eq!(local_v6(table), ["fe80::ff:fe00:1".parse::<Ipv6Addr>().unwrap()]);
    }
}

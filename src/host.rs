//! What this host is: the addresses it has, those that it takes for its own, the descriptors it lets a process have.
//!
//! Invariant: everything here reads, and changes nothing but this process. Read first: proc_pid_net(5), ip-route(8) on the type `local`,
//! getrlimit(2).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nat::Prefix;

use crate::model::Descriptors;

/// Every address of this network namespace, without the loopback network's, which nobody reaches from elsewhere.
pub fn addresses() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let single = |(address, length)| (length == 32).then_some(IpAddr::V4(address));
    let mut all: Vec<IpAddr> = local_v4(&v4).into_iter().filter_map(single).collect();
    all.extend(local_v6(&v6).into_iter().map(IpAddr::V6));
    all.sort_unstable();
    all.dedup();
    all
}

/// Every prefix whose packets this network namespace takes for its own, in whatever table of routes: its addresses, and what `ip route add local`
/// adds. Without the loopback network's, and without routes for everything, which are how transparent proxies get at what is others'.
pub fn own_prefixes() -> Vec<Prefix> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let v4 = local_v4(&v4).into_iter().map(|(address, length)| (IpAddr::V4(address), length));
    let all = v4.chain(routes_v6(&v6).into_iter().map(|(address, length)| (IpAddr::V6(address), length)));
    let prefixes = all.filter_map(|(address, length)| Prefix::new(address, length));
    // Among the addresses are those that no route leads to yet.
    prefixes.chain(addresses().into_iter().map(Prefix::from)).collect()
}

/// How many descriptors this process may have open; raises that to what it may be raised to.
pub fn descriptors() -> usize {
    let limit = sys::process::raise_descriptor_limit();
    limit.map_or(1024, |limit| usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 20))
}

/// The descriptors of this process; nothing where its limits cannot be read. Before Linux 6.2 it looks at each of them.
pub fn open_descriptors() -> Option<Descriptors> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let limit = limit.split_whitespace().next()?.parse().unwrap_or(u64::MAX);
    // Since then the directory's size is their number.
    let open = match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        open => open,
    };
    Some(Descriptors { open, limit })
}

/// The prefixes that the trie of routes has as local: a line with the address, and after it lines with its length and what it is.
fn local_v4(trie: &str) -> Vec<(Ipv4Addr, u8)> {
    let mut all = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in trie.lines().map(str::trim_start) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse().ok();
        } else if let Some((length, what)) = line.strip_prefix('/').and_then(|line| line.split_once(' '))
            && what.split_whitespace().any(|word| word == "LOCAL")
            && let (Ok(length @ 1..), Some(address)) = (length.parse(), last.filter(|address| !address.is_loopback()))
        {
            all.push((address, length));
        }
    }
    all
}

/// The prefixes that a table of IPv6 routes has as this host's: each line has the address and the length in hexadecimal, and flags before the device.
fn routes_v6(table: &str) -> Vec<(Ipv6Addr, u8)> {
    // Local and anycast (`linux/ipv6_route.h`).
    const OURS: u32 = 0x8000_0000 | 0x0010_0000;
    let route = |line: &str| {
        let mut words = line.split_whitespace();
        let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
        let length = u8::from_str_radix(words.next()?, 16).ok()?;
        let flags = u32::from_str_radix(words.nth(6)?, 16).ok()?;
        (flags & OURS != 0 && length > 0 && !address.is_loopback()).then_some((address, length))
    };
    table.lines().filter_map(route).collect()
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
    fn the_descriptors_of_a_process_are_counted() {
        let files: Vec<fs::File> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let Descriptors { open, limit } = open_descriptors().unwrap();
        assert!(open >= files.len() as u64 && open <= limit, "{open} of {limit}");
    }

    #[test]
    fn local_addresses_and_prefixes_are_read_and_others_are_not() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 192.0.2.0/24 2 0 2\n        \
                    |-- 192.0.2.0\n           /24 link UNICAST\nLocal:\n        |-- 192.0.2.7\n           /32 host LOCAL\n        \
                    |-- 192.0.2.255\n           /32 link BROADCAST\n        |-- 127.0.0.1\n           /32 host LOCAL\n        \
                    |-- 10.9.0.0\n           /16 host LOCAL\nId 100:\n  |-- 0.0.0.0\n     /0 host LOCAL\n";
        assert_eq!(local_v4(trie), [(Ipv4Addr::new(192, 0, 2, 7), 32), (Ipv4Addr::new(10, 9, 0, 0), 16)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe80000000000000000000fffe000001 02 40 20 80     eth0\nnonsense\n";
        assert_eq!(local_v6(table), ["fe80::ff:fe00:1".parse::<Ipv6Addr>().unwrap()]);
        let none = "0".repeat(32);
        let line = |address: &str, length: &str, flags: &str| {
            format!("{address} {length} {none} 00 {none} 00000000 00000004 00000000 {flags} eth0\n")
        };
        let routes = [
            line("fd000000000000000000000000000000", "40", "00000001"),
            line("fd000000000000000000000000000002", "80", "80200001"),
            line("20010db8000900000000000000000000", "40", "80000001"),
            line("20010db8000a00000000000000000000", "80", "00100001"),
            line("00000000000000000000000000000001", "80", "80200001"),
            line(&none, "00", "80000001"),
            "nonsense\n".to_owned(),
        ];
        let read = routes_v6(&routes.concat()).into_iter().map(|(address, length)| format!("{address}/{length}"));
        assert_eq!(read.collect::<Vec<_>>(), ["fd00::2/128", "2001:db8:9::/64", "2001:db8:a::/128"]);
    }
}

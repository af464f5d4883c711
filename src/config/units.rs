//! Values with a unit or a form of their own: rates, socket modes, CPU lists, subnets.
//!
//! Invariant: what parses is in range; an error says what is allowed. Read first: RFC 4632 (prefixes), RFC 4291
//! section 2.3 (IPv6 prefixes), cpuset(7) "Formats" (CPU lists).

use serde::{Serialize, Serializer};
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Why a text is not such a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}; {allowed}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    allowed: String,
}

fn wrong(text: &str, what: &'static str, allowed: impl Into<String>) -> UnitError {
    UnitError { text: text.to_owned(), what, allowed: allowed.into() }
}

/// A rate in bits per second, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    const UNITS: [(&'static str, u64); 5] =
        [("tbit", 1_000_000_000_000), ("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];

    fn read(text: &str) -> Option<Rate> {
        let lower = text.to_ascii_lowercase();
        let (number, unit) =
            Rate::UNITS.iter().find_map(|(name, unit)| Some((lower.strip_suffix(name)?.trim_end(), *unit)))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 12 {
            return None;
        }
        let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        let parts = whole.parse::<u64>().ok()? as u128 * scale + fraction.parse::<u64>().ok()? as u128;
        let bits = u64::try_from(parts * u128::from(unit) / scale).ok()?;
        (bits > 0).then_some(Rate(bits))
    }
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Rate, UnitError> {
        Rate::read(text).ok_or_else(|| {
            wrong(
                text,
                "a rate",
                "write a number above 0 with one of bit, kbit, Mbit, Gbit, Tbit per second, for example \"100Mbit\"",
            )
        })
    }
}

/// Permission bits of a socket file, 0 to 0o777.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// 0660: owner and group may connect.
    pub const DEFAULT: SocketMode = SocketMode(0o660);

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<SocketMode, UnitError> {
        let octal = text.len() <= 4 && !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(text, 8) {
            Ok(bits) if octal && bits <= 0o777 => Ok(SocketMode(bits)),
            _ => Err(wrong(
                text,
                "a socket mode",
                "write permissions in octal, \"0000\" to \"0777\", for example \"0660\"",
            )),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for SocketMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A set of CPU numbers, in the list format of cpuset(7) (`0-3,8`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// Most CPUs that one host can have; bounds what a list expands to.
    const LIMIT: u32 = 65_536;

    /// The first `count` CPUs.
    pub fn first(count: u32) -> CpuSet {
        CpuSet((0..count.min(CpuSet::LIMIT)).collect())
    }

    /// Is `cpu` in the set?
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }
}

impl FromStr for CpuSet {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<CpuSet, UnitError> {
        let error = || wrong(text, "a list of CPUs", "write numbers and ranges, for example 0-3,8");
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(|_| error())?;
            let last: u32 = last.parse().map_err(|_| error())?;
            if first > last || last >= CpuSet::LIMIT {
                return Err(error());
            }
            cpus.extend(first..=last);
        }
        Ok(CpuSet(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &cpu in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => runs.push((cpu, cpu)),
            }
        }
        for (at, (first, last)) in runs.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// An IP prefix with no bits set behind its length, for example 10.77.1.0/24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    length: u8,
}

impl Subnet {
    /// Bits of the prefix.
    pub fn length(self) -> u8 {
        self.length
    }

    /// The prefix of `length` bits that `address` is in, whatever it is: a route's destination.
    pub fn of(address: IpAddr, length: u8) -> Subnet {
        Subnet { address, length }
    }

    /// Its first and its last address.
    pub(super) fn ends(self) -> (IpAddr, IpAddr) {
        let last: IpAddr = match self.address {
            IpAddr::V4(base) => {
                let hosts = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv4Addr::from(u32::from(base) | hosts).into()
            }
            IpAddr::V6(base) => {
                let hosts = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Ipv6Addr::from(u128::from(base) | hosts).into()
            }
        };
        (self.address, last)
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Subnet) -> bool {
        let shorter = u32::from(self.length.min(other.length));
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros() >= shorter.min(32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros() >= shorter.min(128),
            _ => false,
        }
    }

    /// Address number `n` of it, 0 being the prefix itself; nothing when it has no so many.
    pub fn host(self, n: u32) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(base) => {
                let last = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                (n <= last).then(|| Ipv4Addr::from(u32::from(base) | n).into())
            }
            IpAddr::V6(base) => Some(Ipv6Addr::from(u128::from(base) | u128::from(n)).into()),
        }
    }

    /// An IPv4 prefix that has room for a gateway and at least one guest: /1 to /30, unicast.
    pub fn v4(text: &str) -> Result<Subnet, UnitError> {
        let allowed = "write an IPv4 prefix from /1 to /30, for example \"10.77.1.0/24\"";
        let error = || wrong(text, "an IPv4 subnet", allowed);
        let (address, length) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let length: u8 = length.parse().ok().filter(|length| (1..=30).contains(length)).ok_or_else(error)?;
        let base = u32::from(address) & (u32::MAX << (32 - u32::from(length)));
        if base != u32::from(address) {
            let base = Ipv4Addr::from(base);
            return Err(wrong(text, "an IPv4 subnet", format!("bits behind /{length} are set; write {base}/{length}")));
        }
        if address.is_multicast() || address.is_loopback() || address.is_unspecified() {
            return Err(wrong(text, "a subnet of guests", "loopback, multicast and 0.0.0.0 cannot be used"));
        }
        Ok(Subnet { address: address.into(), length })
    }

    /// An IPv6 prefix of /64, which is what SLAAC needs (RFC 4862 section 5.5.3), unicast.
    pub fn v6(text: &str) -> Result<Subnet, UnitError> {
        let error = || wrong(text, "an IPv6 subnet", "write a /64, for example \"fd77:1::/64\", or false for no IPv6");
        let address: Ipv6Addr = text.strip_suffix("/64").and_then(|text| text.parse().ok()).ok_or_else(error)?;
        let base = u128::from(address) & (u128::MAX << 64);
        if base != u128::from(address) {
            let base = Ipv6Addr::from(base);
            return Err(wrong(text, "an IPv6 subnet", format!("bits behind /64 are set; write {base}/64")));
        }
        if address.is_multicast() || address.is_unspecified() || address.is_unicast_link_local() {
            return Err(wrong(text, "a subnet of guests", "multicast, link-local and :: cannot be used"));
        }
        Ok(Subnet { address: address.into(), length: 64 })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates() {
        assert_eq!("100Mbit".parse(), Ok(Rate(100_000_000)));
        assert_eq!("2.5gbit".parse(), Ok(Rate(2_500_000_000)));
        assert_eq!("1 Gbit".parse(), Ok(Rate(1_000_000_000)));
        for bad in ["", "bit", "0bit", "-1bit", "1", "1e3bit", "1.bit", ".5bit", "99999999999Tbit", "1MB", "1.2.3bit"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!("0660".parse::<SocketMode>().unwrap().bits(), 0o660);
        assert_eq!("600".parse::<SocketMode>().unwrap().to_string(), "0600");
        for bad in ["", "0888", "1777", "+660", "rw-rw----", "00660"] {
            assert!(bad.parse::<SocketMode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets() {
        assert_eq!(Subnet::v4("10.77.1.0/24").unwrap().to_string(), "10.77.1.0/24");
        assert!(Subnet::v4("10.77.1.5/24").unwrap_err().to_string().contains("write 10.77.1.0/24"));
        assert_eq!(Subnet::v6("fd77:1::/64").unwrap().to_string(), "fd77:1::/64");
        for bad in ["10.0.0.0", "10.0.0.0/31", "10.0.0.0/0", "10.0.0/8", "224.0.0.0/8", "127.0.0.0/8", "::/64"] {
            assert!(Subnet::v4(bad).is_err(), "{bad}");
        }
        for bad in ["fd77::/48", "fd77::1/64", "ff02::/64", "fe80::/64", "10.0.0.0/64"] {
            assert!(Subnet::v6(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_lists() {
        let set: CpuSet = "0-2,5\n".parse().unwrap();
        assert!(set.contains(2) && set.contains(5) && !set.contains(3));
        assert_eq!(set.to_string(), "0-2,5");
        for bad in ["", "a", "3-1", "0-4294967295", "1,,2"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = text.parse::<Rate>();
            let _ = text.parse::<SocketMode>();
            let _ = text.parse::<CpuSet>();
            let _ = Subnet::v4(&text);
            let _ = Subnet::v6(&text);
        }

        #[test]
        fn rates_in_whole_units_are_exact(number in 1u64..1_000_000) {
            prop_assert_eq!(format!("{number}Mbit").parse(), Ok(Rate(number * 1_000_000)));
        }
    }
}

//! Names in the file: networks, guests, ports, interfaces.
//!
//! Invariant: a value of these types is safe in a file name, on a terminal and in a log line: letters, digits, `.`,
//! `_`, `-` only (port names: `/` between such parts too), never empty, never starting with a punctuation mark.

use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// Longest name of a network, a guest, or a part of a port name, in bytes.
const NAME_MAX: usize = 63;
/// Longest port name, in bytes.
const PORT_NAME_MAX: usize = 127;
/// Longest interface name in bytes (`IFNAMSIZ` of Linux is 16 with the closing zero byte).
const INTERFACE_MAX: usize = 15;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a name of {what}; allowed are 1 to {max} letters, digits, `.`, `_`, `-`{extra}, beginning with a letter or digit"
)]
pub struct NameError {
    text: String,
    what: &'static str,
    max: usize,
    extra: &'static str,
}

fn is_part(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $extra:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok($name(text.to_owned()))
                } else {
                    Err(NameError { text: text.to_owned(), what: $what, max: $max, extra: $extra })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

name!(
    /// Name of a network, a guest or a tunnel endpoint, and of a network namespace.
    Name, "a network, guest or namespace", NAME_MAX, "", |text| is_part(text, NAME_MAX)
);
name!(
    /// Name of a port: by default `<guest>/<index>`.
    PortName, "a port", PORT_NAME_MAX, " (and `/` between parts)",
    |text| text.len() <= PORT_NAME_MAX && text.split('/').all(|part| is_part(part, NAME_MAX))
);
name!(
    /// Name of a network interface of the host.
    Interface, "an interface", INTERFACE_MAX, "", |text| is_part(text, INTERFACE_MAX)
);

impl PortName {
    /// The name of the host's port in a network.
    pub fn host(network: &Name) -> PortName {
        PortName(format!("{network}/host"))
    }

    /// The name of the port that leads from a bridged network to the physical one.
    pub fn uplink(network: &Name) -> PortName {
        PortName(format!("{network}/uplink"))
    }

    /// The name of the port that stretches a network, or a VLAN of it, to other hosts.
    pub fn tunnel(network: &Name, vlan: Option<wire::Vid>) -> PortName {
        PortName(vlan.map_or(format!("{network}/overlay"), |vlan| format!("{network}/overlay/{vlan}")))
    }

    /// The name of the port of a tunnel endpoint that is in a network.
    pub fn endpoint(network: &Name, vtep: &str) -> PortName {
        PortName(format!("{network}/endpoint/{vtep}"))
    }

    /// The default name of port number `index` (from 0) of `guest`.
    pub fn of(guest: &Name, index: usize) -> PortName {
        PortName(format!("{guest}/{index}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_alphabet() {
        for good in ["a", "web", "Web-1", "9.x_y", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", "a\u{1b}[31m", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert!("web/0".parse::<PortName>().is_ok());
        for bad in ["web/", "/web", "a//b", "../x", "web/.."] {
            assert!(bad.parse::<PortName>().is_err(), "{bad}");
        }
        assert!("eth0.100".parse::<Interface>().is_ok());
        assert!("abcdefghijklmnop".parse::<Interface>().is_err());
    }
}

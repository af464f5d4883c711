//! [`Dscp`]: `dscp` of a tunnel endpoint, the class of its packets in the underlay.
//!
//! Invariant: a class has six bits. Read first: RFC 2474 section 3 (the field), RFC 2983 section 4 (tunnels; ours are its "pipe" with a class that is
//! told, or its "uniform" on the way out only).

use serde::Serialize;

use super::{error::Fault, reader::Entry};

/// The class of packets in the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dscp {
    /// That of the inner packet: guests choose it.
    Copy,
    /// This one, 0 to 63.
    #[serde(untagged)]
    Fixed(u8),
}

impl Default for Dscp {
    fn default() -> Dscp {
        Dscp::Fixed(0)
    }
}

impl Dscp {
    /// The class that is told; nothing: the inner one.
    pub fn fixed(self) -> Option<u8> {
        match self {
            Dscp::Copy => None,
            Dscp::Fixed(class) => Some(class),
        }
    }
}

/// Reads `"copy"` or a class.
pub(super) fn read(entry: &Entry<'_>) -> Result<Dscp, Fault> {
    let told = match entry.text() {
        Ok(_) => entry.choice(&[("copy", Dscp::Copy)]),
        Err(_) => entry.integer(0u8, 63).map(Dscp::Fixed),
    };
    told.map_err(|fault| fault.help("write \"copy\" for that of the inner packet, or 0 to 63"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{are_told, read};

    fn with(dscp: &str) -> String {
        format!("[vteps.main]\nlocal = \"10.0.0.1\"\n{dscp}\n[networks.t]\noverlay = {{ vtep = \"main\", vni = 1 }}\n")
    }

    #[test]
    fn the_class_is_told_or_that_of_the_inner_packet() {
        let cases = [("", Some(0), "0"), ("dscp = 46", Some(46), "46"), ("dscp = \"copy\"", None, "\"copy\"")];
        for (text, fixed, json) in cases {
            let config = read(&with(text)).unwrap();
            let dscp = config.vteps[0].dscp;
            assert_eq!((dscp.fixed(), serde_json::to_string(&dscp).unwrap().as_str()), (fixed, json), "{text}");
        }
    }

    #[test]
    fn wrong_classes() {
        let texts = ["dscp = 64", "dscp = \"cpoy\"", "dscp = -1", "dscp = true"].map(with);
        let told = ["allowed are 0 to 63", "the nearest is \"copy\"", "out of range", "\"copy\""];
        for (text, what) in texts.iter().zip(told) {
            are_told(&[(text, 3, "vteps.main.dscp", what)]);
        }
    }
}

//! [`Evpn`]: who tells a tunnel endpoint where stations are.
//!
//! Invariant: the speaker is one of this host's, reached by a socket that only its users may open. Read first: RFC 8365, docs/evpn.md.

use std::path::PathBuf;

use overlay::Encapsulation;
use serde::Serialize;

use super::{
    error::Fault,
    reader::{Entry, Section},
};

/// A speaker of BGP on this host, which tells where stations are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evpn {
    /// The unix socket of its API.
    pub speaker: PathBuf,
    /// The number of its autonomous system.
    #[serde(rename = "as")]
    pub asn: u32,
}

/// Reads `control`, `speaker` and `as` of an endpoint.
pub(super) fn read(section: &Section<'_>, encapsulation: Encapsulation) -> Result<Option<Evpn>, Fault> {
    let choices = [("static", false), ("evpn", true)];
    let wanted = section.map("control", |entry| entry.choice(&choices))?.unwrap_or(false);
    if !wanted {
        return match section.get("speaker").or_else(|| section.get("as")) {
            Some(entry) => Err(entry.key_fault("`speaker` and `as` belong to control = \"evpn\"; give it too")),
            None => Ok(None),
        };
    }
    let entry =
        section.need("speaker", "control = \"evpn\" needs speaker, for example \"unix:///run/gobgpd/api.sock\"")?;
    let speaker = speaker(&entry)?;
    let asn = section.need("as", "control = \"evpn\" needs as, the number of the autonomous system")?;
    let asn = asn.integer(1u32, u32::MAX)?;
    if encapsulation != Encapsulation::Vxlan {
        return Err(section.fault("control = \"evpn\" announces VXLAN; leave `encapsulation` out"));
    }
    Ok(Some(Evpn { speaker, asn }))
}

/// Over the network its API asks nobody who he is, so it is a socket of this host.
fn speaker(entry: &Entry<'_>) -> Result<PathBuf, Fault> {
    let text = entry.text()?;
    match text.strip_prefix("unix://").map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        _ => Err(entry.fault(format!("`{text}` is not a speaker; write unix:// and the path of gobgpd's socket"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::are_told;

    #[test]
    fn wrong_speakers() {
        are_told(&[
            ("[vteps.main]\nlocal = \"198.51.100.1\"\ncontrol = \"evpn\"", 1, "vteps.main", "`speaker` is missing"),
            (
                "[vteps.main]\nlocal = \"198.51.100.1\"\ncontrol = \"evpn\"\nspeaker = \"unix:///s\"",
                1,
                "vteps.main",
                "`as` is missing",
            ),
            (
                "[vteps.main]\nlocal = \"198.51.100.1\"\ncontrol = \"evpn\"\nspeaker = \"http://h:1\"\nas = 65000",
                4,
                "vteps.main.speaker",
                "is not a speaker",
            ),
            ("[vteps.main]\nlocal = \"198.51.100.1\"\nas = 65000", 3, "vteps.main.as", "control = \"evpn\""),
            (
                "[vteps.main]\nlocal = \"198.51.100.1\"\nencapsulation = \"geneve\"\ncontrol = \"evpn\"\nspeaker = \"unix:///s\"\nas = 1",
                1,
                "vteps.main",
                "announces VXLAN",
            ),
        ]);
    }
}

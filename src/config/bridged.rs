//! Reads the keys of `mode = "bridged"`.
//!
//! Invariant: a bridged network has an uplink or a bridge, with MAC-NAT an uplink alone; neither an uplink nor a TAP is two networks'.

use super::{
    Reading,
    error::Fault,
    names::{Interface, Name, PortName},
    reader::{Entry, Section},
    types::Mode,
};

/// What a bridged network is joined to.
#[derive(Default)]
pub(super) struct Bridged {
    pub(super) uplink: Option<Interface>,
    pub(super) bridge: Option<Interface>,
    pub(super) mac_nat: bool,
    pub(super) tap: Option<Interface>,
}

/// Reads the keys of a network in mode bridged; of another, nothing.
pub(super) fn read(
    name: &Name,
    mode: Mode,
    entry: &Entry<'_>,
    section: &Section<'_>,
    reading: &mut Reading,
) -> Result<Bridged, Fault> {
    if mode != Mode::Bridged {
        return Ok(Bridged::default());
    }
    let bridge = section.map("bridge", Entry::parse::<Interface>)?;
    let mac_nat = section.map("mac_nat", Entry::boolean)?.unwrap_or(false);
    if bridge.is_none() {
        section
            .need("uplink", "mode = \"bridged\" needs uplink, an interface of this host, or bridge, a bridge of it")?;
    }
    let owner = format!("network {name}");
    let uplink = match section.get("uplink") {
        Some(entry) => {
            let uplink: Interface = entry.parse()?;
            reading.claims.claim("uplink", &uplink, &owner, &entry)?;
            Some(uplink)
        }
        None => None,
    };
    if mac_nat && bridge.is_some() {
        let entry = section.get("mac_nat");
        let fault = "`mac_nat` joins no bridge; leave `bridge` out, or `mac_nat`";
        return Err(entry.as_ref().map_or_else(|| section.fault(fault), |entry| entry.key_fault(fault)));
    }
    // The cable to the Linux bridge, or the host's own interface.
    let text = crate::bridged::interface_name(if mac_nat { "tl-" } else { "tlp-" }, name.as_str());
    let tap: Interface = text.parse().map_err(|_| entry.key_fault(format!("{text} is not a name of an interface")))?;
    reading.claims.claim("TAP", &tap, &owner, entry)?;
    reading.claims.claim("port name", PortName::uplink(name), &owner, entry)?;
    if mac_nat {
        reading.claims.claim("port name", PortName::host(name), &owner, entry)?;
    }
    Ok(Bridged { uplink, bridge, mac_nat, tap: Some(tap) })
}

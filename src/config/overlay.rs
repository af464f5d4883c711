//! Reads `[vteps.*]` and the overlay keys of a network: checked in full, and refused in this version.
//!
//! Invariant: a file that passes here stays right when overlays become available. Read first: RFC 7348 sections 4
//! and 5 (VXLAN), RFC 8365 (EVPN for overlays).

use super::{
    Reading,
    error::Fault,
    names::Name,
    reader::{Entry, Section, nearest},
};
use std::net::IpAddr;
use wire::Vid;

const VTEP_KEYS: &[&str] = &["local", "port", "control", "speaker", "as"];
const OVERLAY_KEYS: &[&str] = &["vtep", "vni", "local", "peers", "port"];

/// Reads every tunnel endpoint and gives their names.
pub(super) fn read_vteps(root: &Section<'_>, reading: &mut Reading) -> Result<Vec<Name>, Fault> {
    let Some(vteps) = root.get("vteps") else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for (name, entry) in vteps.named()? {
        names.push(name.parse().map_err(|error: super::names::NameError| entry.key_fault(error.to_string()))?);
        let section = entry.section(VTEP_KEYS)?;
        section
            .need("local", "local is an IP address of this host, for example \"198.51.100.1\"")?
            .parse::<IpAddr>()?;
        section.map("port", udp_port)?;
        let choices = [("static", false), ("evpn", true)];
        let evpn = section.map("control", |entry| entry.choice(&choices))?.unwrap_or(false);
        section.map("as", |entry| entry.integer(1u32, u32::MAX))?;
        section.map("speaker", speaker)?;
        if evpn {
            section.need("speaker", "control = \"evpn\" needs speaker, for example \"unix:///run/gobgpd.sock\"")?;
            section.need("as", "control = \"evpn\" needs as, the number of the autonomous system")?;
        }
        reading.refuse(&entry, "a tunnel endpoint", "leave [vteps] out");
    }
    Ok(names)
}

fn speaker(entry: &Entry<'_>) -> Result<(), Fault> {
    let text = entry.text()?;
    let rest = ["unix://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(()),
        _ => Err(entry.fault(format!("`{text}` is not a speaker; allowed are unix://PATH and http://HOST:PORT"))),
    }
}

fn udp_port(entry: &Entry<'_>) -> Result<u16, Fault> {
    entry.integer(1u16, u16::MAX)
}

/// Checks `overlay = { ... }` of a network.
pub(super) fn overlay(entry: &Entry<'_>, vteps: &[Name]) -> Result<(), Fault> {
    let section = entry.section(OVERLAY_KEYS)?;
    section.need("vni", "vni is the number of the overlay, 1 to 16777215")?.integer(1u32, 16_777_215)?;
    section.map("local", Entry::parse::<IpAddr>)?;
    section.map("port", udp_port)?;
    section.map("peers", |entry| entry.list()?.iter().map(Entry::parse::<IpAddr>).collect::<Result<Vec<_>, _>>())?;
    match (section.get("vtep"), section.get("local")) {
        (Some(_), Some(local)) => Err(local.key_fault("`vtep` and `local` exclude each other; give one of them")),
        (None, None) => Err(section.fault("neither `vtep` nor `local` is given; one of them is needed")),
        (None, Some(_)) => Ok(()),
        (Some(vtep), None) => match section.get("port") {
            Some(port) => Err(port.key_fault("`port` belongs to the tunnel endpoint; set it in [vteps]")),
            None => known_vtep(&vtep, vteps),
        },
    }
}

fn known_vtep(entry: &Entry<'_>, vteps: &[Name]) -> Result<(), Fault> {
    let text = entry.text()?;
    if vteps.iter().any(|name| name.as_str() == text) {
        return Ok(());
    }
    let fault = entry.fault(format!("there is no [vteps.{text}]"));
    Err(match nearest(text, vteps.iter().map(Name::as_str)) {
        Some(near) => fault.help(format!("the nearest tunnel endpoint is `{near}`")),
        None => fault.help("the file has no [vteps]; write `local` in place of `vtep`"),
    })
}

/// Checks `vlan_vni = { 100 = 5001 }` of a network.
pub(super) fn vlan_vni(entry: &Entry<'_>) -> Result<(), Fault> {
    let mut seen: Vec<u32> = Vec::new();
    for (vlan, element) in entry.named()? {
        vlan.parse::<Vid>().map_err(|error| element.key_fault(error.to_string()))?;
        let number = element.integer(1u32, 16_777_215)?;
        if seen.contains(&number) {
            return Err(element.fault(format!("VNI {number} is mapped twice; each is allowed once")));
        }
        seen.push(number);
    }
    Ok(())
}

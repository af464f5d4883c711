//! [`Sealing`]: the keys of a tunnel endpoint that seals what it sends, as WireGuard does.
//!
//! Invariant: an endpoint that has a key has one for each of its peers, so that nothing of it leaves in the clear; the private key is not shown again.
//! Read first: `overlay`'s page on keys.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use overlay::keys::{PrivateKey, PublicKey};
use serde::Serialize;

use super::{
    error::Fault,
    one_host,
    overlay::Vtep,
    reader::{Entry, Section},
};

/// WireGuard's UDP port.
const PORT: u16 = 51820;

/// What an endpoint seals with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sealing {
    /// Its own key; told is what the other hosts know it by.
    #[serde(rename = "public_key", serialize_with = "public")]
    pub key: PrivateKey,
    /// The file that it was read from.
    #[serde(rename = "key_file", skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// UDP port of what is sealed. Default: 51820.
    pub wireguard_port: u16,
    /// What the other hosts are known by.
    #[serde(skip)]
    pub peers: BTreeMap<IpAddr, PublicKey>,
}

/// Reads `key` or `key_file`, and `wireguard_port`.
pub(super) fn read(section: &Section<'_>) -> Result<Option<Sealing>, Fault> {
    let (key, file) = match (section.get("key"), section.get("key_file")) {
        (Some(_), Some(entry)) => {
            return Err(entry.key_fault("`key` and `key_file` exclude each other; give one of them"));
        }
        (Some(entry), None) => (parsed(&entry, entry.text()?)?, None),
        (None, Some(entry)) => from_file(&entry)?,
        (None, None) => {
            return match section.get("wireguard_port") {
                Some(entry) => Err(entry.key_fault("`wireguard_port` means nothing without `key` or `key_file`")),
                None => Ok(None),
            };
        }
    };
    let port = section.map("wireguard_port", |entry| entry.integer(1u16, u16::MAX))?.unwrap_or(PORT);
    Ok(Some(Sealing { key, file, wireguard_port: port, peers: BTreeMap::new() }))
}

fn parsed(entry: &Entry<'_>, text: &str) -> Result<PrivateKey, Fault> {
    // The text is not told again: it may be a key that was misspelt.
    text.trim().parse().map_err(|error: overlay::keys::KeyError| {
        entry.fault(error.to_string()).help("`trunkline keys` makes a pair, as `wg genkey` does")
    })
}

fn from_file(entry: &Entry<'_>) -> Result<(PrivateKey, Option<PathBuf>), Fault> {
    let path = Path::new(entry.text()?);
    if !path.is_absolute() {
        return Err(entry.fault("the path of a key is to be absolute"));
    }
    let text = fs::read_to_string(path).map_err(|error| entry.fault(format!("{}: {error}", path.display())))?;
    Ok((parsed(entry, &text)?, Some(path.to_owned())))
}

/// Says where two networks make one endpoint, and differ in its keys.
pub(super) fn same(section: &Section<'_>, known: &Vtep, seal: Option<&Sealing>) -> Result<(), Fault> {
    let own = |seal: &Sealing| (seal.key.public(), seal.wireguard_port);
    match (seal.map(own), known.seal.as_ref().map(own)) {
        (Some(one), other) if Some(one) != other => {
            let what = format!("tunnel endpoint {} has another `key` or `wireguard_port`, or none, above", known.name);
            Err(section.fault(what).help("give it the same in each network, or once in [vteps]"))
        }
        _ => Ok(()),
    }
}

/// Says what a sealed endpoint cannot be.
pub(super) fn check(section: &Section<'_>, vtep: &Vtep) -> Result<(), Fault> {
    if vtep.seal.is_none() {
        return Ok(());
    }
    let reasons = [
        ("control", vtep.evpn.is_some(), "who is told by BGP has no key here; leave `key` or control = \"evpn\" out"),
        ("network", vtep.seat.is_some(), "what is sealed leaves by a socket of the host; leave `key` or `network` out"),
    ];
    for (key, is_so, reason) in reasons {
        if let Some(entry) = section.get(key).filter(|_| is_so) {
            return Err(entry.key_fault(reason));
        }
    }
    Ok(())
}

/// Says what an overlay on a sealed endpoint cannot have.
pub(super) fn check_overlay(section: &Section<'_>, vtep: &Vtep) -> Result<(), Fault> {
    if vtep.seal.is_none() {
        return Ok(());
    }
    for key in ["group", "anyone"] {
        if let Some(entry) = section.get(key).filter(|entry| !entry.is_false()) {
            let what = format!("`{key}` takes endpoints without keys, and this one seals; name the others in `peers`");
            return Err(entry.key_fault(what));
        }
    }
    Ok(())
}

/// Reads another host, `"address"` or `{ host = "address", key = "..." }`. What is read of its key is kept in `vtep`.
pub(super) fn peer(entry: &Entry<'_>, vtep: &mut Vtep) -> Result<IpAddr, Fault> {
    if !entry.is_table() {
        let peer = one_host::read(entry)?;
        if let Some(seal) = &vtep.seal
            && !seal.peers.contains_key(&peer)
        {
            let what = format!("{peer} has no key, and tunnel endpoint {} seals what it sends", vtep.name);
            return Err(entry.fault(what).help(format!("write {{ host = \"{peer}\", key = \"its public key\" }}")));
        }
        return Ok(peer);
    }
    let section = entry.section(&["host", "key"])?;
    let host = section.need("host", "host is the other host's address in the underlay")?;
    let (peer, given) = (one_host::read(&host)?, section.need("key", "key is the other host's public key")?);
    let key: PublicKey = given.parse()?;
    let name = vtep.name.clone();
    let Some(seal) = &mut vtep.seal else {
        let what = format!("{peer} has a key, and tunnel endpoint {name} has none; give it `key` or `key_file`, too");
        return Err(given.key_fault(what));
    };
    if key == seal.key.public() {
        return Err(given.fault("this is the key of this host itself; each host has one of its own"));
    }
    if let Some((other, _)) = seal.peers.iter().find(|(other, known)| **other != peer && **known == key) {
        return Err(given.fault(format!("{other} has this key, too; each host has one of its own")));
    }
    match seal.peers.insert(peer, key) {
        Some(other) if other != key => {
            Err(given.fault(format!("{peer} has the key {other} elsewhere in this file; a host has one")))
        }
        _ => Ok(peer),
    }
}

fn public<S: serde::Serializer>(key: &PrivateKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&key.public().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{are_told, read};

    const OWN: &str = "6OX2/mIVDmodmFZ9NoxWSevalt1yNJGvh6tn8Zt2OVY=";
    const OTHER: &str = "XbQ3yzoKBBrOTrX/pjeHIlKPF4nDMcwckz7/pBRgmkQ=";

    #[test]
    fn an_endpoint_has_a_key_and_one_for_each_peer() {
        let text = format!(
            "[vteps.main]\nlocal = \"192.0.2.1\"\nkey = \"{OWN}\"\npeers = [{{ host = \"192.0.2.2\", key = \"{OTHER}\" }}]\n\
             [networks.a]\noverlay = {{ vtep = \"main\", vni = 1 }}\n\
             [networks.b]\noverlay = {{ vtep = \"main\", vni = 2, peers = [\"192.0.2.2\"] }}\n\
             [networks.c]\noverlay = {{ vni = 3, local = \"192.0.2.9\", wireguard_port = 5000, key = \"{OWN}\", \
             peers = [{{ host = \"192.0.2.3\", key = \"{OTHER}\" }}] }}\n"
        );
        let config = read(&text).unwrap();
        let seals: Vec<_> = config.vteps.iter().map(|vtep| (vtep.udp(), vtep.seal.as_ref().unwrap())).collect();
        assert_eq!(
            seals.iter().map(|(port, seal)| (*port, seal.peers.len())).collect::<Vec<_>>(),
            [(51820, 1), (5000, 1)]
        );
        let shown = serde_json::to_string(&config).unwrap();
        assert!(!shown.contains(OWN) && !format!("{config:?}").contains(OWN), "{shown}");
        assert!(shown.contains("dBosgBz2jtaRs2ojKjJV7EUsP91WKuyBbDnRmkv3pQY="), "{shown}");
    }

    #[test]
    fn wrong_keys() {
        let vtep = |rest: &str| format!("[vteps.main]\nlocal = \"192.0.2.1\"\nkey = \"{OWN}\"\n{rest}");
        let overlay = |rest: &str| vtep(&format!("[networks.t]\noverlay = {{ vtep = \"main\", vni = 1, {rest} }}"));
        let host = |key: &str| format!("peers = [{{ host = \"192.0.2.2\", key = \"{key}\" }}]");
        are_told(&[
            ("[vteps.main]\nlocal = \"192.0.2.1\"\nkey = \"abc\"", 3, "vteps.main.key", "32 bytes in base64"),
            ("[vteps.main]\nlocal = \"192.0.2.1\"\nkey_file = \"abc\"", 3, "vteps.main.key_file", "absolute"),
            (
                "[vteps.main]\nlocal = \"192.0.2.1\"\nkey_file = \"/nowhere/k\"",
                3,
                "vteps.main.key_file",
                "/nowhere/k: ",
            ),
            (
                "[vteps.main]\nlocal = \"192.0.2.1\"\nwireguard_port = 5",
                3,
                "vteps.main.wireguard_port",
                "without `key`",
            ),
            (&vtep("key_file = \"/k\""), 4, "vteps.main.key_file", "exclude each other"),
            (&vtep("peers = [\"192.0.2.2\"]"), 4, "vteps.main.peers[0]", "has no key"),
            (&vtep(&host("abc")), 4, "vteps.main.peers[0].key", "32 bytes in base64"),
            (
                &vtep(&host("dBosgBz2jtaRs2ojKjJV7EUsP91WKuyBbDnRmkv3pQY=")),
                4,
                "vteps.main.peers[0].key",
                "this host itself",
            ),
            (&vtep("network = \"n\""), 2, "vteps.main.local", "is not an address with"),
            (&vtep("control = \"evpn\"\nspeaker = \"unix:///s\"\nas = 1"), 4, "vteps.main.control", "by BGP"),
            (&overlay("anyone = true"), 5, "networks.t.overlay.anyone", "without keys"),
            (&overlay("group = \"239.1.1.1\""), 5, "networks.t.overlay.group", "without keys"),
            (&overlay("key = \"abc\""), 5, "networks.t.overlay.key", "belongs to the tunnel endpoint"),
            (
                &vtep(&format!(
                    "peers = [{{ host = \"192.0.2.2\", key = \"{OTHER}\" }}, {{ host = \"192.0.2.3\", key = \"{OTHER}\" }}]"
                )),
                4,
                "vteps.main.peers[1].key",
                "has this key, too",
            ),
            (
                "[vteps.main]\nlocal = \"192.0.2.1\"\npeers = [{ host = \"192.0.2.2\", key = \"XbQ3yzoKBBrOTrX/pjeHIlKPF4nDMcwckz7/pBRgmkQ=\" }]",
                3,
                "vteps.main.peers[0].key",
                "has none",
            ),
            (
                &vtep(&format!(
                    "{}\n[networks.t]\noverlay = {{ vtep = \"main\", vni = 1, {} }}",
                    host(OTHER),
                    host("bbQ3yzoKBBrOTrX/pjeHIlKPF4nDMcwckz7/pBRgmkQ=")
                )),
                6,
                "networks.t.overlay.peers[0].key",
                "elsewhere in this file",
            ),
        ]);
    }
}

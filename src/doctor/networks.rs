//! Checks of a file's networks: subnets, uplinks, and what killed daemons left.
//!
//! Read first: [`super`], [`crate::bridged`].

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use sys::packet::{PacketSocket, Takes};

use super::{Check, State};
use crate::{
    bridged::{self, Left, saved},
    config::{Config, Host, Mode, Nat, NatEngine, Network, Segment, Via, Vtep},
    subnets,
};

/// One check for each network that is joined, or was: is it looked after?
pub(super) fn left_over(state_dir: &Path, repair: bool) -> Vec<Check> {
    if repair {
        return bridged::recover(state_dir, Duration::ZERO).into_iter().map(repaired).collect();
    }
    saved::files(state_dir).iter().map(|file| left(file)).collect()
}

fn name(file: &Path) -> String {
    format!("bridged {}", file.file_stem().unwrap_or_default().to_string_lossy())
}

fn left(file: &Path) -> Check {
    match saved::holder(file) {
        Ok(Some(holder)) => return Check::fine(name(file), holder),
        Err(error) => {
            let remedy = "run as the user of the daemon";
            return Check::wrong(name(file), State::Warning, format!("{}: {error}", file.display()), remedy);
        }
        Ok(None) => {}
    }
    let remedy = "trunkline doctor --repair";
    match saved::load(file) {
        Ok(Some(saved)) if saved.boot == saved::boot() => {
            let what: Vec<&str> = saved.addresses.iter().map(|item| item.what.as_str()).collect();
            let detail = format!(
                "{} is still in the bridge {} of a daemon that was killed; it had {}",
                saved.nic,
                saved.bridge,
                what.join(", ")
            );
            Check::wrong(name(file), State::Problem, detail, remedy)
        }
        Ok(_) => Check::fine(name(file), "nothing is to be put back"),
        Err(error) => {
            let remedy = format!("compare `ip addr` with what the file says, and remove it: {}", file.display());
            Check::wrong(name(file), State::Problem, format!("what was saved cannot be read: {error}"), remedy)
        }
    }
}

fn repaired(Left { file, outcome }: Left) -> Check {
    match outcome {
        Ok(notes) => Check::fine(name(&file), notes.join("; ")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Check::fine(name(&file), error.to_string()),
        Err(error) => {
            let remedy = format!("see `ip addr` and `ip route`; what was is in {}", file.display());
            Check::wrong(name(&file), State::Problem, format!("cannot be put back: {error}"), remedy)
        }
    }
}

/// Whether the BGP speaker that tells an endpoint's stations is there, and is the one that the file means.
pub(super) fn speaker(vtep: &Vtep) -> Option<Check> {
    let speaker = vtep.evpn.as_ref()?;
    let name = format!("BGP speaker of {}", vtep.name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match runtime {
        Ok(runtime) => runtime.block_on(evpn::probe(&speaker.speaker, vtep.local)).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    Some(match asked {
        Ok(about) if about.asn == speaker.asn => {
            let evpn::About { generation, asn, router } = about;
            Check::fine(name, format!("{generation}, AS {asn}, router {router}"))
        }
        Ok(about) => {
            let detail = format!("it is of AS {}, the file says {}", about.asn, speaker.asn);
            Check::wrong(name, State::Problem, detail, "make `as` in the file and in gobgpd's configuration the same")
        }
        Err(detail) => {
            let remedy = "see that gobgpd runs and that this user may open its socket (docs/evpn.md)";
            Check::wrong(name, State::Problem, detail, remedy)
        }
    })
}

/// Whether the host routes a segment's subnet elsewhere.
pub(super) fn subnet(segment: Segment<'_>) -> Option<Check> {
    let (network, subnet) = (segment.network, segment.subnet()?);
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let own = network.tap.as_ref().map(|tap| tap.as_str());
    let others: String =
        table.lines().filter(|line| line.split_whitespace().next() != own).map(|line| format!("{line}\n")).collect();
    let name = format!("subnet of {segment}");
    let overlap = subnets::routes(&others).into_iter().find(|route| route.overlaps(subnet));
    Some(match overlap {
        None => Check::fine(name, subnet.to_string()),
        Some(route) => {
            // An isolated network has nothing to do with the host's routes.
            let state = if network.mode == Mode::Isolated { State::Warning } else { State::Problem };
            let remedy = "choose another subnet, or leave the key out and a free one is chosen";
            Check::wrong(
                name,
                state,
                format!("{subnet} overlaps with {route}, which this host routes elsewhere"),
                remedy,
            )
        }
    })
}

/// Whether the interface that a network's translated packets leave by can be used: it is opened, and closed again.
pub(super) fn way_out(network: &Network) -> Option<Check> {
    let Some(Nat { engine: NatEngine::Packet { via: Via::Uplink(uplink), .. }, .. }) = &network.nat else {
        return None;
    };
    let name = format!("uplink of {}", network.name);
    Some(match PacketSocket::open(uplink.as_str(), None, Takes::Station([0; 6])) {
        Ok(_) => Check::fine(name, format!("{uplink} opens")),
        Err(error) => {
            let detail = error.to_string();
            let (detail, remedy) = detail.split_once("; ").unwrap_or((&detail, ""));
            Check::wrong(name, State::Problem, detail, remedy)
        }
    })
}

/// Whether a bridged network can be joined.
pub(super) fn uplink(host: &Host, network: &Network) -> Option<Check> {
    if network.mode != Mode::Bridged {
        return None;
    }
    let name = format!("uplink of {}", network.name);
    Some(match bridged::look(host, network) {
        Ok(detail) => Check::fine(name, detail),
        Err(detail) => {
            let (detail, remedy) = match detail.split_once("; ") {
                Some((detail, remedy)) => (detail.to_owned(), remedy.to_owned()),
                None => (detail, String::new()),
            };
            Check::wrong(name, State::Problem, detail, remedy)
        }
    })
}

/// A private key is nobody else's business: of the file of a key, or of the configuration that has one.
pub(super) fn key(config: &Config, vtep: &Vtep) -> Option<Check> {
    let file = vtep.seal.as_ref()?.file.as_ref().unwrap_or(&config.file);
    let name = format!("key of {}", vtep.name);
    let mode = fs::metadata(file).ok()?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Some(Check::fine(name, format!("{} is for its owner alone", file.display())));
    }
    let detail = format!("{} may be read or written by others (mode {mode:o})", file.display());
    Some(Check::wrong(name, State::Warning, detail, format!("chmod 600 {}", file.display())))
}

//! Reads `[host]`.
//!
//! Invariant: every default that the file leaves open is filled in from the surroundings, or is a fault that says
//! what to set.

use super::{
    Surroundings,
    claims::{absolute_path, short_enough},
    error::Fault,
    reader::{Entry, Section},
    types::{Group, Host, Idle},
    units::SocketMode,
};
use std::{net::SocketAddr, path::PathBuf};

const KEYS: &[&str] = &[
    "name",
    "run_dir",
    "state_dir",
    "worker_cpus",
    "idle",
    "spin_us",
    "socket_group",
    "socket_mode",
    "resolvers",
    "resolv_conf",
];

/// Most name servers that one host can name.
const RESOLVERS_MAX: usize = 8;

/// Most workers that one host can have.
const WORKERS_MAX: usize = 128;
/// Longest host name in bytes (`HOST_NAME_MAX` of Linux).
const NAME_MAX: usize = 64;
/// Longest time that an adaptive worker may poll, in microseconds.
const SPIN_MAX_US: u32 = 1_000_000;

pub(super) fn read(root: &Section<'_>, around: &Surroundings) -> Result<Host, Fault> {
    let section = root.map("host", |entry| entry.section(KEYS))?;
    let get = |key| section.as_ref().and_then(|section| section.get(key));

    let run_dir = directory(get("run_dir"), around.run_dir(), "run_dir", "XDG_RUNTIME_DIR", section.as_ref())?;
    let control_socket = run_dir.join("control.sock");
    short_enough(&control_socket).map_err(|what| match get("run_dir") {
        Some(entry) => entry.fault(what),
        None => Fault::new(0..0, "host.run_dir", what).help("set run_dir in [host]"),
    })?;
    let state_dir =
        directory(get("state_dir"), around.state_dir(), "state_dir", "XDG_STATE_HOME or HOME", section.as_ref())?;

    let choices = [("adaptive", Idle::Adaptive), ("poll", Idle::Poll), ("sleep", Idle::Sleep)];
    Ok(Host {
        name: get("name").as_ref().map(name).transpose()?.unwrap_or_else(|| around.hostname.clone()),
        run_dir,
        state_dir,
        worker_cpus: match get("worker_cpus") {
            Some(entry) => workers(&entry, around)?,
            None => vec![None],
        },
        idle: get("idle").map_or(Ok(Idle::Adaptive), |entry| entry.choice(&choices))?,
        spin_us: get("spin_us").map_or(Ok(50), |entry| entry.integer(0, SPIN_MAX_US))?,
        socket_group: get("socket_group").map(|entry| group(&entry, around)).transpose()?,
        resolvers: get("resolvers").map(|entry| resolvers(&entry)).transpose()?.unwrap_or_default(),
        resolv_conf: match get("resolv_conf") {
            Some(entry) => absolute_path(&entry)?,
            None => PathBuf::from("/etc/resolv.conf"),
        },
        socket_mode: get("socket_mode").map_or(Ok(SocketMode::DEFAULT), |entry| entry.parse())?,
        control_socket,
    })
}

fn name(entry: &Entry<'_>) -> Result<String, Fault> {
    let text = entry.text()?;
    let printable = !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if text.is_empty() || text.len() > NAME_MAX || !printable {
        let what = format!("`{text}` is not a host name; allowed are 1 to {NAME_MAX} bytes without blanks");
        return Err(entry.fault(what));
    }
    Ok(text.to_owned())
}

fn directory(
    given: Option<Entry<'_>>,
    default: Option<PathBuf>,
    key: &str,
    variable: &str,
    section: Option<&Section<'_>>,
) -> Result<PathBuf, Fault> {
    if let Some(entry) = given {
        return absolute_path(&entry);
    }
    default.ok_or_else(|| {
        let what = format!("{key} has no default here, for this user is not root and {variable} is not set");
        let fault = section.map_or_else(|| Fault::new(0..0, "host", what.as_str()), |section| section.fault(&what));
        fault.help(format!("set {key} in [host] to an absolute path, or set {variable}"))
    })
}

fn workers(entry: &Entry<'_>, around: &Surroundings) -> Result<Vec<Option<u32>>, Fault> {
    let list = entry.list()?;
    if list.is_empty() || list.len() > WORKERS_MAX {
        let what = format!("{} workers are asked for; allowed are 1 to {WORKERS_MAX}", list.len());
        return Err(entry.fault(what).help("leave the key out for one worker that is not pinned"));
    }
    let mut cpus = Vec::with_capacity(list.len());
    for element in &list {
        let cpu = element.integer(0u32, 65_535)?;
        if !around.cpus.contains(cpu) {
            let what = format!("CPU {cpu} is not online on this host; allowed are {}", around.cpus);
            return Err(element.fault(what));
        }
        if cpus.contains(&Some(cpu)) {
            let what = format!("CPU {cpu} is listed twice; one worker per CPU is allowed");
            return Err(element.fault(what));
        }
        cpus.push(Some(cpu));
    }
    Ok(cpus)
}

fn resolvers(entry: &Entry<'_>) -> Result<Vec<SocketAddr>, Fault> {
    let list = entry.list()?;
    if list.is_empty() || list.len() > RESOLVERS_MAX {
        let what = format!("{} name servers are given; allowed are 1 to {RESOLVERS_MAX}", list.len());
        return Err(entry.fault(what).help("leave the key out to ask those of resolv.conf"));
    }
    let server = |element: &Entry<'_>| {
        let text = element.text()?;
        gateway::dns::parse_server(text, crate::service::scope).ok_or_else(|| {
            let what = format!("`{text}` is not the address of a name server");
            element
                .fault(what)
                .help("write \"192.0.2.1\", \"192.0.2.1:5353\", \"2001:db8::1\" or \"[fe80::1%eth0]:53\"")
        })
    };
    list.iter().map(server).collect()
}

fn group(entry: &Entry<'_>, around: &Surroundings) -> Result<Group, Fault> {
    let name = entry.text()?;
    let gid = around.groups.get(name).copied().or_else(|| name.parse().ok().filter(|&gid| gid != u32::MAX));
    match gid {
        Some(gid) => Ok(Group { name: name.to_owned(), gid }),
        None => Err(entry
            .fault(format!("the group `{name}` does not exist on this host"))
            .help("name a group of /etc/group, or write its number as a string")),
    }
}

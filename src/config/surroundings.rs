//! What the host decides about a configuration: defaults that depend on the user, and CPUs and groups that exist.
//!
//! Invariant: reading a file depends on its text and on this value alone, so a test can be any host. Read first: the
//! XDG base directory specification (run and state directories), cpuset(7) and group(5).

use super::units::CpuSet;
use std::{collections::BTreeMap, env, fs, num::NonZero, path::PathBuf, thread};

/// The facts of the host and the user that a configuration rests on.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Effective user 0.
    pub root: bool,
    /// The host's name.
    pub hostname: String,
    /// CPUs that are online.
    pub cpus: CpuSet,
    /// Group names and their numbers.
    pub groups: BTreeMap<String, u32>,
    /// `XDG_RUNTIME_DIR`, if it is an absolute path.
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_STATE_HOME`, else `~/.local/state`, if it is an absolute path.
    pub state_home: Option<PathBuf>,
}

impl Surroundings {
    /// Looks at the host and the environment of this process.
    pub fn here() -> Surroundings {
        let directory = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Surroundings {
            root: effective_user() == Some(0),
            hostname: hostname(),
            cpus: online_cpus(),
            groups: groups(),
            runtime_dir: directory("XDG_RUNTIME_DIR"),
            state_home: directory("XDG_STATE_HOME").or_else(|| Some(directory("HOME")?.join(".local/state"))),
        }
    }

    /// The default run directory; `None` when nothing says where it is.
    pub fn run_dir(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/run/trunkline"));
        }
        Some(self.runtime_dir.as_ref()?.join("trunkline"))
    }

    /// The default state directory; `None` when nothing says where it is.
    pub fn state_dir(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/var/lib/trunkline"));
        }
        Some(self.state_home.as_ref()?.join("trunkline"))
    }
}

/// The effective user id, from proc_pid_status(5): `Uid:` real, effective, saved, filesystem.
fn effective_user() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

fn online_cpus() -> CpuSet {
    let list = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    list.and_then(|list| list.parse().ok()).unwrap_or_else(|| {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        CpuSet::first(u32::try_from(count).unwrap_or(1))
    })
}

fn groups() -> BTreeMap<String, u32> {
    let file = fs::read_to_string("/etc/group").unwrap_or_default();
    let group = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    file.lines().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_name_a_cpu_and_a_root_group() {
        let here = Surroundings::here();
        assert!(!here.hostname.is_empty());
        assert_ne!(here.cpus, CpuSet::default());
        assert_eq!(here.groups.get("root"), Some(&0));
    }

    #[test]
    fn directories_follow_the_user() {
        let root = Surroundings { root: true, runtime_dir: Some("/run/user/0".into()), ..Surroundings::default() };
        assert_eq!(root.run_dir(), Some("/run/trunkline".into()));
        assert_eq!(root.state_dir(), Some("/var/lib/trunkline".into()));
        let user = Surroundings { root: false, ..root };
        assert_eq!(user.run_dir(), Some("/run/user/0/trunkline".into()));
        assert_eq!(user.state_dir(), None);
    }
}

//! The kernels of the guests and their modules: Debian's cloud kernel, unpacked from its package without installing it,
//! and User-mode Linux, which is a package with a program.

use super::{Unable, build, cache_dir, need_program};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What guests load, where it is not built into the kernel; what these need comes with them.
const WANTED: &[&str] = &["virtio_pci", "virtio_net", "af_packet", "8021q", "ipv6", "vxlan", "dummy"];

/// A kernel that guests can run.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name and version, as the cache knows it.
    pub name: String,
    /// The file to boot: an image for QEMU, or a program.
    pub image: PathBuf,
    /// The directory that the paths of modules.dep start from.
    pub modules: PathBuf,
}

impl Kernel {
    /// Debian's cloud kernel, fetched by apt-get when the cache has none.
    pub fn debian_cloud() -> Result<Self, Unable> {
        let package = match unpacked_package() {
            Some(package) => package,
            None => fetch()?,
        };
        let root = cache_dir().join(&package);
        let version = only_entry(&root.join("lib/modules")).expect("the package's modules");
        let modules = root.join("lib/modules").join(&version);
        Ok(Self { image: root.join("boot").join(format!("vmlinuz-{version}")), modules, name: package })
    }

    /// User-mode Linux.
    pub fn user_mode() -> Result<Self, Unable> {
        let image = need_program("linux.uml", "user-mode-linux")?;
        let all = Path::new("/usr/lib/uml/modules");
        let version = only_entry(all).ok_or_else(|| Unable("/usr/lib/uml/modules has no modules".into()))?;
        Ok(Self { image, modules: all.join(&version), name: format!("uml-{version}") })
    }

    /// The files of the wanted modules and all that they need, in an order in which insmod can load them.
    pub fn modules_to_load(&self) -> Vec<PathBuf> {
        let list = fs::read_to_string(self.modules.join("modules.dep")).expect("modules.dep");
        let needs: BTreeMap<&str, Vec<&str>> = list
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(module, needed)| (module.trim(), needed.split_whitespace().collect()))
            .collect();
        let mut order = Vec::new();
        let mut placed = HashSet::new();
        for wanted in WANTED {
            if let Some(module) = needs.keys().find(|path| module_name(path) == *wanted) {
                place(module, &needs, &mut placed, &mut order);
            }
        }
        order.into_iter().map(|module| self.modules.join(module)).collect()
    }
}

fn place<'a>(
    module: &'a str,
    needs: &BTreeMap<&'a str, Vec<&'a str>>,
    placed: &mut HashSet<&'a str>,
    order: &mut Vec<&'a str>,
) {
    if placed.insert(module) {
        for needed in needs.get(module).into_iter().flatten() {
            place(needed, needs, placed, order);
        }
        order.push(module);
    }
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn only_entry(dir: &Path) -> Option<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.pop()
}

fn unpacked_package() -> Option<String> {
    let mut found: Vec<String> = fs::read_dir(cache_dir())
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("linux-image-") && !name.ends_with(".tmp"))
        .collect();
    found.sort();
    found.pop()
}

/// Downloads and unpacks the package that linux-image-cloud-amd64 stands for today; returns its name.
fn fetch() -> Result<String, Unable> {
    need_program("apt-get", "apt")?;
    need_program("busybox", "busybox-static")?;
    let depends = output(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| Unable("apt knows no linux-image-cloud-amd64 (an amd64 machine after apt-get update?)".into()))?
        .to_owned();
    build::cached_dir(&package, |dir| {
        let sandbox = ["-o", "APT::Sandbox::User=root", "-q"];
        output(Command::new("apt-get").args(sandbox).args(["download", &package]).current_dir(dir))?;
        let archive = only_entry(dir).ok_or_else(|| Unable(format!("apt-get downloaded no {package}")))?;
        let archive = dir.join(archive);
        output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(dir))?;
        let _ = fs::remove_file(&archive);
        // The package's installation would do this; kernel/ stays where it is, so a relative listing is enough.
        let version = only_entry(&dir.join("lib/modules")).expect("the package's modules");
        output(Command::new("busybox").args(["depmod", "-b"]).arg(dir).arg(version))?;
        Ok(())
    })?;
    Ok(package)
}

fn output(command: &mut Command) -> Result<String, Unable> {
    let done = command.output().map_err(|e| Unable(format!("{command:?}: {e}")))?;
    if !done.status.success() {
        let message = String::from_utf8_lossy(&done.stderr);
        return Err(Unable(format!("{command:?} failed: {}", message.trim())));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

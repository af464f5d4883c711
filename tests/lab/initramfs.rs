//! The guests' whole file system: busybox, the agent, `frames`, iperf3 with its libraries, and the kernel modules.
//!
//! It is not compressed: under emulation, unpacking costs more than loading.

use super::kernel::Kernel;
use super::{Unable, build, need_program};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The initramfs for a kernel, from the cache or newly built.
pub fn for_kernel(kernel: &Kernel) -> Result<PathBuf, Unable> {
    let busybox = need_program("busybox", "busybox-static")?;
    let iperf3 = need_program("iperf3", "iperf3")?;
    need_program("cpio", "cpio")?;
    let programs = build::guest_programs()?;
    let init = build::assets().join("init");
    let modules = kernel.modules_to_load();
    let libraries = libraries(&iperf3)?;

    let mut files: Vec<&Path> = vec![&busybox, &iperf3, &init];
    files.extend(modules.iter().map(PathBuf::as_path));
    files.extend(libraries.iter().map(PathBuf::as_path));
    let (agent, frames) = (programs.join("agent"), programs.join("frames"));
    files.extend([agent.as_path(), frames.as_path()]);
    let name = format!("initramfs-{}", build::content_hash(&[&kernel.name], &files));

    let dir = build::cached_dir(&name, |dir| {
        let root = dir.join("root");
        for empty in ["dev", "proc", "sys", "tmp", "run", "bin", "modules"] {
            fs::create_dir_all(root.join(empty)).expect("a directory");
        }
        for program in [&busybox, &iperf3, &agent, &frames] {
            put(program, &root.join("bin").join(program.file_name().expect("a file name")));
        }
        put(&init, &root.join("init"));
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).expect("a file mode");
        for library in &libraries {
            put(library, &root.join(library.strip_prefix("/").expect("an absolute path")));
        }
        let mut order = String::new();
        for module in &modules {
            let file = module.file_name().expect("a file name");
            put(module, &root.join("modules").join(file));
            order.push_str(&file.to_string_lossy());
            order.push('\n');
        }
        fs::write(root.join("modules/order"), order).expect("the modules' order");
        let packed = Command::new("sh")
            .args(["-c", "find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet >../initramfs.cpio"])
            .current_dir(&root)
            .status();
        assert!(packed.is_ok_and(|status| status.success()), "cpio could not pack the initramfs");
        fs::remove_dir_all(&root).expect("removing what is packed");
        Ok(())
    })?;
    Ok(dir.join("initramfs.cpio"))
}

/// Copies a file to where its path says, following symbolic links.
fn put(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
    fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
}

/// The shared libraries that a program loads, with its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Unable> {
    need_program("ldd", "libc-bin")?;
    let listing = Command::new("ldd").arg(program).output().expect("ldd");
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    Ok(listing.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

//! Mappings of shared files, hugepages, anonymous memory and journals.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::testing::{read, skip, write};

fn refused(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    assert_eq!(Mapping::shared(fd, offset, len).unwrap_err().kind(), ErrorKind::InvalidInput, "{offset} {len}");
}

/// A path in the temporary directory that is removed when dropped.
struct TemporaryPath(std::path::PathBuf);

impl TemporaryPath {
    fn new(name: &str) -> TemporaryPath {
        TemporaryPath(std::env::temp_dir().join(format!("trunkline-sys-{}-{name}", std::process::id())))
    }
}

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn what_is_written_through_the_mapping_is_in_the_file_and_back() {
    let file = anonymous_file("shared", 3 * 4096).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, 3 * 4096).unwrap();
    let file = File::from(file);
    write(&mapping, 5000, 42);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [42]);
    file.write_all_at(&[43], 12287).unwrap();
    assert_eq!((read(&mapping, 12287), mapping.len(), mapping.is_dead()), (43, 12288, false));
}

#[test]
fn an_offset_inside_a_page_is_where_the_mapping_starts() {
    let file = anonymous_file("offset", 3 * 4096).unwrap();
    File::from(file.try_clone().unwrap()).write_all_at(b"x", 4096 + 100).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 4096 + 100, 5000).unwrap();
    assert_eq!((read(&mapping, 0), read(&mapping, 4999), mapping.len()), (b'x', 0, 5000));
}

#[test]
fn ranges_outside_the_file_are_refused() {
    let file = anonymous_file("small", 8192).unwrap();
    for (offset, len) in [(0, 0), (0, 8193), (8192, 1), (1, 8192), (u64::MAX, 1), (4096, u64::MAX), (1 << 63, 1 << 63)]
    {
        refused(file.as_fd(), offset, len);
    }
    assert!(Mapping::shared(file.as_fd(), 8191, 1).is_ok());
}

#[test]
fn descriptors_that_are_no_files_are_refused() {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    refused(socket.as_fd(), 0, 4096);
    refused(File::open("/dev/zero").unwrap().as_fd(), 0, 4096);
    refused(File::open("/tmp").unwrap().as_fd(), 0, 1);
    // A file whose contents a kernel interface makes up is on no filesystem that holds memory.
    refused(File::open("/proc/self/status").unwrap().as_fd(), 0, 1);
}

#[test]
fn a_file_larger_than_the_address_space_is_an_error() {
    let file = anonymous_file("huge", 1 << 50).unwrap();
    assert_eq!(Mapping::shared(file.as_fd(), 0, 1 << 50).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert!(Mapping::shared(file.as_fd(), 1 << 40, 1 << 20).is_ok());
}

#[test]
fn hugepages_are_mapped_at_any_offset_and_survive_truncation() {
    const TEST: &str = "hugepages_are_mapped_at_any_offset_and_survive_truncation";
    const HUGE: u64 = 2 << 20;
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a valid C string.
    let fd = unsafe { libc::memfd_create(c"hugepages".as_ptr(), flags) };
    if fd < 0 {
        return skip(TEST, &format!("hugepages of 2 MiB: {}", io::Error::last_os_error()));
    }
    // SAFETY: memfd_create(2) has just made this descriptor for us.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(2 * HUGE).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 4096, HUGE).unwrap();
    write(&mapping, 0, 1);
    if mapping.is_dead() {
        return skip(TEST, "no free hugepages of 2 MiB (sysctl vm.nr_hugepages)");
    }
    let again = Mapping::shared(file.as_fd(), 0, 2 * HUGE).unwrap();
    assert_eq!(read(&again, 4096), 1);
    file.set_len(0).unwrap();
    assert_eq!((read(&mapping, 0), mapping.is_dead(), again.is_dead()), (0, true, false));
    assert_eq!((read(&again, 4096), again.is_dead()), (0, true));
}

#[test]
fn anonymous_memory_is_zero_and_writable_to_its_last_byte() {
    let mapping = Mapping::anonymous(5 << 20 | 17).unwrap();
    assert_eq!((read(&mapping, mapping.len() - 1), mapping.len()), (0, 5 << 20 | 17));
    write(&mapping, mapping.len() - 1, 3);
    assert_eq!((read(&mapping, mapping.len() - 1), mapping.is_dead()), (3, false));
    assert_eq!(Mapping::anonymous(0).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(Mapping::anonymous(usize::MAX).is_err());
}

#[test]
fn a_journal_keeps_what_was_written_and_takes_the_size_asked_for() {
    let path = TemporaryPath::new("journal");
    let journal = Mapping::file(&path.0, 6000).unwrap();
    assert_eq!(read(&journal, 5999), 0);
    write(&journal, 5999, 5);
    drop(journal);
    assert_eq!(read(&Mapping::file(&path.0, 6000).unwrap(), 5999), 5);
    let longer = Mapping::file(&path.0, 9000).unwrap();
    assert_eq!((read(&longer, 5999), read(&longer, 8999)), (5, 0));
    assert_eq!(std::fs::metadata(&path.0).unwrap().len(), 9000);
    assert_eq!(Mapping::file(&path.0, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_journal_is_no_link_and_no_directory() {
    let (path, target) = (TemporaryPath::new("link"), TemporaryPath::new("target"));
    std::os::unix::fs::symlink(&target.0, &path.0).unwrap();
    assert_eq!(Mapping::file(&path.0, 4096).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    assert!(Mapping::file(&std::env::temp_dir(), 4096).is_err());
    assert!(Mapping::file(Path::new("/dev/null"), 4096).is_err());
    assert!(!target.0.exists());
}

#[test]
fn the_size_of_a_memfd_is_sealed() {
    let file = memfd("sealed", 8192).unwrap();
    let mapping = Mapping::shared(file.as_fd(), 0, 8192).unwrap();
    let file = File::from(file);
    assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
    write(&mapping, 8191, 1);
    assert!(!mapping.is_dead());
    assert!(memfd("empty", 0).is_err() && memfd("zero\0byte", 1).is_err());
}

//! Mapped memory: a guest's RAM and other regions shared by a vhost-user front end, anonymous memory for arenas, and
//! journals that outlive the process.
//!
//! Invariant: a [`Mapping`] owns its address range from mmap to munmap, every shared range is registered with the SIGBUS
//! action for exactly that time (see [`crate::sigbus`]), and no reference into it is ever made here: callers get a
//! pointer, because other processes write the same memory.
//!
//! Read first: mmap(2), memfd_create(2); vhost-user specification, "Memory region description" (the file offset of a
//! region need not be aligned, and hugetlbfs wants multiples of its own page size).

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};

use crate::call::{check, retry};
use crate::sigbus::Registration;

/// Filesystems whose page faults only the local kernel answers: shared memory, hugepages, and local disks. On any other
/// (FUSE, network filesystems, stacks upon them) whoever serves the file could hold a worker up for ever.
const LOCAL_FILESYSTEMS: [u64; 8] = [
    0x0102_1994, // tmpfs, and memfd
    0x9584_58f6, // hugetlbfs
    0x8584_58f6, // ramfs
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
];
const HUGETLBFS: u64 = 0x9584_58f6;

/// A range of mapped memory, readable and writable, unmapped when dropped.
///
/// The pointer stays valid for as long as the mapping lives, whatever other processes do to the file beneath.
#[derive(Debug)]
pub struct Mapping {
    /// First byte asked for; lies behind `base` by less than a page.
    start: NonNull<u8>,
    /// Bytes asked for.
    len: usize,
    /// What mmap returned.
    base: NonNull<u8>,
    /// What munmap must be told.
    mapped: usize,
    /// Absent for anonymous memory, which cannot be truncated.
    registration: Option<Registration>,
}

// SAFETY: a mapping is an address range without thread affinity; all access to its bytes goes through raw pointers,
// whose users answer for data races.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only hands out the pointer, the length and an atomic flag.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file, from byte `offset` on, shared with everybody else who maps it. The descriptor may be
    /// closed afterwards. Made for descriptors from an untrusted process: nothing is taken on trust but the kernel.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is 0, the file does not reach to `offset + len`, the descriptor is not a file, or the
    /// file lies on a filesystem that another program or host serves; `OutOfMemory` if the address space or the table of
    /// [`crate::sigbus`] is full; else what the kernel reported.
    pub fn shared(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Mapping> {
        let file = file_facts(fd)?;
        if !LOCAL_FILESYSTEMS.contains(&file.filesystem) {
            let reason = format!(
                "shared memory lies on a filesystem (type {:#x}) whose server could stall this program: \
                 use memfd, /dev/shm or hugetlbfs",
                file.filesystem
            );
            return Err(io::Error::new(ErrorKind::InvalidInput, reason));
        }
        Mapping::map_file(fd, &file, offset, len)
    }

    /// Anonymous private memory, zero-filled, on huge pages where the kernel can.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is 0; else what the kernel reported.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let mapped = round_up(len, page_size()).filter(|mapped| *mapped > 0).ok_or_else(|| bad_length(len as u64))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = map(mapped, flags, -1, 0)?;
        // SAFETY: the range was mapped just above; advice changes no contents.
        unsafe { libc::madvise(base.as_ptr().cast(), mapped, libc::MADV_HUGEPAGE) };
        Ok(Mapping { start: base, len, base, mapped, registration: None })
    }

    /// Opens or creates the file at `path` with exactly `len` bytes and maps all of it, shared: what is written survives
    /// this process. A new file, and bytes beyond the end of a shorter one, read as zeros. The space is reserved, so
    /// that a full disk is reported here and not by a fault. The file is created with mode 0600; a symbolic link is not
    /// followed.
    ///
    /// # Errors
    /// `InvalidInput` if `len` is 0; else what the filesystem reported.
    pub fn file(path: &Path, len: u64) -> io::Result<Mapping> {
        let size = i64::try_from(len).ok().filter(|size| *size > 0).ok_or_else(|| bad_length(len))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{} is not a regular file", path.display())));
        }
        file.set_len(len)?;
        // SAFETY: the descriptor is open for as long as `file` lives.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, size) } {
            0 | libc::EOPNOTSUPP | libc::EINVAL => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        Mapping::map_file(file.as_fd(), &file_facts(file.as_fd())?, 0, len)
    }

    fn map_file(fd: BorrowedFd<'_>, file: &FileFacts, offset: u64, len: u64) -> io::Result<Mapping> {
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= file.len);
        if end.is_none() {
            let reason = format!("{len} bytes at offset {offset} do not lie inside a file of {} bytes", file.len);
            return Err(io::Error::new(ErrorKind::InvalidInput, reason));
        }
        let len = usize::try_from(len).map_err(|_| bad_length(len))?;
        let skipped = offset & (file.page as u64 - 1);
        let mapped = len.checked_add(skipped as usize).and_then(|bytes| round_up(bytes, file.page));
        let mapped = mapped.ok_or_else(|| bad_length(len as u64))?;
        // No reservation: a peer must not be able to set hugepages of the host aside by the size of its file alone.
        let base = map(mapped, libc::MAP_SHARED | libc::MAP_NORESERVE, fd.as_raw_fd(), offset - skipped)?;
        // SAFETY: `skipped` is smaller than a page, and the mapping is at least as long as `skipped + len`.
        let start = unsafe { base.add(skipped as usize) };
        let mut mapping = Mapping { start, len, base, mapped, registration: None };
        // SAFETY: the range was mapped just above, is aligned to the file's page size at both ends, holds nothing but
        // shared bytes without invariants, and `Drop` removes the registration before it unmaps.
        mapping.registration = Some(unsafe { Registration::new(base.as_ptr() as usize, mapped) }?);
        Ok(mapping)
    }

    /// The first byte. Valid for [`Mapping::len`] bytes while the mapping lives; other processes may read and write the
    /// same bytes at any time, so access is by volatile or atomic operations.
    pub fn ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the file beneath was lost (truncated, no hugepage left, broken memory): the mapping holds private zeros
    /// instead, and whatever it belongs to should go down.
    pub fn is_dead(&self) -> bool {
        self.registration.as_ref().is_some_and(Registration::is_dead)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.registration.take());
        // SAFETY: the range is ours since mmap, is no longer registered, and by `&mut self` nobody uses it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Memory with a descriptor, for a region that this side allocates and the peer maps: `len` zero bytes whose size is
/// sealed, so that the peer can neither truncate nor grow it. `name` is what /proc shows.
///
/// # Errors
/// `InvalidInput` if `len` is 0 or `name` holds a zero byte; else what memfd_create(2) or ftruncate(2) reported.
pub fn memfd(name: &str, len: u64) -> io::Result<OwnedFd> {
    let file = anonymous_file(name, len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open and F_ADD_SEALS takes an integer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

/// An anonymous file that can still be resized and sealed.
pub(crate) fn anonymous_file(name: &str, len: u64) -> io::Result<OwnedFd> {
    let size = libc::off_t::try_from(len).ok().filter(|size| *size > 0).ok_or_else(|| bad_length(len))?;
    let name = CString::new(name)?;
    // SAFETY: the name is a valid C string.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    // SAFETY: memfd_create(2) has just made this descriptor for us.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    retry(|| unsafe { libc::ftruncate(file.as_raw_fd(), size) })?;
    Ok(file)
}

/// What mapping a file depends on.
struct FileFacts {
    /// Length in bytes.
    len: u64,
    /// Magic number of its filesystem, statfs(2).
    filesystem: u64,
    /// Unit of file offsets and of unmapping, a power of two.
    page: usize,
}

fn file_facts(fd: BorrowedFd<'_>) -> io::Result<FileFacts> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the descriptor is open and `stat` is valid to write.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat(2) succeeded and has filled it.
    let stat = unsafe { stat.assume_init() };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        let reason = "the descriptor of a memory region is not a file: expected memfd, shared memory or hugetlbfs";
        return Err(io::Error::new(ErrorKind::InvalidInput, reason));
    }
    let mut statfs = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and `statfs` is valid to write.
    retry(|| unsafe { libc::fstatfs(fd.as_raw_fd(), statfs.as_mut_ptr()) })?;
    // SAFETY: fstatfs(2) succeeded and has filled it. The magic number is 32 bits wide whatever the field's type.
    let filesystem = u64::from(unsafe { statfs.assume_init() }.f_type as u32);
    let huge = usize::try_from(stat.st_blksize).ok().filter(|_| filesystem == HUGETLBFS);
    let page = huge.filter(|size| size.is_power_of_two()).unwrap_or(0).max(page_size());
    Ok(FileFacts { len: stat.st_size.max(0) as u64, filesystem, page })
}

fn map(len: usize, flags: libc::c_int, fd: libc::c_int, offset: u64) -> io::Result<NonNull<u8>> {
    let offset = libc::off_t::try_from(offset).map_err(|_| bad_length(offset))?;
    // SAFETY: without MAP_FIXED the kernel chooses an unused range, so no memory in use is touched.
    let base = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // A guest's memory does not belong into a core file.
    // SAFETY: the range was mapped just above; advice changes no contents.
    unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(ErrorKind::OutOfMemory))
}

fn page_size() -> usize {
    // SAFETY: sysconf(3) has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn round_up(len: usize, page: usize) -> Option<usize> {
    Some(len.checked_add(page - 1)? & !(page - 1))
}

fn bad_length(len: u64) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("{len} bytes cannot be mapped"))
}

#[cfg(test)]
mod tests;

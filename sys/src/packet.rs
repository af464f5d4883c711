//! Packet sockets that speak virtio: an interface of the host's, read and written frame by frame, each with the header that says what checksum
//! or segmentation it owes.
//!
//! Invariant: a socket that is handed out is non-blocking and bound to one interface; it sees nothing that the host itself sends, and unless it
//! was asked to be promiscuous only frames for its station and for groups, so that the host's own traffic costs it nothing. The interface
//! is as it was when the socket is closed. Super-frames are passed both ways; a tag that the interface took off is told.
//!
//! Read first: packet(7), Linux `include/uapi/linux/if_packet.h` (PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING), `linux/filter.h`.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::{
    Lent,
    arena::Arena,
    call::{check, retry},
    netns::in_netns,
    tap::TapFault,
};

/// Bytes of the header before each frame: that of virtio without `num_buffers`.
pub const HEADER_LEN: usize = 10;

const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_MR_PROMISC: u16 = 1;
const PACKET_MR_ALLMULTI: u16 = 2;
const PACKET_MR_UNICAST: u16 = 3;
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TPID_VALID: u32 = 1 << 6;
/// Bytes that may wait for us to read them.
const BUFFER: libc::c_int = 8 << 20;

/// `struct packet_mreq`.
#[repr(C)]
struct Membership {
    interface: libc::c_int,
    kind: u16,
    len: u16,
    address: [u8; 8],
}

/// Which frames a socket is given of those that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Those for this station, and for groups.
    Station([u8; 6]),
    /// Those for the interface itself, which has this address, and for groups: the interface need not listen for another one.
    Own([u8; 6]),
    /// All of them.
    All,
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("interface {interface}: {step}: {source}; {}", advice(.source))]
pub struct PacketError {
    /// Its name.
    pub interface: String,
    /// What was done.
    pub step: &'static str,
    /// The kernel's reason.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "packet sockets need the capability CAP_NET_RAW: start as root, or give it to the program"
        }
        Some(libc::ENODEV | libc::ENXIO) => "there is no such interface here: `ip link` lists those there are",
        Some(libc::ENETDOWN) => "bring it up: ip link set NAME up",
        Some(libc::EINVAL | libc::ENOPROTOOPT) => "the kernel is too old: Linux 4.20 or newer is needed",
        _ => "see packet(7)",
    }
}

impl From<PacketError> for io::Error {
    fn from(error: PacketError) -> io::Error {
        io::Error::new(error.source.kind(), error.to_string())
    }
}

/// A frame that was read.
pub struct Read {
    /// Bytes of it.
    pub len: usize,
    /// Those that the room for the head did not take.
    pub rest: Lent,
    /// The tag that was taken off, as it stood behind the addresses.
    pub tag: Option<[u8; 4]>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    interface: String,
    udp_segmentation: bool,
}

impl PacketSocket {
    /// Opens the interface named, in the network namespace `netns` as `ip netns` names it, or in the caller's.
    ///
    /// # Errors
    /// A [`PacketError`], which says what is missing and what to do.
    pub fn open(interface: &str, netns: Option<&str>, takes: Takes) -> Result<PacketSocket, PacketError> {
        let at = |step, source| PacketError { interface: interface.to_owned(), step, source };
        match netns {
            None => open_here(interface, takes),
            Some(netns) => match in_netns(netns, || open_here(interface, takes)) {
                Ok(socket) => socket,
                Err(error) => Err(at("enter the network namespace", error)),
            },
        }
    }

    /// The name of the interface, as it was when opened.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether the kernel cuts super-frames of UDP: since Linux 6.2.
    pub fn udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }

    /// Reads one frame: its header, what `room` takes, and up to `more` pooled bytes.
    ///
    /// # Errors
    /// As [`PacketSocket::fault`] tells them apart; without an errno when the pool cannot take `more`.
    pub fn read(&self, arena: &mut Arena, header: &mut [u8; 12], room: &mut [u8], more: usize) -> io::Result<Read> {
        let (header, _) = header.split_at_mut(HEADER_LEN);
        let mut control = Control([0; 64]);
        let (read, rest) = arena.receive_from(self.as_fd(), [header, room], more, &mut control.0)?;
        Ok(Read { len: read.saturating_sub(HEADER_LEN), rest, tag: control.tag() })
    }

    /// What an error of a read or write says about the interface.
    pub fn fault(error: &io::Error) -> TapFault {
        match error.raw_os_error() {
            Some(libc::ENXIO) => TapFault::Gone,
            Some(libc::ENOBUFS) => TapFault::WouldBlock,
            _ => TapFault::of(error),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Ancillary data as recvmsg(2) leaves it, aligned as `struct cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Control {
    /// The tag that `struct tpacket_auxdata` tells; it is the only data asked for, so it comes first.
    fn tag(&self) -> Option<[u8; 4]> {
        let word = |at: usize| self.0.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes));
        let half = |at: usize| self.0.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
        const HEADER: usize = mem::size_of::<libc::cmsghdr>();
        let is = (word(HEADER - 8)?, word(HEADER - 4)?) == (libc::SOL_PACKET as u32, PACKET_AUXDATA as u32);
        let status = word(HEADER)?;
        if !is || status & VLAN_VALID == 0 {
            return None;
        }
        let kind = if status & VLAN_TPID_VALID != 0 { half(HEADER + 18)? } else { 0x8100 };
        let ([a, b], [c, d]) = (kind.to_be_bytes(), half(HEADER + 16)?.to_be_bytes());
        Some([a, b, c, d])
    }
}

/// Opens the interface in the namespace of the calling thread.
fn open_here(name: &str, takes: Takes) -> Result<PacketSocket, PacketError> {
    let at = |step: &'static str| move |source| PacketError { interface: name.to_owned(), step, source };
    let raw = CString::new(name).map_err(|_| at("look it up")(io::ErrorKind::InvalidInput.into()))?;
    // SAFETY: the name is a string that ends with zero and lives past the call.
    let index = unsafe { libc::if_nametoindex(raw.as_ptr()) };
    if index == 0 {
        return Err(at("look it up")(io::Error::last_os_error()));
    }
    let index = index as libc::c_int;
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) has no preconditions. Without a protocol nothing is queued before everything is set.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(at("open a packet socket"))?;
    // SAFETY: socket(2) has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let fd = socket.as_fd();
    for (option, step) in [
        (PACKET_VNET_HDR, "ask for virtio-net headers"),
        (PACKET_AUXDATA, "ask for tags"),
        (PACKET_IGNORE_OUTGOING, "leave out what the host sends"),
    ] {
        set(fd, libc::SOL_PACKET, option, &1 as &libc::c_int).map_err(at(step))?;
    }
    // Beyond the system's limit if that is permitted, else up to it.
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER).is_err() {
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &BUFFER).map_err(at("size its buffer"))?;
    }
    let mut memberships = vec![(PACKET_MR_ALLMULTI, [0; 6])];
    match takes {
        Takes::All => memberships.push((PACKET_MR_PROMISC, [0; 6])),
        Takes::Own(own) => filter(fd, own).map_err(at("filter frames"))?,
        Takes::Station(station) => {
            memberships.push((PACKET_MR_UNICAST, station));
            filter(fd, station).map_err(at("filter frames"))?;
        }
    }
    for (kind, [a, b, c, d, e, f]) in memberships {
        let membership = Membership { interface: index, kind, len: 6, address: [a, b, c, d, e, f, 0, 0] };
        set(fd, libc::SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership).map_err(at("listen for its stations"))?;
    }
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is a sockaddr_ll of the length given and lives past the call.
    retry(|| unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) }).map_err(at("bind to it"))?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(PacketSocket { socket, interface: name.to_owned(), udp_segmentation: is_at_least(&release, (6, 2)) })
}

/// Whether a kernel's release is a version or a later one.
fn is_at_least(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found >= version)
}

/// Has the kernel leave out what is neither for `station` nor for a group.
fn filter(fd: BorrowedFd<'_>, station: [u8; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = station;
    let word = u32::from_be_bytes([a, b, c, d]);
    let half = u32::from(u16::from_be_bytes([e, f]));
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, jump) = (libc::BPF_LD | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_K);
    let mut program = [
        step(load | libc::BPF_W, 0, 0, 0),
        step(jump | libc::BPF_JEQ, 0, 2, word),
        step(load | libc::BPF_H, 0, 0, 4),
        step(jump | libc::BPF_JEQ, 2, 0, half),
        step(load | libc::BPF_B, 0, 0, 0),
        step(jump | libc::BPF_JSET, 0, 1, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Sets an option that takes a plain value of the type given.
fn set<T>(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes at `value`, which lives past the call; what those point to (of a filter) does, too.
    retry(|| unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(is_at_least("6.2.0-amd64", (6, 2)) && is_at_least("6.10.1", (6, 2)) && is_at_least("10.0", (6, 2)));
        assert!(!is_at_least("6.1.99", (6, 2)) && !is_at_least("5.19", (6, 2)) && !is_at_least("", (6, 2)));
    }

    #[test]
    fn an_interface_that_is_not_there_is_told() {
        let error = PacketSocket::open("tl-nowhere", None, Takes::All).unwrap_err();
        assert!(error.to_string().contains("interface tl-nowhere") && error.to_string().contains("ip link"), "{error}");
    }

    #[test]
    fn a_tag_is_read_from_the_ancillary_data() {
        let mut control = Control([0; 64]);
        let header = mem::size_of::<libc::cmsghdr>();
        control.0[header - 8..header - 4].copy_from_slice(&(libc::SOL_PACKET as u32).to_ne_bytes());
        control.0[header - 4..header].copy_from_slice(&(PACKET_AUXDATA as u32).to_ne_bytes());
        assert_eq!(control.tag(), None);
        control.0[header..header + 4].copy_from_slice(&(VLAN_VALID | VLAN_TPID_VALID).to_ne_bytes());
        control.0[header + 16..header + 18].copy_from_slice(&100u16.to_ne_bytes());
        control.0[header + 18..header + 20].copy_from_slice(&0x88a8u16.to_ne_bytes());
        assert_eq!(control.tag(), Some([0x88, 0xa8, 0, 100]));
    }
}

//! TAP devices that speak virtio: each frame is preceded by a 12-byte virtio-net header, checksums and segmentation may
//! be owed, and there may be several queues.
//!
//! Invariant: every queue that is handed out is non-blocking, has the 12-byte little-endian header and passes the same
//! offloads, so that frames between a TAP and a virtqueue need no translation. The device vanishes with its last queue,
//! unless somebody made it persistent. No call here moves the calling thread to another network namespace: the device is
//! opened on a short-lived thread inside the namespace, and settled through a socket that was made there.
//!
//! On reading, Linux may leave the header's last two bytes (`num_buffers`) as they were in the buffer.
//!
//! Read first: Linux Documentation/networking/tuntap.rst, `linux/if_tun.h`; virtio 1.2 section 5.1.6; netdevice(7).

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::call::{check, retry};
use crate::netns::in_netns;

mod error;

pub use error::{TapError, TapFault, TapStep};

/// Length of the virtio-net header before each frame, in bytes.
pub const HEADER_LEN: usize = 12;

/// What the kernel may leave to us when it sends a frame to a queue, as `TUN_F_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOffloads(u32);

impl TapOffloads {
    const CSUM: u32 = libc::TUN_F_CSUM;
    const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    /// Checksum, TCP and UDP segmentation, for IPv4 and IPv6.
    pub const ALL: TapOffloads = TapOffloads(Self::CSUM | Self::TSO | Self::USO);
    /// Whole frames with complete checksums only.
    pub const NONE: TapOffloads = TapOffloads(0);
    /// What is tried in turn: UDP segmentation came with Linux 6.2.
    const LADDER: [TapOffloads; 4] =
        [TapOffloads::ALL, TapOffloads(Self::CSUM | Self::TSO), TapOffloads(Self::CSUM), TapOffloads::NONE];

    /// Frames may come with a partial checksum.
    pub fn checksum(self) -> bool {
        self.0 & Self::CSUM != 0
    }

    /// TCP frames may come unsegmented, up to 64 KiB.
    pub fn tcp_segmentation(self) -> bool {
        self.0 & Self::TSO == Self::TSO
    }

    /// UDP frames may come unsegmented, up to 64 KiB.
    pub fn udp_segmentation(self) -> bool {
        self.0 & Self::USO == Self::USO
    }
}

/// A TAP that has just been opened. Take it apart: the queues go to the workers, the device stays with the control side.
#[derive(Debug)]
pub struct Tap {
    /// Settings of the device.
    pub device: TapDevice,
    /// The queues, at least one.
    pub queues: Vec<TapQueue>,
}

impl Tap {
    /// Opens the TAP `name`, creating it if need be, with `queues` queues (0 counts as 1), in the network namespace
    /// `netns` as `ip netns` names it, or in the caller's. A name that holds `%d` lets the kernel choose the number. The
    /// device is left down.
    ///
    /// # Errors
    /// A [`TapError`], which says what is missing and what to do.
    pub fn open(name: &str, queues: u16, netns: Option<&str>) -> Result<Tap, TapError> {
        let place = Place { device: name, netns };
        let raw = raw_name(name).ok_or_else(|| place.at(TapStep::Name, io::ErrorKind::InvalidInput.into()))?;
        match netns {
            None => open_here(place, raw, queues),
            Some(netns) => match in_netns(netns, || open_here(place, raw, queues)) {
                Ok(tap) => tap,
                Err(error) => Err(place.at(TapStep::Namespace, error)),
            },
        }
    }
}

/// One queue of a TAP: a descriptor to read and write frames, each with its header, one per call.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
}

impl TapQueue {
    /// Lets the kernel choose this queue for frames, or not. Only a device opened with several queues can. Queues are
    /// attached when opened.
    ///
    /// # Errors
    /// `InvalidInput` if it is so already or the device has one queue; else what ioctl(2) reported.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut request = request(&[0; libc::IFNAMSIZ]);
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: TUNSETQUEUE reads an ifreq.
        unsafe { ioctl(self.as_fd(), libc::TUNSETQUEUE, &mut request) }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The settings of a TAP, in whatever network namespace it lives.
#[derive(Debug)]
pub struct TapDevice {
    name: String,
    raw: RawName,
    netns: Option<String>,
    offloads: TapOffloads,
    /// A socket of the device's network namespace; interface ioctls act where their socket was made.
    socket: OwnedFd,
}

impl TapDevice {
    /// The name that the kernel gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads that the kernel accepted.
    pub fn offloads(&self) -> TapOffloads {
        self.offloads
    }

    /// The interface's number in its namespace.
    ///
    /// # Errors
    /// A [`TapError`]: the device is gone.
    pub fn index(&self) -> Result<u32, TapError> {
        let request = self.ioctl(TapStep::Look, libc::SIOCGIFINDEX, |_| {})?;
        // SAFETY: SIOCGIFINDEX has filled this member.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex }.unsigned_abs())
    }

    /// The largest IP packet, in bytes: the frame without its Ethernet header.
    ///
    /// # Errors
    /// A [`TapError`]: the device is gone.
    pub fn mtu(&self) -> Result<u32, TapError> {
        let request = self.ioctl(TapStep::Look, libc::SIOCGIFMTU, |_| {})?;
        // SAFETY: SIOCGIFMTU has filled this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    /// Sets the largest IP packet, in bytes: 68 to 65,521.
    ///
    /// # Errors
    /// A [`TapError`]: out of range, or not permitted.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TapError> {
        let mtu = libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX);
        self.ioctl(TapStep::Mtu, libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = mtu).map(drop)
    }

    /// Sets how many frames may wait for us to read them.
    ///
    /// # Errors
    /// A [`TapError`]: out of range, or not permitted.
    pub fn set_queue_len(&self, frames: u32) -> Result<(), TapError> {
        let frames = libc::c_int::try_from(frames).unwrap_or(libc::c_int::MAX);
        self.ioctl(TapStep::QueueLen, libc::SIOCSIFTXQLEN, |request| request.ifr_ifru.ifru_metric = frames).map(drop)
    }

    /// Sets the MAC address of the kernel's side of the device: of whoever uses it as an interface.
    ///
    /// # Errors
    /// A [`TapError`]: not a unicast address, or not permitted.
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), TapError> {
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        self.ioctl(TapStep::Mac, libc::SIOCSIFHWADDR, |request| request.ifr_ifru.ifru_hwaddr = address).map(drop)
    }

    /// Gives the interface an IPv4 address, instead of any other, in a network of `prefix` bits.
    ///
    /// # Errors
    /// A [`TapError`]: not permitted, or the device is gone.
    pub fn set_address(&self, address: std::net::Ipv4Addr, prefix: u8) -> Result<(), TapError> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let steps = [(libc::SIOCSIFADDR, u32::from(address)), (libc::SIOCSIFNETMASK, mask)];
        for (number, word) in steps {
            let socket_address = socket_address(word);
            self.ioctl(TapStep::Address, number, |request| request.ifr_ifru.ifru_addr = socket_address)?;
        }
        Ok(())
    }

    /// Has the kernel send what is for a subnet to `via`, a neighbour on this interface; the route ends with the interface. The interface is
    /// up and has an address.
    ///
    /// # Errors
    /// A [`TapError`]: not permitted, or there is such a route.
    pub fn add_route(&self, subnet: std::net::Ipv4Addr, prefix: u8, via: std::net::Ipv4Addr) -> Result<(), TapError> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let mut name = self.raw;
        // SAFETY: all zeros is a valid rtentry: integers and a null pointer.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(subnet.into());
        route.rt_genmask = socket_address(mask);
        route.rt_gateway = socket_address(via.into());
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        route.rt_dev = name.as_mut_ptr();
        // SAFETY: SIOCADDRT reads an rtentry and the name that it points to, which ends with a zero byte and lives until the call is over.
        let result = unsafe { ioctl(self.socket.as_fd(), libc::SIOCADDRT, &mut route) };
        let place = Place { device: &self.name, netns: self.netns.as_deref() };
        result.map_err(|error| place.at(TapStep::Route, error))
    }

    /// Brings the interface up, or takes it down.
    ///
    /// # Errors
    /// A [`TapError`]: not permitted, or the device is gone.
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        let request = self.ioctl(TapStep::Up, libc::SIOCGIFFLAGS, |_| {})?;
        // SAFETY: SIOCGIFFLAGS has filled this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let bit = libc::IFF_UP as libc::c_short;
        let flags = if up { flags | bit } else { flags & !bit };
        self.ioctl(TapStep::Up, libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = flags).map(drop)
    }

    /// An interface ioctl: fills in the name and what `fill` adds, and returns what the kernel made of it.
    fn ioctl(
        &self,
        step: TapStep,
        number: libc::Ioctl,
        fill: impl FnOnce(&mut libc::ifreq),
    ) -> Result<libc::ifreq, TapError> {
        let mut request = request(&self.raw);
        fill(&mut request);
        // SAFETY: every interface ioctl used here reads and writes an ifreq.
        let result = unsafe { ioctl(self.socket.as_fd(), number, &mut request) };
        let place = Place { device: &self.name, netns: self.netns.as_deref() };
        result.map(|()| request).map_err(|error| place.at(step, error))
    }
}

type RawName = [libc::c_char; libc::IFNAMSIZ];

/// Which device, where: what every error tells.
#[derive(Clone, Copy)]
struct Place<'a> {
    device: &'a str,
    netns: Option<&'a str>,
}

impl Place<'_> {
    fn at(self, step: TapStep, source: io::Error) -> TapError {
        TapError { device: self.device.into(), netns: self.netns.map(Into::into), step, source }
    }
}

/// Opens all queues in the namespace of the calling thread.
fn open_here(place: Place<'_>, mut raw: RawName, queues: u16) -> Result<Tap, TapError> {
    let mut opened = Vec::new();
    let mut offloads = TapOffloads::NONE;
    for _ in 0..queues.max(1) {
        let (queue, accepted) = open_queue(place, &mut raw, queues > 1)?;
        offloads = accepted;
        opened.push(queue);
    }
    // SAFETY: socket(2) has no preconditions.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) });
    let socket = socket.map_err(|error| place.at(TapStep::Look, error))?;
    // SAFETY: socket(2) has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let name = raw.map(|byte| byte as u8);
    let name =
        CStr::from_bytes_until_nul(&name).map_or(place.device.into(), |name| name.to_string_lossy().into_owned());
    let device = TapDevice { name, raw, netns: place.netns.map(Into::into), offloads, socket };
    Ok(Tap { device, queues: opened })
}

/// Opens one queue and writes the name that the kernel chose into `raw`, so that the next queue joins it.
fn open_queue(place: Place<'_>, raw: &mut RawName, many: bool) -> Result<(TapQueue, TapOffloads), TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open("/dev/net/tun").map_err(|error| place.at(TapStep::Open, error))?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if many {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(raw);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    unsafe { ioctl(file.as_fd(), libc::TUNSETIFF, &mut request) }.map_err(|error| place.at(TapStep::Create, error))?;
    *raw = request.ifr_name;
    let set = |number, mut value: libc::c_int| {
        // SAFETY: both ioctls given below read an int.
        unsafe { ioctl(file.as_fd(), number, &mut value) }.map_err(|error| place.at(TapStep::Header, error))
    };
    set(libc::TUNSETVNETHDRSZ, HEADER_LEN as libc::c_int)?;
    // The header is little-endian as virtio 1 wants it, on any host; this outranks TUNSETVNETBE.
    set(libc::TUNSETVNETLE, 1)?;
    let offloads = TapOffloads::LADDER.into_iter().find(|offloads| {
        // SAFETY: TUNSETOFFLOAD takes its bits as the argument itself.
        let accepted =
            retry(|| unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads.0)) });
        accepted.is_ok()
    });
    Ok((TapQueue { file }, offloads.unwrap_or(TapOffloads::NONE)))
}

/// The name as the kernel takes it; none if it is empty, too long, or one that an interface cannot have.
fn raw_name(name: &str) -> Option<RawName> {
    let forbidden = |byte: u8| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace();
    if matches!(name, "" | "." | "..") || name.len() >= libc::IFNAMSIZ || name.bytes().any(forbidden) {
        return None;
    }
    let mut raw: RawName = [0; libc::IFNAMSIZ];
    for (to, from) in raw.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(raw)
}

/// An IPv4 address as interface ioctls take it (sockaddr_in: two bytes of port, then the address in the order of the wire).
fn socket_address(word: u32) -> libc::sockaddr {
    let mut address = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().skip(2).zip(word.to_be_bytes()) {
        *to = from as libc::c_char;
    }
    address
}

fn request(name: &RawName) -> libc::ifreq {
    // SAFETY: all zeros is a valid ifreq: integers, characters and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = *name;
    request
}

/// # Safety
/// `number` is an ioctl that reads or writes nothing but a `T` through its argument.
unsafe fn ioctl<T>(fd: BorrowedFd<'_>, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open, the argument is valid to read and write, and the caller vouches for its type.
    retry(|| unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *argument) }).map(drop)
}

#[cfg(test)]
mod tests;

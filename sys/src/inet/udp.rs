//! [`Datagrams`]: a UDP or ping socket that is not connected, with batches of datagrams both ways and the errors that came back.
//!
//! Invariant: no call waits, and nothing is allocated after a batch was made. What is lent is read by the kernel only while the arena that is
//! given holds it. [`SendBatch`] copies the first bytes of a datagram (they lie in a head that is reused) and only points at the rest.
//!
//! Theory of operation: TTL, TOS and the size of segments go along by control messages, each only where it is not what the socket has anyway.
//! An ICMP error makes the next call fail once (udp(7)), so a failed send is tried again; whoever owns the socket reads
//! [`RecvBatch::error`] until it is empty. Read first: udp(7), ip(7), ipv6(7), cmsg(3), recvmmsg(2).

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::name::Name;
use crate::call::check;

mod group;
mod lend;
mod receive;
mod send;

pub use lend::{LendBatch, Lending};
pub use receive::{Found, Incoming, RecvBatch, SendError};
pub use send::{FRONT, Outgoing, SendBatch};

/// Datagrams in a batch, at most.
pub const BATCH: usize = 64;
/// Buffers that are asked for; the kernel may give less.
const SOCKET_BUFFER: libc::c_int = 4 << 20;

/// What kind of socket, in which address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6 and nothing else.
    Udp6,
    /// ICMP echo (icmp(7)): what is sent and received begins with the ICMP header; the identifier is the socket's port.
    Ping4,
    /// ICMPv6 echo.
    Ping6,
}

impl Kind {
    /// Whether its family is IPv6.
    pub const fn is_v6(self) -> bool {
        matches!(self, Kind::Udp6 | Kind::Ping6)
    }
}

/// An unconnected datagram socket.
#[derive(Debug)]
pub struct Datagrams {
    fd: OwnedFd,
    kind: Kind,
    ttl: u8,
    tos: u8,
    df: bool,
}

impl AsRawFd for Datagrams {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Datagrams> for OwnedFd {
    fn from(socket: Datagrams) -> OwnedFd {
        socket.fd
    }
}

impl Datagrams {
    /// A socket bound to `at` (port 0: any), which sends with `ttl` and `tos` unless told otherwise, without DF.
    ///
    /// # Errors
    /// `PermissionDenied` for ping sockets where net.ipv4.ping_group_range does not hold a group of ours and for low ports,
    /// `AddrInUse`; else what socket(2), setsockopt(2) and bind(2) report.
    pub fn open(kind: Kind, at: SocketAddr, ttl: u8, tos: u8) -> io::Result<Datagrams> {
        Datagrams::open_as(kind, at, (ttl, tos), false)
    }

    /// [`Datagrams::open`]; with `shared` others may be bound to the same address.
    fn open_as(kind: Kind, at: SocketAddr, (ttl, tos): (u8, u8), shared: bool) -> io::Result<Datagrams> {
        let family = if kind.is_v6() { libc::AF_INET6 } else { libc::AF_INET };
        let protocol = match kind {
            Kind::Udp4 | Kind::Udp6 => libc::IPPROTO_UDP,
            Kind::Ping4 => libc::IPPROTO_ICMP,
            Kind::Ping6 => libc::IPPROTO_ICMPV6,
        };
        // SAFETY: socket(2) has no preconditions.
        let fd = check(unsafe {
            libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol)
        })?;
        // SAFETY: socket(2) has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Datagrams { fd, kind, ttl, tos, df: false };
        if kind.is_v6() {
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, i32::from(ttl))?;
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, i32::from(tos))?;
            // What is sent to groups that others on this host have joined is theirs. Kernels before 4.20 cannot be told.
            let _ = socket.set(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0);
        } else {
            socket.set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            socket.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            socket.set(libc::IPPROTO_IP, libc::IP_TTL, i32::from(ttl))?;
            socket.set(libc::IPPROTO_IP, libc::IP_TOS, i32::from(tos))?;
            socket.set(libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
        }
        match kind {
            // Coalescing is a gain and no need: kernels before 5.0 have none.
            Kind::Udp4 | Kind::Udp6 => _ = socket.set(libc::SOL_UDP, libc::UDP_GRO, 1),
            Kind::Ping4 => socket.set(libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?,
            Kind::Ping6 => socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?,
        }
        if matches!(kind, Kind::Ping4 | Kind::Ping6) {
            // Ping sockets share identifiers unless told not to, and then one of them gets all replies.
            socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 0)?;
        }
        if shared {
            socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        // As much as the host allows, which is for the host to say.
        let _ = socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, SOCKET_BUFFER);
        let _ = socket.set(libc::SOL_SOCKET, libc::SO_SNDBUF, SOCKET_BUFFER);
        socket.set_mtu_discovery()?;
        let name = Name::new(at);
        // SAFETY: the address is valid to read for its length.
        check(unsafe { libc::bind(socket.as_raw_fd(), name.ptr(), name.len()) })?;
        Ok(socket)
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The TTL that datagrams have unless told otherwise.
    pub fn ttl(&self) -> u8 {
        self.ttl
    }

    /// The TOS (traffic class) that datagrams have unless told otherwise.
    pub fn tos(&self) -> u8 {
        self.tos
    }

    /// Whether datagrams may not be fragmented: they have DF (of IPv6: are not cut here), and those too long for the path are refused.
    pub fn df(&self) -> bool {
        self.df
    }

    /// Sets [`Datagrams::df`].
    ///
    /// # Errors
    /// What setsockopt(2) reports.
    pub fn set_df(&mut self, df: bool) -> io::Result<()> {
        if self.df == df {
            return Ok(());
        }
        self.df = df;
        self.set_mtu_discovery()
    }

    fn set_mtu_discovery(&self) -> io::Result<()> {
        if self.kind.is_v6() {
            let how = if self.df { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_DONT };
            return self.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, how);
        }
        let how = if self.df { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
        self.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, how)
    }

    /// The address it is bound to; of ping sockets, the port is the identifier.
    ///
    /// # Errors
    /// What getsockname(2) reports.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let mut name = Name::EMPTY;
        let mut len = size_of::<Name>() as libc::socklen_t;
        // SAFETY: the name is valid to write for the length given.
        check(unsafe { libc::getsockname(self.as_raw_fd(), name.ptr_mut(), &mut len) })?;
        name.get().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Takes the error that the next call would have failed with.
    ///
    /// # Errors
    /// What getsockopt(2) reports.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is valid to write for the length given.
        check(unsafe {
            let value = (&raw mut value).cast();
            libc::getsockopt(self.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, value, &mut len)
        })?;
        Ok((value != 0).then(|| io::Error::from_raw_os_error(value)))
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is valid to read for the length given.
        check(unsafe { libc::setsockopt(self.as_raw_fd(), level, name, (&raw const value).cast(), len) }).map(drop)
    }
}

/// The longest IP packet in bytes that goes from an address of this host to another host, as far as this host knows: the MTU of the route, or of
/// the path where a router has told it. Nothing is sent.
///
/// # Errors
/// What bind(2) and connect(2) report: an address that is not this host's, no route.
pub fn path_mtu(from: std::net::IpAddr, to: SocketAddr) -> io::Result<u16> {
    let kind = if from.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 };
    let socket = Datagrams::open(kind, SocketAddr::new(from, 0), 64, 0)?;
    let name = Name::new(to);
    // SAFETY: the address is valid to read for its length.
    check(unsafe { libc::connect(socket.as_raw_fd(), name.ptr(), name.len()) })?;
    let (level, option) =
        if from.is_ipv6() { (libc::IPPROTO_IPV6, libc::IPV6_MTU) } else { (libc::IPPROTO_IP, libc::IP_MTU) };
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is valid to write for the length given.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &mut len) })?;
    Ok(u16::try_from(value).unwrap_or(u16::MAX))
}

/// Room for the control messages of one datagram, aligned like a `cmsghdr`.
type Control = [u64; CONTROL_WORDS];
/// Words of it.
const CONTROL_WORDS: usize = 20;

const _: () = {
    // SAFETY: CMSG_SPACE only computes. Three control messages go out with a datagram at most; an extended error with its offender comes in.
    assert!(size_of::<Control>() >= 3 * unsafe { libc::CMSG_SPACE(4) } as usize);
    // SAFETY: as above. Hop limit and traffic class come with it.
    assert!(size_of::<Control>() >= unsafe { libc::CMSG_SPACE(44) as usize + 3 * libc::CMSG_SPACE(4) as usize });
};

#[cfg(test)]
mod tests;

//! [`Name`]: a socket address as the kernel has it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket address as the kernel reads and writes it, of either family.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Name(libc::sockaddr_in6);

impl Name {
    pub(super) const EMPTY: Name = Name(libc::sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    });

    pub(super) fn new(address: SocketAddr) -> Name {
        let mut name = Name::EMPTY;
        match address {
            SocketAddr::V4(address) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: an IPv6 address is longer and at least as aligned, and any bytes are one.
                unsafe { (&raw mut name.0).cast::<libc::sockaddr_in>().write(v4) };
            }
            SocketAddr::V6(address) => {
                name.0.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                name.0.sin6_port = address.port().to_be();
                name.0.sin6_addr.s6_addr = address.ip().octets();
                name.0.sin6_scope_id = address.scope_id();
            }
        }
        name
    }

    pub(super) fn get(&self) -> Option<SocketAddr> {
        match libc::c_int::from(self.0.sin6_family) {
            libc::AF_INET => {
                // SAFETY: as in `new`; any bytes are an IPv4 address.
                let v4 = unsafe { (&raw const self.0).cast::<libc::sockaddr_in>().read() };
                let address = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(self.0.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, u16::from_be(self.0.sin6_port), 0, self.0.sin6_scope_id).into())
            }
            _ => None,
        }
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        let v4 = libc::c_int::from(self.0.sin6_family) == libc::AF_INET;
        (if v4 { size_of::<libc::sockaddr_in>() } else { size_of::<libc::sockaddr_in6>() }) as libc::socklen_t
    }

    pub(super) fn ptr(&self) -> *const libc::sockaddr {
        (&raw const self.0).cast()
    }

    pub(super) fn ptr_mut(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

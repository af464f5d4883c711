//! What can go wrong with a TAP, told so that its reader can mend it.
//!
//! Invariant: every message names the device, the namespace, the step, the kernel's reason, and what to do.

use std::fmt;
use std::io;

/// A step of opening or settling a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapStep {
    /// The name was checked.
    Name,
    /// The network namespace was entered.
    Namespace,
    /// /dev/net/tun was opened.
    Open,
    /// The device was created, or joined (TUNSETIFF).
    Create,
    /// The virtio-net header was set up (TUNSETVNETHDRSZ, TUNSETVNETLE).
    Header,
    /// The device was looked up.
    Look,
    /// The MTU was set.
    Mtu,
    /// The queue length was set.
    QueueLen,
    /// The MAC address was set.
    Mac,
    /// The interface was given an IP address.
    Address,
    /// A route by the interface was made.
    Route,
    /// The device was brought up or down.
    Up,
}

impl fmt::Display for TapStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TapStep::Name => "name",
            TapStep::Namespace => "enter the network namespace",
            TapStep::Open => "open /dev/net/tun",
            TapStep::Create => "create or join the device",
            TapStep::Header => "set up the virtio-net header",
            TapStep::Look => "look up the device",
            TapStep::Mtu => "set the MTU",
            TapStep::QueueLen => "set the queue length",
            TapStep::Mac => "set the MAC address",
            TapStep::Address => "give the interface an address",
            TapStep::Route => "make a route by the interface",
            TapStep::Up => "bring the device up or down",
        })
    }
}

/// Why a TAP cannot be used. Converts into an [`io::Error`] of the same kind.
#[derive(Debug, thiserror::Error)]
#[error("TAP {device}{}: {step}: {source}; {}", Within(.netns), self.advice())]
pub struct TapError {
    /// Name of the device, as asked for.
    pub device: String,
    /// Network namespace, if not the daemon's own.
    pub netns: Option<String>,
    /// What was being done.
    pub step: TapStep,
    /// What the kernel reported.
    pub source: io::Error,
}

impl TapError {
    /// The kind of the kernel's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Which permission or device is missing, and what to do.
    pub fn advice(&self) -> String {
        let device = &self.device;
        let advice = match (self.step, self.source.raw_os_error().unwrap_or(0)) {
            (TapStep::Name, _) => {
                "an interface name has 1 to 15 bytes, without slash, colon or white space: choose another name"
            }
            (TapStep::Namespace, libc::ENOENT) => {
                let name = self.netns.as_deref().unwrap_or_default();
                return format!("there is no such namespace in /run/netns: make it with `ip netns add {name}`");
            }
            (TapStep::Namespace, libc::EPERM | libc::EACCES) => {
                "entering a namespace needs CAP_SYS_ADMIN: run as root, or grant it \
                 (systemd: AmbientCapabilities=CAP_SYS_ADMIN CAP_NET_ADMIN)"
            }
            (TapStep::Open, libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
                "the device node or its driver is missing: `modprobe tun`, and in a container pass /dev/net/tun in"
            }
            (TapStep::Open, libc::EPERM | libc::EACCES) => {
                "no permission for /dev/net/tun: run as root, allow this user to read and write it, \
                 and in a container allow the device"
            }
            (_, libc::EMFILE | libc::ENFILE) => "too many files are open: raise the limit (`ulimit -n`, LimitNOFILE=)",
            (TapStep::Create, libc::EPERM | libc::EACCES) => {
                return format!(
                    "creating a device needs CAP_NET_ADMIN: run as root, grant it, or make the device beforehand for \
                     this user with `ip tuntap add dev {device} mode tap vnet_hdr [multi_queue] user USER`"
                );
            }
            (TapStep::Create, libc::EBUSY) => {
                return format!("another program has {device} open: end it, or choose another name");
            }
            (TapStep::Create, libc::EINVAL) => {
                return format!(
                    "an interface {device} exists that is no TAP, or whose multi_queue setting differs from the \
                     number of queues asked for: remove it (`ip link del {device}`) or choose another name"
                );
            }
            (TapStep::Create, libc::E2BIG) => "the device has all the queues it may have (256): ask for fewer",
            (TapStep::Header, _) => {
                "the kernel's tun driver does not know virtio 1 headers: Linux 4.0 or later is needed"
            }
            (TapStep::Mtu, libc::EINVAL | libc::ERANGE) => "the MTU of a TAP is 68 to 65521",
            (TapStep::Route, libc::EEXIST) => "there is such a route already: see `ip route`, or choose another subnet",
            (TapStep::Mac, libc::EADDRNOTAVAIL) => "the address must be unicast and not all zeros",
            (_, libc::ENODEV) => "the device was removed or moved to another namespace: restart the port",
            (_, libc::EPERM | libc::EACCES) => "changing a device needs CAP_NET_ADMIN: run as root, or grant it",
            _ => "see `dmesg` and netdevice(7)",
        };
        advice.into()
    }
}

impl From<TapError> for io::Error {
    fn from(error: TapError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

/// What a failed read from or write to a queue says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapFault {
    /// Nothing to read, or no room to write, at this moment.
    WouldBlock,
    /// The bytes to be written could not be read: stale, or in a file that was truncated.
    Memory,
    /// There is no device behind the descriptor any more.
    Gone,
    /// The device is there and did not take this frame: the interface is down, or the header contradicts the frame.
    Refused,
}

impl TapFault {
    /// The fault behind an error of [`crate::arena::Arena::read_from`] or [`crate::arena::Arena::write_to`] on a queue.
    pub fn of(error: &io::Error) -> TapFault {
        match error.raw_os_error() {
            // The arena itself refused pieces.
            None | Some(libc::EFAULT) => TapFault::Memory,
            Some(libc::EAGAIN | libc::EINTR) => TapFault::WouldBlock,
            Some(libc::EBADF | libc::EBADFD | libc::ENODEV) => TapFault::Gone,
            Some(_) => TapFault::Refused,
        }
    }
}

/// The part of a message that names the namespace, if there is one.
struct Within<'a>(&'a Option<String>);

impl fmt::Display for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, " in network namespace {name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_tell_a_moment_from_the_end() {
        let fault = |errno| TapFault::of(&io::Error::from_raw_os_error(errno));
        assert_eq!((fault(libc::EAGAIN), fault(libc::EFAULT)), (TapFault::WouldBlock, TapFault::Memory));
        assert_eq!((fault(libc::EIO), fault(libc::EINVAL)), (TapFault::Refused, TapFault::Refused));
        assert_eq!((fault(libc::EBADFD), fault(libc::ENODEV)), (TapFault::Gone, TapFault::Gone));
        assert_eq!(TapFault::of(&io::ErrorKind::InvalidInput.into()), TapFault::Memory);
    }
}

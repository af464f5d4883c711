//! [`Platform`]: all that a guest needs of where it runs: a NIC, a clock, a console, a way to sleep.
//!
//! Invariant: a platform never blocks but in [`Platform::idle`], and there only until something happens or the time is over.

use alloc::string::String;

/// The longest IP packet, in bytes, where the device says nothing.
pub const MTU: u16 = 1500;

/// A MAC address in the order of the wire.
pub type Mac = [u8; 6];

/// The virtio-net header of a frame (virtio 1.2 section 5.1.6) as two words: bytes 0 to 7 and 8 to 11, little endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Flags, segmentation type, header length, segment size, start of the checksum.
    pub low: u64,
    /// Place of the checksum, number of buffers.
    pub high: u32,
}

impl Header {
    /// Owes nothing.
    pub const NONE: Header = Header { low: 0, high: 0 };

    /// TCP over IPv4 that is to be cut into segments of `mss` payload bytes after `headers` header bytes, the last 20 of them TCP's.
    pub fn tcp4(headers: u16, mss: u16) -> Header {
        let (needs_checksum, tcp4) = (1, 1 << 8);
        let start = u64::from(headers - 20);
        Header { low: needs_checksum | tcp4 | u64::from(headers) << 16 | u64::from(mss) << 32 | start << 48, high: 16 }
    }

    /// Whether segments are still to be cut out of the frame.
    pub fn owes_segments(self) -> bool {
        self.low >> 8 & 0x7f != 0
    }
}

/// Where a guest runs.
pub trait Platform {
    /// The NIC's address.
    fn mac(&self) -> Mac;

    /// The longest IP packet that the NIC's network takes, in bytes, as the device says (virtio 1.2 section 5.1.4).
    fn mtu(&self) -> u16 {
        MTU
    }

    /// Hands up to `max` received frames to `each`, whole; returns how many. `each` copies what it wants to keep.
    fn receive(&mut self, max: usize, each: &mut dyn FnMut(Header, &[u8])) -> usize;

    /// Queues a frame that is `parts` put together; false when there is no room now.
    fn send(&mut self, header: Header, parts: &[&[u8]]) -> bool;

    /// Whether a plain frame could be sent now.
    fn has_room(&mut self) -> bool;

    /// Shows the device what was queued.
    fn flush(&mut self);

    /// Microseconds since some fixed time.
    fn now_us(&self) -> u64;

    /// Sleeps until a frame or a line came in, or until `until_us`; returns at once if one waits already.
    fn idle(&mut self, until_us: Option<u64>);

    /// The next line that was typed into the console, without its end.
    fn line(&mut self) -> Option<String>;

    /// Writes a line to the console.
    fn print(&mut self, line: &str);

    /// A number that nobody can guess.
    fn random(&mut self) -> u64;
}

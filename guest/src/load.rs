//! Load: frames that are sent as fast as asked for, and counted where they come in.
//!
//! Invariant: load is told from other traffic by its port, UDP or TCP 9 (the discard service of RFC 863), and never reaches the stack; a
//! frame of it that is not as it was sent counts as bad.
//!
//! `source to=MAC [size=N] [count=N] [rate=N] [burst=N] [flows=N] [vlan=N] [from=MAC] [super]`: `count` UDP frames of `size` bytes (without
//! checksum), `rate` a second (0: as fast as there is room) in bursts of `burst`, from `flows` ports, tagged for `vlan`, from address
//! `from`. With `super`, TCP super-frames that owe segmentation.

use alloc::{format, string::String, vec::Vec};

use crate::{
    command::{Command, CommandError},
    guest::Guest,
    platform::{Header, Mac, Platform},
};

/// The port of the discard service, where load goes to.
pub const DISCARD: u16 = 9;
/// Longest frame of load.
const MAX_FRAME: usize = 65_535;
/// Payload bytes of a segment of a super-frame.
const MSS: u16 = 1400;
/// Ethernet and IPv4 header.
const IP_END: usize = 14 + 20;
/// The benchmarking network of RFC 2544: nobody's address.
const ADDRESSES: [[u8; 4]; 2] = [[198, 18, 0, 1], [198, 18, 0, 2]];
/// The first source port of load; each flow has its own.
const FIRST_PORT: u16 = 1024;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// What load came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sink {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that are not as they were sent.
    pub bad: u64,
    /// Frames that still owe segmentation.
    pub supers: u64,
    /// Bytes of the longest frame.
    pub longest: u64,
    /// When the first and the last came, microseconds.
    pub span_us: (u64, u64),
}

impl Sink {
    /// Counts a frame if it is load.
    pub(crate) fn takes(&mut self, header: Header, frame: &[u8], now_us: u64) -> bool {
        let untagged = match frame.get(12..14) {
            Some([0x81, 0]) => frame.get(16..),
            _ => frame.get(12..),
        };
        let Some(network) = untagged else { return false };
        let (proto, port) = (network.get(11), network.get(24..26));
        let is_load = network.starts_with(&[8, 0, 0x45])
            && matches!(proto, Some(&(UDP | TCP)))
            && port.is_some_and(|port| *port == DISCARD.to_be_bytes());
        if !is_load {
            return false;
        }
        let payload = network.get(if proto == Some(&TCP) { 42 } else { 30 }..).unwrap_or_default();
        if self.frames == 0 {
            self.span_us.0 = now_us;
        }
        self.span_us.1 = now_us;
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.longest = self.longest.max(frame.len() as u64);
        self.supers += u64::from(header.owes_segments());
        self.bad += u64::from(!is_pattern(payload));
        true
    }

    /// The sums as a reply.
    pub(crate) fn tell(&self) -> String {
        let Sink { frames, bytes, bad, supers, longest, span_us: (first, last) } = *self;
        format!("frames={frames} bytes={bytes} bad={bad} supers={supers} longest={longest} us={}", last - first)
    }
}

/// What payload consists of: bytes that count up, from wherever a segment begins.
fn is_pattern(payload: &[u8]) -> bool {
    payload.windows(2).all(|pair| matches!(pair, [a, b] if a.wrapping_add(1) == *b))
}

/// Frames to send.
struct Source {
    frame: Vec<u8>,
    header: Header,
    /// Where the source port is.
    port_at: usize,
    count: u64,
    rate: u64,
    burst: u64,
    flows: u16,
}

impl Source {
    fn new(command: Command<'_>, own: Mac) -> Result<Source, CommandError> {
        let to = command.mac("to")?.ok_or("source: to=MAC is missing")?;
        let from = command.mac("from")?.unwrap_or(own);
        let is_super = command.word(0) == Some("super");
        let size: usize = command.number("size", if is_super { MAX_FRAME } else { 60 })?;
        let vlan = command.text("vlan").map(|_| command.number("vlan", 0u16)).transpose()?;
        let tag = if vlan.is_some() { 4 } else { 0 };
        let transport = if is_super { 20 } else { 8 };
        let headers = IP_END + tag + transport;
        if size < headers || size > MAX_FRAME {
            return Err(format!("size={size}: from {headers} to {MAX_FRAME} bytes are possible"));
        }
        let mut frame = [to, from].concat();
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([8, 0]);
        frame.extend(ip_header(size - tag - 14, if is_super { TCP } else { UDP }));
        frame.extend(FIRST_PORT.to_be_bytes());
        frame.extend(DISCARD.to_be_bytes());
        if is_super {
            // Sequence number 1, acknowledging 1; 20 bytes of header, ACK and PSH; a whole window.
            frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff]);
            frame.extend(pseudo_sum(size - tag - IP_END).to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend(((size - tag - IP_END) as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        frame.extend((0..size - headers).map(|n| n as u8));
        Ok(Source {
            frame,
            header: if is_super { Header::tcp4(headers as u16, MSS) } else { Header::NONE },
            port_at: IP_END + tag,
            count: command.number("count", 1)?,
            rate: command.number("rate", 0)?,
            burst: command.number("burst", 32u64)?.max(1),
            flows: command.number("flows", 1u16)?.max(1),
        })
    }

    /// The frame of flow `n`.
    fn flow(&mut self, n: u64) -> &[u8] {
        let port = FIRST_PORT.wrapping_add((n % u64::from(self.flows)) as u16);
        if let Some(place) = self.frame.get_mut(self.port_at..self.port_at + 2) {
            place.copy_from_slice(&port.to_be_bytes());
        }
        &self.frame
    }
}

fn ip_header(len: usize, proto: u8) -> [u8; 20] {
    let [high, low] = (len as u16).to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&ADDRESSES[0]);
    header[16..20].copy_from_slice(&ADDRESSES[1]);
    let sum = !fold(words(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum over TCP's pseudo-header (RFC 9293 section 3.1), which a partial checksum begins with.
fn pseudo_sum(len: usize) -> u16 {
    fold(words(&ADDRESSES.concat()) + u32::from(TCP) + len as u32)
}

impl<P: Platform> Guest<P> {
    /// Carries out `source`.
    pub(crate) fn source(&mut self, command: Command<'_>) -> Result<String, CommandError> {
        let mut source = Source::new(command, self.platform.mac())?;
        let begun = self.platform.now_us();
        let (mut sent, mut waited) = (0u64, 0u64);
        while sent < source.count {
            let due = match source.rate {
                0 => source.count,
                rate => (self.platform.now_us() - begun).saturating_mul(rate) / 1_000_000 + 1,
            };
            let upto = due.min(source.count).min(sent + source.burst);
            let before = sent;
            while sent < upto {
                let header = source.header;
                if !self.platform.send(header, &[source.flow(sent)]) {
                    break;
                }
                sent += 1;
            }
            self.platform.flush();
            // Others are served while load is sent.
            let _ = self.turn();
            if sent == before {
                waited += 1;
                if self.platform.now_us() - begun > 60_000_000 {
                    return Err(format!("after a minute only {sent} of {} frames were sent", source.count));
                }
            }
        }
        let us = self.platform.now_us() - begun;
        Ok(format!("sent={sent} us={us} waited={waited}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Mac = [2, 0, 0, 0, 0, 2];
    const FROM: Mac = [2, 0, 0, 0, 0, 1];

    fn source(line: &str) -> Result<Source, CommandError> {
        Source::new(Command::new(line), FROM)
    }

    #[test]
    fn a_sink_knows_what_a_source_sends() {
        for line in ["source", "source size=1514", "source size=1518 vlan=7", "source super", "source super size=9000"]
        {
            let mut source = source(&format!("{line} to=02:00:00:00:00:02")).unwrap();
            let header = source.header;
            let frame = source.flow(3).to_vec();
            assert_eq!((&frame[..6], &frame[6..12]), (TO.as_slice(), FROM.as_slice()), "{line}");
            let mut sink = Sink::default();
            assert!(sink.takes(header, &frame, 5), "{line}");
            assert_eq!((sink.frames, sink.bad, sink.longest), (1, 0, frame.len() as u64), "{line}");
            assert_eq!(sink.supers == 1, line.contains("super"), "{line}");
            let mut broken = frame.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert!(sink.takes(header, &broken, 6));
            assert_eq!((sink.frames, sink.bad), (2, 1), "{line}: {}", sink.tell());
        }
    }

    #[test]
    fn other_frames_are_not_load() {
        let frame = source("source to=02:00:00:00:00:02").unwrap().frame;
        for (at, value) in [(12, 0x86), (14, 0x46), (23, 1), (37, 7)] {
            let mut other = frame.clone();
            other[at] = value;
            assert!(!Sink::default().takes(Header::NONE, &other, 0), "byte {at}");
        }
        for len in 0..38 {
            assert!(!Sink::default().takes(Header::NONE, &frame[..len], 0), "{len} bytes");
        }
    }

    #[test]
    fn headers_sum_up() {
        assert_eq!(fold(words(&ip_header(46, UDP))), 0xffff);
        let whole = source("source super size=1000 to=02:00:00:00:00:02").unwrap();
        let tcp = &whole.frame[IP_END..];
        // What a device does that completes the checksum: it sums up from csum_start and stores the complement at csum_offset.
        assert_eq!((whole.header.low >> 48, whole.header.high), (34, 16));
        let complete = !fold(words(tcp));
        let stored = u16::from_be_bytes([tcp[16], tcp[17]]);
        let without = words(tcp) - u32::from(stored) + u32::from(complete);
        assert_eq!(fold(without + u32::from(stored)), 0xffff, "pseudo-header and segment sum up to nothing");
    }

    #[test]
    fn sizes_have_bounds() {
        for wrong in ["size=41", "size=65536", "super size=53", "size=45 vlan=1"] {
            assert!(source(&format!("source to=02:00:00:00:00:02 {wrong}")).is_err(), "{wrong}");
        }
        assert!(source("source").is_err());
        assert_eq!(source("source to=02:00:00:00:00:02 size=42").unwrap().frame.len(), 42);
    }
}

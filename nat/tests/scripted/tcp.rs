//! A scripted guest's end of a TCP connection: segments are made by hand, and what comes is kept as it came.
//!
//! Invariant: `ack` is the number after all that came in order; nothing is sent unless the test says so.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use wire::{Offload, checksum::Checksum};

use super::{GUEST_MAC, Lab, router, router6};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// A TCP segment as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Reads a frame; nothing where it is not TCP.
pub fn segment(frame: &[u8]) -> Option<Segment> {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (protocol, l4) = if v6 { (frame[20], 54) } else { (frame[23], 34) };
    if protocol != 6 {
        return None;
    }
    let (from, to) = super::ends(frame);
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let long = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let data = l4 + usize::from(frame[l4 + 12] >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from.ip(), word(l4)),
        to: SocketAddr::new(to.ip(), word(l4 + 2)),
        seq: long(l4 + 4),
        ack: long(l4 + 8),
        flags: frame[l4 + 13],
        window: word(l4 + 14),
        options: frame[l4 + 20..data].to_vec(),
        payload: frame[data..].to_vec(),
    })
}

/// What a segment says besides its ends and its data.
#[derive(Clone, Copy, Debug)]
pub struct Says<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
}

/// A frame with a TCP segment; its checksums are right.
pub fn tcp(from: SocketAddr, to: SocketAddr, says: Says, payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.port().to_be_bytes());
    l4.extend(to.port().to_be_bytes());
    l4.extend(says.seq.to_be_bytes());
    l4.extend(says.ack.to_be_bytes());
    l4.extend([((20 + says.options.len()) / 4 * 16) as u8, says.flags]);
    l4.extend(says.window.to_be_bytes());
    l4.extend([0; 4]);
    l4.extend(says.options);
    l4.extend(payload);
    let mut frame = [2, 0, 0, 0, 0, 9].to_vec();
    frame.extend(GUEST_MAC);
    let mut sum = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + l4.len() as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 63, 6, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            frame = super::with_ip(frame, |_| ());
            Checksum::pseudo_v4(source.octets(), destination.octets(), 6, l4.len() as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([6, 63]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            Checksum::pseudo_v6(source.octets(), destination.octets(), 6, l4.len() as u32)
        }
        _ => panic!("two families"),
    };
    sum.add_bytes(&l4);
    l4[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    frame.extend(l4);
    frame
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    pub nic: u16,
    pub me: SocketAddr,
    pub peer: SocketAddr,
    /// The number to be sent next, and the one expected.
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    /// The MSS it names, where it names one.
    pub mss: Option<u16>,
    /// How its windows are scaled.
    pub scale: Option<u8>,
    /// All that came in order.
    pub received: Vec<u8>,
    /// The last number the other side acknowledged, and its window, unscaled.
    pub acked: u32,
    pub told: u16,
    pub fin: bool,
    pub reset: bool,
    /// The longest segment that came.
    pub longest: usize,
}

impl End {
    pub fn new(nic: u16, me: SocketAddr, peer: SocketAddr) -> End {
        End {
            nic,
            me,
            peer,
            seq: 0xffff_f000,
            ack: 0,
            window: 65_535,
            mss: Some(1460),
            scale: Some(7),
            received: Vec::new(),
            acked: 0,
            told: 0,
            fin: false,
            reset: false,
            longest: 0,
        }
    }

    fn options(&self) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(mss) = self.mss {
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            options.extend([1, 3, 3, scale]);
        }
        options
    }

    /// A frame as it would be sent now.
    pub fn frame(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.frame_at(self.seq, flags, payload)
    }

    /// A frame with another number.
    pub fn frame_at(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let options = if flags & SYN != 0 { self.options() } else { Vec::new() };
        let ack = if flags & ACK != 0 { self.ack } else { 0 };
        let says = Says { seq, ack, flags, window: self.window, options: &options };
        tcp(self.me, self.peer, says, payload)
    }

    /// Takes what came in; how many segments were for it.
    pub fn take(&mut self, frames: &[Vec<u8>]) -> usize {
        let mut mine = 0;
        for segment in frames.iter().filter_map(|frame| segment(frame)) {
            if segment.to != self.me || segment.from != self.peer {
                continue;
            }
            mine += 1;
            self.reset |= segment.flags & RST != 0;
            if segment.flags & ACK != 0 {
                self.acked = segment.ack;
                self.told = segment.window;
            }
            self.longest = self.longest.max(segment.payload.len());
            let before = self.ack.wrapping_sub(segment.seq) as usize;
            if before <= segment.payload.len() && segment.flags & (SYN | RST) == 0 {
                let new = &segment.payload[before..];
                self.received.extend(new);
                self.ack = self.ack.wrapping_add(new.len() as u32);
                if segment.flags & FIN != 0 && !self.fin {
                    self.fin = true;
                    self.ack = self.ack.wrapping_add(1);
                }
            }
        }
        mine
    }

    /// Sends a frame and takes what comes in the same turn; the segments.
    pub fn say(&mut self, lab: &mut Lab, frame: &[u8]) -> Vec<Segment> {
        let got = lab.send(self.nic, frame);
        let frames: Vec<_> = got.iter().flat_map(|got| lab.settle(got)).collect();
        self.take(&frames);
        frames.iter().filter_map(|frame| segment(frame)).collect()
    }

    /// Sends data, and goes on behind it.
    pub fn send(&mut self, lab: &mut Lab, payload: &[u8]) -> Vec<Segment> {
        let frame = self.frame(ACK | PSH, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
        self.say(lab, &frame)
    }

    /// Acknowledges what came.
    pub fn acknowledge(&mut self, lab: &mut Lab) -> Vec<Segment> {
        let frame = self.frame(ACK, b"");
        self.say(lab, &frame)
    }

    /// Ends its direction.
    pub fn end(&mut self, lab: &mut Lab) -> Vec<Segment> {
        let frame = self.frame(ACK | FIN, b"");
        self.seq = self.seq.wrapping_add(1);
        self.say(lab, &frame)
    }

    /// Opens the connection, with the three segments that it takes; the answer to the SYN.
    #[track_caller]
    pub fn open(&mut self, lab: &mut Lab) -> Segment {
        let syn = self.frame(SYN, b"");
        let answer = lab.ask(self.nic, &syn).iter().find_map(|frame| segment(frame)).expect("an answer to the SYN");
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, self.seq.wrapping_add(1)), "{answer:?}");
        self.seq = self.seq.wrapping_add(1);
        (self.ack, self.told, self.acked) = (answer.seq.wrapping_add(1), answer.window, answer.ack);
        self.acknowledge(lab);
        answer
    }

    /// Takes and acknowledges what comes until `enough`, three seconds at most.
    #[track_caller]
    pub fn until(&mut self, lab: &mut Lab, enough: impl Fn(&End) -> bool) {
        let mut said = None;
        for _ in 0..3000 {
            if said != Some((self.ack, self.fin)) && !self.reset {
                said = Some((self.ack, self.fin));
                self.acknowledge(lab);
                continue;
            }
            if enough(self) {
                return;
            }
            let got = lab.turn(self.nic, &[]);
            let frames: Vec<_> = got.iter().flat_map(|got| lab.settle(got)).collect();
            if self.take(&frames) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let End { seq, ack, acked, told, fin, reset, .. } = self;
        let came = self.received.len();
        panic!("three seconds are over: {came} bytes came; {seq} {ack} {acked} window {told} fin {fin} reset {reset}");
    }

    /// Several segments in one turn.
    pub fn burst(&mut self, lab: &mut Lab, frames: &[Vec<u8>]) -> Vec<Segment> {
        let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
        let got = lab.turn(self.nic, &burst);
        let frames: Vec<_> = got.iter().flat_map(|got| lab.settle(got)).collect();
        self.take(&frames);
        frames.iter().filter_map(|frame| segment(frame)).collect()
    }
}

/// A guest that is connected, and the host's end.
#[track_caller]
pub fn connected(lab: &mut Lab) -> (End, TcpStream) {
    connected_with(lab, |_| ())
}

/// The same with something about the guest changed before it opens.
#[track_caller]
pub fn connected_with(lab: &mut Lab, change: impl FnOnce(&mut End)) -> (End, TcpStream) {
    let (listener, name) = listener(false);
    let mut guest = End::new(0, super::at("10.0.0.2:4000"), name);
    change(&mut guest);
    guest.open(lab);
    (guest, accept(&listener))
}

/// The connection still carries data both ways.
#[track_caller]
pub fn lives(lab: &mut Lab, guest: &mut End, host: &mut TcpStream) {
    guest.send(lab, b"ping");
    assert_eq!(read(host, 4), b"ping");
    let before = guest.received.len();
    host.write_all(b"pong").unwrap();
    guest.until(lab, |guest| guest.received.len() == before + 4);
    assert!(guest.received.ends_with(b"pong"));
}

/// Reads `len` bytes.
#[track_caller]
pub fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Bytes of which no two parts that a test looks at are alike.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// The words of the connections that are told.
pub fn states(lab: &mut Lab) -> Vec<&'static str> {
    lab.show().iter().map(|line| line.state).collect()
}

/// A listener on the loopback device, and how guests name it.
pub fn listener(v6: bool) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = if v6 { SocketAddr::new(router6().into(), port) } else { SocketAddr::new(router().into(), port) };
    (listener, name)
}

/// The next connection of a listener.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    stream
}

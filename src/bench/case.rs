//! [`Case`]: one thing that is measured, and which things a run measures.
//!
//! Invariant: a case says everything that distinguishes its measurement, so that two rows of a result with equal cases may be compared.

use serde::Serialize;

use crate::args::Measurement;

/// Frame sizes of RFC 2544 section 9.1, in bytes with FCS, but for 1280.
pub const SIZES: [u32; 6] = [64, 128, 256, 512, 1024, 1518];
/// Bytes of the FCS, which no frame of ours carries.
pub const FCS: u32 = 4;
/// A super-frame: the largest multiple of 1448 bytes of TCP payload, the segment of a 1500-byte MTU, that IPv4 can name, and 66 bytes of headers.
pub const SUPER_FRAME: u32 = 66 + 45 * 1448 + FCS;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Frames a second, sent as fast as they are taken.
    Rate,
    /// Bits a second in super-frames.
    Throughput,
    /// Time to the other port with one frame on its way.
    LatencyIdle,
    /// Time to the other port at half of the no-loss rate.
    LatencyHalf,
    /// The highest rate at which nothing is lost.
    Loss,
    /// Frames a second by number of flows.
    ScalingFlows,
    /// Frames a second by number of addresses.
    ScalingMacs,
    /// Frames a second by number of ports.
    ScalingPorts,
}

impl What {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            What::Rate => "packet rate",
            What::Throughput => "throughput, super-frames",
            What::LatencyIdle => "latency, one in flight",
            What::LatencyHalf => "latency, 50 % load",
            What::Loss => "no-loss rate",
            What::ScalingFlows => "scaling, flows",
            What::ScalingMacs => "scaling, MACs",
            What::ScalingPorts => "scaling, ports",
        }
    }

    /// Whether the result is a distribution of times.
    pub fn is_latency(self) -> bool {
        matches!(self, What::LatencyIdle | What::LatencyHalf)
    }

    /// What the figures of a row count.
    pub fn unit(self) -> &'static str {
        match self {
            What::Throughput => "Gbit/s",
            What::LatencyIdle | What::LatencyHalf => "us",
            _ => "Mpps",
        }
    }
}

/// What lies between the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// One switch without VLANs.
    Switch,
    /// One switch, from an access port to a trunk: a tag is put on, and on the way back taken off.
    Vlan,
}

impl Path {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Path::Switch => "switch",
            Path::Vlan => "vlan",
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The first port of each pair.
    OneWay,
    /// Both ports of each pair; figures are sums.
    BothWays,
}

impl Direction {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Direction::OneWay => "one-way",
            Direction::BothWays => "both-ways",
        }
    }
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// What is measured.
    pub what: What,
    /// What lies between the ports.
    pub path: Path,
    /// Bytes of a frame, with its FCS.
    pub size_bytes: u32,
    /// Who sends.
    pub direction: Direction,
    /// Ports in pairs.
    pub ports: u16,
    /// Addresses that send or receive, in all.
    pub macs: u32,
    /// UDP source ports of each sender.
    pub flows: u32,
}

impl Case {
    /// Two ports with one address each, one flow, one way through a switch.
    pub const fn new(what: What, size_bytes: u32) -> Case {
        Case { what, path: Path::Switch, size_bytes, direction: Direction::OneWay, ports: 2, macs: 2, flows: 1 }
    }

    const fn both(self) -> Case {
        Case { direction: Direction::BothWays, ..self }
    }

    const fn vlan(self) -> Case {
        Case { path: Path::Vlan, ..self }
    }

    /// Bytes of a frame without its FCS: what goes through rings.
    pub fn frame_bytes(&self) -> u32 {
        self.size_bytes.saturating_sub(FCS)
    }

    /// Addresses of each port.
    pub fn macs_each(&self) -> u32 {
        (self.macs / u32::from(self.ports.max(1))).max(1)
    }

    /// Which case it is, for people.
    pub fn title(&self) -> String {
        format!("{}, {} B, {}, {}", self.what.title(), self.size_bytes, self.direction.word(), self.path.word())
    }
}

/// The cases of a run: of one kind, or of all.
pub fn plan(kind: Measurement) -> Vec<Case> {
    let mut cases = Vec::new();
    let wants = |one: Measurement| kind == Measurement::All || kind == one;
    if wants(Measurement::Rate) {
        for size in SIZES {
            let case = Case::new(What::Rate, size);
            cases.extend([case, case.both()]);
        }
        for size in [64, 1518] {
            let case = Case::new(What::Rate, size).vlan();
            cases.extend([case, case.both()]);
        }
    }
    if wants(Measurement::Throughput) {
        let case = Case::new(What::Throughput, SUPER_FRAME);
        cases.extend([case, case.both(), case.vlan()]);
    }
    if wants(Measurement::Loss) {
        cases.extend([64, 1518].map(|size| Case::new(What::Loss, size)));
    }
    if wants(Measurement::Latency) {
        for size in [64, 1518] {
            cases.extend([What::LatencyIdle, What::LatencyHalf].map(|what| Case::new(what, size)));
        }
    }
    if wants(Measurement::Scaling) {
        cases.extend([1, 64, 4096].map(|flows| Case { flows, ..Case::new(What::ScalingFlows, 64) }));
        cases.extend([2, 1024, 32_768].map(|macs| Case { macs, ..Case::new(What::ScalingMacs, 64) }));
        let ports = |ports: u16| Case { ports, macs: u32::from(ports), ..Case::new(What::ScalingPorts, 64) };
        cases.extend([2, 4, 8, 16].map(ports));
    }
    cases
}

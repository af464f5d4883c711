//! Raw Ethernet frames whose every byte is verified (assets/frames.c), from one place to another.

use super::process::Place;
use serde::Deserialize;
use std::time::Duration;

/// What the frames carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proto {
    /// EtherType 0x88b5 and a pattern. At most the MTU and the Ethernet header.
    Plain,
    /// A TCP segment over IPv4, checksum and segmentation left to the device: up to 65,535 bytes.
    Tcp4,
    /// The same over IPv6.
    Tcp6,
}

/// The frames of one run: `count` rounds of one frame of each size. Sender and receiver must agree on them.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// What they carry.
    pub proto: Proto,
    /// Frame sizes in bytes: Ethernet header to last payload byte, without a VLAN tag and FCS. 31 to 65,535.
    pub sizes: Vec<usize>,
    /// Rounds.
    pub count: u32,
    /// Decides every payload byte. Runs that must not be mixed up differ in it.
    pub seed: u32,
}

impl Traffic {
    /// Plain frames of these sizes.
    pub fn plain(sizes: &[usize], count: u32) -> Self {
        Self { proto: Proto::Plain, sizes: sizes.to_vec(), count, seed: 1 }
    }

    /// The arguments that describe this traffic to the C programs.
    pub fn arguments(&self) -> Vec<String> {
        let proto = match self.proto {
            Proto::Plain => "plain",
            Proto::Tcp4 => "tcp4",
            Proto::Tcp6 => "tcp6",
        };
        let sizes: Vec<String> = self.sizes.iter().map(usize::to_string).collect();
        let all = ["--proto", proto, "--sizes", &sizes.join(","), "--count", &self.count.to_string()];
        let seed = ["--seed".to_owned(), self.seed.to_string()];
        all.iter().map(|&word| word.to_owned()).chain(seed).collect()
    }
}

/// What a receiver has seen.
#[derive(Debug, Clone, Deserialize)]
pub struct FrameReport {
    /// Frames of this run that arrived; segments and super-frames count as they come.
    pub frames: u64,
    /// Payload bytes in them.
    pub payload_bytes: u64,
    /// What was to arrive: frames if plain, bytes of the stream if TCP.
    pub expected: u64,
    /// What has arrived of it, intact and without counting anything twice.
    pub received: u64,
    /// Frames whose payload is not what was sent.
    pub damaged: u64,
    /// Frames whose length is not what they say.
    pub wrong_length: u64,
    /// Frames with a wrong TCP or IPv4 checksum (a wrong pseudo-header sum, where the checksum is still owed).
    pub bad_checksum: u64,
    /// Frames that brought something a second time.
    pub duplicates: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames with a VLAN tag.
    pub tagged: u64,
    /// Frames whose tag is not the one asked for.
    pub wrong_tag: u64,
    /// Frames of others.
    pub foreign: u64,
    /// The largest frame, in bytes as in [`Traffic::sizes`].
    pub largest: usize,
    /// The VLAN id of the last frame; -1 if it had none.
    pub last_tag: i32,
    /// Nothing lost, twice, altered or on the wrong VLAN.
    pub clean: bool,
}

/// The VLAN tag on a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vlan {
    /// None is sent; received frames must have none.
    #[default]
    Untagged,
    /// This id is sent, or must have arrived.
    Id(u16),
    /// Received frames may have any tag or none.
    Any,
}

impl Vlan {
    /// As the C programs want it.
    pub fn argument(self) -> String {
        match self {
            Self::Untagged => "none".into(),
            Self::Id(id) => id.to_string(),
            Self::Any => "any".into(),
        }
    }
}

/// One direction: from an interface of a place to an interface of another one.
#[derive(Debug, Clone)]
pub struct Flow<'a> {
    /// The sender's interface.
    pub from: &'a str,
    /// The receiver's interface.
    pub to: &'a str,
    /// Destination MAC address.
    pub dst: &'a str,
    /// Source MAC address; the sender's own if `None`.
    pub src: Option<&'a str>,
    /// The tag that the sender puts into its frames.
    pub send_vlan: Vlan,
    /// The tag that must arrive.
    pub receive_vlan: Vlan,
    /// Pause between frames in microseconds, so that a small ring is not overrun.
    pub gap_us: u32,
    /// TCP payload above which a frame leaves as a super-frame, and the size of its segments, in bytes.
    pub mss: u16,
    /// How long the receiver waits for what does not come.
    pub timeout: Duration,
}

impl<'a> Flow<'a> {
    /// Untagged, from `from` to `to`, both named eth0, 200 us apart.
    pub fn to_mac(dst: &'a str) -> Self {
        Self {
            from: "eth0",
            to: "eth0",
            dst,
            src: None,
            send_vlan: Vlan::Untagged,
            receive_vlan: Vlan::Untagged,
            gap_us: 200,
            mss: 1448,
            timeout: Duration::from_secs(20),
        }
    }
}

/// Sends the traffic from one place to another and returns what has arrived there.
pub fn exchange(sender: &dyn Place, receiver: &dyn Place, flow: &Flow<'_>, traffic: &Traffic) -> FrameReport {
    let what = traffic.arguments().join(" ");
    let patience = flow.timeout.as_millis();
    let listen =
        format!("frames receive {} --vlan {} --timeout-ms {patience} {what}", flow.to, flow.receive_vlan.argument());
    let mut listening = receiver.spawn(&listen);
    listening.wait_for_output("\"ready\":true", Duration::from_secs(20));
    let mut send = format!("frames send {} --dst {} --gap-us {} --mss {}", flow.from, flow.dst, flow.gap_us, flow.mss);
    if let Some(src) = flow.src {
        send.push_str(&format!(" --src {src}"));
    }
    let sent = sender.run(&format!("{send} --vlan {} {what}", flow.send_vlan.argument()), Duration::from_secs(60));
    assert!(sent.ok(), "{} did not send (status {}): {}", sender.name(), sent.status, sent.output);
    let heard = listening.wait(flow.timeout + Duration::from_secs(20));
    assert!(heard.ok(), "{} did not listen (status {}): {}", receiver.name(), heard.status, heard.output);
    let report = heard.output.lines().last().unwrap_or_default();
    serde_json::from_str(report).unwrap_or_else(|e| panic!("no report ({e}): {}", heard.output))
}

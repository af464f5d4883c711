//! Throughput by iperf3, as numbers.

use super::process::Place;
use serde_json::Value;
use std::time::Duration;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Iperf {
    /// Seconds.
    pub seconds: u32,
    /// Parallel streams.
    pub streams: u32,
    /// UDP at this rate in bits per second; TCP if `None`.
    pub udp_bits_per_second: Option<u64>,
    /// Let the server send.
    pub reverse: bool,
    /// Further arguments for the client, such as `-M 500`.
    pub arguments: String,
}

impl Default for Iperf {
    fn default() -> Self {
        Self { seconds: 3, streams: 1, udp_bits_per_second: None, reverse: false, arguments: String::new() }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct IperfReport {
    /// Payload that arrived, in bits per second.
    pub bits_per_second: f64,
    /// TCP segments sent again; 0 for UDP.
    pub retransmits: u64,
    /// UDP datagrams lost, per hundred; 0 for TCP.
    pub lost_percent: f64,
    /// All that the client printed.
    pub json: Value,
}

/// Runs a server in one place and a client in another that connects to `address`; `Err` says why nothing was measured.
pub fn iperf(server: &dyn Place, client: &dyn Place, address: &str, what: &Iperf) -> Result<IperfReport, String> {
    let mut listening = server.spawn("iperf3 -s -1 --forceflush");
    listening.wait_for_output("Server listening", Duration::from_secs(20));
    let mut command = format!("iperf3 -c {address} -J -t {} -P {}", what.seconds, what.streams);
    if let Some(rate) = what.udp_bits_per_second {
        command.push_str(&format!(" -u -b {rate}"));
    }
    if what.reverse {
        command.push_str(" -R");
    }
    command.push_str(&format!(" --connect-timeout 5000 {}", what.arguments));
    let done = client.run(&command, Duration::from_secs(u64::from(what.seconds) + 30));
    let start = done.output.find('{').ok_or_else(|| format!("iperf3 ended with {}: {}", done.status, done.output))?;
    let json: Value = serde_json::from_str(&done.output[start..]).map_err(|e| format!("{e}: {}", done.output))?;
    if let Some(why) = json["error"].as_str() {
        return Err(why.to_owned());
    }
    let end = &json["end"];
    let sum = if what.udp_bits_per_second.is_some() { &end["sum"] } else { &end["sum_received"] };
    Ok(IperfReport {
        bits_per_second: sum["bits_per_second"].as_f64().unwrap_or(0.0),
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        lost_percent: end["sum"]["lost_percent"].as_f64().unwrap_or(0.0),
        json,
    })
}

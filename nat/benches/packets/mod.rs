//! Packets for benchmarks, of frames of 64 bytes.

use etherparse::PacketBuilder;

/// A packet of a flow, between these MACs (source, destination) and endpoints; of TCP the SYN or one after it.
pub fn packet(tcp: bool, syn: bool, macs: ([u8; 6], [u8; 6]), from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(from.0, to.0, 64);
    let mut bytes = Vec::new();
    if tcp {
        let tcp = ip.tcp(from.1, to.1, 1, 1);
        let tcp = if syn { tcp.syn() } else { tcp.ack(1) };
        tcp.write(&mut bytes, b"123456").unwrap();
    } else {
        ip.udp(from.1, to.1).write(&mut bytes, b"123456789012345678").unwrap();
    }
    bytes
}

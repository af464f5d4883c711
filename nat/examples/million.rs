//! How much memory the packet engine's table takes: as many mappings as are asked for, each made by a packet of a guest of its own flow.
//!
//!     cargo run --release -p trunkline-nat --example million -- [MAPPINGS] [udp|tcp]
//!
//! UDP: one packet out for each mapping. TCP: a SYN out and its answer in, so that every mapping has a session besides. The guests are 64 NICs with
//! 250 addresses each. Prints the resident memory of the process before there is a table, with the empty table, and with the full one.
//! Invariant: every mapping was asked for by a packet, and is there at the end; else it says so and fails.
//! Read first: `nat/src/table.rs`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an example that cannot be set up has nothing to show")]

#[path = "../benches/packets/mod.rs"]
mod packets;

use std::{net::Ipv4Addr, process::ExitCode};

use nat::{Config, NatTable, Side};
use packets::packet;
use wire::{Context, Frame, Instant, NicId, Origin, Sizes};

const SERVER: ([u8; 4], u16) = ([198, 51, 100, 7], 5001);
const MACS: ([u8; 6], [u8; 6]) = ([2; 6], [4; 6]);
const NICS: u32 = 64;
/// Addresses of guests behind a NIC.
const ADDRESSES: u32 = 250;
/// Mappings that an outside address is given, of its 64,512 ports from 1024 on.
const PER_ADDRESS: u32 = 60_000;

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

struct Engine {
    nat: NatTable,
    cx: Context,
    /// One for each NIC.
    frames: Vec<Frame>,
}

impl Engine {
    /// A packet of a NIC's guest, or for one: its head behind the translation, or nothing where it was refused.
    fn cross(&mut self, side: Side, nic: u32, bytes: &[u8]) -> Option<[u8; 36]> {
        let head = self.cx.heads.get_mut(self.frames.get(nic as usize)?);
        head.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let decision = self.nat.decide(side, head, Instant::START);
        self.nat.commit(decision, head).ok()?;
        head.bytes().first_chunk().copied()
    }

    /// The flow of this number is begun; false where it was refused.
    fn begin(&mut self, number: u32, tcp: bool) -> bool {
        let nic = number % NICS;
        let of_nic = number / NICS;
        let inside = (
            Ipv4Addr::new(10, nic as u8, 0, 1 + (of_nic % ADDRESSES) as u8).octets(),
            2000 + (of_nic / ADDRESSES) as u16,
        );
        let Some(head) = self.cross(Side::Inside, nic, &packet(tcp, true, MACS, inside, SERVER)) else { return false };
        let outside = ([head[26], head[27], head[28], head[29]], u16::from_be_bytes([head[34], head[35]]));
        !tcp || self.cross(Side::Outside, nic, &packet(tcp, true, MACS, SERVER, outside)).is_some()
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mappings: u32 = words.next().map_or(1_000_000, |word| word.parse().unwrap());
    let tcp = match words.next().as_deref() {
        None | Some("udp") => false,
        Some("tcp") => true,
        Some(other) => panic!("`{other}` is neither udp nor tcp"),
    };
    let outside = (0..mappings.div_ceil(PER_ADDRESS)).map(|n| Ipv4Addr::new(192, 0, 2, 1 + n as u8));
    let config = Config { mappings: mappings as usize, quota: 1 << 20, ..Config::new(outside.collect(), 5) };

    let mut cx = Context::new(Sizes { heads: 256, pieces: 64, pool: 4096 }).unwrap();
    cx.begin_turn(Instant::START);
    let any = packet(tcp, true, MACS, SERVER, SERVER);
    let frames = (0..NICS).map(|nic| cx.originate(Origin { nic: NicId(nic as u16), lane: 0 }, &any).unwrap()).collect();
    let before = resident();
    let mut nat = NatTable::new(&config).unwrap();
    (0..NICS).for_each(|nic| nat.add_nic(NicId(nic as u16)));
    let empty = resident();
    let mut engine = Engine { nat, cx, frames };
    let refused = (0..mappings).filter(|number| !engine.begin(*number, tcp)).count();
    let full = resident();

    let stats = engine.nat.stats();
    let kib = |what: &str, kib: u64| println!("{what:<16} {:8.1} MiB resident", kib as f64 / 1024.0);
    kib("before", before);
    kib("an empty table", empty);
    kib("a full one", full);
    let grown = (full - before) as f64;
    println!(
        "{} mappings, {} sessions: {:.1} MiB, {:.0} bytes a mapping",
        stats.mapped,
        stats.sessions,
        grown / 1024.0,
        grown * 1024.0 / f64::from(mappings)
    );
    if refused > 0 || stats.mapped != u64::from(mappings) || stats.evicted + stats.over_quota + stats.crowded > 0 {
        eprintln!("not all are there: {refused} packets refused, {stats:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

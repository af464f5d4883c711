//! Many hosts with many guests, in virtual time: tunnel endpoints without sockets over an underlay that delays.
//!
//! Invariant: what happens follows from the numbers given, the seed among them, and from the code that a real endpoint runs for each packet: `route`,
//! `ask`, `accept`, `hear`, `tell`. Nothing is lost in this underlay, and nothing but the delay of packets takes time.
//!
//! Theory of operation: guests are dealt to networks in turn; a network stretches to the hosts that have guests in it. Each guest asks, at some moment of a
//! window, for those it wants to talk to, and sends one packet when it is answered. A minute later all ask again, as guests do whose caches have aged. Then one in a
//! hundred guests is found at another host, which announces it by its MAC. Time goes in steps; what is on its way lies in a ring of as many steps as
//! the longest delay has.
//! Read first: `overlay::vtep`.

use std::{collections::HashSet, fmt, net::IpAddr, time::Duration};

use overlay::{
    Encapsulation, NetworkConfig, NetworkId, RemoteId, Vtep, VtepConfig,
    resolution::{ETHERTYPE_ARP, LONGEST, Message},
    vtep::Way,
};
use wire::{Instant, Mac, NicId, Vni};

/// One step of time.
const STEP: Duration = Duration::from_micros(10);
/// The shortest and longest delay of a packet, in steps: 50 to 500 microseconds.
const DELAY: std::ops::RangeInclusive<u64> = 5..=50;
/// In which guests begin to ask, and after which they ask again, in steps: 10 seconds, a minute.
const WINDOW: u64 = 1_000_000;
const AGAIN: u64 = 6_000_000;
/// Bytes of a frame, and of a packet behind its UDP header.
const FRAME: usize = 60;
const PACKET: usize = 8 + FRAME;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Hosts.
    pub hosts: usize,
    /// Guests of each.
    pub guests: usize,
    /// Networks that guests are dealt to.
    pub networks: usize,
    /// For how many others of its network each guest asks.
    pub talk: usize,
    /// ARP suppression.
    pub suppress: bool,
    /// Stations and neighbours that an endpoint remembers at most.
    pub stations: usize,
    /// Decides who talks to whom and when, and how long packets take.
    pub seed: u64,
}

/// What came of one part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Questions put by guests for guests of other hosts.
    pub asked: u64,
    /// Those of them that were answered by the host of who asked.
    pub answered: u64,
    /// Packets of the underlay that carried a frame to everybody.
    pub flooded: u64,
    /// Packets that carried a frame to one endpoint.
    pub unicast: u64,
    /// Frames to one station that had to go to everybody.
    pub unknown: u64,
    /// The longest time from a question to its answer, or from a move until every host that knew the guest knew its new place.
    pub longest: Duration,
    /// Questions without an answer, or hosts that look for a guest where it is not.
    pub open: u64,
}

/// What came of all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Everybody asks; everybody asks again; some move.
    pub parts: [Part; 3],
    /// Stations, and neighbours, that an endpoint knows: least, mean, most.
    pub stations: [usize; 3],
    /// See `stations`.
    pub neighbours: [usize; 3],
}

/// What is on its way.
#[derive(Clone, Copy)]
struct Arrival {
    to: u16,
    from: u16,
    packet: u32,
}

#[derive(Clone)]
struct Packet {
    bytes: [u8; PACKET],
    /// How many copies are on their way.
    copies: u32,
}

#[derive(Clone, Copy)]
struct Question {
    at: u64,
    by: u32,
    target: u32,
}

/// See the module's documentation.
pub struct Simulation {
    plan: Plan,
    hosts: Vec<Vtep>,
    /// By host: its place of a network, if it has one.
    places: Vec<Vec<Option<NetworkId>>>,
    /// By guest: its host.
    home: Vec<u16>,
    ring: Vec<Vec<Arrival>>,
    packets: Vec<Packet>,
    free: Vec<u32>,
    /// By question that waits: when it was put.
    waiting: std::collections::HashMap<(u32, u32), u64>,
    now: u64,
    random: u64,
    part: Part,
}

fn address(host: usize) -> IpAddr {
    [10, 128 + (host >> 16) as u8, (host >> 8) as u8, host as u8].into()
}

fn mac(guest: u32) -> Mac {
    let [a, b, c, d] = guest.to_be_bytes();
    Mac::new([2, 0, a, b, c, d])
}

fn guest_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]])
}

fn ip(guest: u32) -> [u8; 4] {
    (0x0a00_0000 + guest + 1).to_be_bytes()
}

fn instant(step: u64) -> Instant {
    Instant::START + STEP * step as u32
}

/// A message of ARP.
fn arp(operation: u8, by: u32, target: u32) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let (from, to) = (mac(by).bytes(), if operation == 1 { [0xff; 6] } else { mac(target).bytes() });
    let known = if operation == 1 { [0; 6] } else { to };
    let fields: [&[u8]; 7] = [&to, &from, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation], &from, &ip(by), &known, &ip(target)];
    frame.iter_mut().zip(fields.concat()).for_each(|(place, byte)| *place = byte);
    frame
}

/// A frame of this EtherType, with nothing in it.
fn plain(to: Mac, from: Mac, ethertype: [u8; 2]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let fields: [&[u8]; 3] = [&to.bytes(), &from.bytes(), &ethertype];
    frame.iter_mut().zip(fields.concat()).for_each(|(place, byte)| *place = byte);
    frame
}

impl Simulation {
    /// Makes every host.
    pub fn new(plan: Plan) -> Simulation {
        let count = plan.hosts * plan.guests;
        let home: Vec<u16> = (0..count).map(|guest| (guest / plan.guests) as u16).collect();
        let mut members: Vec<Vec<u16>> = vec![Vec::new(); plan.networks];
        for (guest, host) in home.iter().enumerate() {
            let all = &mut members[Self::dealt(&plan, guest as u32)];
            if all.last() != Some(host) {
                all.push(*host);
            }
        }
        let mut places = vec![vec![None; plan.networks]; plan.hosts];
        let mut networks: Vec<Vec<NetworkConfig>> = vec![Vec::new(); plan.hosts];
        for (network, hosts) in members.iter_mut().enumerate() {
            hosts.dedup();
            for host in hosts.iter() {
                let peers = hosts.iter().filter(|other| *other != host).map(|other| address(usize::from(*other)));
                let of = &mut networks[usize::from(*host)];
                places[usize::from(*host)][network] = Some(NetworkId(of.len() as u16));
                of.push(NetworkConfig {
                    vni: Vni::new(network as u32 + 1).unwrap(),
                    peers: peers.collect(),
                    group: None,
                    learning: true,
                    anyone: false,
                    suppress: plan.suppress,
                });
            }
        }
        let hosts = networks.into_iter().enumerate().map(|(host, networks)| {
            let config = VtepConfig {
                local: address(host),
                port: 4789,
                encapsulation: Encapsulation::Vxlan,
                sealed: false,
                networks,
                mtu: 1500,
                stations: plan.stations,
                ageing: Duration::from_secs(300),
                seed: plan.seed,
            };
            Vtep::new(config).unwrap()
        });
        Simulation {
            hosts: hosts.collect(),
            places,
            home,
            ring: vec![Vec::new(); *DELAY.end() as usize + 1],
            packets: Vec::new(),
            free: Vec::new(),
            waiting: std::collections::HashMap::new(),
            now: 0,
            random: plan.seed,
            part: Part::default(),
            plan,
        }
    }

    /// The network of a guest. Hosts do not all have the same ones.
    fn dealt(plan: &Plan, guest: u32) -> usize {
        let (host, nth) = (guest as usize / plan.guests, guest as usize % plan.guests);
        (host * 7 + nth * 13) % plan.networks
    }

    /// The next number of the SplitMix64 sequence, below `below`.
    fn below(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ z >> 31) * u128::from(below)) >> 64) as u64
    }

    /// Simulates all of it.
    pub fn run(mut self) -> Outcome {
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); self.plan.networks];
        for guest in 0..self.home.len() as u32 {
            members[Self::dealt(&self.plan, guest)].push(guest);
        }
        let mut questions = Vec::new();
        for by in 0..self.home.len() as u32 {
            let others = &members[Self::dealt(&self.plan, by)];
            for _ in 0..self.plan.talk {
                let target = others[self.below(others.len() as u64) as usize];
                let at = self.below(WINDOW);
                if self.home[by as usize] != self.home[target as usize] {
                    questions.push(Question { at, by, target });
                }
            }
        }
        questions.sort_unstable_by_key(|question| (question.at, question.by, question.target));
        questions.dedup_by_key(|question| (question.at, question.by, question.target));
        let first = self.round(&questions, 0);
        let again = self.round(&questions, AGAIN);
        let moved = self.moves();
        let now = instant(self.now);
        let spread = |count: &dyn Fn(&Vtep) -> usize| {
            let all: Vec<usize> = self.hosts.iter().map(count).collect();
            let [least, most] = [all.iter().min(), all.iter().max()].map(|one| one.copied().unwrap_or(0));
            [least, all.iter().sum::<usize>() / all.len().max(1), most]
        };
        Outcome {
            parts: [first, again, moved],
            stations: spread(&|vtep| vtep.stations(now).count()),
            neighbours: spread(&|vtep| vtep.neighbours.len()),
        }
    }

    /// All questions are put, and everything that follows happens.
    fn round(&mut self, questions: &[Question], from: u64) -> Part {
        let mut questions = questions.iter().peekable();
        self.now = from;
        while questions.peek().is_some() || self.is_under_way() {
            while let Some(question) = questions.next_if(|question| from + question.at <= self.now) {
                self.part.asked += 1;
                self.waiting.entry((question.by, question.target)).or_insert(self.now);
                self.leave(question.by, &arp(1, question.by, question.target));
            }
            self.step();
        }
        self.part.open = self.waiting.len() as u64;
        self.waiting.clear();
        std::mem::take(&mut self.part)
    }

    /// One in a hundred guests is at another host of its network from now on, and is announced there.
    fn moves(&mut self) -> Part {
        self.now += AGAIN;
        let start = self.now;
        let mut moved = Vec::new();
        for guest in (0..self.home.len() as u32).step_by(100) {
            let network = Self::dealt(&self.plan, guest);
            let has = |host: &usize| self.places[*host][network].is_some();
            let hosts: Vec<usize> = (0..self.plan.hosts)
                .filter(has)
                .filter(|host| *host != usize::from(self.home[guest as usize]))
                .collect();
            if hosts.is_empty() {
                continue;
            }
            let to = hosts[self.below(hosts.len() as u64) as usize];
            self.home[guest as usize] = to as u16;
            self.leave(guest, &plain(Mac::BROADCAST, mac(guest), [0x80, 0x35]));
            moved.push(guest);
        }
        while self.is_under_way() {
            self.part.longest = STEP * (self.now - start) as u32;
            self.step();
        }
        let now = instant(self.now);
        let moved: HashSet<u64> = moved.into_iter().map(|guest| mac(guest).to_bits()).collect();
        for vtep in &self.hosts {
            let lost = vtep.stations(now).filter(|(_, mac, remote, _)| {
                let at = vtep.remotes.get(*remote).map(|remote| remote.address);
                let home = address(usize::from(self.home[guest_of(&mac.bytes()) as usize]));
                moved.contains(&mac.to_bits()) && at != Some(home)
            });
            self.part.open += lost.count() as u64;
        }
        std::mem::take(&mut self.part)
    }

    fn is_under_way(&self) -> bool {
        self.free.len() < self.packets.len()
    }

    /// What arrives now.
    fn step(&mut self) {
        let at = (self.now % self.ring.len() as u64) as usize;
        let mut arrived = std::mem::take(&mut self.ring[at]);
        for arrival in arrived.drain(..) {
            let bytes = self.packets[arrival.packet as usize].bytes;
            self.arrive(arrival, &bytes);
            let packet = &mut self.packets[arrival.packet as usize];
            packet.copies -= 1;
            if packet.copies == 0 {
                self.free.push(arrival.packet);
            }
        }
        self.ring[at] = arrived;
        self.now += 1;
    }

    /// A guest sends a frame, and its host's tunnel gets it.
    fn leave(&mut self, guest: u32, frame: &[u8; FRAME]) {
        let (host, now) = (self.home[guest as usize], instant(self.now));
        let Some(network) = self.places[usize::from(host)][Self::dealt(&self.plan, guest)] else { return };
        let vtep = &mut self.hosts[usize::from(host)];
        let (to, from) = (Mac::new(array(frame, 0)), Mac::new(array(frame, 6)));
        vtep.leaves(network, from.to_bits(), now);
        if vtep.is_loop(frame) {
            return;
        }
        let Ok(way) = vtep.way(network, to.to_bits(), vtep.tick(now)) else { return };
        if vtep.looks(network) && u16::from_be_bytes(array(frame, 12)) == ETHERTYPE_ARP {
            let mut answer = [0; LONGEST];
            if vtep.ask(network, NicId(0), frame, now, &mut answer).is_some() {
                self.part.answered += 1;
                return self.deliver(guest, &answer);
            }
        }
        let Some(header) = vtep.header(network) else { return };
        let to_all = way == Way::All;
        let remotes: Vec<RemoteId> = match way {
            Way::One(remote) => vec![remote],
            Way::All => vtep.flood(network).to_vec(),
        };
        let ends: Vec<u16> = remotes
            .iter()
            .filter_map(|remote| vtep.remotes.get(*remote))
            .map(|remote| host_at(remote.address))
            .collect();
        let copies = ends.len() as u64;
        *(if to_all { &mut self.part.flooded } else { &mut self.part.unicast }) += copies;
        self.part.unknown += u64::from(to_all && !to.is_group());
        let mut bytes = [0; PACKET];
        bytes[..8].copy_from_slice(&header);
        bytes[8..].copy_from_slice(frame);
        let packet = self.take_up(Packet { bytes, copies: copies as u32 });
        for end in ends {
            let delay = DELAY.start() + self.below(DELAY.end() - DELAY.start() + 1);
            let at = ((self.now + delay) % self.ring.len() as u64) as usize;
            self.ring[at].push(Arrival { to: end, from: host, packet });
        }
    }

    fn take_up(&mut self, packet: Packet) -> u32 {
        match self.free.pop() {
            Some(at) => {
                self.packets[at as usize] = packet;
                at
            }
            None => {
                self.packets.push(packet);
                (self.packets.len() - 1) as u32
            }
        }
    }

    /// A packet comes to a host.
    fn arrive(&mut self, arrival: Arrival, packet: &[u8; PACKET]) {
        let now = instant(self.now);
        let vtep = &mut self.hosts[usize::from(arrival.to)];
        let sender = vtep.sender(address(usize::from(arrival.from)));
        let Ok(inward) = vtep.accept(sender, packet, PACKET) else { return };
        let frame = &packet[inward.at..];
        let from = Mac::new(array(frame, 6));
        let Ok(Some(remote)) = vtep.hear(sender, inward.network, from.to_bits(), now) else { return };
        if vtep.looks(inward.network) && Message::may_be(u16::from_be_bytes(array(frame, 12)), frame) {
            vtep.tell(inward.network, remote, frame, now);
        }
        let to: [u8; 6] = array(frame, 0);
        // Who it is for, if that is a guest of this host: by address, or by what is asked.
        let target = match (to, u16::from_be_bytes(array(frame, 12))) {
            ([0xff, ..], ETHERTYPE_ARP) => u32::from_be_bytes(array(frame, 38)) - 0x0a00_0001,
            ([0xff, ..], _) => return,
            _ => guest_of(&to),
        };
        if self.home[target as usize] == arrival.to {
            self.deliver(target, frame);
        }
    }

    /// A frame comes to a guest.
    fn deliver(&mut self, guest: u32, frame: &[u8]) {
        if u16::from_be_bytes(array(frame, 12)) != ETHERTYPE_ARP {
            return;
        }
        let other = u32::from_be_bytes(array(frame, 28)) - 0x0a00_0001;
        if frame[21] == 1 {
            return self.leave(guest, &arp(2, guest, other));
        }
        if let Some(asked) = self.waiting.remove(&(guest, other)) {
            self.part.longest = self.part.longest.max(STEP * (self.now - asked) as u32);
            self.leave(guest, &plain(mac(other), mac(guest), [0x88, 0xb5]));
        }
    }
}

fn host_at(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(v4) => u16::from_be_bytes([v4.octets()[2], v4.octets()[3]]),
        IpAddr::V6(_) => 0,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22}{:>12}{:>12}{:>14}{:>12}{:>10}{:>10}{:>8}",
            "", "asked", "answered", "flood copies", "unicast", "unknown", "longest", "open"
        )?;
        for (name, part) in ["all ask", "all ask again", "1 in 100 moves"].iter().zip(&self.parts) {
            let Part { asked, answered, flooded, unicast, unknown, longest, open } = part;
            let longest = format!("{:.2} ms", longest.as_secs_f64() * 1000.0);
            writeln!(
                f,
                "{name:<22}{asked:>12}{answered:>12}{flooded:>14}{unicast:>12}{unknown:>10}{longest:>10}{open:>8}"
            )?;
        }
        for (name, [least, mean, most]) in
            [("stations of a host", self.stations), ("neighbours of a host", self.neighbours)]
        {
            writeln!(f, "{name:<22}{least:>12} least{mean:>10} mean{most:>10} most")?;
        }
        Ok(())
    }
}

//! Tunnel ports in virtual time, on every kind of underlay: sockets on loopback addresses, open and sealed, or a hub that stands for a network of
//! ours.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, dead_code)]

pub mod station;

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use overlay::{
    Encapsulation, NetworkConfig, Seal, StationConfig, TunnelConfig, TunnelPort, Vtep, VtepConfig, keys::PrivateKey,
};
use wire::{Burst, Context, DropReason, Gso, Instant, Mac, NicId, Offload, Origin, Port, Sizes, Vni};

/// A frame and what it owes.
pub type Owing = (Vec<u8>, Offload);

/// Who is in the network that endpoints are in: what one sends all others get.
pub type Hub = Rc<RefCell<Vec<VecDeque<Owing>>>>;

/// What carries the packets.
#[derive(Clone)]
pub enum Under {
    Sockets,
    Sealed,
    Station { hub: Hub, checksum: bool },
}

impl Under {
    pub fn station() -> Under {
        Under::Station { hub: Hub::default(), checksum: false }
    }

    pub fn all() -> [Under; 3] {
        [Under::Sockets, Under::Sealed, Under::station()]
    }

    /// The longest inner IP packet where the underlay takes one of `mtu` bytes.
    pub fn fits(&self, mtu: u16) -> u16 {
        mtu - overlay::vtep::around(true, matches!(self, Under::Sealed))
    }
}

/// The endpoint's NIC in the network that it is in.
pub const UNDER: NicId = NicId(8);
/// Where the frames of tests come from.
pub const GUEST: NicId = NicId(9);

pub struct Host {
    pub port: TunnelPort,
    pub cx: Context,
    pub now: Instant,
    hub: Option<(Hub, usize)>,
}

/// What a network is to a host of a test.
#[derive(Clone, Default)]
pub struct Net {
    pub vni: u32,
    pub peers: Arc<[IpAddr]>,
    pub group: Option<IpAddr>,
    pub suppress: bool,
}

impl Net {
    pub fn new(vni: u32, peers: &[IpAddr]) -> Net {
        Net { vni, peers: peers.into(), ..Net::default() }
    }
}

/// The MAC address of the endpoint with this address.
pub fn mac_of(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    Mac::new([2, 0x55, 0, 0, 0, last])
}

/// The key of the endpoint with this address.
pub fn key_of(address: IpAddr) -> PrivateKey {
    PrivateKey::new([mac_of(address).bytes()[5]; 32])
}

pub fn address(n: u8, v6: bool) -> IpAddr {
    // Of IPv6 there is one loopback address only, so that it is for stations.
    if v6 { format!("fd09::{n:x}").parse().unwrap() } else { [127, 0, 9, n].into() }
}

pub fn vni(n: u32) -> Vni {
    Vni::new(n).unwrap()
}

/// Port numbers that nobody has at the moment.
pub fn free_port(at: IpAddr) -> u16 {
    UdpSocket::bind((at, 0)).unwrap().local_addr().unwrap().port()
}

pub fn host(under: &Under, local: IpAddr, port: u16, mtu: u16, networks: &[Net]) -> Host {
    let network = |net: &Net| NetworkConfig {
        vni: vni(net.vni),
        peers: net.peers.clone(),
        group: net.group,
        learning: true,
        anyone: false,
        suppress: net.suppress,
    };
    let config = VtepConfig {
        local,
        port,
        encapsulation: Encapsulation::Vxlan,
        sealed: matches!(under, Under::Sealed),
        networks: networks.iter().map(network).collect(),
        mtu,
        stations: 1024,
        ageing: Duration::from_secs(300),
        seed: 5,
    };
    let mut cx = Context::new(Sizes::default()).unwrap();
    (0..10).for_each(|nic| cx.add_nic(NicId(nic)));
    let vtep = Vtep::new(config).unwrap();
    let (mut port, hub) = match under {
        Under::Sockets => (TunnelPort::open(vtep, TunnelConfig::default()).unwrap(), None),
        Under::Sealed => {
            let mut peers: Vec<IpAddr> = networks.iter().flat_map(|net| net.peers.iter().copied()).collect();
            peers.sort_unstable();
            peers.dedup();
            let peers = peers.into_iter().map(|peer| (peer, key_of(peer).public())).collect();
            let seal = Seal { key: key_of(local), port: 4789, peers };
            (TunnelPort::sealed(vtep, TunnelConfig::default(), seal).unwrap(), None)
        }
        Under::Station { hub, checksum } => {
            let prefix = if local.is_ipv4() { 24 } else { 64 };
            let gateway = if local.is_ipv4() { [127, 0, 9, 254].into() } else { "fd09::fe".parse().unwrap() };
            let station = StationConfig { mac: mac_of(local), prefix, gateway: Some(gateway), checksum: *checksum };
            let at = hub.borrow().len();
            hub.borrow_mut().push(VecDeque::new());
            (TunnelPort::on(vtep, TunnelConfig::default(), station), Some((Rc::clone(hub), at)))
        }
    };
    for nic in (0..networks.len() as u16).map(NicId).chain(hub.as_ref().map(|_| UNDER)) {
        cx.nic = nic;
        port.attach(&mut cx).unwrap();
    }
    Host { port, cx, now: Instant::START + Duration::from_secs(10), hub }
}

/// Has hosts find each other: in one network, or for their sessions.
pub fn settle(hosts: &mut [&mut Host]) {
    for _ in 0..4 {
        for host in &mut *hosts {
            host.turn();
        }
    }
}

impl Host {
    /// Frames of a guest in a network; what the port answers to it.
    pub fn send(&mut self, network: u16, frames: &[(Vec<u8>, Offload)]) -> Vec<Vec<u8>> {
        self.cx.begin_turn(self.now);
        self.cx.nic = NicId(network);
        let mut burst = Burst::default();
        for (bytes, offload) in frames {
            let frame = self.cx.originate(Origin { nic: GUEST, lane: 0 }, bytes).unwrap();
            self.cx.heads.get_mut(&frame).offload = *offload;
            burst.push(frame).unwrap();
        }
        self.port.transmit(&mut self.cx, &mut burst).unwrap();
        assert!(burst.is_empty());
        self.port.release(&mut self.cx).unwrap();
        self.answers().into_iter().map(|(_, bytes, _)| bytes).collect()
    }

    pub fn answers(&mut self) -> Vec<(u16, Vec<u8>, Offload)> {
        let mut answers = std::mem::take(&mut self.cx.answers);
        // They are the guest's to count.
        self.cx.nic = GUEST;
        let mut out = Vec::new();
        for frame in answers.drain() {
            let head = self.cx.heads.get(&frame);
            let (nic, offload, mut bytes) = (head.origin.nic, head.offload, vec![0; head.len()]);
            assert_eq!(self.cx.read_all(&frame, &mut bytes), Some(bytes.len()));
            self.cx.transmitted(1, 0);
            match &self.hub {
                Some((hub, own)) if nic == UNDER => {
                    let mut hub = hub.borrow_mut();
                    let others = hub.iter_mut().enumerate().filter(|(at, _)| at != own);
                    others.for_each(|(_, queue)| queue.push_back((bytes.clone(), offload)));
                }
                _ => out.push((nic.0, bytes, offload)),
            }
        }
        assert!(self.cx.ledger.balances(), "{:?}", self.cx.ledger);
        out
    }

    /// A turn of the port, and one of what waits for it in the network that it is in: what came in, with the network.
    pub fn turn(&mut self) -> Vec<(u16, Vec<u8>, Offload)> {
        self.cx.begin_turn(self.now);
        self.cx.nic = NicId(0);
        let mut burst = Burst::default();
        self.port.receive(&mut self.cx, &mut burst).unwrap();
        assert!(burst.is_empty());
        self.port.release(&mut self.cx).unwrap();
        let mut all = self.answers();
        let waiting: Vec<Owing> = match &self.hub {
            Some((hub, own)) => hub.borrow_mut()[*own].drain(..).collect(),
            None => Vec::new(),
        };
        for frames in waiting.chunks(wire::BURST) {
            all.extend(self.come(frames));
        }
        all
    }

    /// Frames that come to the endpoint's NIC in the network that it is in.
    pub fn come(&mut self, frames: &[Owing]) -> Vec<(u16, Vec<u8>, Offload)> {
        self.come_from(GUEST, frames)
    }

    /// As [`Host::come`], from this NIC of that network.
    pub fn come_from(&mut self, nic: NicId, frames: &[Owing]) -> Vec<(u16, Vec<u8>, Offload)> {
        self.cx.begin_turn(self.now);
        let mut burst = Burst::default();
        for (bytes, offload) in frames {
            let frame = self.cx.originate(Origin { nic, lane: 0 }, bytes).unwrap();
            self.cx.heads.get_mut(&frame).offload = *offload;
            burst.push(frame).unwrap();
        }
        self.cx.nic = UNDER;
        self.port.transmit(&mut self.cx, &mut burst).unwrap();
        assert!(burst.is_empty() && self.cx.nic == UNDER);
        self.port.release(&mut self.cx).unwrap();
        self.answers()
    }

    /// Whether it is in a network of ours.
    pub fn has_hub(&self) -> bool {
        self.hub.is_some()
    }

    /// What the endpoint has sent into its network since the last time, as another there sees it.
    pub fn sent(&self, seen_by: usize) -> Vec<Owing> {
        self.hub.as_ref().unwrap().0.borrow_mut()[seen_by].drain(..).collect()
    }

    /// What has come in: network, frame, what it owes.
    pub fn receive(&mut self, frames: usize) -> Vec<(u16, Vec<u8>, Offload)> {
        let mut all = Vec::new();
        for _ in 0..2000 {
            all.extend(self.turn());
            if all.len() >= frames {
                return all;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} of {frames} frames came", all.len());
    }

    pub fn drops(&self, nic: u16, reason: DropReason) -> u64 {
        self.cx.counters(NicId(nic)).unwrap().drops(reason)
    }
}

pub fn udp(to: u8, len: usize, v6: bool, dont_fragment: bool) -> Vec<u8> {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, to]);
    let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
    let mut bytes = Vec::new();
    if v6 {
        ethernet.ipv6([1; 16], [2; 16], 64).udp(1000, 2000).write(&mut bytes, &payload).unwrap();
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, to], 64).udp(1000, 2000).write(&mut bytes, &payload).unwrap();
        if !dont_fragment {
            bytes[20] &= !0x40;
            bytes[24..26].fill(0);
            let mut sum = wire::checksum::Checksum::new();
            sum.add_bytes(&bytes[14..34]);
            let sum = sum.finish().to_be_bytes();
            bytes[24..26].copy_from_slice(&sum);
        }
    }
    bytes
}

/// A super-frame of TCP that owes its checksum, in segments of `mss` bytes.
pub fn tcp(len: usize, mss: u16) -> (Vec<u8>, Offload) {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
    let mut bytes = Vec::new();
    let builder = ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 2000, 77, 500).ack(3);
    builder.write(&mut bytes, &payload).unwrap();
    let pseudo = wire::checksum::Checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, (20 + len) as u16);
    bytes[50..52].copy_from_slice(&pseudo.fold().to_be_bytes());
    (bytes, Offload::new(Gso::Tcp4, 54, mss, 34, 16))
}

//! Two tunnel ports on loopback addresses: what goes into one comes out of the other, over sockets of the host.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{net::IpAddr, net::UdpSocket, time::Duration};

use overlay::{Encapsulation, NetworkConfig, TunnelConfig, TunnelPort, Vtep, VtepConfig};
use wire::{Burst, Context, DropReason, Gso, Instant, NicId, Offload, Origin, Port, Sizes, Vni};

/// Where the frames of tests come from.
const GUEST: NicId = NicId(9);

struct Host {
    port: TunnelPort,
    cx: Context,
    now: Instant,
}

fn address(n: u8, v6: bool) -> IpAddr {
    // Of IPv6 there is one loopback address only; hosts differ by port there.
    if v6 { "::1".parse().unwrap() } else { [127, 0, 9, n].into() }
}

fn vni(n: u32) -> Vni {
    Vni::new(n).unwrap()
}

/// Port numbers that nobody has at the moment.
fn free_port(at: IpAddr) -> u16 {
    UdpSocket::bind((at, 0)).unwrap().local_addr().unwrap().port()
}

fn host(local: IpAddr, port: u16, mtu: u16, networks: &[(u32, &[IpAddr])]) -> Host {
    suppressing(local, port, mtu, networks, false)
}

fn suppressing(local: IpAddr, port: u16, mtu: u16, networks: &[(u32, &[IpAddr])], suppress: bool) -> Host {
    let networks: Vec<NetworkConfig> = networks
        .iter()
        .map(|(n, peers)| NetworkConfig {
            vni: vni(*n),
            peers: peers.to_vec(),
            learning: true,
            group: None,
            anyone: false,
            suppress,
        })
        .collect();
    let nics = networks.len() as u16;
    let config = VtepConfig {
        local,
        port,
        encapsulation: Encapsulation::Vxlan,
        networks,
        mtu,
        stations: 1024,
        ageing: Duration::from_secs(300),
        seed: 5,
    };
    let mut cx = Context::new(Sizes::default()).unwrap();
    (0..10).for_each(|nic| cx.add_nic(NicId(nic)));
    let mut port = TunnelPort::open(Vtep::new(config).unwrap(), TunnelConfig::default()).unwrap();
    for nic in 0..nics {
        cx.nic = NicId(nic);
        port.attach(&mut cx).unwrap();
    }
    Host { port, cx, now: Instant::START + Duration::from_secs(10) }
}

impl Host {
    /// Frames of a guest in a network; what the port answers to it.
    fn send(&mut self, network: u16, frames: &[(Vec<u8>, Offload)]) -> Vec<Vec<u8>> {
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

    fn answers(&mut self) -> Vec<(u16, Vec<u8>, Offload)> {
        let mut answers = std::mem::take(&mut self.cx.answers);
        // They are the guest's to count.
        self.cx.nic = GUEST;
        let mut out = Vec::new();
        for frame in answers.drain() {
            let head = self.cx.heads.get(&frame);
            let (nic, offload, mut bytes) = (head.origin.nic, head.offload, vec![0; head.len()]);
            assert_eq!(self.cx.read_all(&frame, &mut bytes), Some(bytes.len()));
            self.cx.transmitted(1, 0);
            out.push((nic.0, bytes, offload));
        }
        assert!(self.cx.ledger.balances(), "{:?}", self.cx.ledger);
        out
    }

    /// What has come in: network, frame, what it owes.
    fn receive(&mut self, frames: usize) -> Vec<(u16, Vec<u8>, Offload)> {
        let mut all = Vec::new();
        for _ in 0..2000 {
            self.cx.begin_turn(self.now);
            self.cx.nic = NicId(0);
            let mut burst = Burst::default();
            self.port.receive(&mut self.cx, &mut burst).unwrap();
            assert!(burst.is_empty());
            all.extend(self.answers());
            if all.len() >= frames {
                return all;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} of {frames} frames came", all.len());
    }

    fn drops(&self, nic: u16, reason: DropReason) -> u64 {
        self.cx.counters(NicId(nic)).unwrap().drops(reason)
    }
}

fn pair(mtu: u16) -> (Host, Host) {
    let (a, b) = (address(1, false), address(2, false));
    let port = free_port(a);
    (host(a, port, mtu, &[(5001, &[b]), (5002, &[b])]), host(b, port, mtu, &[(5001, &[a]), (5002, &[a])]))
}

fn udp(to: u8, len: usize, v6: bool, dont_fragment: bool) -> Vec<u8> {
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
fn tcp(len: usize, mss: u16) -> (Vec<u8>, Offload) {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
    let mut bytes = Vec::new();
    let builder = ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 2000, 77, 500).ack(3);
    builder.write(&mut bytes, &payload).unwrap();
    let pseudo = wire::checksum::Checksum::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 6, (20 + len) as u16);
    bytes[50..52].copy_from_slice(&pseudo.fold().to_be_bytes());
    (bytes, Offload::new(Gso::Tcp4, 54, mss, 34, 16))
}

#[test]
fn frames_of_each_network_arrive_in_it_unchanged() {
    let (mut a, mut b) = pair(65_535);
    let frames: Vec<(Vec<u8>, Offload)> =
        [18, 100, 1400, 9000].map(|len| (udp(2, len, len == 100, true), Offload::NONE)).into();
    for network in [0, 1] {
        assert!(a.send(network, &frames).is_empty());
        let got = b.receive(4);
        assert_eq!(got.len(), 4);
        // Flows leave by different sockets, so only frames of one flow keep their order.
        for (sent, _) in &frames {
            let same = got
                .iter()
                .filter(|(came_in, bytes, offload)| *came_in == network && bytes == sent && offload.is_none());
            assert_eq!(same.count(), 1);
        }
    }
    // Who was heard is known: the answer goes to that endpoint.
    assert_eq!(b.port.vtep().stations(b.now).count(), 2);
}

#[test]
fn many_frames_of_one_flow_go_together_and_none_is_lost_or_changed() {
    let (mut a, mut b) = pair(1500);
    let frames: Vec<(Vec<u8>, Offload)> =
        (0..64).map(|n| (udp(2, if n % 20 == 19 { 30 } else { 64 }, false, true), Offload::NONE)).collect();
    a.send(0, &frames);
    let got = b.receive(64);
    assert_eq!(got.len(), 64);
    assert!(got.iter().zip(&frames).all(|((_, bytes, _), (sent, _))| bytes == sent));
    assert_eq!(a.cx.counters(NicId(0)).unwrap().tx_frames, 64);
}

#[test]
fn a_super_frame_is_cut_once_and_put_together_again() {
    let (mut a, mut b) = pair(1500);
    let whole = tcp(60_000, 1400);
    a.send(0, std::slice::from_ref(&whole));
    let got = b.receive(1);
    let bytes: usize = got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum();
    assert_eq!(bytes, 60_000);
    let [(_, bytes, offload)] = &got[..] else { panic!("{} frames", got.len()) };
    assert_eq!((offload.gso(), offload.segment_size()), (Gso::Tcp4, 1400));
    assert!(bytes[54..] == whole.0[54..]);
}

#[test]
fn a_super_frame_of_longer_segments_than_fit_is_cut_smaller() {
    let (mut a, mut b) = pair(1400);
    a.send(0, &[tcp(20_000, 1448)]);
    let got = b.receive(1);
    assert_eq!(got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum::<usize>(), 20_000);
    assert!(got.iter().all(|(_, _, offload)| offload.segment_size() <= 1400 - 50 - 40));
}

#[test]
fn who_sends_what_does_not_fit_is_told_and_what_may_be_cut_is() {
    let (mut a, mut b) = pair(1500);
    let told = a.send(0, &[(udp(2, 1450, false, true), Offload::NONE)]);
    let error = &told[0];
    assert_eq!((error[34], error[35], u16::from_be_bytes([error[40], error[41]])), (3, 4, 1450));
    assert_eq!((&error[..6], &error[26..34]), (&[2, 0, 0, 0, 0, 1][..], &[10, 0, 0, 2, 10, 0, 0, 1][..]));
    let told = a.send(0, &[(udp(2, 1450, true, true), Offload::NONE)]);
    assert_eq!((told[0][54], u32::from_be_bytes(told[0][58..62].try_into().unwrap())), (2, 1450));
    assert_eq!(a.drops(0, DropReason::MtuExceeded), 2);
    let may = udp(2, 2000, false, false);
    assert!(a.send(0, &[(may.clone(), Offload::NONE)]).is_empty());
    let mut fragments = b.receive(2);
    fragments.sort_by_key(|(_, bytes, _)| u16::from_be_bytes([bytes[20] & 0x1f, bytes[21]]));
    let payload: Vec<u8> = fragments.iter().flat_map(|(_, bytes, _)| bytes[34..].to_vec()).collect();
    assert!(payload == may[34..], "together they are the packet");
}

#[test]
fn a_broadcast_reaches_every_endpoint_once() {
    let [a, b, c] = [1, 2, 3].map(|n| address(n, false));
    let port = free_port(a);
    let mut hosts =
        [(a, [b, c]), (b, [a, c]), (c, [a, b])].map(|(local, peers)| host(local, port, 1500, &[(77, &peers)]));
    let mut frame = udp(2, 40, false, true);
    frame[..6].fill(0xff);
    hosts[0].send(0, &[(frame.clone(), Offload::NONE)]);
    for other in &mut hosts[1..] {
        let got = other.receive(1);
        assert_eq!(got.iter().filter(|(_, bytes, _)| *bytes == frame).count(), 1);
        assert_eq!(got.len(), 1);
    }
    // An answer goes to the one it is for.
    let mut answer = udp(1, 40, false, true);
    answer[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    hosts[1].send(0, &[(answer.clone(), Offload::NONE)]);
    assert_eq!(hosts[0].receive(1)[0].1, answer);
    assert_eq!(hosts[1].cx.ledger.copied, 0, "one copy, for one endpoint");
}

#[test]
fn packets_of_strangers_are_counted_and_nothing_else() {
    let (_, mut b) = pair(1500);
    let stranger = UdpSocket::bind("127.0.9.7:0").unwrap();
    let to = (b.port.vtep().local(), b.port.vtep().port());
    stranger.send_to(&[&Encapsulation::Vxlan.header(vni(5001))[..], &udp(2, 18, false, true)].concat(), to).unwrap();
    for _ in 0..2000 {
        b.cx.begin_turn(b.now);
        b.cx.nic = NicId(0);
        b.port.receive(&mut b.cx, &mut Burst::default()).unwrap();
        if b.drops(0, DropReason::UnknownVtep) > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(b.drops(0, DropReason::UnknownVtep), 1);
    assert_eq!(b.port.vtep().stations(b.now).count(), 0);
}

#[test]
fn a_question_for_a_known_neighbour_is_answered_and_stays_here() {
    let (one, two) = (address(1, false), address(2, false));
    let port = free_port(one);
    let mut a = suppressing(one, port, 1500, &[(5001, &[two])], true);
    let mut b = host(two, port, 1500, &[(5001, &[one])]);
    let arp = |operation: u8, from: u8, to: u8| {
        let (from_mac, by, target) = ([2, 0, 0, 0, 0, from], [10, 0, 0, from], [10, 0, 0, to]);
        let (ethernet, there) =
            if operation == 1 { ([0xff; 6], [0; 6]) } else { ([2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, to]) };
        let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
        [&ethernet[..], &from_mac, &fixed, &from_mac, &by, &there, &target, &[0; 18]].concat()
    };
    let question = (arp(1, 1, 2), Offload::NONE);
    assert!(a.send(0, std::slice::from_ref(&question)).is_empty());
    assert_eq!(b.receive(1)[0].1, question.0, "nobody is known: it goes out");
    b.send(0, &[(arp(2, 2, 1), Offload::NONE)]);
    a.receive(1);
    let answers = a.send(0, &[question.clone(), (udp(2, 18, false, true), Offload::NONE)]);
    assert_eq!(answers, [arp(2, 2, 1)]);
    let got = b.receive(1);
    assert_eq!((got.len(), &got[0].1), (1, &udp(2, 18, false, true)), "the question did not cross the underlay");
    assert_eq!(a.port.vtep().answered(), 1);
}

//! A router with several legs and with ports behind it: what goes from where to where, and what it looks like there.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etherparse::ArpOperation;
use gateway::{Config, Elsewhere, Gateway, GatewayPort, Leg, RouterV4};
use wire::{
    Burst, Context, DropReason, Gso, Instant, Mac, NicId, Offload, Origin, Port, Sizes, Wake, checksum::Checksum,
};

use crate::{
    arp::arp,
    segment::{GUEST, GUEST_MAC, OUTSIDE, ROUTER, ROUTER_MAC, check, config, ping, udp},
};

const GUEST_NIC: NicId = NicId(0);
const LAN: NicId = NicId(1);
const DMZ: NicId = NicId(2);
const WAN: NicId = NicId(3);
const DMZ_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 8, 16);
const DMZ_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 8, 1);

/// What a port behind the router was given: the NIC it was called for and the frame.
type Given = Arc<Mutex<Vec<(NicId, Vec<u8>)>>>;

/// A port behind the router: writes down what it gets, and gives back what it is told to.
#[derive(Clone, Default)]
struct Behind {
    given: Given,
    back: Given,
    nics: Arc<Mutex<Vec<NicId>>>,
}

impl Port for Behind {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.nics.lock().unwrap().push(cx.nic);
        Ok(())
    }
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for (_, bytes) in self.back.lock().unwrap().drain(..) {
            burst.push(cx.originate(Origin { nic: NicId(77), lane: 3 }, &bytes).unwrap()).unwrap();
        }
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            let mut bytes = vec![0; cx.heads.get(&frame).len()];
            cx.read_all(&frame, &mut bytes).unwrap();
            cx.transmitted(1, bytes.len() as u64);
            self.given.lock().unwrap().push((cx.nic, bytes));
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        true
    }
}

/// A worker's part: calls the port for its NICs, and shows what it sends and from which NIC.
struct Stand {
    cx: Context,
    now: Instant,
    port: GatewayPort,
}

impl Stand {
    fn new(legs: Vec<Leg>, nics: &[NicId]) -> Stand {
        let mut cx = Context::new(Sizes::default()).unwrap();
        let mut port = GatewayPort::new(legs);
        assert_eq!(port.nics(), nics.len());
        cx.add_nic(NicId(6));
        for nic in nics {
            cx.nic = *nic;
            port.attach(&mut cx).unwrap();
        }
        Stand { cx, now: Instant::START + Duration::from_secs(5), port }
    }

    /// A turn in which `frames` are sent to NIC `to`; without any, one in which the port is polled.
    fn turn(&mut self, to: NicId, frames: &[Vec<u8>], offload: Offload) -> Vec<(NicId, Vec<u8>, Offload)> {
        self.turn_with(GUEST_NIC, to, frames, offload)
    }

    /// A turn in which `frames` come from this NIC.
    fn turn_from(&mut self, from: NicId, to: NicId, frames: &[Vec<u8>]) -> Vec<(NicId, Vec<u8>, Offload)> {
        self.turn_with(from, to, frames, Offload::NONE)
    }

    fn turn_with(
        &mut self,
        from: NicId,
        to: NicId,
        frames: &[Vec<u8>],
        offload: Offload,
    ) -> Vec<(NicId, Vec<u8>, Offload)> {
        let cx = &mut self.cx;
        cx.begin_turn(self.now);
        let mut burst = Burst::default();
        for bytes in frames {
            let frame = cx.originate(Origin { nic: from, lane: 0 }, bytes).unwrap();
            cx.heads.get_mut(&frame).offload = offload;
            burst.push(frame).unwrap();
        }
        cx.nic = to;
        if frames.is_empty() {
            self.port.receive(cx, &mut burst).unwrap();
        } else {
            self.port.transmit(cx, &mut burst).unwrap();
        }
        assert_eq!(cx.nic, to, "whoever calls finds the NIC as it was");
        assert!(burst.is_empty());
        let mut answers = std::mem::take(&mut cx.answers);
        let sent = answers.drain().map(|frame| {
            let head = cx.heads.get(&frame);
            let (origin, offload, mut bytes) = (head.origin, head.offload, vec![0; head.len()]);
            cx.read_all(&frame, &mut bytes).unwrap();
            cx.transmitted(1, bytes.len() as u64);
            (origin.nic, bytes, offload)
        });
        let sent = sent.collect();
        self.port.release(cx).unwrap();
        assert!(cx.ledger.balances(), "{:?}", cx.ledger);
        sent
    }
}

fn leg(config: Config) -> Leg {
    Leg::new(Gateway::new(Config { v6: None, ..config }, Instant::START).unwrap())
}

fn has_right_header(frame: &[u8]) -> bool {
    let mut sum = Checksum::new();
    sum.add_bytes(&frame[14..34]);
    sum.is_valid()
}

/// Two legs that reach each other.
fn lan_and_dmz() -> Stand {
    let lan = Config { routes: vec![(SERVER.into(), 24)], aliases: vec![DMZ_ROUTER.into()], ..config() };
    let v4 = Some(RouterV4 { address: DMZ_ROUTER, prefix: 24, dhcp: None });
    let dmz = Config { v4, routes: vec![(ROUTER.into(), 24)], ..Config::new(DMZ_MAC) };
    Stand::new(vec![leg(lan), leg(dmz)], &[LAN, DMZ])
}

fn answer_of(server: Mac) -> Vec<u8> {
    let mut reply = arp(DMZ_MAC, ArpOperation::REPLY, SERVER, DMZ_MAC, DMZ_ROUTER);
    reply[6..12].copy_from_slice(&server.bytes());
    reply[22..28].copy_from_slice(&server.bytes());
    reply
}

#[test]
fn a_packet_into_another_segment_waits_until_its_neighbour_is_known() {
    let mut stand = lan_and_dmz();
    let packets = [udp(SERVER, 64, 53, b"one"), udp(SERVER, 64, 53, &[2; 1400])];
    let sent = stand.turn(LAN, &packets, Offload::NONE);
    let [(nic, question, _)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((*nic, &question[..6], &question[12..14]), (DMZ, &[0xff; 6][..], &[8, 6][..]), "one question");
    assert_eq!(stand.cx.ledger.held, 2);
    let server = Mac::new([2, 0, 0, 0, 8, 16]);
    let sent = stand.turn(DMZ, &[answer_of(server)], Offload::NONE);
    assert_eq!(sent.len(), 2);
    for ((nic, bytes, _), packet) in sent.iter().zip(&packets) {
        assert!(has_right_header(bytes));
        assert_eq!((*nic, &bytes[..6], &bytes[6..12]), (DMZ, &server.bytes()[..], &DMZ_MAC.bytes()[..]));
        assert_eq!((bytes[22], &bytes[26..]), (63, &packet[26..]), "one hop further, and otherwise the same");
    }
    assert_eq!(stand.cx.ledger.held, 0);
    // From now on at once, with what it owes.
    let owed = Offload::new(Gso::None, 0, 0, 34, 6);
    let sent = stand.turn(LAN, &packets[..1], owed);
    assert_eq!((sent.len(), sent[0].0, sent[0].2), (1, DMZ, owed));
}

#[test]
fn a_neighbour_that_is_silent_costs_a_few_questions_and_the_packets_end_counted() {
    let mut stand = lan_and_dmz();
    let packet = udp(SERVER, 64, 53, b"one");
    let mut questions = 0;
    for _ in 0..40 {
        questions += stand.turn(LAN, std::slice::from_ref(&packet), Offload::NONE).len();
        assert!(stand.cx.ledger.held <= 4);
        stand.now = stand.now + Duration::from_millis(200);
        questions += stand.turn(LAN, &[], Offload::NONE).len();
    }
    assert!((3..=6).contains(&questions), "{questions}");
    assert!(stand.cx.ledger.dropped >= 30);
    stand.now = stand.now + Duration::from_secs(20);
    stand.turn(LAN, &[], Offload::NONE);
    assert_eq!((stand.cx.ledger.held, stand.cx.ledger.dropped), (0, 40));
}

#[test]
fn who_scans_a_network_through_the_router_leaves_room_for_others() {
    let mut stand = lan_and_dmz();
    let scan: Vec<Vec<u8>> = (100..160).map(|last| udp(Ipv4Addr::new(192, 168, 8, last), 64, 53, b"scan")).collect();
    let sent = stand.turn(LAN, &scan, Offload::NONE);
    assert_eq!((sent.len(), stand.cx.ledger.held), (16, 16), "only what is kept is asked for");
    let sent = stand.turn_from(NicId(5), LAN, &[udp(SERVER, 64, 53, b"one")]);
    assert_eq!((sent.len(), stand.cx.ledger.held), (1, 17));
    let server = Mac::new([2, 0, 0, 0, 8, 16]);
    assert_eq!(stand.turn(DMZ, &[answer_of(server)], Offload::NONE).len(), 1);
}

#[test]
fn what_is_too_big_is_not_answered_where_no_error_may_be() {
    let packet = |kind: u8, offset: u16| {
        let mut packet = udp(SERVER, 64, 53, &[7; 1400]);
        packet[20..22].copy_from_slice(&(0x4000 | offset).to_be_bytes());
        (packet[23], packet[34]) = (1, kind);
        crate::segment::mend(&mut packet);
        packet
    };
    for (kind, offset, answers) in [(8, 0, 1), (3, 0, 0), (5, 0, 0), (8, 100, 0)] {
        let sent = lan_and_narrow().turn(LAN, &[packet(kind, offset)], Offload::NONE);
        assert_eq!(sent.len(), answers, "about ICMP {kind} at {offset}: {sent:?}");
    }
}

/// Two legs of which the second takes less, and knows its neighbour.
fn lan_and_narrow() -> Stand {
    let lan = Config { routes: vec![(SERVER.into(), 24)], ..config() };
    let v4 = Some(RouterV4 { address: DMZ_ROUTER, prefix: 24, dhcp: None });
    let dmz = Config { v4, mtu: 600, routes: vec![(ROUTER.into(), 24)], ..Config::new(DMZ_MAC) };
    let mut stand = Stand::new(vec![leg(lan), leg(dmz)], &[LAN, DMZ]);
    stand.turn(LAN, &[udp(SERVER, 64, 53, b"one")], Offload::NONE);
    stand.turn(DMZ, &[answer_of(Mac::new([2, 0, 0, 0, 8, 16]))], Offload::NONE);
    stand
}

#[test]
fn what_does_not_fit_is_cut_or_answered_with_the_mtu() {
    let mut stand = lan_and_narrow();
    let mut packet = udp(SERVER, 64, 53, &[7; 1400]);
    // Without DF, whatever the builder says.
    packet[20] &= !0x40;
    packet[24..26].fill(0);
    let mut sum = Checksum::new();
    sum.add_bytes(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let sent = stand.turn(LAN, std::slice::from_ref(&packet), Offload::NONE);
    let parts: Vec<&[u8]> = sent.iter().map(|(_, bytes, _)| &bytes[34..]).collect();
    assert!(sent.len() == 3 && sent.iter().all(|(nic, bytes, _)| *nic == DMZ && bytes.len() <= 614), "{}", sent.len());
    assert_eq!(parts.concat(), packet[34..], "nothing but cut");
    assert!(sent.iter().all(|(_, bytes, _)| has_right_header(bytes)));
    // With DF: the sender hears what fits.
    packet[20] |= 0x40;
    packet[24..26].fill(0);
    let mut sum = Checksum::new();
    sum.add_bytes(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let sent = stand.turn(LAN, &[packet], Offload::NONE);
    let [(LAN, error, _)] = sent.as_slice() else { panic!("{sent:?}") };
    check(error);
    assert_eq!((error[34], error[35], &error[40..42]), (3, 4, &600u16.to_be_bytes()[..]));
}

#[test]
fn the_router_is_pinged_at_its_addresses_in_other_segments() {
    let mut stand = lan_and_dmz();
    let sent = stand.turn(LAN, &[ping(DMZ_ROUTER, 64, b"hello")], Offload::NONE);
    let [(LAN, answer, _)] = sent.as_slice() else { panic!("{sent:?}") };
    check(answer);
    assert_eq!((answer[34], &answer[26..30]), (0, &DMZ_ROUTER.octets()[..]), "a reply from the address that was asked");
}

#[test]
fn what_comes_back_from_the_way_out_is_addressed_or_left_as_it_is() {
    let way_out = Behind::default();
    let lan = leg(Config { elsewhere: Elsewhere::Forward, ..config() }).with_way_out(Box::new(way_out.clone()), 1);
    let mut stand = Stand::new(vec![lan], &[LAN, WAN]);
    assert_eq!(*way_out.nics.lock().unwrap(), [LAN, WAN], "inside first");
    let mut known = udp(GUEST, 64, 9, b"known");
    let mut unknown = known.clone();
    unknown[..6].fill(0);
    known[..6].copy_from_slice(&GUEST_MAC.bytes());
    // Back at once, in the turn in which the guest sent.
    way_out.back.lock().unwrap().push((LAN, known));
    let sent = stand.turn(LAN, &[udp(OUTSIDE, 64, 53, b"out")], Offload::NONE);
    assert_eq!(way_out.given.lock().unwrap()[0].0, LAN);
    assert_eq!(way_out.given.lock().unwrap()[0].1[22], 63);
    assert_eq!((sent.len(), sent[0].0), (1, LAN));
    assert_eq!((&sent[0].1[..6], &sent[0].1[6..12]), (&GUEST_MAC.bytes()[..], &ROUTER_MAC.bytes()[..]));
    // From outside, and to nobody known: the router asks and waits.
    way_out.back.lock().unwrap().push((LAN, unknown));
    let sent = stand.turn(WAN, &[udp(OUTSIDE, 64, 53, b"in")], Offload::NONE);
    assert_eq!(way_out.given.lock().unwrap()[1].0, WAN);
    assert_eq!((sent.len(), sent[0].0, &sent[0].1[12..14]), (1, LAN, &[8, 6][..]));
    let reply = arp(ROUTER_MAC, ArpOperation::REPLY, GUEST, ROUTER_MAC, ROUTER);
    let sent = stand.turn(LAN, &[reply], Offload::NONE);
    assert_eq!((sent.len(), &sent[0].1[..6]), (1, &GUEST_MAC.bytes()[..]));
}

#[test]
fn services_get_their_ports_and_the_way_out_gets_the_others_of_the_router() {
    let (way_out, service) = (Behind::default(), Behind::default());
    let config = Config { services: vec![53], onward: vec![ROUTER.into()], ..config() };
    let lan = leg(config).with_way_out(Box::new(way_out.clone()), 0).with_service(Box::new(service.clone()));
    let mut stand = Stand::new(vec![lan], &[LAN]);
    let last_hop = udp(ROUTER, 1, 8080, b"onward");
    let sent = stand.turn(LAN, &[udp(ROUTER, 64, 53, b"name"), last_hop.clone()], Offload::NONE);
    assert!(sent.is_empty());
    assert_eq!(service.given.lock().unwrap().len(), 1);
    assert_eq!(
        way_out.given.lock().unwrap()[0].1,
        last_hop,
        "it has arrived, so nothing is taken from its time to live"
    );
    assert_eq!(stand.turn(LAN, &[ping(ROUTER, 64, b"")], Offload::NONE).len(), 1, "echoes are the router's own");
    let mut answer = udp(GUEST, 64, 9, b"answer");
    answer[..6].copy_from_slice(&GUEST_MAC.bytes());
    service.back.lock().unwrap().push((LAN, answer));
    assert_eq!(stand.turn(LAN, &[], Offload::NONE).len(), 1, "in a turn of its own");
}

#[test]
fn the_time_to_live_goes_down_and_the_header_stays_right() {
    let way_out = Behind::default();
    let lan = leg(Config { elsewhere: Elsewhere::Forward, ..config() }).with_way_out(Box::new(way_out.clone()), 0);
    let mut stand = Stand::new(vec![lan], &[LAN]);
    for ttl in 2..=255 {
        stand.turn(LAN, &[udp(OUTSIDE, ttl, 53, b"")], Offload::NONE);
        let (_, bytes) = way_out.given.lock().unwrap().pop().unwrap();
        assert_eq!(bytes[22], ttl - 1);
        assert!(has_right_header(&bytes), "{ttl}");
    }
    stand.turn(LAN, &[udp(OUTSIDE, 1, 53, b"")], Offload::NONE);
    assert!(way_out.given.lock().unwrap().is_empty());
}

/// A network behind the first leg's way out, which the second leg shares; both reach each other. Ports 5 and 6 are isolated.
fn lan_and_vlan(way_out: &Behind, lan: Config) -> Stand {
    let onward = vec![ROUTER.into()];
    let shared = Config { elsewhere: Elsewhere::Forward, onward, ..Config::new(DMZ_MAC) };
    let lan = Config { elsewhere: Elsewhere::Forward, routes: vec![(SERVER.into(), 24)], ..lan };
    let v4 = Some(RouterV4 { address: DMZ_ROUTER, prefix: 24, dhcp: None });
    let vlan = Config { v4, routes: vec![(ROUTER.into(), 24)], aliases: vec![ROUTER.into()], ..shared };
    let isolated = || vec![NicId(5), NicId(6)];
    let lan = leg(lan).with_way_out(Box::new(way_out.clone()), 1).with_isolated(isolated());
    let vlan = leg(vlan).with_way_out_of(0).with_isolated(isolated());
    let mut stand = Stand::new(vec![lan, vlan], &[LAN, DMZ, WAN]);
    stand.turn(DMZ, &[answer_of(SERVER_MAC)], Offload::NONE);
    stand
}

const SERVER_MAC: Mac = Mac::new([2, 0, 0, 0, 8, 16]);

/// A frame from the server of the second segment to that segment's router.
fn from_server(mut packet: Vec<u8>) -> Vec<u8> {
    packet[..6].copy_from_slice(&DMZ_MAC.bytes());
    packet[6..12].copy_from_slice(&SERVER_MAC.bytes());
    packet
}

#[test]
fn segments_of_a_network_share_its_way_out() {
    let way_out = Behind::default();
    let mut stand = lan_and_vlan(&way_out, config());
    // Out, and at once back: to each segment what is for its guests, whoever's turn it is.
    let home = |to, mac: Mac| {
        let mut packet = udp(to, 64, 9, b"home");
        packet[..6].copy_from_slice(&mac.bytes());
        packet
    };
    for (leg, packet) in [(DMZ, from_server(udp(OUTSIDE, 64, 53, b"out"))), (LAN, udp(OUTSIDE, 64, 53, b"out"))] {
        way_out.back.lock().unwrap().extend([(LAN, home(SERVER, SERVER_MAC)), (LAN, home(GUEST, GUEST_MAC))]);
        let sent = stand.turn(leg, &[packet], Offload::NONE);
        let (nic, given) = way_out.given.lock().unwrap().pop().unwrap();
        assert_eq!((nic, given[22], way_out.given.lock().unwrap().len()), (LAN, 63, 0), "as the leg whose it is");
        let mut sent: Vec<_> = sent.iter().map(|(nic, bytes, _)| (*nic, bytes[..12].to_vec())).collect();
        sent.sort();
        let expected = [
            (LAN, [GUEST_MAC.bytes(), ROUTER_MAC.bytes()].concat()),
            (DMZ, [SERVER_MAC.bytes(), DMZ_MAC.bytes()].concat()),
        ];
        assert_eq!(sent, expected);
    }
    // From outside, and polled.
    for frames in [vec![udp(OUTSIDE, 64, 53, b"in")], Vec::new()] {
        way_out.back.lock().unwrap().push((LAN, home(SERVER, Mac::new([0; 6]))));
        let sent = stand.turn(if frames.is_empty() { LAN } else { WAN }, &frames, Offload::NONE);
        assert_eq!((sent.len(), sent[0].0, &sent[0].1[..6]), (1, DMZ, &SERVER_MAC.bytes()[..]));
    }
    // What comes from outside is of many senders, and waits as such in whichever segment.
    let hosts = (100..120).map(|last| (LAN, home(Ipv4Addr::new(192, 168, 8, last), Mac::new([0; 6]))));
    way_out.back.lock().unwrap().extend(hosts);
    assert_eq!(stand.turn(LAN, &[], Offload::NONE).len(), 20, "as many questions");
    assert_eq!(stand.cx.ledger.held, 20);
    // Nobody's.
    way_out.back.lock().unwrap().push((LAN, home(Ipv4Addr::new(203, 0, 113, 9), Mac::new([0; 6]))));
    assert!(stand.turn(LAN, &[], Offload::NONE).is_empty());
    // What goes between the segments does not go out.
    way_out.given.lock().unwrap().clear();
    let sent = stand.turn(LAN, &[udp(SERVER, 64, 53, b"across")], Offload::NONE);
    assert_eq!((sent.len(), sent[0].0, way_out.given.lock().unwrap().len()), (1, DMZ, 0));
}

#[test]
fn answers_to_the_networks_router_go_to_the_way_out_from_every_segment() {
    let way_out = Behind::default();
    let mut stand = lan_and_vlan(&way_out, Config { onward: vec![ROUTER.into()], ..config() });
    let sent = stand.turn(DMZ, &[from_server(udp(ROUTER, 64, 8080, b"a client's"))], Offload::NONE);
    assert!(sent.is_empty());
    assert_eq!(way_out.given.lock().unwrap().pop().unwrap().1[30..34], ROUTER.octets());
    // Its own address there serves nothing, and says so; pings are answered at both.
    let sent = stand.turn(DMZ, &[from_server(udp(DMZ_ROUTER, 64, 8080, b"nobody's"))], Offload::NONE);
    assert_eq!((sent.len(), sent[0].1[34], sent[0].1[35]), (1, 3, 3), "port unreachable");
    for to in [ROUTER, DMZ_ROUTER] {
        assert_eq!(stand.turn(DMZ, &[from_server(ping(to, 64, b""))], Offload::NONE).len(), 1);
    }
    assert!(way_out.given.lock().unwrap().is_empty());
}

#[test]
fn isolated_ports_do_not_reach_each_other_over_the_router() {
    let mut stand = lan_and_vlan(&Behind::default(), config());
    let across = || udp(SERVER, 64, 53, b"across");
    assert_eq!(stand.turn_from(NicId(5), LAN, &[across()]).len(), 1, "the server's port is not isolated");
    stand.turn_from(NicId(6), DMZ, &[answer_of(SERVER_MAC)]);
    assert_eq!(stand.turn_from(NicId(5), LAN, &[across()]).len(), 0);
    let isolated = stand.cx.counters(NicId(5)).unwrap().drops(DropReason::Isolated);
    assert_eq!(isolated, 1, "counted where it came from");
    assert_eq!(stand.turn_from(GUEST_NIC, LAN, &[across()]).len(), 1);
    // Nor while it is asked for: what has waited is judged as well.
    let other = Ipv4Addr::new(192, 168, 8, 17);
    let mut answer = arp(DMZ_MAC, ArpOperation::REPLY, other, DMZ_MAC, DMZ_ROUTER);
    answer[6..12].copy_from_slice(&SERVER_MAC.bytes());
    answer[22..28].copy_from_slice(&SERVER_MAC.bytes());
    let sent = stand.turn_from(NicId(5), LAN, &[udp(other, 64, 53, b"first")]);
    assert_eq!((sent.len(), &sent[0].1[12..14]), (1, &[8, 6][..]), "a question");
    assert_eq!(stand.turn_from(NicId(6), DMZ, &[answer]).len(), 0);
}

#[test]
fn guests_are_told_that_nothing_leads_out_for_as_long_as_that_is_so() {
    let (way_out, leads) = (Behind::default(), Arc::new(AtomicBool::new(false)));
    let lan = leg(Config { elsewhere: Elsewhere::Forward, ..config() }).with_way_out(Box::new(way_out.clone()), 0);
    let mut stand = Stand::new(vec![lan.leads_out_while(Arc::clone(&leads))], &[LAN]);
    let given = || way_out.given.lock().unwrap().drain(..).count();
    for there in [false, true, false, true] {
        leads.store(there, Ordering::Relaxed);
        let sent = stand.turn(LAN, &[udp(OUTSIDE, 64, 53, b"out")], Offload::NONE);
        match sent.as_slice() {
            [] => assert!(there),
            [(LAN, error, _)] => assert_eq!((there, error[34], error[35]), (false, 3, 0), "network unreachable"),
            other => panic!("{other:?}"),
        }
        assert_eq!(given(), usize::from(there));
    }
}

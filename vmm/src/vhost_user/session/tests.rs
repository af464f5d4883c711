//! Sessions without sockets: messages in, steps, lanes and effects out.

mod resume;

use super::{super::testing::*, *};
use crate::vhost_user::message::HEADER_BYTES;

/// A session and the lanes that a worker would hold.
struct Bench {
    session: Session,
    away: Vec<Lane>,
    announced: Vec<Mac>,
    filters: Vec<RxFilter>,
    pairs: Vec<u16>,
    control: Option<EventFd>,
    detached: Vec<u16>,
}

impl Bench {
    fn new(device: Device) -> Bench {
        Bench {
            session: Session::new(Arc::new(device)),
            away: Vec::new(),
            announced: Vec::new(),
            filters: Vec::new(),
            pairs: Vec::new(),
            control: None,
            detached: Vec::new(),
        }
    }

    /// Sends one message; lanes that are asked for stay away.
    fn send_only(&mut self, message: Message) -> Step {
        let header: [u8; HEADER_BYTES] = message.bytes()[..HEADER_BYTES].try_into().unwrap();
        let header = Header::parse(&header).unwrap();
        let step = self.session.message(header, Request::parse(message.code, &message.payload, message.fds));
        self.pass_on();
        step
    }

    fn pass_on(&mut self) {
        for effect in self.session.take_effects() {
            match effect {
                Effect::Attach(lane) => self.away.push(*lane),
                Effect::Detach(lane) => self.detached.push(lane),
                Effect::Announce(mac) => self.announced.push(mac),
                Effect::Filter(filter) => self.filters.push(*filter),
                Effect::Pairs(pairs) => self.pairs.push(pairs),
                Effect::ControlKick(kick) => self.control = kick,
            }
        }
    }

    /// Sends one message, and home what it asks for.
    fn send(&mut self, message: Message) -> Step {
        let mut step = self.send_only(message);
        while let Some(lane) = self.detached.pop() {
            assert!(matches!(step, Step::Wait), "a lane is asked for by a message that waits");
            step = self.bring_home(lane, None);
        }
        step
    }

    fn bring_home(&mut self, lane: u16, failure: Option<&str>) -> Step {
        let at = self.away.iter().position(|away| away.index == lane).expect("the lane is away");
        let lane = self.away.remove(at);
        let step = self.session.home(lane, failure.map(str::to_owned));
        self.pass_on();
        step
    }

    fn send_all(&mut self, messages: Vec<Message>) {
        for message in messages {
            let text = format!("{message:?}");
            let step = self.send(message);
            assert!(!matches!(step, Step::End(..) | Step::Wait), "{text}: {step:?}");
        }
    }

    fn lane(&self, index: u16) -> &Lane {
        self.away.iter().find(|lane| lane.index == index).expect("the lane is away")
    }

    fn reason(&mut self, message: Message) -> String {
        match self.send(message) {
            Step::End(_, error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn reply(&mut self, message: Message) -> Vec<u8> {
        match self.send(message) {
            Step::Reply(reply) => reply.bytes[HEADER_BYTES..].to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

/// A session whose lane 0 runs.
fn running(device: Device, features: Features) -> (Bench, Guest) {
    let (mut bench, guest) = (Bench::new(device), Guest::new());
    bench.send_all(greeting(QUIET));
    bench.send_all(start(&guest, features, 0));
    assert_eq!(bench.session.state(), PortState::Up);
    (bench, guest)
}

#[test]
fn rings_run_once_kick_memory_and_addresses_are_known() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    bench.send_all(greeting(QUIET));
    assert!(bench.away.is_empty());
    let mut messages = start(&guest, common(), 7);
    let rest = messages.split_off(6);
    bench.send_all(messages);
    let lane = bench.lane(0);
    assert!(lane.rx.as_ref().is_some_and(|rx| rx.enabled && rx.base() == 7) && lane.tx.is_none());
    bench.send_all(rest);
    let lane = bench.lane(0);
    assert!(
        lane.rx.is_some() && lane.tx.as_ref().is_some_and(|tx| tx.enabled && tx.call.is_some() && tx.kick.is_some())
    );
    assert_eq!(lane.features, common());
}

#[test]
fn any_order_of_the_settings_will_do() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    let mut messages = start(&guest, common(), 0);
    messages.reverse();
    bench.send_all(messages);
    assert!(bench.away.is_empty(), "nobody has enabled it");
    bench.send_all(vec![state(code::SET_VRING_ENABLE, 0, 1)]);
    assert!(bench.lane(0).rx.as_ref().unwrap().enabled && bench.lane(0).tx.is_none());
}

#[test]
fn without_protocol_features_rings_are_enabled_from_the_start() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    bench.send_all(start(&guest, common().without(Features::PROTOCOL_FEATURES), 0));
    let lane = bench.lane(0);
    assert!(lane.rx.as_ref().unwrap().enabled && lane.tx.as_ref().unwrap().enabled);
    assert!(lane.rx.as_ref().unwrap().kick.is_some());
}

#[test]
fn a_ring_without_a_kick_is_polled() {
    let (mut bench, _guest) = running(Device::default(), common());
    bench.send_all(vec![bell(code::SET_VRING_KICK, 1, None), bell(code::SET_VRING_CALL, 1, None)]);
    let tx = bench.lane(0).tx.as_ref().unwrap();
    assert!(tx.kick.is_none() && tx.call.is_none());
}

#[test]
fn a_stopping_ring_is_answered_when_it_is_home() {
    let (mut bench, _guest) = running(Device::default(), common());
    assert!(matches!(bench.send_only(state(code::GET_VRING_BASE, 1, 0)), Step::Wait));
    assert_eq!((bench.detached.pop(), bench.session.is_home()), (Some(0), false));
    let Step::Reply(reply) = bench.bring_home(0, None) else { panic!() };
    assert_eq!(reply.bytes[HEADER_BYTES..], [1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
    let lane = bench.lane(0);
    assert!(lane.rx.is_some() && lane.tx.is_none(), "the other ring goes on");
    bench.send_all(vec![state(code::GET_VRING_BASE, 0, 0)]);
    assert!(bench.away.is_empty() && bench.session.is_home());
    assert!(matches!(bench.session.state(), PortState::Waiting(_)));
}

#[test]
fn acknowledgements_come_only_when_agreed_on_and_asked_for() {
    let mut bench = Bench::new(Device::default());
    assert!(matches!(bench.send(plain(code::SET_OWNER).asking()), Step::Nothing));
    let offered = word(code::SET_PROTOCOL_FEATURES, protocol::OFFERED);
    assert_eq!(bench.reply(offered.asking()), 0u64.to_ne_bytes());
    assert!(matches!(bench.send(plain(code::SET_OWNER)), Step::Nothing));
    assert_eq!(bench.reply(plain(code::SET_OWNER).asking()), 0u64.to_ne_bytes());
    let features = bench.reply(plain(code::GET_FEATURES).asking());
    assert_eq!(features, Device::default().offered().0.to_ne_bytes(), "a reply of its own is the only one");
}

#[test]
fn what_is_not_known_is_refused_to_those_who_ask_and_ends_the_others() {
    let mut bench = Bench::new(Device { mtu: Some(1500), ..Device::default() });
    bench.send_all(vec![word(code::SET_PROTOCOL_FEATURES, protocol::OFFERED)]);
    assert_eq!(bench.reply(plain(99).asking()), 1u64.to_ne_bytes());
    assert_eq!(bench.reply(word(code::NET_SET_MTU, 1501).asking()), 1u64.to_ne_bytes());
    assert_eq!(bench.reply(word(code::NET_SET_MTU, 1400).asking()), 0u64.to_ne_bytes());
    assert_eq!(bench.reason(word(code::NET_SET_MTU, 67)), "NET_SET_MTU asks for 67; this port allows 68 to 1500");
    assert_eq!(bench.reason(plain(99)), "request 99 is not supported");
    let step = bench.send(word(code::SET_FEATURES, 1 << 60).asking());
    let Step::End(Some(reply), error) = step else { panic!("{step:?}") };
    assert_eq!(reply.bytes[HEADER_BYTES..], 1u64.to_ne_bytes());
    assert_eq!(error.to_string(), "SET_FEATURES agrees to features 0x1000000000000000, which were not offered");
}

#[test]
fn the_memory_changes_only_while_the_lane_is_home() {
    let (mut bench, guest) = running(Device::default(), common());
    let before = bench.lane(0).memory.clone();
    assert!(matches!(bench.send_only(whole_table(&guest)), Step::Wait));
    assert_eq!(bench.session.table.memory().map(Arc::as_ptr), Some(Arc::as_ptr(&before)));
    bench.detached.clear();
    assert!(matches!(bench.bring_home(0, None), Step::Nothing));
    assert!(!Arc::ptr_eq(&before, &bench.lane(0).memory));
    assert_eq!(Arc::strong_count(&before), 1, "nobody else holds the old memory");
}

#[test]
fn a_table_that_no_longer_holds_a_running_ring_ends_the_session() {
    let (mut bench, guest) = running(Device::default(), common());
    let reason = bench.reason(table(&guest, &[(0, 0x1_8000, 0)]));
    assert!(reason.contains("device area of ring 0") && reason.contains("in no memory region"), "{reason}");
    let (mut bench, guest) = running(Device::default(), common());
    let reason = bench.reason(table(&guest, &[(0, 0x2_0000, 0), (0x1_f000, 0x1000, 0)]));
    assert!(reason.contains("overlap"), "{reason}");
    let reason = bench.reason(table(&guest, &[(0, MEMORY + 1, 0)]));
    assert!(reason.contains("cannot be mapped"), "{reason}");
}

#[test]
fn a_ring_waits_while_its_region_is_replaced() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    bench.send_all(greeting(QUIET));
    let mut messages = start(&guest, common(), 3);
    messages[1] = region(&guest, code::ADD_MEM_REG, 0, MEMORY);
    bench.send_all(messages);
    assert_eq!(bench.session.state(), PortState::Up);
    bench.send_all(vec![region(&guest, code::REM_MEM_REG, 0, MEMORY)]);
    assert!(bench.away.is_empty());
    assert_eq!(bench.session.state(), PortState::Waiting("the front end removed the memory of ring 0".to_owned()));
    // Half of it holds ring 0 only.
    bench.send_all(vec![region(&guest, code::ADD_MEM_REG, 0, 0x2_0000)]);
    assert!(bench.lane(0).rx.is_some() && bench.lane(0).tx.is_none());
    bench.send_all(vec![region(&guest, code::ADD_MEM_REG, 0x2_0000, 0x2_0000)]);
    let lane = bench.lane(0);
    assert_eq!((lane.rx.as_ref().unwrap().base(), lane.tx.as_ref().unwrap().base()), (3, 3));
    assert_eq!(lane.memory.regions().len(), 2);
    let reason = bench.reason(region(&guest, code::REM_MEM_REG, 0x1000, 0x2_0000));
    assert_eq!(reason, "REM_MEM_REG for 0x20000 bytes at guest address 0x1000, where no such region is");
}

#[test]
fn there_are_509_memory_slots() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    assert_eq!(bench.reply(plain(code::GET_MAX_MEM_SLOTS)), 509u64.to_ne_bytes());
    bench.send_all((0..509).map(|n| region(&guest, code::ADD_MEM_REG, n * 4096, 4096)).collect());
    let reason = bench.reason(region(&guest, code::ADD_MEM_REG, 509 * 4096, 4096));
    assert_eq!(reason, "a memory table has 1 to 509 regions, not 510");
}

#[test]
fn writes_are_logged_from_the_acknowledgement_on() {
    let (mut bench, _guest) = running(Device::default(), common());
    let log = sys::memory::memfd("log", 4096).unwrap();
    let reply = bench.reply(Message::new(code::SET_LOG_BASE, words(&[4096, 0]), vec![log]));
    assert_eq!(reply, words(&[4096, 0]));
    assert!(!bench.lane(0).memory.is_logged());
    bench.send_all(vec![word(code::SET_PROTOCOL_FEATURES, protocol::OFFERED)]);
    let logged = common().with(Features::LOG_ALL);
    assert!(
        matches!(bench.send_only(word(code::SET_FEATURES, logged.0).asking()), Step::Wait),
        "not before the worker"
    );
    bench.detached.clear();
    let Step::Reply(_) = bench.bring_home(0, None) else { panic!() };
    assert!(bench.lane(0).memory.is_logged());
    bench.send_all(vec![word(code::SET_FEATURES, common().0)]);
    assert!(!bench.lane(0).memory.is_logged());
}

#[test]
fn features_do_not_change_under_a_running_ring() {
    let (mut bench, _guest) = running(Device::default(), common());
    bench.send_all(vec![word(code::SET_FEATURES, common().0)]);
    assert!(bench.detached.is_empty(), "the same features change nothing");
    let other = common().without(Features::EVENT_IDX);
    let reason = bench.reason(word(code::SET_FEATURES, other.0));
    assert!(reason.starts_with("SET_FEATURES changes 0x20000000 while ring 0 runs"), "{reason}");
}

#[test]
fn size_and_base_do_not_change_under_a_running_ring() {
    let (mut bench, _guest) = running(Device::default(), common());
    bench.send_all(vec![state(code::SET_VRING_NUM, 0, u32::from(ENTRIES)), address(0)]);
    assert!(bench.detached.is_empty(), "what it has already changes nothing");
    let reason = bench.reason(state(code::SET_VRING_NUM, 0, 32));
    assert_eq!(reason, "SET_VRING_NUM for ring 0, which runs; it is stopped with GET_VRING_BASE first");
    let (mut bench, _guest) = running(Device::default(), common());
    assert!(bench.reason(state(code::SET_VRING_BASE, 1, 0)).contains("ring 1, which runs"));
}

#[test]
fn a_disabled_ring_may_begin_anew_without_being_stopped() {
    let (mut bench, guest) = running(Device::default(), common());
    bench.send_all(vec![state(code::SET_VRING_ENABLE, 0, 0), state(code::SET_VRING_ENABLE, 1, 0)]);
    assert!(bench.away.is_empty(), "nobody touches the memory of a disabled ring");
    bench.send_all(start(&guest, common().without(Features::MRG_RXBUF), 9));
    bench.send_all(vec![state(code::SET_VRING_ENABLE, 0, 1)]);
    let lane = bench.lane(0);
    assert!(lane.rx.as_ref().is_some_and(|rx| rx.enabled && rx.base() == 9));
}

#[test]
fn a_failed_lane_stays_home_until_its_rings_start_anew() {
    let (mut bench, guest) = running(Device::default(), common());
    let err = EventFd::new().unwrap();
    bench.send_all(vec![bell(code::SET_VRING_ERR, 0, Some(&err))]);
    assert!(matches!(bench.bring_home(0, Some("descriptor 70 in a ring of 64")), Step::Nothing));
    assert_eq!(bench.session.state(), PortState::Down("descriptor 70 in a ring of 64".to_owned()));
    assert!(err.drain().unwrap(), "the front end hears of it");
    assert_eq!(bench.reply(plain(code::GET_STATUS)), 0x40u64.to_ne_bytes());
    bench.send_all(vec![whole_table(&guest), bell(code::SET_VRING_KICK, 0, None)]);
    assert!(bench.away.is_empty());
    bench.send_all(vec![state(code::GET_VRING_BASE, 0, 0), state(code::GET_VRING_BASE, 1, 0)]);
    bench.send_all(start(&guest, common(), 0));
    assert_eq!(bench.session.state(), PortState::Up);
}

#[test]
fn several_lanes_change_one_by_one() {
    let (mut bench, _guest) = running(Device { queues: 2, ..Device::default() }, common().with(Features::MQ));
    let kick = EventFd::new().unwrap();
    for ring in [2, 3] {
        bench.send_all(vec![state(code::SET_VRING_ENABLE, ring, 1)]);
        bench.send_all(ring_start(ring, 0, &kick));
    }
    assert!(bench.lane(1).rx.is_some() && bench.lane(1).tx.is_some());
    assert!(matches!(bench.send_only(state(code::SET_VRING_ENABLE, 2, 0)), Step::Wait));
    assert_eq!(std::mem::take(&mut bench.detached), [1], "lane 0 goes on");
    assert!(matches!(bench.bring_home(1, None), Step::Nothing));
    assert_eq!(bench.reason(state(code::SET_VRING_ENABLE, 5, 1)), "ring 5 of a port with rings 0 to 4");
}

#[test]
fn a_reset_stops_everything_and_keeps_the_memory() {
    for reset in [plain(code::RESET_DEVICE), word(code::SET_STATUS, 0)] {
        let (mut bench, guest) = running(Device::default(), common());
        bench.send_all(vec![reset]);
        assert!(bench.away.is_empty() && bench.session.table.memory().is_some());
        let mut again = start(&guest, common(), 0);
        again.remove(1);
        bench.send_all(again);
        bench.send_all(vec![state(code::SET_VRING_ENABLE, 0, 1), state(code::SET_VRING_ENABLE, 1, 1)]);
        assert_eq!(bench.session.state(), PortState::Up);
    }
    let (mut bench, _guest) = running(Device::default(), common());
    bench.send_all(vec![plain(code::RESET_OWNER), word(code::SET_STATUS, 15)]);
    assert!(bench.away.is_empty());
    assert_eq!(bench.reply(plain(code::GET_STATUS)), 15u64.to_ne_bytes());
}

#[test]
fn the_configuration_space_is_read_and_its_address_written() {
    let mac: Mac = "02:00:00:00:00:05".parse().unwrap();
    let mut bench = Bench::new(Device { mac: Some(mac), mtu: Some(1500), ..Device::default() });
    let config = |code, offset: u32, flags: u32, bytes: &[u8]| {
        let head = [offset, bytes.len() as u32, flags].map(u32::to_ne_bytes).concat();
        Message::new(code, [&head, bytes].concat(), vec![])
    };
    assert_eq!(bench.reply(config(code::GET_CONFIG, 0, 0, &[0; 6]))[12..], mac.bytes());
    assert_eq!(bench.reply(config(code::GET_CONFIG, 10, 0, &[0; 2]))[12..], 1500u16.to_le_bytes());
    assert_eq!(bench.reply(config(code::GET_CONFIG, 0, 0, &[0; 256])).len(), 12 + 256);
    assert_eq!(bench.reply(config(code::GET_CONFIG, 255, 0, &[0; 2])).len(), 12, "past the end there is nothing");
    bench.send_all(vec![config(code::SET_CONFIG, 5, 0, &[9])]);
    assert_eq!(bench.reply(config(code::GET_CONFIG, 0, 0, &[0; 6]))[12..], [2, 0, 0, 0, 0, 9]);
    bench.send_all(vec![config(code::SET_CONFIG, 0, 1, &[2, 1, 1, 1, 1, 1, 0, 0])]);
    assert!(bench.reason(config(code::SET_CONFIG, 6, 0, &[0])).starts_with("SET_CONFIG of 1 bytes at 6"));
    bench.send_all(vec![word(code::SET_FEATURES, Features::VERSION_1.0)]);
    assert!(bench.reason(config(code::SET_CONFIG, 0, 0, &[0; 6])).starts_with("SET_CONFIG of 6 bytes at 0"));
}

#[test]
fn a_moved_guest_is_announced() {
    let mut bench = Bench::new(Device::default());
    bench.send_all(vec![word(code::SEND_RARP, u64::from_ne_bytes([2, 0, 0, 0, 0, 7, 0, 0]))]);
    assert_eq!(bench.announced, ["02:00:00:00:00:07".parse().unwrap()]);
}

#[test]
fn legacy_headers_take_the_port_down_with_a_reason() {
    let (mut bench, guest) = (Bench::new(Device::default()), Guest::new());
    bench.send_all(start(&guest, Features::default(), 0));
    let PortState::Down(reason) = bench.session.state() else { panic!() };
    assert!(reason.contains("header of 10 bytes"), "{reason}");
}

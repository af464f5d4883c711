//! The thread as a whole: real sockets, a switch that writes down what it is told, and front ends good and bad.

mod foreign;
mod hostile;
mod recorder;

use std::time::Duration;

use recorder::{Setting, Wire};

use super::{super::testing::*, *};
use crate::vhost_user::message::code;

/// A port that a well-behaved front end keeps busy, whatever happens to others.
struct Neighbour {
    wire: Wire,
    guest: Guest,
}

impl Neighbour {
    fn new(setting: &Setting, port: u32) -> Neighbour {
        let (mut wire, guest) = (setting.connect(port), Guest::new());
        wire.say_all(greeting(QUIET));
        wire.say_all(start(&guest, common(), 0));
        setting.recorder.wait("the neighbour is up", |record| record.is_up(port));
        Neighbour { wire, guest }
    }

    /// Still served, and its lane was never taken away.
    fn finish_well(mut self, setting: &Setting, port: u32) {
        assert_eq!(self.wire.ask(plain(code::GET_QUEUE_NUM)), 1u64.to_ne_bytes());
        setting.recorder.look(|record| assert_eq!(record.count(&format!("attach {port}/0")), 1 + 3, "{record:?}"));
        let base = self.wire.ask(state(code::GET_VRING_BASE, 0, 0));
        assert_eq!(base[4..], 0u32.to_ne_bytes());
        drop(self.guest);
    }
}

#[test]
fn a_front_end_may_go_at_any_message() {
    let setting = Setting::new(2);
    let neighbour = Neighbour::new(&setting, 1);
    let guest = Guest::new();
    let sequence = || {
        let mut messages = greeting(QUIET);
        messages.extend(start(&guest, common(), 0));
        messages.push(region(&guest, code::REM_MEM_REG, 0, MEMORY));
        messages.push(region(&guest, code::ADD_MEM_REG, 0, MEMORY));
        messages.push(state(code::GET_VRING_BASE, 0, 0));
        messages.push(state(code::GET_VRING_BASE, 1, 0));
        messages
    };
    for cut in 0..=sequence().len() {
        for half in [false, true] {
            let mut wire = setting.connect(0);
            let mut messages = sequence().into_iter();
            wire.say_all(messages.by_ref().take(cut).collect());
            if let (Some(next), true) = (messages.next(), half) {
                wire.say_half(next);
            }
            drop(wire);
            setting.recorder.wait(&format!("cut {cut}, half {half}: all is home"), |record| {
                record.lanes_of(0) == 0 && record.reason(0).is_some_and(|why| why.starts_with("the front end closed"))
            });
            setting.recorder.forget(0);
        }
    }
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    wire.say_all(enable_and_start(&guest, common(), 0));
    setting.recorder.wait("the last one is up", |record| record.is_up(0));
    neighbour.finish_well(&setting, 1);
}

#[test]
fn a_message_that_needs_a_lane_is_answered_when_the_worker_lets_go() {
    let setting = Setting::new(2);
    let mut neighbour = Neighbour::new(&setting, 1);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    wire.say_all(greeting(QUIET));
    wire.say_all(start(&guest, common(), 0));
    setting.recorder.wait("up", |record| record.is_up(0));
    setting.recorder.hold(true);
    wire.say(whole_table(&guest));
    wire.say(plain(code::GET_FEATURES));
    wire.say(state(code::GET_VRING_BASE, 0, 0));
    setting.recorder.wait("the lane is wanted", |record| record.held() == 1);
    assert_eq!(neighbour.wire.ask(plain(code::GET_QUEUE_NUM)), 1u64.to_ne_bytes());
    assert!(!wire.has_reply(), "nothing is answered while the worker holds the lane");
    setting.recorder.hold(false);
    assert_eq!(wire.reply().len(), 8, "the features");
    assert_eq!(wire.reply()[..4], 0u32.to_ne_bytes(), "the ring");
    neighbour.finish_well(&setting, 1);
}

#[test]
fn a_worker_that_gives_up_takes_the_port_down_until_the_driver_starts_anew() {
    let setting = Setting::new(1);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    wire.say_all(greeting(QUIET));
    wire.say_all(start(&guest, common(), 0));
    setting.recorder.wait("up", |record| record.is_up(0));
    wire.ask(plain(code::GET_FEATURES));
    setting.recorder.break_ring(&guest);
    setting.recorder.wait("down", |record| {
        record
            .states(0)
            .iter()
            .any(|state| matches!(state, PortState::Down(why) if why.contains("the available index jumped by")))
    });
    for ring in [0, 1] {
        wire.ask(state(code::GET_VRING_BASE, ring, 0));
    }
    wire.say_all(start(&Guest::new(), common(), 0));
    setting.recorder.wait("up again", |record| record.is_up(0));
}

#[test]
fn the_control_queue_answers_its_kick() {
    use crate::virtqueue::driver::{Buffer, DriverQueue, DriverSetup};
    let setting = Setting::new(1);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    let features = common().with(crate::Features::CTRL_VQ).with(crate::Features::CTRL_RX);
    let kick = sys::eventfd::EventFd::new().unwrap();
    wire.say_all(greeting(QUIET));
    wire.say_all(start(&guest, features, 0));
    wire.say_all(ring_start(2, 0, &kick));
    wire.say(state(code::SET_VRING_ENABLE, 2, 1));
    wire.ask(plain(code::GET_FEATURES));
    let [descriptors, driver, device] = areas(2);
    let memory = guest.memory();
    let setup =
        DriverSetup { memory: memory.clone(), features, size: ENTRIES, descriptors, driver, device, tables: None };
    let mut queue = DriverQueue::new(&setup).unwrap();
    let mut arena = sys::arena::Arena::new(1).unwrap();
    let map = arena.insert(memory);
    let map = arena.map(map).unwrap();
    map.write(map.room(0x20_0000, 3).unwrap(), &[0, 0, 0]);
    queue.add(&[Buffer { guest: 0x20_0000, len: 3 }], &[Buffer { guest: 0x20_1000, len: 1 }]).unwrap();
    assert!(queue.publish(), "a kick is wanted");
    kick.notify().unwrap();
    setting.recorder.wait("the filter", |record| record.filters(0).last().is_some_and(|filter| !filter.promiscuous));
    assert_eq!(queue.take_used().unwrap().unwrap().written, 1);
}

#[test]
fn ports_come_and_go() {
    let mut setting = Setting::new(2);
    let neighbour = Neighbour::new(&setting, 1);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    wire.say_all(greeting(QUIET));
    wire.say_all(start(&guest, common(), 0));
    setting.recorder.wait("up", |record| record.is_up(0));
    let gone = setting.handle.as_ref().unwrap().remove_port(NicKey(0));
    assert!(
        gone.recv_timeout(recorder::LONG).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
    setting.recorder.look(|record| assert_eq!(record.lanes_of(0), 0));
    assert!(!setting.path(0).exists() && wire.is_closed());
    let options = setting.server(0);
    setting.handle.as_ref().unwrap().add_port(options);
    let (mut wire, guest) = (setting.connect(0), Guest::new());
    wire.say_all(enable_and_start(&guest, common(), 0));
    setting.recorder.wait("up again", |record| record.is_up(0));
    neighbour.finish_well(&setting, 1);
    setting.handle.take().unwrap().stop();
    setting.recorder.look(|record| assert_eq!((record.lanes_of(0), record.lanes_of(1)), (0, 0)));
    assert!(!setting.path(0).exists() && !setting.path(1).exists());
}

#[test]
fn a_client_connects_again_and_again() {
    let setting = Setting::new(0);
    let path = setting.path(7);
    let role = Role::Client { path: path.clone() };
    let options = PortOptions { nic: NicKey(7), name: "client".to_owned(), role, device: Device::default() };
    setting.handle.as_ref().unwrap().add_port(options);
    setting
        .recorder
        .wait("nobody there", |record| record.reason(7).is_some_and(|why| why.starts_with("nobody listens")));
    for _ in 0..2 {
        let listener = UnixListener::bind(&path).unwrap();
        let (mut wire, guest) = (Wire::accept(&listener), Guest::new());
        wire.say_all(enable_and_start(&guest, common(), 0));
        setting.recorder.wait("up", |record| record.is_up(7));
        drop((wire, listener));
        std::fs::remove_file(&path).unwrap();
        setting.recorder.wait("gone", |record| record.lanes_of(7) == 0 && !record.is_up(7));
    }
}

#[test]
fn a_second_front_end_is_refused_until_the_first_is_gone() {
    let setting = Setting::new(1);
    let (mut first, guest) = (setting.connect(0), Guest::new());
    first.say_all(greeting(QUIET));
    first.say_all(start(&guest, common(), 0));
    first.ask(plain(code::GET_FEATURES));
    let mut second = setting.connect(0);
    assert!(second.is_closed());
    first.ask(plain(code::GET_FEATURES));
    // The first one goes while the worker holds its lane; who comes then is kept waiting instead.
    setting.recorder.hold(true);
    drop(first);
    setting.recorder.wait("the lane is wanted", |record| record.held() == 1);
    let mut third = setting.connect(0);
    third.say(plain(code::GET_FEATURES));
    setting.recorder.hold(false);
    assert_eq!(third.reply().len(), 8);
}

#[test]
fn half_a_message_is_not_waited_for_for_ever() {
    let setting = Setting::with_patience(2, Duration::from_millis(20));
    let neighbour = Neighbour::new(&setting, 1);
    let mut wire = setting.connect(0);
    wire.say_half(plain(code::GET_FEATURES));
    setting.recorder.wait("patience", |record| record.reason(0).is_some_and(|why| why.contains("half a message")));
    assert!(wire.is_closed());
    neighbour.finish_well(&setting, 1);
}

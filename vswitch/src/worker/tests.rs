//! Turns of a whole worker, with ports that ask and answer. What rings add is tested with the rings.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::{BridgeSpec, NicSpec};

const ASKER: u8 = 1;
const ANSWERER: u8 = 2;

fn frame(to: u8, from: u8, number: u8) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5, number];
    bytes.resize(60, 0);
    bytes
}

/// Sends its questions in one burst, and tells the number of each frame that arrives.
struct Asker {
    questions: Vec<u8>,
    arrived: Sender<u8>,
}

/// Answers each frame within the turn.
struct Answerer;

fn number(cx: &Context, frame: &wire::Frame) -> u8 {
    let mut bytes = [0; 60];
    assert_eq!(cx.read_all(frame, &mut bytes), Some(60));
    bytes[14]
}

impl Port for Asker {
    fn receive(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for number in self.questions.drain(..) {
            let question = cx.originate(Origin { nic: cx.nic, lane: 0 }, &frame(ANSWERER, ASKER, number)).unwrap();
            // From `originate` to `received`: as if it had been read.
            cx.ledger.originated -= 1;
            cx.received(1, 60);
            burst.push(question).unwrap();
        }
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for frame in burst.drain() {
            self.arrived.send(number(cx, &frame)).unwrap();
            cx.transmitted(1, 60);
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        false
    }
}

impl Port for Answerer {
    fn receive(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for question in burst.drain() {
            let answer = frame(ASKER, ANSWERER, number(cx, &question));
            cx.transmitted(1, 60);
            let answer = cx.originate(Origin { nic: cx.nic, lane: 0 }, &answer).unwrap();
            cx.answers.push(answer).unwrap();
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        false
    }
}

fn worker(questions: Vec<u8>) -> (Worker, Receiver<u8>) {
    let (arrived, arrivals) = channel();
    let mut worker = Worker::new(Sizes::default(), None, Box::new(|failure| panic!("{}", failure.reason))).unwrap();
    assert!(worker.apply(Change::AddBridge { id: BridgeId(0), spec: BridgeSpec::new(7) }));
    let ports: [Box<dyn Port>; 2] = [Box::new(Asker { questions, arrived }), Box::new(Answerer)];
    for (nic, port) in ports.into_iter().enumerate() {
        let nic = NicId(nic as u16);
        assert!(worker.apply(Change::AddNic { nic, bridge: BridgeId(0), spec: NicSpec::default() }));
        assert!(worker.apply(Change::Attach { nic, lane: 0, port }));
    }
    (worker, arrivals)
}

#[test]
fn answers_arrive_in_the_turn_of_their_questions_and_in_their_order() {
    let (mut worker, arrivals) = worker((0..40).collect());
    assert_eq!(worker.round(Instant::START), 40);
    assert!(arrivals.try_iter().eq(0..40));
    let ledger = worker.context().ledger;
    assert!(ledger.balances() && ledger.dropped == 0, "{ledger:?}");
}

/// Answers every question three times, more than a burst to one lane.
struct Echo;

impl Port for Echo {
    fn receive(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        for question in burst.drain() {
            let answer = frame(ASKER, ANSWERER, number(cx, &question));
            cx.transmitted(1, 60);
            for _ in 0..3 {
                let answer = cx.originate(Origin { nic: cx.nic, lane: 0 }, &answer).unwrap();
                cx.answers.push(answer).unwrap();
            }
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        false
    }
}

#[test]
fn more_answers_than_a_burst_all_arrive_in_their_order() {
    let (mut worker, arrivals) = worker((0..64).collect());
    assert!(worker.apply(Change::Attach { nic: NicId(1), lane: 0, port: Box::new(Echo) }));
    assert_eq!(worker.round(Instant::START), 64);
    assert!(arrivals.try_iter().eq((0..64).flat_map(|n| [n; 3])));
    let ledger = worker.context().ledger;
    assert!(ledger.balances() && ledger.dropped == 0, "{ledger:?}");
}

/// Sends every frame on, out of its other NIC.
struct Passage {
    nics: Vec<NicId>,
}

impl Port for Passage {
    fn attach(&mut self, cx: &mut Context) -> io::Result<()> {
        self.nics.push(cx.nic);
        Ok(())
    }
    fn receive(&mut self, _: &mut Context, _: &mut Burst) -> io::Result<()> {
        Ok(())
    }
    fn transmit(&mut self, cx: &mut Context, burst: &mut Burst) -> io::Result<()> {
        let other = *self.nics.iter().find(|nic| **nic != cx.nic).unwrap();
        for frame in burst.drain() {
            cx.heads.get_mut(&frame).origin = Origin { nic: other, lane: 0 };
            cx.answers.push(frame).unwrap();
        }
        Ok(())
    }
    fn release(&mut self, _: &mut Context) -> io::Result<()> {
        Ok(())
    }
    fn wake(&mut self, _: &mut Wake) -> bool {
        false
    }
}

#[test]
fn a_port_with_two_nics_joins_two_bridges_and_both_end_with_it() {
    let (arrived, arrivals) = channel();
    let mut worker = Worker::new(Sizes::default(), None, Box::new(|failure| panic!("{}", failure.reason))).unwrap();
    for id in 0..2 {
        assert!(worker.apply(Change::AddBridge { id: BridgeId(id), spec: BridgeSpec::new(7) }));
    }
    let asker = |questions: Vec<u8>| Box::new(Asker { questions, arrived: arrived.clone() });
    for (nic, bridge) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let bridge = BridgeId(bridge);
        assert!(worker.apply(Change::AddNic { nic: NicId(nic), bridge, spec: NicSpec::default() }));
    }
    assert!(worker.apply(Change::Attach { nic: NicId(0), lane: 0, port: asker((0..40).collect()) }));
    assert!(worker.apply(Change::Attach { nic: NicId(1), lane: 0, port: Box::new(Passage { nics: Vec::new() }) }));
    assert!(worker.apply(Change::AttachToo { nic: NicId(2), to: NicId(1) }));
    assert!(worker.apply(Change::Attach { nic: NicId(3), lane: 0, port: asker(Vec::new()) }));
    assert_eq!(worker.round(Instant::START), 40);
    assert!(arrivals.try_iter().eq(0..40), "from one bridge into the other, in one turn");
    assert!(worker.apply(Change::Detach { nic: NicId(1), lane: 0 }));
    assert!(worker.apply(Change::Attach { nic: NicId(0), lane: 0, port: asker(vec![1, 2]) }));
    assert_eq!(worker.round(Instant::START), 2);
    assert_eq!(arrivals.try_iter().count(), 0, "there is no way any more");
    assert!(worker.apply(Change::Attach { nic: NicId(3), lane: 0, port: asker(vec![3]) }));
    assert_eq!(worker.round(Instant::START), 1);
    let ledger = worker.context().ledger;
    assert!(ledger.balances() && ledger.dropped == 3, "{ledger:?}");
}

//! Random interleavings of what two drivers and a worker do: nothing is lost uncounted, nothing overtakes, nobody sleeps over work.

use std::collections::VecDeque;

use proptest::prelude::*;
use vmm::{Features, virtqueue::testing::RigSpec};
use wire::{NicId, Offload, Port, Wake};

use crate::pair::{Pair, feature_sets, frame};

#[derive(Clone, Debug)]
enum Step {
    Send { len: usize, cuts: Vec<u32>, indirect: bool },
    Kick,
    Offer { cuts: Vec<u32>, indirect: bool },
    ShowOffers,
    Turn,
    Reap,
    Receive,
    Sleep,
    WantInterrupts(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tx_cuts = proptest::collection::vec(0u32..200, 0..6);
    let rx_cuts = proptest::collection::vec(0u32..1200, 1..5);
    let step = prop_oneof![
        6 => (14usize..3000, tx_cuts, any::<bool>()).prop_map(|(len, cuts, indirect)| Step::Send { len, cuts, indirect }),
        4 => Just(Step::Kick),
        6 => (rx_cuts, any::<bool>()).prop_map(|(cuts, indirect)| Step::Offer { cuts, indirect }),
        4 => Just(Step::ShowOffers),
        6 => Just(Step::Turn),
        2 => Just(Step::Reap),
        3 => Just(Step::Receive),
        2 => Just(Step::Sleep),
        2 => any::<bool>().prop_map(Step::WantInterrupts),
    ];
    proptest::collection::vec(step, 1..300)
}

struct World {
    pair: Pair,
    features: Features,
    /// Frames that the device can see and that neither arrived nor can be told to have been dropped.
    sent: VecDeque<Vec<u8>>,
    added: Vec<Vec<u8>>,
    asleep: bool,
    /// The receiver wants an interrupt for the next frame; or wants none.
    interrupts: Option<bool>,
    delivered: u64,
}

impl World {
    fn new(features: Features) -> World {
        let spec = RigSpec { size: 32, slots: 32, slot: 8192, ..RigSpec::new(features) };
        let pair = Pair::new(spec, spec);
        // Attaching calls the driver once, in case somebody before us could not.
        assert!(pair.b.rx.call.drain().unwrap());
        World {
            pair,
            features,
            sent: VecDeque::new(),
            added: Vec::new(),
            asleep: false,
            interrupts: None,
            delivered: 0,
        }
    }

    fn turn(&mut self) {
        if self.asleep {
            if !self.pair.a.tx.kick.drain().unwrap() {
                assert_eq!(self.pair.turn().unwrap(), 0, "the device slept over work");
                return;
            }
            self.asleep = false;
            self.pair.from.awake();
        }
        let before = self.pair.cx.counters(NicId(1)).unwrap().tx_frames;
        self.pair.turn().unwrap();
        let delivered = self.pair.cx.counters(NicId(1)).unwrap().tx_frames - before;
        self.delivered += delivered;
        let called = self.pair.b.rx.call.drain().unwrap();
        match self.interrupts {
            Some(true) if delivered > 0 => {
                assert!(called, "the driver waits for an interrupt that did not come");
                // An event index is passed once.
                self.interrupts = None;
            }
            Some(false) => assert!(!called, "an interrupt that nobody wanted"),
            _ => {}
        }
    }

    fn step(&mut self, step: Step, seed: u64) {
        match step {
            Step::Send { len, cuts, indirect } => {
                let bytes = frame(seed, len);
                if self.pair.a.send(Offload::NONE, &bytes, &cuts, indirect) {
                    self.added.push(bytes);
                }
            }
            Step::Kick => {
                self.pair.a.tx.publish().unwrap();
                self.sent.extend(self.added.drain(..));
            }
            Step::Offer { cuts, indirect } => {
                if cuts.iter().sum::<u32>() >= 12 {
                    self.pair.b.offer(&cuts, indirect);
                }
            }
            Step::ShowOffers => {
                self.pair.b.rx.publish().unwrap();
            }
            Step::Turn => self.turn(),
            Step::Reap => {
                self.pair.a.reap().unwrap();
            }
            Step::Receive => {
                for got in self.pair.b.receive().unwrap() {
                    let place = self.sent.iter().position(|bytes| *bytes == got.bytes);
                    let place = place.expect("a frame that was not sent, or was overtaken");
                    self.sent.drain(..=place);
                    self.delivered -= 1;
                }
            }
            Step::Sleep => {
                if !self.asleep {
                    self.asleep = self.pair.from.wake(&mut Wake::default());
                }
            }
            Step::WantInterrupts(want) => {
                let has_used = self.pair.b.rx.queue.want_interrupts(want);
                assert_eq!(has_used, want && self.delivered > 0);
                self.interrupts = if want && has_used { None } else { Some(want) };
                self.pair.b.rx.call.drain().unwrap();
            }
        }
    }

    fn finish(mut self) {
        for step in [Step::Kick, Step::ShowOffers, Step::Turn, Step::Turn, Step::Receive, Step::Reap] {
            self.step(step, 0);
        }
        let ledger = self.pair.cx.ledger;
        assert!(ledger.balances() && ledger.held == 0);
        assert_eq!(self.delivered, 0, "{:?}", self.features.names());
        assert_eq!(self.pair.a.tx.queue.outstanding(), 0, "every sent chain came back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_overtaken_or_slept_over(set in 0usize..16, steps in steps()) {
        let mut world = World::new(feature_sets()[set]);
        for (seed, step) in steps.into_iter().enumerate() {
            world.step(step, seed as u64 + 1);
        }
        world.finish();
    }
}

//! Once warm, a card and its back end allocate nothing: not for small frames, not for super-frames over many buffers, not when nobody sends.
//!
//! A program of its own, with one test: it counts the allocations of the process.

// A test says what went wrong by panicking, in what tests share too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "front_end/switch.rs"]
#[allow(dead_code)]
mod switch;

use switch::{Setting, frame};
use sys::allocations::{CountingAllocator, count};
use wire::{Clock, Offload, SystemClock};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_warm_card_allocates_nothing() {
    assert!(count() > 0, "the counting allocator is not in place");
    let mut setting = Setting::new();
    setting.start_back_end();
    setting.bring_up();
    let clock = SystemClock::new();
    for len in [60, 1500, 9000, 65_535] {
        let bytes = frame(1, len);
        let (head, body) = bytes.split_at(54);
        let (mut allocated, mut received) = (0, 0);
        for round in 0..100 {
            let before = count();
            for _ in 0..4 {
                assert!(setting.nics[0].send(Offload::NONE, &[head, body]));
            }
            setting.nics[0].flush().unwrap();
            setting.back.as_mut().unwrap().turn();
            for nic in &mut setting.nics {
                nic.maintain(clock.now());
                received += nic.receive(usize::MAX, &mut |_, got| assert_eq!(got.len(), len)).unwrap();
                nic.want_interrupts(true);
                nic.want_interrupts(false);
            }
            if round >= 50 {
                allocated += count() - before;
            }
        }
        assert_eq!((received, allocated), (400, 0), "frames of {len} bytes");
    }
}

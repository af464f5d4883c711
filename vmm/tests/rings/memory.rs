//! What the device half does to guest memory as a whole: every byte it changes is on a page marked in the dirty log, and a memory file that
//! is truncated under load takes its own port down and no other.

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    sync::Arc,
};

use sys::{
    guest::DirtyLog,
    memory::{Mapping, memfd},
};
use vmm::virtqueue::testing::{Rig, RigSpec};
use wire::{NicId, Offload, Port, Wake};

use crate::pair::{Pair, feature_sets, frame};

const PAGE: usize = 4096;
/// The log covers guest addresses up to here: past the second region of a rig.
const LOGGED: u64 = (Rig::REGION_STEP + (64 << 20)) / PAGE as u64 / 8;

/// All of a rig's memory, a page at a time, by guest address.
fn pages(rig: &Rig) -> Vec<(u64, Vec<u8>)> {
    let bytes = rig.spec().region_bytes() as u64;
    let starts = (0..rig.spec().regions).flat_map(|n| (0..bytes).step_by(PAGE).map(move |at| Rig::region(n) + at));
    starts.map(|guest| (guest, rig.read(guest, PAGE as u32).unwrap())).collect()
}

#[test]
fn every_byte_the_device_changes_is_on_a_marked_page() {
    for features in feature_sets() {
        let spec = RigSpec { size: 32, slots: 32, ..RigSpec::new(features) };
        let mappings: Vec<_> =
            (0..spec.regions).map(|_| Arc::new(Mapping::anonymous(spec.region_bytes()).unwrap())).collect();
        let file = memfd("log", LOGGED).unwrap();
        let map_log = || Mapping::shared(file.as_fd(), 0, LOGGED).unwrap();
        let log = Arc::new(DirtyLog::new(map_log(), 0, LOGGED).unwrap());
        let logged = Rig::in_memory(spec, &mappings, Some(log)).unwrap();
        let bits = sys::words::Words::new(map_log());
        let is_marked = |guest: u64| bits.load((guest >> 18) as usize) >> (guest >> 12 & 63) & 1 != 0;

        // The logged guest receives in one pair and sends in the other.
        let mut pair = Pair::of(Rig::new(spec).unwrap(), logged);
        for number in 0..20usize {
            for n in 0..4 {
                pair.offer([&[1600][..], &[12, 3000], &[5, 300, 1500]][n % 3], n == 3);
                pair.send(&frame(number as u64, 100 + 90 * n), &[], false);
                assert!(pair.b.send(Offload::NONE, &frame(1, 300), &[12, 20], n == 2));
            }
            pair.b.tx.publish().unwrap();
            let before = pages(&pair.b);
            pair.turn().unwrap();
            std::mem::swap(&mut pair.from, &mut pair.to);
            pair.turn().unwrap();
            pair.from.wake(&mut Wake::default());
            pair.from.awake();
            std::mem::swap(&mut pair.from, &mut pair.to);
            let mut changed = 0;
            for ((guest, old), (_, new)) in before.iter().zip(pages(&pair.b)) {
                changed += usize::from(*old != new);
                assert!(*old == new || is_marked(*guest), "{guest:#x} changed, {:?}", features.names());
            }
            assert!(changed > 0);
            assert_eq!(pair.b.reap().unwrap(), 4);
            assert_eq!(pair.b.receive().unwrap().len(), 4);
            pair.a.reap().unwrap();
            pair.a.receive().unwrap();
        }
        let marked = pages(&pair.b).iter().filter(|(guest, _)| is_marked(*guest)).count();
        assert!(marked < 60, "{marked} pages marked: the log says little if it says everything");
    }
}

/// An unlinked file in shared memory that can be truncated, as a hostile front end's can.
fn shared_file(name: &str, bytes: u64) -> File {
    let path = format!("/dev/shm/trunkline-test-{}-{name}", std::process::id());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn rig_in_file(spec: RigSpec, file: &File) -> Rig {
    let bytes = spec.region_bytes() as u64;
    Rig::in_memory(spec, &[Arc::new(Mapping::shared(file.as_fd(), 0, bytes).unwrap())], None).unwrap()
}

#[test]
fn truncated_memory_takes_its_own_port_down_and_no_other() {
    for features in feature_sets() {
        let spec = RigSpec { regions: 1, ..RigSpec::new(features) };
        for victim in 0..2 {
            let files: Vec<_> =
                (0..3).map(|n| shared_file(&format!("{victim}-{n}"), spec.region_bytes() as u64)).collect();
            let [a, b, other] = [0, 1, 2].map(|n| rig_in_file(spec, &files[n]));
            let mut third = other.port().unwrap();
            let mut pair = Pair::of(a, b);
            third.attach(&mut pair.cx).unwrap();
            for n in 0..40 {
                pair.offer(&[1600], false);
                pair.send(&frame(n, 700), &[12], false);
            }
            files[victim].set_len(0).unwrap();
            let failed = (0..3).find_map(|_| pair.turn().err());
            let (port, error) = failed.expect("nobody noticed that the memory is gone");
            assert_eq!(port, victim, "{error}");
            assert!(error.to_string().contains("truncated"), "{error}");
            // The one that is left goes on with a third.
            let gone = if victim == 0 { &mut pair.from } else { &mut pair.to };
            gone.detach(&mut pair.cx);
            let gone = std::mem::replace(gone, third);
            drop(gone);
            if victim == 0 {
                pair.a = other;
            } else {
                pair.b = other;
            }
            pair.a.reap().unwrap();
            pair.b.receive().unwrap();
            let before = pair.cx.ledger.transmitted;
            pair.offer(&[1600], false);
            pair.send(&frame(99, 700), &[12], false);
            for _ in 0..3 {
                pair.turn().unwrap();
            }
            assert!(pair.cx.ledger.transmitted > before);
            assert!(pair.b.receive().unwrap().iter().any(|got| got.bytes == frame(99, 700)));
            assert_eq!(pair.cx.counters(NicId(0)).unwrap().rx_bytes % 700, 0);
        }
    }
}

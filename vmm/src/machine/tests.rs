//! Machines with the built-in guest, and with programs that are out to hurt. What guests do on a network is tested with the program.

use std::io::Write;

use super::*;

/// A back end that takes rings and does nothing with them.
struct Nobody;

impl NicBackEnd for Nobody {
    fn features(&self) -> crate::Features {
        crate::Features::VERSION_1
    }
    fn start(&mut self, _: ReadyNic) -> io::Result<()> {
        Ok(())
    }
    fn stop(&mut self) {}
}

/// Whether machines can run here; says so aloud if not.
fn can_run(test: &str) -> bool {
    match Kvm::new() {
        Ok(_) => true,
        Err(error) => {
            let line = format!("\nSKIPPED {test}: /dev/kvm cannot be used: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn spec(image: &[u8]) -> MachineSpec {
    let mac = Mac::new([2, 0, 0, 0, 0, 1]);
    MachineSpec { image: image.into(), patience: Duration::from_millis(600), ..MachineSpec::built_in("test", mac) }
}

fn start(image: &[u8]) -> Result<Machine, MachineError> {
    Machine::start(spec(image), Box::new(Nobody))
}

/// A static ELF program of this code at 2 MiB, with `memory` bytes in memory, entered at `entry`.
fn elf(code: &[u8], memory: u64, entry: u64) -> Vec<u8> {
    let (header, program) = (64u64, 56u64);
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
    image.extend([entry, header, 0].iter().flat_map(|word: &u64| word.to_le_bytes()));
    image.extend([0u8; 4]);
    image.extend([64u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    image.extend([1u32, 7].iter().flat_map(|word| word.to_le_bytes()));
    let (offset, size) = (header + program, code.len() as u64);
    let fields = [offset, boot::LOW, boot::LOW, size, memory.max(size), 8];
    image.extend(fields.iter().flat_map(|word| word.to_le_bytes()));
    image.extend(code);
    image
}

fn program(code: &[u8]) -> Vec<u8> {
    elf(code, 0, boot::LOW)
}

/// mov rdi, value
fn rdi(value: u64) -> Vec<u8> {
    [&[0x48, 0xbf][..], &value.to_le_bytes()].concat()
}

/// mov dx, port; mov al, code; out dx, al
const OFF: [u8; 7] = [0x66, 0xba, 0xf5, 0x00, 0xb0, 0x00, 0xee];

#[test]
fn the_built_in_guest_boots_listens_and_ends() {
    if !can_run("the_built_in_guest_boots_listens_and_ends") {
        return;
    }
    let mut machine =
        Machine::start(MachineSpec::built_in("a", Mac::new([2, 0, 0, 0, 0, 7])), Box::new(Nobody)).unwrap();
    let first = machine.read_line(PATIENCE);
    if first.is_none() {
        panic!("{}", machine.wait());
    }
    assert_eq!(first.as_deref(), Some("ready mac=02:00:00:00:00:07"));
    assert!(machine.type_line("dance"));
    let reply = machine.read_line(PATIENCE).unwrap();
    assert!(reply.starts_with("no dance is no command"), "{reply}");
    assert!(machine.type_line("off"));
    assert_eq!(machine.read_line(PATIENCE).as_deref(), Some("ok"));
    assert_eq!(machine.wait(), Ended::Off);
}

#[test]
fn a_machine_is_stopped_whatever_it_does() {
    if !can_run("a_machine_is_stopped_whatever_it_does") {
        return;
    }
    let patient = |image: &[u8]| MachineSpec { patience: Duration::from_secs(1000), ..spec(image) };
    for image in [GUEST.to_vec(), program(&[0xeb, 0xfe])] {
        let mut machine = Machine::start(patient(&image), Box::new(Nobody)).unwrap();
        assert_eq!(machine.stop(), Ended::Stopped);
        assert_eq!(machine.wait(), Ended::Stopped, "it stays so");
        assert_eq!(machine.read_line(Duration::ZERO).filter(|line| !line.starts_with("ready")), None);
    }
}

#[test]
fn images_that_cannot_be_run_are_refused() {
    if !can_run("images_that_cannot_be_run_are_refused") {
        return;
    }
    let table: &[(&[u8], &str)] = &[
        (b"", "ELF"),
        (b"#!/bin/sh\necho hello, this is a script and no program, whatever its length\n", "ELF"),
        (&GUEST[..100], "ELF"),
        (&elf(&OFF, 64 << 20, boot::LOW), "the program needs 66 MiB and more, the machine has 8 MiB"),
        (&elf(&OFF, 0, 0x1000), "entry"),
        (&elf(&OFF, 0, u64::MAX - 1), "entry"),
        (&elf(&OFF, u64::MAX - 0x1000, boot::LOW), "not enough"),
    ];
    for (image, wanted) in table {
        match start(image) {
            Err(error @ MachineError::Image(_)) => assert!(error.to_string().contains(wanted), "{error}, not {wanted}"),
            other => panic!("{wanted}: {:?}", other.map(|mut machine| machine.wait())),
        }
    }
    for memory in [0, 4096, MIN_MEMORY + 1, MAX_MEMORY + 4096] {
        let wrong = MachineSpec { memory, ..spec(GUEST) };
        assert!(matches!(Machine::start(wrong, Box::new(Nobody)), Err(MachineError::Memory(_))), "{memory}");
    }
}

#[test]
fn hostile_programs_end_alone_and_with_a_reason() {
    if !can_run("hostile_programs_end_alone_and_with_a_reason") {
        return;
    }
    let good = Machine::start(MachineSpec::built_in("good", Mac::new([2, 0, 0, 0, 0, 9])), Box::new(Nobody)).unwrap();
    assert!(good.read_line(PATIENCE).is_some());
    let jump = |to: u64| [&rdi(to)[..], &[0xff, 0xe7]].concat();
    // mov dword [rdi], 0; jmp back to it
    let reset = [&rdi(DEVICES + 0x70)[..], &[0xc7, 0x07, 0, 0, 0, 0, 0xeb, 0xf8]].concat();
    // mov ecx, count; mov [rdi], ecx; add rdi, 4; dec ecx; jnz back
    let all = (3 * mmio::REGISTERS / 4) as u32;
    let rubbish = |count: u32| {
        let go = [0x89, 0x0f, 0x48, 0x83, 0xc7, 0x04, 0xff, 0xc9, 0x75, 0xf6];
        [&rdi(DEVICES)[..], &[0xb9], &count.to_le_bytes(), &go, &OFF].concat()
    };
    // mov eax, [rdi] from every register, of odd widths too: mov al, [rdi]; inc rdi
    let look = [
        &rdi(DEVICES)[..],
        &[0xb9],
        &2000u32.to_le_bytes(),
        &[0x8a, 0x07, 0x48, 0xff, 0xc7, 0xff, 0xc9, 0x75, 0xf7],
        &OFF,
    ]
    .concat();
    let check = |what: &str, code: &[u8], wanted: &dyn Fn(&Ended) -> bool| {
        let mut machine = start(&program(code)).unwrap();
        let ended = machine.wait();
        assert!(wanted(&ended), "{what}: {ended:?}, {ended}");
    };
    check("turns itself off", &OFF, &|ended| *ended == Ended::Off);
    check(
        "an invalid instruction",
        &[0x0f, 0x0b],
        &|ended| matches!(ended, Ended::Fault { vector: 6, address } if *address == boot::LOW),
    );
    check("jumps past all memory", &jump(1 << 40), &|ended| matches!(ended, Ended::Fault { vector: 14, .. }));
    check("jumps where there is nothing", &jump(0xc000_0000), &|ended| {
        matches!(ended, Ended::Processor(_) | Ended::Nowhere(_) | Ended::Fault { .. })
    });
    check("looks where there is nothing", &[&rdi(0xc000_0000)[..], &[0x8b, 0x07]].concat(), &|ended| {
        *ended == Ended::Nowhere(0xc000_0000)
    });
    check("never starts its device", &[0xeb, 0xfe], &|ended| {
        matches!(ended, Ended::NeverReady(_) | Ended::Hung { .. })
    });
    check("resets in a loop", &reset, &|ended| *ended == Ended::ResetsInALoop);
    check("gives up", &[&OFF[..5], &[1, 0xee]].concat(), &|ended| matches!(ended, Ended::GaveUp(_)));
    check("reads all registers", &look, &|ended| *ended == Ended::Off);
    for count in [all, all + 1, all + 77, 0x7fff_0000 + all] {
        check("writes rubbish into every register", &rubbish(count), &|ended| {
            matches!(ended, Ended::Off | Ended::BadDriver(_) | Ended::Nowhere(_))
        });
    }
    assert!(good.is_running() && good.type_line("sink"));
    let reply = good.read_line(PATIENCE);
    assert!(reply.as_ref().is_some_and(|reply| reply.starts_with("ok frames=0 ")), "{reply:?}");
}

/// mov dword [rdi + offset], value: stores into the registers of the first device, the NIC, once `rdi` is `DEVICES`.
fn stores(writes: &[(u32, u32)]) -> Vec<u8> {
    let store =
        |(offset, value): &(u32, u32)| [&[0xc7, 0x87][..], &offset.to_le_bytes(), &value.to_le_bytes()].concat();
    writes.iter().flat_map(store).collect()
}

#[test]
fn a_guest_that_hangs_is_ended() {
    if !can_run("a_guest_that_hangs_is_ended") {
        return;
    }
    // A driver that does all right up to DRIVER_OK, with both queues past the program, and then never comes to its beat.
    let ring = |queue: u32| {
        let at = boot::LOW as u32 + 0x10000 * (queue + 1);
        let addresses = [(0x80, at), (0x90, at + 0x4000), (0xa0, at + 0x8000)];
        [&[(0x30, queue), (0x38, 64)][..], &addresses, &[(0x44, 1)]].concat()
    };
    let agree = [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)];
    let code =
        [rdi(DEVICES), stores(&agree), stores(&ring(0)), stores(&ring(1)), stores(&[(0x70, 15)]), vec![0xeb, 0xfe]];
    let mut machine = start(&program(&code.concat())).unwrap();
    let ended = machine.wait();
    assert!(matches!(ended, Ended::Hung { address, .. } if address > boot::LOW), "{ended:?}, {ended}");
}

#[test]
fn a_guest_that_waits_for_room_lives() {
    if !can_run("a_guest_that_waits_for_room_lives") {
        return;
    }
    let mut machine = start(GUEST).unwrap();
    assert!(machine.read_line(PATIENCE).is_some());
    // It sends into a ring that nobody empties, for longer than the machine's patience: it turns as it waits.
    assert!(machine.type_line("source to=02:00:00:00:00:02 count=100000"));
    assert_eq!(machine.read_line(Duration::from_millis(1500)), None);
    assert!(machine.is_running(), "a guest that waits lives");
    assert_eq!(machine.stop(), Ended::Stopped);
}

mod registers {
    //! The registers on their own: no machine is needed.

    use proptest::prelude::*;

    use super::super::mmio::{Device, Mmio, QueueRegisters, Trouble};
    use crate::Features;

    #[derive(Default)]
    struct Recorder {
        started: usize,
        stopped: usize,
        notified: usize,
    }

    impl Device for Recorder {
        fn id(&self) -> u32 {
            1
        }
        fn features(&self) -> Features {
            Features::VERSION_1.with(Features::CSUM)
        }
        fn config(&self) -> &[u8] {
            &[1, 2, 3]
        }
        fn queues(&self) -> &'static [u16] {
            &[256, 128]
        }
        fn start(&mut self, _: Features, queues: &[QueueRegisters]) -> std::io::Result<()> {
            assert!(self.started == self.stopped, "started twice");
            if !queues.iter().all(|queue| queue.ready) {
                return Err(std::io::Error::other("not all queues are ready"));
            }
            self.started += 1;
            Ok(())
        }
        fn notified(&mut self, _: usize) {
            assert!(self.started > self.stopped, "notified while it does not run");
            self.notified += 1;
        }
        fn stop(&mut self) {
            self.stopped += 1;
            assert_eq!(self.started, self.stopped);
        }
    }

    fn word(mmio: &Mmio<Recorder>, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        mmio.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(mmio: &mut Mmio<Recorder>, writes: &[(u64, u32)]) {
        writes.iter().for_each(|(offset, value)| mmio.write(*offset, &value.to_le_bytes()).unwrap());
    }

    #[test]
    fn a_driver_sets_a_device_up_as_virtio_says() {
        let mut mmio = Mmio::new(Recorder::default());
        assert_eq!((word(&mmio, 0), word(&mmio, 4), word(&mmio, 8)), (0x7472_6976, 2, 1));
        set(&mut mmio, &[(0x70, 1), (0x70, 3), (0x14, 1)]);
        assert_eq!(word(&mmio, 0x10), 1, "VERSION_1 is bit 32");
        set(&mut mmio, &[(0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1), (0x70, 11)]);
        assert_eq!(word(&mmio, 0x70), 11, "features are agreed on");
        for queue in 0..2 {
            set(&mut mmio, &[(0x30, queue), (0x38, 64), (0x80, 0x1000), (0x84, 1), (0x44, 1)]);
            assert_eq!((word(&mmio, 0x34), word(&mmio, 0x44)), ([256, 128][queue as usize], 1));
        }
        set(&mut mmio, &[(0x50, 0), (0x70, 15), (0x50, 1)]);
        assert_eq!((mmio.device.started, mmio.device.notified, mmio.is_running()), (1, 1, true));
        set(&mut mmio, &[(0x44, 0)]);
        assert_eq!((mmio.device.stopped, word(&mmio, 0x44), mmio.is_running()), (1, 0, false));
        set(&mut mmio, &[(0x70, 0)]);
        assert_eq!((mmio.device.stopped, word(&mmio, 0x70), word(&mmio, 0x44)), (1, 0, 0));
        let mut config = [9; 6];
        mmio.read(0x101, &mut config);
        assert_eq!(config, [2, 3, 0, 0, 0, 0]);
    }

    #[test]
    fn features_that_were_not_offered_are_not_agreed_on() {
        for (low, high) in [(1, 0), (2, 1), (0, 3)] {
            let mut mmio = Mmio::new(Recorder::default());
            set(&mut mmio, &[(0x24, 0), (0x20, low), (0x24, 1), (0x20, high), (0x70, 8)]);
            assert_eq!(word(&mmio, 0x70), 0, "{low:#x} {high:#x}");
            set(&mut mmio, &[(0x70, 4)]);
            assert!(!mmio.is_running() && mmio.failed().is_some());
        }
    }

    proptest! {
        #[test]
        fn any_writes_in_any_order_hurt_nobody(
            writes in prop::collection::vec((0u64..0x140, any::<u32>(), 0usize..9), 0..400),
        ) {
            let mut mmio = Mmio::new(Recorder::default());
            for (offset, value, width) in writes {
                let value = if offset == 0x70 { value & 0x8f } else { value };
                let offset = offset & !3;
                let bytes = [value.to_le_bytes(), [0; 4]].concat();
                let width = if width < 5 { 4 } else { width };
                prop_assert_ne!(mmio.write(offset, &bytes[..width]), Err(Trouble::ResetsInALoop));
                let _ = word(&mmio, offset);
            }
            mmio.end();
            prop_assert_eq!(mmio.device.started, mmio.device.stopped);
        }
    }
}

//! A switch of two ports: a session thread, and a worker that the test turns by hand.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use vmm::{
    front_end::{Nic, Peer},
    vhost_user::{Device, NicKey, PortOptions, PortState, Role, RxFilter, SessionHandle, SessionThread, Wiring},
    virtqueue::testing::turn,
};
use wire::{Burst, Clock, Context, DropReason, Instant, Mac, NicId, Offload, Port, Sizes, SystemClock};

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(20);

enum Change {
    Attach(u32, Box<dyn Port>),
    Detach(u32),
}

struct Wires(Sender<Change>);

impl Wiring for Wires {
    fn attach(&mut self, nic: NicKey, lane: u16, port: Box<dyn Port>) {
        assert_eq!(lane, 0, "a card has one pair");
        // A worker that is gone drops its ports, this one too.
        let _ = self.0.send(Change::Attach(nic.0, port));
    }

    fn detach(&mut self, nic: NicKey, _: u16) {
        let _ = self.0.send(Change::Detach(nic.0));
    }

    fn announce(&mut self, _: NicKey, _: Mac) {}
    fn state(&mut self, _: NicKey, _: PortState) {}
    fn rx_filter(&mut self, _: NicKey, _: RxFilter) {}
    fn pairs(&mut self, _: NicKey, _: u16) {}
}

/// The back end's half. See the module's documentation.
pub struct BackEnd {
    changes: Receiver<Change>,
    ports: BTreeMap<u32, Box<dyn Port>>,
    cx: Context,
    burst: Burst,
    /// Ended before the ports above would be dropped in any case.
    handle: Option<SessionHandle>,
}

impl BackEnd {
    pub fn start(ports: Vec<PortOptions>) -> BackEnd {
        let (sender, changes) = channel();
        let mut cx = Context::new(Sizes::default()).unwrap();
        (0..2).for_each(|nic| cx.add_nic(NicId(nic)));
        let handle = Some(SessionThread::spawn(ports, Box::new(Wires(sender))).unwrap());
        BackEnd { changes, ports: BTreeMap::new(), cx, burst: Burst::default(), handle }
    }

    pub fn ports(&self) -> usize {
        self.ports.len()
    }

    fn change(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Attach(nic, mut port) => {
                    port.attach(&mut self.cx).unwrap();
                    self.ports.insert(nic, port);
                }
                Change::Detach(nic) => self.drop_port(nic),
            }
        }
    }

    fn drop_port(&mut self, nic: u32) {
        if let Some(mut port) = self.ports.remove(&nic) {
            port.detach(&mut self.cx);
        }
    }

    /// Goes round its ports once, after what the sessions want changed. Ports that break are dropped.
    pub fn turn(&mut self) {
        self.change();
        if self.ports.len() < 2 {
            return;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let (Some(mut ingress), Some(mut egress)) = (self.ports.remove(&from), self.ports.remove(&to)) else {
                return;
            };
            let result = turn(&mut self.cx, &mut self.burst, &mut *ingress, &mut *egress);
            self.ports.extend([(from, ingress), (to, egress)]);
            if let Err((which, _)) = result {
                self.drop_port([from, to][which]);
            }
        }
    }

    /// Takes all that a port's driver sends, and forgets it.
    pub fn swallow(&mut self, nic: u32) {
        self.change();
        let Some(port) = self.ports.get_mut(&nic) else { return };
        self.cx.begin_turn(Instant::START);
        self.cx.nic = NicId(nic as u16);
        port.receive(&mut self.cx, &mut self.burst).unwrap();
        self.burst.drain().for_each(|frame| self.cx.drop(frame, DropReason::NotReady));
        port.release(&mut self.cx).unwrap();
    }

    /// Arms the notifications of a port, as before a sleep; forgets kicks that came before.
    pub fn arm(&mut self, nic: u32, wake: &mut wire::Wake) -> bool {
        let port = self.ports.get_mut(&nic).unwrap();
        port.awake();
        port.wake(wake)
    }

    /// Takes a burst from port 0, gives it to port 1 and shows it to the driver there, and dies before the driver of port 0 hears that its
    /// chains are used: the worst moment. Returns the frames that were given.
    pub fn die_in_a_turn(mut self) -> usize {
        self.change();
        let (mut ingress, mut egress) = (self.ports.remove(&0).unwrap(), self.ports.remove(&1).unwrap());
        self.cx.begin_turn(Instant::START);
        self.cx.nic = NicId(0);
        ingress.receive(&mut self.cx, &mut self.burst).unwrap();
        let given = self.burst.len();
        self.cx.nic = NicId(1);
        egress.transmit(&mut self.cx, &mut self.burst).unwrap();
        egress.release(&mut self.cx).unwrap();
        drop((ingress, egress));
        given
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        // Sessions end when their lanes are home, so ports go first, those too that are still on their way to the worker.
        self.ports.clear();
        self.changes = channel().1;
        drop(self.handle.take());
    }
}

/// Two cards on one switch.
pub struct Setting {
    dir: tempfile::TempDir,
    clock: SystemClock,
    pub back: Option<BackEnd>,
    pub nics: [Nic; 2],
    /// What each card received.
    pub got: [Vec<(Offload, Vec<u8>)>; 2],
}

/// A port whose socket is here.
pub fn server(port: u32, path: PathBuf) -> PortOptions {
    let role = Role::Server { listener: UnixListener::bind(&path).unwrap(), path };
    let device = Device { mac: Some(mac(port)), mtu: Some(9000), ..Device::default() };
    PortOptions { nic: NicKey(port), name: format!("port {port}"), role, device }
}

/// The address of the device at this port.
pub fn mac(port: u32) -> Mac {
    Mac::new([2, 0, 0, 0, 1, port as u8])
}

impl Setting {
    pub fn new() -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let nic =
            |port: u32| Nic::new(Peer::Connect(dir.path().join(format!("{port}.sock"))), Mac::new([2; 6])).unwrap();
        let nics = [nic(0), nic(1)];
        Setting { dir, clock: SystemClock::new(), back: None, nics, got: Default::default() }
    }

    pub fn path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("{port}.sock"))
    }

    pub fn start_back_end(&mut self) {
        self.back = Some(BackEnd::start((0..2).map(|port| server(port, self.path(port))).collect()));
    }

    /// Everybody does what can be done now.
    pub fn go_round(&mut self) {
        let now = self.clock.now();
        for (nic, got) in self.nics.iter_mut().zip(&mut self.got) {
            nic.maintain(now);
            nic.receive(usize::MAX, &mut |offload, frame| got.push((offload, frame.to_vec()))).unwrap();
            nic.flush().unwrap();
        }
        if let Some(back) = &mut self.back {
            back.turn();
        }
    }

    /// Goes round until it is done, within bounds.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Setting) -> bool) {
        let start = self.clock.now();
        while !done(self) {
            self.go_round();
            let why: Vec<_> =
                self.nics.iter().map(|nic| (nic.front_end().state(), nic.front_end().failure())).collect();
            assert!(
                self.clock.now().since(start) < LONG,
                "{what}: {why:?}, got {:?}",
                self.got.each_ref().map(Vec::len)
            );
            std::thread::yield_now();
        }
    }

    pub fn bring_up(&mut self) {
        self.until("both are up", |setting| {
            setting.nics.iter().all(Nic::is_up) && setting.back.as_ref().is_some_and(|back| back.ports() == 2)
        });
    }
}

/// Frame number `number`, whose bytes depend on it.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..len).map(|at| (at as u32 ^ (at as u32 >> 8)).wrapping_mul(31).wrapping_add(number) as u8).collect();
    bytes[..6].copy_from_slice(&mac(1).bytes());
    bytes[6..12].copy_from_slice(&mac(0).bytes());
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The number of a frame that [`frame`] made.
pub fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

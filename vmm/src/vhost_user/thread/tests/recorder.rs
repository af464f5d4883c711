//! A switch that writes down what it is told, and front ends that speak raw bytes.

use std::{
    collections::BTreeMap,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Condvar, Mutex, MutexGuard},
};

use sys::socket::{recv_with_fds, send_with_fds};
use wire::{Burst, Context, Mac, NicId, Port, Sizes};

use super::*;
use crate::vhost_user::{message::HEADER_BYTES, wiring::RxFilter};

/// Longer than anything here takes.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// What the switch was told.
#[derive(Default)]
pub(super) struct Record {
    events: Vec<String>,
    states: BTreeMap<u32, Vec<PortState>>,
    filters: BTreeMap<u32, Vec<RxFilter>>,
    lanes: BTreeMap<(u32, u16), Box<dyn Port>>,
    /// Lanes that are wanted back and not given.
    held: Vec<Box<dyn Port>>,
    holding: bool,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("events", &self.events).field("states", &self.states).finish()
    }
}

impl Record {
    pub(super) fn states(&self, port: u32) -> &[PortState] {
        self.states.get(&port).map_or(&[], Vec::as_slice)
    }

    pub(super) fn filters(&self, port: u32) -> &[RxFilter] {
        self.filters.get(&port).map_or(&[], Vec::as_slice)
    }

    pub(super) fn is_up(&self, port: u32) -> bool {
        self.states(port).last() == Some(&PortState::Up)
    }

    /// Why nobody is connected, or the port is down.
    pub(super) fn reason(&self, port: u32) -> Option<&str> {
        match self.states(port).last()? {
            PortState::Waiting(why) | PortState::Down(why) => Some(why),
            PortState::Up => None,
        }
    }

    pub(super) fn lanes_of(&self, port: u32) -> usize {
        self.lanes.keys().filter(|(nic, _)| *nic == port).count()
    }

    pub(super) fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|seen| *seen == event).count()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }
}

/// The switch. See the module's documentation.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<(Mutex<Record>, Condvar)>);

impl Recorder {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.0.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let result = change(&mut self.record());
        self.0.1.notify_all();
        result
    }

    pub(super) fn look(&self, look: impl FnOnce(&Record)) {
        look(&self.record());
    }

    /// Waits, within bounds, until the record is as it should be.
    pub(super) fn wait(&self, what: &str, mut done: impl FnMut(&Record) -> bool) {
        let (record, timeout) = self.0.1.wait_timeout_while(self.record(), LONG, |record| !done(record)).unwrap();
        assert!(!timeout.timed_out(), "{what}: {record:?}");
    }

    /// Forgets what a port was.
    pub(super) fn forget(&self, port: u32) {
        self.change(|record| record.states.remove(&port));
    }

    /// Whether lanes that are wanted back are kept.
    pub(super) fn hold(&self, holding: bool) {
        let held = self.change(|record| {
            record.holding = holding;
            if holding { Vec::new() } else { std::mem::take(&mut record.held) }
        });
        drop(held);
    }

    /// Runs lane 0 of port 0 on a transmit ring whose available index is out of bounds, as a worker would, and gives it up.
    pub(super) fn break_ring(&self, guest: &Guest) {
        let [descriptors, driver, device] = areas(1);
        let memory = sys::split::SplitMemory::new(guest.memory(), ENTRIES, descriptors, driver, device).unwrap();
        memory.set_avail_index(1000);
        let mut port = self.change(|record| record.lanes.remove(&(0, 0))).unwrap();
        let mut cx = Context::new(Sizes::default()).unwrap();
        cx.add_nic(NicId(0));
        port.attach(&mut cx).unwrap();
        assert!(port.receive(&mut cx, &mut Burst::default()).is_err());
        port.detach(&mut cx);
    }
}

impl Wiring for Recorder {
    fn attach(&mut self, nic: NicKey, lane: u16, port: Box<dyn Port>) {
        self.change(|record| {
            record.events.push(format!("attach {}/{lane}", nic.0));
            assert!(record.lanes.insert((nic.0, lane), port).is_none(), "a lane is attached once at a time");
        });
    }

    fn detach(&mut self, nic: NicKey, lane: u16) {
        let port = self.change(|record| {
            record.events.push(format!("detach {}/{lane}", nic.0));
            let port = record.lanes.remove(&(nic.0, lane));
            match port {
                Some(port) if record.holding => {
                    record.held.push(port);
                    None
                }
                port => port,
            }
        });
        drop(port);
    }

    fn announce(&mut self, nic: NicKey, mac: Mac) {
        self.change(|record| record.events.push(format!("announce {} {mac}", nic.0)));
    }

    fn state(&mut self, nic: NicKey, state: PortState) {
        self.change(|record| record.states.entry(nic.0).or_default().push(state));
    }

    fn rx_filter(&mut self, nic: NicKey, filter: RxFilter) {
        self.change(|record| record.filters.entry(nic.0).or_default().push(filter));
    }

    fn pairs(&mut self, nic: NicKey, pairs: u16) {
        self.change(|record| record.events.push(format!("pairs {} {pairs}", nic.0)));
    }
}

/// A session thread with server ports 0, 1, ... in a directory of its own.
pub(super) struct Setting {
    dir: tempfile::TempDir,
    pub(super) recorder: Recorder,
    pub(super) handle: Option<SessionHandle>,
}

impl Setting {
    pub(super) fn new(ports: u32) -> Setting {
        Setting::with_patience(ports, LONG)
    }

    pub(super) fn with_patience(ports: u32, patience: Duration) -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let mut setting = Setting { dir, recorder: Recorder::default(), handle: None };
        let options = (0..ports).map(|port| setting.server(port)).collect();
        let wiring = Box::new(setting.recorder.clone());
        setting.handle = Some(SessionThread::spawn_with_patience(options, wiring, patience).unwrap());
        setting
    }

    pub(super) fn path(&self, port: u32) -> PathBuf {
        self.dir.path().join(format!("{port}.sock"))
    }

    pub(super) fn server(&self, port: u32) -> PortOptions {
        let path = self.path(port);
        let role = Role::Server { listener: UnixListener::bind(&path).unwrap(), path };
        PortOptions { nic: NicKey(port), name: format!("port {port}"), role, device: Device::default() }
    }

    pub(super) fn connect(&self, port: u32) -> Wire {
        Wire(UnixStream::connect(self.path(port)).unwrap())
    }
}

/// A front end that writes bytes.
pub(super) struct Wire(UnixStream);

impl Wire {
    pub(super) fn accept(listener: &UnixListener) -> Wire {
        Wire(listener.accept().unwrap().0)
    }

    /// Sends these bytes and descriptors; a session that has ended may not take them. Whether they all went.
    pub(super) fn raw(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> bool {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send_with_fds(self.0.as_fd(), bytes, &fds).is_ok_and(|sent| sent == bytes.len())
    }

    pub(super) fn say(&mut self, message: Message) -> bool {
        self.raw(&message.bytes(), &message.fds)
    }

    pub(super) fn say_half(&mut self, message: Message) {
        let bytes = message.bytes();
        self.raw(&bytes[..bytes.len() / 2], &message.fds);
    }

    /// Sends messages and reads the replies that are due.
    pub(super) fn say_all(&mut self, messages: Vec<Message>) {
        for message in messages {
            let answered = message.is_answered();
            self.say(message);
            if answered {
                self.reply();
            }
        }
    }

    pub(super) fn ask(&mut self, message: Message) -> Vec<u8> {
        self.say(message);
        self.reply()
    }

    /// The payload of the next reply.
    pub(super) fn reply(&mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(LONG)).unwrap();
        let mut header = [0; HEADER_BYTES];
        self.0.read_exact(&mut header).unwrap();
        assert_eq!(header[4..8], 5u32.to_ne_bytes(), "a reply of version 1");
        let size = u32::from_ne_bytes(header[8..].try_into().unwrap());
        let mut payload = vec![0; size as usize];
        self.0.read_exact(&mut payload).unwrap();
        payload
    }

    pub(super) fn has_reply(&mut self) -> bool {
        recv_with_fds(self.0.as_fd(), &mut [0], &mut Vec::new()).is_ok()
    }

    /// Whether the other side has ended the connection; waits for it within bounds.
    pub(super) fn is_closed(&mut self) -> bool {
        self.0.set_read_timeout(Some(LONG)).unwrap();
        loop {
            match self.0.read(&mut [0; 64]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

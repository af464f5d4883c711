//! The NIC of a machine: registers here, rings with whoever serves them ([`NicBackEnd`]).
//!
//! Invariant: rings go to the back end when the driver is ready and have come back when `stop` returns, so that the memory they lie in is
//! used by nobody when the driver, or the machine, is done with it.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
};

use sys::{GuestMemory, eventfd::EventFd};
use wire::{Mac, Port};

use super::mmio::{Device, QueueRegisters};
use crate::{
    features::Features,
    front_end::RingSetup,
    ring_port::{Lane, RingPort},
    vhost_user::Device as NetDevice,
    virtqueue::{DeviceQueue, QueueSetup},
};

/// Entries of a ring, at most.
const ENTRIES: u16 = 1024;
const RX: usize = 0;
const TX: usize = 1;
/// Features of virtio-net that need a control queue, which this NIC has not, or vhost-user.
pub(super) const NOT_HERE: [Features; 9] = [
    Features::CTRL_VQ,
    Features::CTRL_RX,
    Features::CTRL_RX_EXTRA,
    Features::CTRL_VLAN,
    Features::CTRL_MAC_ADDR,
    Features::GUEST_ANNOUNCE,
    Features::MQ,
    Features::LOG_ALL,
    Features::PROTOCOL_FEATURES,
];

/// A NIC whose driver is ready.
pub struct ReadyNic {
    /// The machine's memory, from guest address 0.
    pub memory: Arc<GuestMemory>,
    /// The file behind all of it.
    pub file: Arc<File>,
    /// What the driver has chosen.
    pub features: Features,
    /// Frames to the guest.
    pub rx: RingSetup,
    /// Frames from the guest.
    pub tx: RingSetup,
}

/// Who serves the rings of a machine's NIC.
pub trait NicBackEnd: Send {
    /// What the driver may choose from, of what the machine offers.
    fn features(&self) -> Features;

    /// Takes the rings on.
    ///
    /// # Errors
    /// They are not where rings can be, or the back end is gone.
    fn start(&mut self, nic: ReadyNic) -> io::Result<()>;

    /// Gives the rings up: when this returns, they are not touched any more.
    fn stop(&mut self);
}

/// A back end in this process: the rings become a port of a switch.
pub struct InSwitch {
    attach: Box<dyn FnMut(Box<dyn Port>) + Send>,
    detach: Box<dyn FnMut() + Send>,
    home: Option<Receiver<()>>,
}

impl InSwitch {
    /// Ports are handed to `attach` and asked back by `detach`; whoever has one lets go of it by dropping it.
    pub fn new(attach: Box<dyn FnMut(Box<dyn Port>) + Send>, detach: Box<dyn FnMut() + Send>) -> Self {
        InSwitch { attach, detach, home: None }
    }
}

impl NicBackEnd for InSwitch {
    fn features(&self) -> Features {
        NOT_HERE.into_iter().fold(NetDevice::default().offered(), Features::without)
    }

    fn start(&mut self, nic: ReadyNic) -> io::Result<()> {
        let ReadyNic { memory, features, rx, tx, .. } = nic;
        let queue = |ring: RingSetup| {
            let RingSetup { size, descriptors, driver, device, kick, call, base } = ring;
            let setup = QueueSetup {
                memory: Arc::clone(&memory),
                features,
                size,
                descriptors,
                driver,
                device,
                base,
                journal: None,
                kick: Some(kick),
                call: Some(call),
                enabled: true,
            };
            DeviceQueue::new(setup).map_err(io::Error::other)
        };
        let (rx, tx) = (queue(rx)?, queue(tx)?);
        let (came_home, home) = channel();
        let lane = Lane { index: 0, memory, features, rx: Some(rx), tx: Some(tx) };
        let port = RingPort::new(
            lane,
            Box::new(move |lane, failed| {
                if let Some(reason) = failed {
                    tracing::warn!(reason, "the NIC of a machine failed");
                }
                drop(lane);
                // The machine may have ended.
                let _ = came_home.send(());
            }),
        );
        self.home = Some(home);
        (self.attach)(Box::new(port));
        Ok(())
    }

    fn stop(&mut self) {
        let Some(home) = self.home.take() else { return };
        (self.detach)();
        // Ends when the port is dropped, by whatever way; a sender that is gone says the same.
        let _ = home.recv();
    }
}

/// The device behind the registers.
pub(super) struct Net {
    memory: Arc<GuestMemory>,
    file: Arc<File>,
    bells: [[EventFd; 2]; 2],
    config: [u8; 12],
    features: Features,
    back_end: Box<dyn NicBackEnd>,
}

impl Net {
    /// `bells` are kick and call of the receive and the transmit queue.
    pub(super) fn new(
        memory: (Arc<GuestMemory>, Arc<File>),
        bells: [[EventFd; 2]; 2],
        mac: Mac,
        mtu: Option<u16>,
        back_end: Box<dyn NicBackEnd>,
    ) -> Self {
        let device = NetDevice { queues: 1, mtu, mac: Some(mac), journal: None };
        let space = device.config_space(Some(mac), mtu);
        let mut config = [0; 12];
        config.iter_mut().zip(space).for_each(|(to, byte)| *to = byte);
        let own = NOT_HERE.into_iter().fold(device.offered(), Features::without);
        // The address and the MTU are the machine's to tell.
        let told = Features::MAC.with(Features::MTU);
        let features = Features(own.0 & (back_end.features().0 | told.0));
        Net { memory: memory.0, file: memory.1, bells, config, features, back_end }
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        1
    }

    fn features(&self) -> Features {
        self.features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn queues(&self) -> &'static [u16] {
        &[ENTRIES, ENTRIES]
    }

    fn start(&mut self, features: Features, queues: &[QueueRegisters]) -> io::Result<()> {
        let place = |n: usize, name: &str| {
            let at = queues.get(n).filter(|queue| queue.ready && queue.size > 0 && queue.size <= ENTRIES);
            let at = at.ok_or_else(|| io::Error::other(format!("the driver has not set up the {name} queue")))?;
            let [kick, call] = self.bells.get(n).ok_or(io::ErrorKind::InvalidInput)?;
            let (kick, call) = (kick.try_clone()?, call.try_clone()?);
            let QueueRegisters { size, descriptors, driver, device, .. } = *at;
            let base = if features.has(Features::RING_PACKED) { RingSetup::PACKED_START } else { 0 };
            Ok::<_, io::Error>(RingSetup { size, descriptors, driver, device, kick, call, base })
        };
        let (rx, tx) = (place(RX, "receive")?, place(TX, "transmit")?);
        let (memory, file) = (Arc::clone(&self.memory), Arc::clone(&self.file));
        self.back_end.start(ReadyNic { memory, file, features, rx, tx })
    }

    fn notified(&mut self, _: usize) {
        // Kicks go straight to the back end; what comes here names a queue that there is not.
    }

    fn stop(&mut self) {
        self.back_end.stop();
    }
}

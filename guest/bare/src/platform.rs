//! [`Bare`]: NIC, console, clock and sleep of the machine, as the guest's platform.
//!
//! Invariant: before it sleeps, everything that could wake it has been asked to, and was looked at once more.

use alloc::string::String;
use core::ptr::NonNull;

use guest::{Header, Mac, Platform};
use virtio_drivers::{
    Error,
    device::{console::VirtIOConsole, rng::VirtIORng},
    transport::mmio::{MmioTransport, VirtIOHeader},
};

use crate::{
    machine::{self, Info},
    mem::Identity,
    nic::Nic,
};

/// Longest line of the console that is kept.
const LINE: usize = 1024;
/// Longest sleep: the machine's watchdog wants to see that we live.
const SLEEP_US: u64 = 500_000;
/// Bytes of a device's registers.
const REGISTERS: usize = 0x200;

/// The platform.
pub struct Bare {
    info: &'static Info,
    nic: Nic,
    console: VirtIOConsole<Identity, MmioTransport<'static>>,
    typed: String,
    state: u64,
}

fn transport(address: u64) -> Result<MmioTransport<'static>, &'static str> {
    let header = NonNull::new(core::ptr::with_exposed_provenance_mut::<VirtIOHeader>(address as usize));
    let header = header.ok_or("a device has no address")?;
    // SAFETY: the machine says that the registers of a virtio device are there, for as long as we run.
    unsafe { MmioTransport::new(header, REGISTERS) }.map_err(|_| "a device is not virtio")
}

fn failed(what: &'static str) -> impl Fn(Error) -> &'static str {
    move |_| what
}

impl Bare {
    /// Starts the devices.
    pub fn new(info: &'static Info) -> Result<Bare, &'static str> {
        let [net, console, entropy] = info.devices;
        let nic = Nic::new(transport(net)?).map_err(failed("the network device does not start"))?;
        let console = VirtIOConsole::new(transport(console)?).map_err(failed("the console does not start"))?;
        let rng = VirtIORng::<Identity, _>::new(transport(entropy)?);
        let mut seed = [0; 8];
        let filled = rng.and_then(|mut rng| rng.request_entropy(&mut seed));
        filled.map_err(failed("the entropy device gives nothing"))?;
        Ok(Bare { info, nic, console, typed: String::new(), state: u64::from_le_bytes(seed) })
    }

    /// Takes what was typed; true at the end of a line.
    fn typed(&mut self) -> bool {
        while let Ok(Some(byte)) = self.console.recv(true) {
            match byte {
                b'\n' => return true,
                _ if self.typed.len() < LINE => self.typed.push(char::from(byte)),
                _ => {}
            }
        }
        false
    }
}

impl Platform for Bare {
    fn mac(&self) -> Mac {
        self.nic.mac()
    }

    fn mtu(&self) -> u16 {
        self.nic.mtu()
    }

    fn receive(&mut self, max: usize, each: &mut dyn FnMut(Header, &[u8])) -> usize {
        self.info.beat();
        self.nic.receive(max, each)
    }

    fn send(&mut self, header: Header, parts: &[&[u8]]) -> bool {
        self.nic.send(header, parts)
    }

    fn has_room(&mut self) -> bool {
        self.nic.has_room()
    }

    fn flush(&mut self) {
        self.nic.flush();
    }

    fn now_us(&self) -> u64 {
        (u128::from(machine::cycles()) * 1_000_000 / u128::from(self.info.tsc_hz.max(1))) as u64
    }

    fn idle(&mut self, until_us: Option<u64>) {
        let seen = self.info.interrupts();
        let waits = self.nic.want_interrupts(true) || matches!(self.console.recv(false), Ok(Some(_)));
        if !waits {
            let us = until_us.map_or(SLEEP_US, |until| until.saturating_sub(self.now_us()).min(SLEEP_US));
            if us > 0 {
                machine::set_timer(us);
                machine::halt(seen);
            }
        }
        self.nic.want_interrupts(false);
    }

    fn line(&mut self) -> Option<String> {
        self.typed().then(|| core::mem::take(&mut self.typed))
    }

    fn print(&mut self, line: &str) {
        // A console that takes nothing has nobody behind it.
        let _ = self.console.send_bytes(line.as_bytes());
        let _ = self.console.send(b'\n');
    }

    fn random(&mut self) -> u64 {
        // splitmix64, from a seed of the entropy device.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

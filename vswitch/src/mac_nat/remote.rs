//! [`Remote`]: what control hears of a [`super::MacNatPort`] and tells it while it runs.
//!
//! Invariant: neither side waits for the other. What is told is the whole list of addresses, so that a list that was lost is made good by the next
//! one; it is sent only when the list changed, [`PAUSE`] apart at least, and [`REFRESH`] apart at most.
//! Read first: [`super::holders`].

use std::{
    net::IpAddr,
    sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    thread::{self, Thread},
    time::Duration,
};

use wire::{Instant, Wake};

use super::holders::{AGE, Holder, Holders};

/// Time between two lists, at least.
pub const PAUSE: Duration = Duration::from_millis(100);
/// Time between two lists, at most: when an address was heard last is known no better than this.
pub const REFRESH: Duration = Duration::from_secs(60);

/// Both ends of the way between a port and control. The thread that calls this is the one that reads: it is unparked when there is something.
pub fn remote() -> (Remote, Inbox) {
    let ((tell, told), (reserve, reserved)) = (sync_channel(1), channel());
    let inbox = Inbox { tell, reader: thread::current(), reserved, version: None, last: Instant::START };
    (Remote { told, reserve }, inbox)
}

/// Control's end.
#[derive(Debug)]
pub struct Remote {
    told: Receiver<Vec<(IpAddr, Holder)>>,
    reserve: Sender<Vec<IpAddr>>,
}

impl Remote {
    /// Who has which address, if that was told anew since the last call.
    pub fn holders(&self) -> Option<Vec<(IpAddr, Holder)>> {
        self.told.try_iter().last()
    }

    /// These addresses, and no others, are the host's and its routers' from now on. False: the port has ended.
    pub fn reserve(&self, addresses: Vec<IpAddr>) -> bool {
        self.reserve.send(addresses).is_ok()
    }
}

/// The port's end.
#[derive(Debug)]
pub struct Inbox {
    tell: SyncSender<Vec<(IpAddr, Holder)>>,
    reader: Thread,
    reserved: Receiver<Vec<IpAddr>>,
    /// That of the list which was told last; none when there is none to be told.
    version: Option<u64>,
    last: Instant,
}

impl Inbox {
    /// Takes over what is reserved, and tells the list if that is due.
    #[inline]
    pub(super) fn settle(&mut self, holders: &mut Holders, now: Instant) {
        if let Ok(reserved) = self.reserved.try_recv() {
            holders.reserve(reserved);
        }
        let changed = self.version != Some(holders.version());
        if now.since(self.last) >= if changed { PAUSE } else { REFRESH } {
            self.tell(holders, now);
        }
    }

    #[cold]
    fn tell(&mut self, holders: &Holders, now: Instant) {
        self.last = now;
        let fresh = holders.iter().filter(|(_, holder)| now.since(holder.heard) < AGE);
        match self.tell.try_send(fresh.map(|(address, holder)| (*address, *holder)).collect()) {
            Ok(()) => {
                self.version = Some(holders.version());
                self.reader.unpark();
            }
            // Nobody took the last one yet.
            Err(TrySendError::Full(_)) => self.reader.unpark(),
            // Nobody ever will.
            Err(TrySendError::Disconnected(_)) => self.version = Some(holders.version()),
        }
    }

    /// When there is something to be told.
    pub(super) fn wake(&self, holders: &Holders, wake: &mut Wake) {
        let changed = self.version != Some(holders.version());
        wake.by(self.last + if changed { PAUSE } else { REFRESH });
    }
}

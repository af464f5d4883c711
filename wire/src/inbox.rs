//! Commands for what a worker owns: sent by a [`Remote`] on any thread, read from an [`Inbox`] between frames.
//!
//! Invariant: whoever has an inbox never waits, and one without a command costs one relaxed load. No command is left lying: the sender raises the flag after
//! the command is there, and the flag is lowered before the look, never after it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::{Receiver, Sender, channel},
};

/// Both ends.
pub fn remote<C>() -> (Remote<C>, Inbox<C>) {
    let (sender, receiver) = channel();
    let waiting = Arc::new(AtomicBool::new(false));
    (Remote { sender, waiting: Arc::clone(&waiting) }, Inbox { receiver, waiting })
}

/// Control's end; a copy for every thread that has something to say.
#[derive(Debug)]
pub struct Remote<C> {
    sender: Sender<C>,
    waiting: Arc<AtomicBool>,
}

impl<C> Clone for Remote<C> {
    fn clone(&self) -> Remote<C> {
        Remote { sender: self.sender.clone(), waiting: Arc::clone(&self.waiting) }
    }
}

impl<C> Remote<C> {
    /// Hands a command over; false when there is nobody any more to take it. Who sleeps sees it at the next turn.
    pub fn send(&self, command: C) -> bool {
        let sent = self.sender.send(command).is_ok();
        self.waiting.store(true, Ordering::Release);
        sent
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Inbox<C> {
    receiver: Receiver<C>,
    waiting: Arc<AtomicBool>,
}

impl<C> Inbox<C> {
    /// Whether there may be a command: to be asked before sleeping.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// The next command, if there is one.
    #[inline]
    pub fn next(&self) -> Option<C> {
        if !self.waiting.load(Ordering::Relaxed) {
            return None;
        }
        self.receive()
    }

    #[cold]
    fn receive(&self) -> Option<C> {
        self.waiting.swap(false, Ordering::AcqRel);
        let command = self.receiver.try_recv().ok();
        if command.is_some() {
            // There may be more.
            self.waiting.store(true, Ordering::Relaxed);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_arrive_in_order_and_an_empty_inbox_is_empty() {
        let (remote, inbox) = remote();
        assert!(inbox.next().is_none());
        for n in 0..3 {
            assert!(remote.clone().send(n));
        }
        assert_eq!([(); 4].map(|()| inbox.next()), [Some(0), Some(1), Some(2), None]);
        assert!(!inbox.waiting.load(Ordering::Relaxed), "the next look is cheap again");
        drop(inbox);
        assert!(!remote.send(3), "nobody is there to take it");
    }

    #[test]
    fn nothing_is_left_lying_while_others_send() {
        const EACH: u32 = 10_000;
        let (remote, inbox) = remote();
        let senders = [0, EACH].map(|first| {
            let remote = remote.clone();
            std::thread::spawn(move || (first..first + EACH).all(|n| remote.send(n)))
        });
        let mut seen = Vec::new();
        while !senders.iter().all(|sender| sender.is_finished()) {
            seen.extend(inbox.next());
        }
        // All has been sent: what is there must be found without anybody sending more.
        seen.extend(std::iter::from_fn(|| inbox.next()));
        assert!(senders.into_iter().all(|sender| sender.join().unwrap()));
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..2 * EACH));
    }
}

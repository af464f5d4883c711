//! What control tells an engine while it runs, and asks it: [`Command`], sent by a [`Remote`], read from an [`Inbox`] between frames.
//!
//! Invariant: an engine never waits for control, and an inbox without a command costs one relaxed load. Both engines understand every command;
//! what an engine cannot do it answers with the reason.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel},
    },
};

use wire::NicId;

use crate::record::Protocol;

/// Ports of an outside address that lead to ports inside, one to one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publication {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first port outside; an unspecified address means every address of the host (sockets) or of the pool (packet).
    pub listen: SocketAddr,
    /// Where the first port leads; the others to the ports after it. May be of the other family than `listen` where connections
    /// are made anew (sockets).
    pub to: SocketAddr,
    /// How many ports.
    pub count: u16,
    /// The NIC that `to` is behind, if that is known.
    pub nic: Option<NicId>,
}

/// What is remembered of one mapping or connection, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// TCP, UDP or ICMP queries.
    pub protocol: Protocol,
    /// Whose it is.
    pub nic: NicId,
    /// The endpoint inside; of ICMP, the port is the identifier.
    pub inside: SocketAddr,
    /// What the outside sees, if that is known.
    pub outside: Option<SocketAddr>,
    /// Who is spoken to, of connections and of what has spoken to one only.
    pub remote: Option<SocketAddr>,
    /// How far it is: a word.
    pub state: &'static str,
    /// Seconds until it is forgotten if no packet comes; nothing when it stays.
    pub expires: Option<u32>,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// What an engine is told.
#[derive(Debug)]
pub enum Command {
    /// Begin to forward; the answer says why not, in which case nothing has changed.
    Publish(Publication, SyncSender<Result<(), String>>),
    /// End a publication and the connections that came through it; false: it was not there.
    Withdraw(Publication, SyncSender<bool>),
    /// Tell everything that is remembered.
    Show(SyncSender<Vec<Line>>),
    /// The addresses that this host has now: guests reach none of them unless the host is theirs to reach (sockets).
    HostAddresses(Vec<IpAddr>),
}

/// Both ends of the way from control to an engine.
pub fn remote() -> (Remote, Inbox) {
    let (sender, receiver) = channel();
    let waiting = Arc::new(AtomicBool::new(false));
    (Remote { sender, waiting: Arc::clone(&waiting) }, Inbox { receiver, waiting })
}

/// Control's end; a copy for every thread that has something to say.
#[derive(Clone, Debug)]
pub struct Remote {
    sender: Sender<Command>,
    waiting: Arc<AtomicBool>,
}

impl Remote {
    /// Hands a command over; false when the engine has ended. An engine that sleeps sees it at its next turn.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.sender.send(command).is_ok();
        self.waiting.store(true, Ordering::Release);
        sent
    }
}

/// The engine's end.
#[derive(Debug)]
pub struct Inbox {
    receiver: Receiver<Command>,
    waiting: Arc<AtomicBool>,
}

impl Inbox {
    /// The next command, if there is one.
    #[inline]
    pub fn next(&self) -> Option<Command> {
        if !self.waiting.load(Ordering::Relaxed) {
            return None;
        }
        self.receive()
    }

    #[cold]
    fn receive(&self) -> Option<Command> {
        let command = self.receiver.try_recv().ok();
        if command.is_none() {
            self.waiting.store(false, Ordering::Release);
            // One that came between the look and the store is found by the next look.
            return self.receiver.try_recv().ok();
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
            assert!(remote.send(Command::HostAddresses(vec![IpAddr::from([127, 0, 0, n])])));
        }
        for n in 0..3 {
            let Some(Command::HostAddresses(addresses)) = inbox.next() else { panic!("command {n} is missing") };
            assert_eq!(addresses, [IpAddr::from([127, 0, 0, n])]);
        }
        assert!(inbox.next().is_none());
        drop(inbox);
        assert!(!remote.send(Command::HostAddresses(Vec::new())), "the engine has ended");
    }
}

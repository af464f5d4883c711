//! [`Netlink`]: one request to the kernel's routing socket at a time, and its answer.
//!
//! Invariant: every request is answered before the next one is sent, so a change that returned `Ok` has been made. A socket belongs to the
//! network namespace it was opened in. Read first: rtnetlink(7), RFC 3549.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// How often a list is asked for that changes while it is told.
const ATTEMPTS: usize = 5;

/// A routing socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket of the network namespace that this thread is in.
    ///
    /// # Errors
    /// What the system reports.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Makes one change; `flags` are those of the request besides REQUEST and ACK.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK).map(drop)
    }

    /// Lists all objects of a kind, as they were at one moment.
    ///
    /// # Errors
    /// What the kernel answers, that an object is not understood, or `Interrupted`: they change all the time.
    pub fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 1..ATTEMPTS {
            match self.exchange(message.clone(), NLM_F_DUMP) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
        self.exchange(message, NLM_F_DUMP)
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Answers { sequence: self.sequence, messages: Vec::new(), changed: false };
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if answers.read(&datagram)? {
                return answers.finish();
            }
        }
    }
}

/// What the kernel has answered to a request so far.
struct Answers {
    sequence: u32,
    messages: Vec<RouteNetlinkMessage>,
    /// What is listed changed while it was told: some of it may be missing.
    changed: bool,
}

impl Answers {
    /// Reads one datagram; whether the answer is whole.
    fn read(&mut self, mut rest: &[u8]) -> io::Result<bool> {
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::other(format!("the kernel's answer is not understood: {error}")))?;
            let length = (answer.header.length as usize).max(1).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            self.changed |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => self.messages.push(message),
                _ => {}
            }
        }
        Ok(false)
    }

    fn finish(self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let changed = "the host's interfaces, addresses or routes change all the time; try again";
        if self.changed { Err(io::Error::new(io::ErrorKind::Interrupted, changed)) } else { Ok(self.messages) }
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, NLM_F_MULTIPART};
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn datagram(flags: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let link = NetlinkPayload::from(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        for payload in [link, NetlinkPayload::Done(DoneMessage::default())] {
            let mut message = NetlinkMessage::new(Default::default(), payload);
            (message.header.sequence_number, message.header.flags) = (7, NLM_F_MULTIPART | flags);
            message.finalize();
            let begin = bytes.len();
            bytes.resize(begin + message.buffer_len(), 0);
            message.serialize(&mut bytes[begin..]);
        }
        bytes
    }

    #[test]
    fn a_list_that_changed_while_it_was_told_does_not_count() {
        let read = |bytes: &[u8]| {
            let mut answers = Answers { sequence: 7, messages: Vec::new(), changed: false };
            assert!(answers.read(bytes).unwrap());
            answers.finish()
        };
        assert_eq!(read(&datagram(0)).unwrap().len(), 1);
        assert_eq!(read(&datagram(NLM_F_DUMP_INTR)).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}

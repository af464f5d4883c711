//! The resolver on virtual time, with upstreams that say what a test has them say.

mod forwarded;
mod hostile;
mod own_names;

use std::{net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use wire::{Instant, NicId};

use super::*;

/// A resolver with two networks and two upstreams, and the time.
struct Net {
    resolver: Resolver,
    now: Instant,
}

/// What was sent upstream.
#[derive(Clone, Debug)]
struct Sent {
    exchange: u64,
    server: SocketAddr,
    tcp: bool,
    message: Message,
}

const LAN: u16 = 0;
const DMZ: u16 = 1;

fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 53))
}

fn client(network: u16, nic: u16) -> Client {
    let [high, low] = nic.to_be_bytes();
    Client {
        guest: Guest { network: NetworkId(network), nic: NicId(nic) },
        peer: SocketAddr::from(([10, network as u8, high, low], 40_000)),
        asked: [10, network as u8, 0, 1].into(),
        room: 1472,
        connection: None,
    }
}

fn by_tcp(client: Client) -> Client {
    Client { connection: Some(7), ..client }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_version(0);
    message.set_edns(edns);
    message
}

/// What an upstream answers: these records.
fn answer(sent: &Message, records: &[Record]) -> Message {
    let mut message = Message::new(sent.metadata.id, MessageType::Response, OpCode::Query);
    message.add_queries(sent.queries.clone());
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_answers(records.iter().cloned());
    message
}

fn a(name: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(rdata::A::new(198, 51, 100, last)))
}

fn soa(name: &str, ttl: u32, minimum: u32) -> Record {
    let name = Name::from_ascii(name).unwrap();
    let soa = rdata::SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
    Record::from_rdata(name, ttl, RData::SOA(soa))
}

impl Net {
    fn new() -> Net {
        Net::with(Limits::default())
    }

    fn with(limits: Limits) -> Net {
        let lan = NetworkNames {
            domain: Some("lan.test".into()),
            router: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            host: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            forwards: true,
            subnets: vec![("10.0.0.0".parse().unwrap(), 16), ("fd00::".parse().unwrap(), 64)],
            fixed: vec![
                ("Web".into(), vec!["10.0.0.10".parse().unwrap(), "fd00::10".parse().unwrap()]),
                ("db".into(), vec!["10.0.0.11".parse().unwrap()]),
                ("mute".into(), vec![]),
            ],
            elsewhere: vec![],
            sees: vec![],
        };
        let dmz = NetworkNames {
            router: vec!["10.1.0.1".parse().unwrap()],
            subnets: vec![("10.1.0.0".parse().unwrap(), 16)],
            domain: Some("dmz.test.".into()),
            sees: vec![],
            forwards: true,
            ..NetworkNames::default()
        };
        let mut resolver = Resolver::new(vec![lan, dmz], limits);
        resolver.set_upstreams(&[server(1), server(2)]);
        Net { resolver, now: Instant::START + Duration::from_secs(1000) }
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        self.resolver.tick(self.now);
    }

    fn ask(&mut self, client: Client, message: &Message) {
        self.resolver.ask(client, &message.to_vec().unwrap(), self.now);
    }

    /// Everything that is to be done, in order.
    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.resolver.next_action()).collect()
    }

    /// The answer to a question that is answered at once, and the bytes of it.
    fn at_once(&mut self, client: Client, message: &Message) -> Message {
        self.ask(client, message);
        let actions = self.actions();
        let [Action::Reply { client: to, bytes }] = actions.as_slice() else { panic!("{actions:?}") };
        assert_eq!(*to, client);
        let answer = Message::from_vec(bytes).unwrap();
        assert_eq!((answer.metadata.id, &answer.queries), (message.metadata.id, &message.queries));
        answer
    }

    /// What a question has sent upstream.
    fn forwarded(&mut self, client: Client, message: &Message) -> Sent {
        self.ask(client, message);
        self.sent()
    }

    /// The one thing that was sent upstream.
    fn sent(&mut self) -> Sent {
        let sent = self.actions().into_iter().filter_map(|action| match action {
            Action::Send { exchange, server, tcp, bytes } => {
                Some(Sent { exchange, server, tcp, message: Message::from_vec(&bytes).unwrap() })
            }
            _ => None,
        });
        let sent: Vec<Sent> = sent.collect();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent[0].clone()
    }

    fn answered(&mut self, sent: &Sent, message: &Message) {
        self.resolver.answered(sent.exchange, sent.server, sent.tcp, &message.to_vec().unwrap(), self.now);
    }

    /// The replies that are to be sent.
    fn replies(&mut self) -> Vec<(Client, Message)> {
        let replies = self.actions().into_iter().filter_map(|action| match action {
            Action::Reply { client, bytes } => Some((client, Message::from_vec(&bytes).unwrap())),
            _ => None,
        });
        replies.collect()
    }

    fn reply(&mut self) -> Message {
        let replies = self.replies();
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].1.clone()
    }
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

//! [`Query`], what a guest asks; [`Layout`], where things lie in an answer; and how an answer is fitted to who asked.
//!
//! Invariant: answers of upstreams are passed on as the bytes they are, but for the id, the question's letters, TTLs and, where too long,
//! everything after the question. A pointer in an owner's name must point backwards, so no walk goes in circles; names inside records are not
//! followed at all. Read first: RFC 1035 section 4.1, RFC 6891 section 6.1.

use std::ops::Range;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::Name,
};

use super::Client;
use crate::bytes::{array, be16, be32, set16};

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// Longest answer by UDP, whatever the client says (DNS flag day 2020): it fits any path unfragmented.
pub(crate) const MAX_UDP: u16 = 1232;
const PLAIN_UDP: u16 = 512;
pub(crate) const CLASS_IN: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
/// A TTL with its highest bit set means zero (RFC 2181 section 8).
const MAX_TTL: u32 = 0x7fff_ffff;

const QR: u16 = 0x8000;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
/// Response code: the question is malformed.
pub(crate) const FORMERR: u8 = 1;

/// What a guest asks.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) id: u16,
    /// The question as it came: name, type and class.
    pub(crate) question: Vec<u8>,
    pub(crate) name: Name,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// RD, AD and CD, as they are in the header.
    flags: u16,
    edns: Option<Asked>,
}

/// What a client says by EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    size: u16,
    dnssec: bool,
}

/// What is answered to bytes that are no query that can be resolved: an error, or nothing.
pub(crate) type Refusal = Option<Vec<u8>>;

impl Query {
    /// The query that these bytes are, or what to answer instead.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Query, Refusal> {
        let (Some(id), Some(flags)) = (be16(bytes, 0), be16(bytes, 2)) else { return Err(None) };
        if flags & QR != 0 || bytes.len() < HEADER {
            // An answer to an answer would go to and fro for ever.
            return Err(None);
        }
        let opcode = OpCode::from_u8((flags >> 11) as u8 & 0xf);
        let error = |code| Message::error_msg(id, opcode, code).to_vec().ok();
        if opcode != OpCode::Query {
            return Err(error(ResponseCode::NotImp));
        }
        let malformed = || error(ResponseCode::FormErr);
        let message = Message::from_vec(bytes).map_err(|_| malformed())?;
        let [asked] = message.queries.as_slice() else { return Err(malformed()) };
        let question = question(bytes).and_then(|range| bytes.get(range)).ok_or_else(malformed)?;
        let mut query = Query {
            id,
            question: question.to_vec(),
            name: asked.name.clone(),
            kind: asked.query_type.into(),
            class: asked.query_class.into(),
            flags: flags & (RD | AD | CD),
            edns: None,
        };
        if let Some(edns) = &message.edns {
            query.edns = Some(Asked { size: edns.max_payload(), dnssec: edns.flags().dnssec_ok });
            if edns.version() > 0 {
                return Err(query.answer(ResponseCode::BADVERS).to_vec().ok());
            }
        }
        if query.class != CLASS_IN || (249..=252).contains(&query.kind) {
            // Only the Internet's names, and no transfer of zones.
            return Err(query.answer(ResponseCode::Refused).to_vec().ok());
        }
        Ok(query)
    }

    /// An answer without records.
    pub(crate) fn answer(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.flags & RD != 0;
        message.metadata.checking_disabled = self.flags & CD != 0;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        let mut question = hickory_proto::op::Query::query(self.name.clone(), self.kind.into());
        question.set_query_class(self.class.into());
        message.add_query(question);
        if let Some(asked) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP).set_version(0).set_dnssec_ok(asked.dnssec);
            edns.set_rcode_high(code.high());
            message.set_edns(edns);
        }
        message
    }

    /// What has to be the same for two queries to have the same answer.
    pub(crate) fn key(&self) -> Vec<u8> {
        let mut key = self.question.to_ascii_lowercase();
        let tail = key.len().saturating_sub(4);
        if let (Some(to), Some(from)) = (key.get_mut(tail..), self.question.get(tail..)) {
            to.copy_from_slice(from);
        }
        key.extend((self.flags).to_be_bytes());
        key.push(self.edns.map_or(0, |asked| 1 + u8::from(asked.dnssec)));
        key
    }

    /// Whether it was asked with EDNS.
    pub(crate) fn has_edns(&self) -> bool {
        self.edns.is_some()
    }

    /// What is asked upstream: the same question from us; `plain`: without EDNS.
    pub(crate) fn upstream(&self, id: u16, plain: bool) -> Vec<u8> {
        let edns = self.edns.filter(|_| !plain);
        let mut bytes = Vec::with_capacity(HEADER + self.question.len() + 11);
        for field in [id, self.flags, 1, 0, 0, u16::from(edns.is_some())] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(&self.question);
        if let Some(asked) = edns {
            push_opt(&mut bytes, asked.dnssec);
        }
        bytes
    }

    pub(crate) fn recursive(&self) -> bool {
        self.flags & RD != 0
    }

    /// Bytes of the longest answer that the client takes by UDP, where `room` get through.
    fn limit(&self, room: u16) -> usize {
        let most = room.clamp(PLAIN_UDP, MAX_UDP);
        usize::from(self.edns.map_or(PLAIN_UDP, |asked| asked.size.clamp(PLAIN_UDP, most)))
    }

    /// An answer to the same question fitted to the client who asks.
    pub(crate) fn fit(&self, answer: &[u8], client: &Client) -> Vec<u8> {
        let mut bytes = answer.to_vec();
        set16(&mut bytes, 0, self.id);
        if let Some(place) = bytes.get_mut(HEADER..HEADER + self.question.len())
            && place.eq_ignore_ascii_case(&self.question)
        {
            place.copy_from_slice(&self.question);
        }
        if client.connection.is_none() && bytes.len() > self.limit(client.room) {
            self.truncate(&mut bytes);
        }
        bytes
    }

    /// Leaves header and question, and says that there is more (RFC 2181 section 9).
    fn truncate(&self, bytes: &mut Vec<u8>) {
        bytes.truncate(HEADER + self.question.len());
        let flags = be16(bytes, 2).unwrap_or(QR) | TC;
        for (at, field) in [(2, flags), (4, 1), (6, 0), (8, 0), (10, u16::from(self.edns.is_some()))] {
            set16(bytes, at, field);
        }
        if let Some(asked) = self.edns {
            push_opt(bytes, asked.dnssec);
        }
    }
}

fn push_opt(bytes: &mut Vec<u8>, dnssec: bool) {
    bytes.push(0);
    for field in [TYPE_OPT, MAX_UDP, 0, u16::from(dnssec) << 15, 0] {
        bytes.extend(field.to_be_bytes());
    }
}

/// Where the name at `at` ends. A pointer ends it, and must point to before the name.
fn skip_name(bytes: &[u8], at: usize) -> Option<usize> {
    let mut next = at;
    while next - at < 256 {
        match *bytes.get(next)? {
            0 => return Some(next + 1),
            length @ 1..=63 => next += 1 + usize::from(length),
            0xc0.. => {
                let target = usize::from(be16(bytes, next)? & 0x3fff);
                return (HEADER..at).contains(&target).then_some(next + 2);
            }
            _ => return None,
        }
    }
    None
}

/// Where the only question lies: name without pointers, type and class.
fn question(bytes: &[u8]) -> Option<Range<usize>> {
    let end = skip_name(bytes, HEADER)? + 4;
    (be16(bytes, 4)? == 1 && end <= bytes.len()).then_some(HEADER..end)
}

/// Where a record's TTL lies.
#[derive(Clone, Copy, Debug)]
struct Ttl {
    at: usize,
    seconds: u32,
}

/// Where things lie in an answer.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    question: Range<usize>,
    ttls: Vec<Ttl>,
    answers: usize,
    /// The least TTL of what was not found, where an SOA record says it (RFC 2308 section 5).
    negative: Option<u32>,
}

impl Layout {
    /// Reads an answer; nothing when it is none, or not in one piece.
    pub(crate) fn of(bytes: &[u8]) -> Option<Layout> {
        let flags = be16(bytes, 2)?;
        if flags & QR == 0 || flags >> 11 & 0xf != 0 {
            return None;
        }
        let question = question(bytes)?;
        let counts = [be16(bytes, 6)?, be16(bytes, 8)?, be16(bytes, 10)?];
        let mut layout = Layout { ttls: Vec::new(), answers: usize::from(counts[0]), negative: None, question };
        let mut at = layout.question.end;
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let fixed = skip_name(bytes, at)?;
                let (kind, seconds) = (be16(bytes, fixed)?, be32(bytes, fixed + 4)?);
                let end = fixed + 10 + usize::from(be16(bytes, fixed + 8)?);
                if end > bytes.len() {
                    return None;
                }
                if kind != TYPE_OPT {
                    let seconds = if seconds > MAX_TTL { 0 } else { seconds };
                    layout.ttls.push(Ttl { at: fixed + 4, seconds });
                    if kind == TYPE_SOA && section == 1 {
                        layout.negative = Some(seconds.min(be32(bytes, end - 4)?));
                    }
                }
                at = end;
            }
        }
        Some(layout)
    }

    /// Whether it answers the question that was put, under the id it was put under.
    pub(crate) fn answers(&self, bytes: &[u8], id: u16, question: &[u8]) -> bool {
        let Some(theirs) = bytes.get(self.question.clone()) else { return false };
        let tail = |question: &[u8]| question.len().checked_sub(4).and_then(|at| array::<4>(question, at));
        be16(bytes, 0) == Some(id) && theirs.eq_ignore_ascii_case(question) && tail(theirs) == tail(question)
    }

    /// Seconds for which it may be kept; nothing when it says nothing about that.
    pub(crate) fn lifetime(&self) -> Option<u32> {
        let least = self.ttls.iter().map(|ttl| ttl.seconds).min();
        match (self.answers, self.negative) {
            // What is not there, without a word on for how long.
            (0, None) => None,
            (_, negative) => least.into_iter().chain(negative).min(),
        }
    }

    /// Takes the time that has passed off every TTL.
    pub(crate) fn age(&self, bytes: &mut [u8], seconds: u32) {
        for ttl in &self.ttls {
            if let Some(place) = bytes.get_mut(ttl.at..ttl.at + 4) {
                place.copy_from_slice(&ttl.seconds.saturating_sub(seconds).to_be_bytes());
            }
        }
        let flags = be16(bytes, 2).unwrap_or(0);
        set16(bytes, 2, flags & !AA);
    }
}

/// Whether a message is nothing but a header which says that the question under `id` was not understood (RFC 6891 section 7: by a server without EDNS).
pub(crate) fn is_bare_refusal(bytes: &[u8], id: u16) -> bool {
    let is_answer = be16(bytes, 2).is_some_and(|flags| flags & QR != 0 && flags >> 11 & 0xf == 0);
    bytes.len() == HEADER && be16(bytes, 0) == Some(id) && is_answer && code(bytes) == FORMERR
}

/// The low four bits of the response code: EDNS's high ones are those of what we did not ask for.
pub(crate) fn code(bytes: &[u8]) -> u8 {
    be16(bytes, 2).map_or(0, |flags| flags as u8 & 0xf)
}

/// More was to be said than fitted.
pub(crate) fn truncated(bytes: &[u8]) -> bool {
    be16(bytes, 2).is_some_and(|flags| flags & TC != 0)
}

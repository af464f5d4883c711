//! Segments and checksums against etherparse, which shares no code with us, and against a plain sum of words.

use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use sys::{GuestMemory, Lent, Region, memory::Mapping};

use super::*;
use crate::{HEAD_BYTES, NicId, Offload, Origin, Sizes};

/// What a super-frame is made of.
#[derive(Clone, Debug)]
pub(crate) struct Super {
    pub(crate) tags: usize,
    pub(crate) v6: bool,
    /// IPv4 options or IPv6 extension headers, in units of eight bytes.
    pub(crate) extra: usize,
    pub(crate) tcp: bool,
    /// TCP options in words.
    pub(crate) options: usize,
    pub(crate) flags: u8,
    pub(crate) id: u16,
    pub(crate) seq: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) mss: u16,
}

impl Super {
    pub(crate) fn l4(&self) -> usize {
        14 + 4 * self.tags + if self.v6 { 40 } else { 20 } + 8 * self.extra
    }

    pub(crate) fn headers(&self) -> usize {
        self.l4() + if self.tcp { 20 + 4 * self.options } else { 8 }
    }

    /// The frame as a guest sends it: lengths of the whole, the pseudo header's sum in the checksum field.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let l4_len = self.headers() - self.l4() + self.payload.len();
        let mut bytes = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        for tag in 0..self.tags {
            let outer_of_two = self.tags == 2 && tag == 0;
            bytes.extend(if outer_of_two { [0x88, 0xa8] } else { [0x81, 0] });
            bytes.extend([0, 100 + tag as u8]);
        }
        let pseudo = if self.v6 {
            let (source, destination) = ([0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [0xfe; 16]);
            let next = if self.extra > 0 { 60 } else { protocol };
            bytes.extend([0x86, 0xdd, 0x60, 0x12, 0x34, 0x56]);
            bytes.extend(((8 * self.extra + l4_len) as u16).to_be_bytes());
            bytes.extend([next, 64]);
            bytes.extend(source);
            bytes.extend(destination);
            for extension in 0..self.extra {
                let next = if extension + 1 < self.extra { 60 } else { protocol };
                // Destination options: one PadN option of six bytes.
                bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            [&source[..], &destination, &(l4_len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
        } else {
            let (source, destination) = ([192, 0, 2, 1], [198, 51, 100, 255]);
            let len = 20 + 8 * self.extra + l4_len;
            bytes.extend([8, 0, 0x45 + 2 * self.extra as u8, 0]);
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend(self.id.to_be_bytes());
            bytes.extend([0x40, 0, 64, protocol, 0xaa, 0xaa]);
            bytes.extend(source);
            bytes.extend(destination);
            // No-operation options.
            bytes.extend(vec![1; 8 * self.extra]);
            [&source[..], &destination, &[0, protocol], &(l4_len as u16).to_be_bytes()].concat()
        };
        let sum = words(&pseudo).to_be_bytes();
        bytes.extend([0x13, 0x88, 0x1f, 0x90]);
        if self.tcp {
            bytes.extend(self.seq.to_be_bytes());
            bytes.extend([1, 2, 3, 4, (5 + self.options as u8) << 4, self.flags, 0xff, 0xff]);
            bytes.extend(sum);
            bytes.extend([0; 2]);
            bytes.extend(vec![1; 4 * self.options]);
        } else {
            bytes.extend((l4_len as u16).to_be_bytes());
            bytes.extend(sum);
        }
        assert_eq!(bytes.len(), self.headers());
        bytes.extend(&self.payload);
        bytes
    }

    pub(crate) fn offload(&self) -> Offload {
        let gso = match (self.tcp, self.v6) {
            (false, _) => Gso::Udp,
            (true, false) => Gso::Tcp4,
            (true, true) => Gso::Tcp6,
        };
        // The header length is a hint that nobody may rely on.
        Offload::new(gso, 3, self.mss, self.l4() as u16, if self.tcp { 16 } else { 6 })
    }

    /// Bytes of the headers in which segments may differ from the original, zeroed.
    fn masked(&self, headers: &[u8]) -> Vec<u8> {
        let (l3, l4) = (14 + 4 * self.tags, self.l4());
        let mut bytes = headers.to_vec();
        let places = if self.v6 { [l3 + 4..l3 + 6, 0..0] } else { [l3 + 2..l3 + 6, l3 + 10..l3 + 12] };
        for place in places {
            bytes[place].fill(0);
        }
        for place in
            if self.tcp { [l4 + 4..l4 + 8, l4 + 13..l4 + 14, l4 + 16..l4 + 18] } else { [l4 + 4..l4 + 8, 0..0, 0..0] }
        {
            bytes[place].fill(0);
        }
        bytes
    }
}

pub(crate) fn supers(most: usize) -> impl Strategy<Value = Super> {
    let head = (0..=2usize, any::<bool>(), 0..=2usize, any::<bool>(), 0..=4usize, any::<u8>());
    let size = prop_oneof![1..=20usize, 21..=1500usize, 1501..=9000usize];
    (head, any::<u16>(), any::<u32>(), size, 0..=most).prop_flat_map(
        |((tags, v6, extra, tcp, options, flags), id, seq, mss, len)| {
            let len = len.min(mss * 300);
            prop::collection::vec(any::<u8>(), len).prop_map(move |payload| Super {
                tags,
                v6,
                extra,
                tcp,
                options,
                flags,
                id,
                seq,
                payload,
                mss: mss as u16,
            })
        },
    )
}

/// RFC 1071, word by word.
fn words(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u64::from(*byte));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn context() -> Context {
    let mut cx = Context::new(Sizes::default()).unwrap();
    cx.add_nic(NicId(0));
    cx
}

/// Receives `bytes` as one frame, what does not fit into the head in pieces of the lengths of `cuts`, over and over.
pub(crate) fn frame(cx: &mut Context, bytes: &[u8], offload: Offload, cuts: &[usize]) -> Frame {
    let mut rest = bytes.get(HEAD_BYTES..).unwrap_or_default();
    let mut pieces = Vec::new();
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(*cut));
        pieces.push(cx.arena.pool(piece).unwrap());
        rest = after;
    }
    let (frame, head) = cx.heads.begin(Origin { nic: NicId(0), lane: 7 }, bytes.len()).unwrap();
    let fill = head.fill();
    let n = fill.len();
    fill.copy_from_slice(&bytes[..n]);
    head.offload = offload;
    for piece in pieces {
        assert!(cx.heads.add_piece(&frame, piece));
    }
    cx.received(1, bytes.len() as u64);
    frame
}

/// Everything that `frame` becomes, with what each still owes; checks what holds for every frame.
pub(crate) fn settle(cx: &mut Context, frame: Frame, accepts: Accepts) -> Vec<(Vec<u8>, Offload)> {
    let mut out = Vec::new();
    let mut settle = Settle::new(cx, frame, accepts);
    while let Some(frame) = settle.next(cx) {
        let head = cx.heads.get(&frame);
        let (len, offload) = (head.len(), head.offload);
        let lent: usize = cx.heads.body(&frame).iter().map(Lent::len).sum();
        assert_eq!(head.bytes().len() + lent, len);
        assert!(accepts.has(offload.needs()));
        assert_eq!(head.origin.lane, 7);
        let mut bytes = vec![0; len];
        assert_eq!(cx.read_all(&frame, &mut bytes), Some(len));
        cx.transmitted(1, len as u64);
        out.push((bytes, offload));
    }
    assert!(settle.next(cx).is_none());
    assert!(cx.ledger.balances(), "{:?}", cx.ledger);
    out
}

/// Completes what a receiver that accepts partial checksums completes.
fn receiver(bytes: &mut [u8], offload: Offload) {
    if offload.needs_checksum() {
        let sum = !words(&bytes[usize::from(offload.checksum_start())..]);
        let sum = if sum == 0 { 0xffff } else { sum };
        bytes[offload.checksum_at()..][..2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// What etherparse finds in a segment: IPv4 identification, TCP sequence number and flags, payload. Checksums are checked.
fn dissect(bytes: &[u8], tags: usize) -> (u16, u32, u8, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    assert_eq!(packet.link_exts.iter().filter(|ext| matches!(ext, LinkExtSlice::Vlan(_))).count(), tags);
    let (mut id, mut l3) = (0, None);
    match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            assert_eq!(14 + 4 * tags + usize::from(header.total_len()), bytes.len());
            id = header.identification();
            l3 = Some((header.source(), header.destination()));
        }
        NetSlice::Ipv6(ip) => {
            assert_eq!(14 + 4 * tags + 40 + usize::from(ip.header().payload_length()), bytes.len());
        }
        NetSlice::Arp(_) => panic!("ARP"),
    }
    let v6 = SlicedPacket::from_ethernet(bytes).unwrap().net.and_then(|net| match net {
        NetSlice::Ipv6(ip) => Some((ip.header().source(), ip.header().destination())),
        _ => None,
    });
    match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let (header, payload) = (tcp.to_header(), tcp.payload());
            let sum = match (l3, v6) {
                (Some((from, to)), _) => header.calc_checksum_ipv4_raw(from, to, payload),
                (None, Some((from, to))) => header.calc_checksum_ipv6_raw(from, to, payload),
                (None, None) => panic!("no addresses"),
            };
            // Zero has two forms in one's complement.
            assert_eq!(header.checksum % 0xffff, sum.unwrap() % 0xffff);
            let flags = bytes[bytes.len() - payload.len() - header.header_len() + 13];
            (id, header.sequence_number, flags, payload.to_vec())
        }
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            let sum = match (l3, v6) {
                (Some((from, to)), _) => header.calc_checksum_ipv4_raw(from, to, payload),
                (None, Some((from, to))) => header.calc_checksum_ipv6_raw(from, to, payload),
                (None, None) => panic!("no addresses"),
            };
            assert_eq!(header.checksum, sum.unwrap());
            assert_eq!(usize::from(header.length), 8 + payload.len());
            (id, 0, 0, payload.to_vec())
        }
        other => panic!("{other:?}"),
    }
}

fn simple(tcp: bool, payload: usize, mss: u16) -> Super {
    let payload = (0..payload).map(|i| (i * 7 + i / 251) as u8).collect();
    Super { tags: 0, v6: false, extra: 0, tcp, options: 3, flags: 0x99, id: 0xfffe, seq: 0xffff_ff00, payload, mss }
}

proptest! {
    #[test]
    fn segments_make_up_the_payload(
        whole in supers(20_000),
        // Not more pieces than one turn has.
        cuts in prop::collection::vec(6..3000usize, 1..4),
        sums in any::<bool>(),
        pushed in any::<bool>(),
    ) {
        let mut cx = context();
        let accepts = if sums { Accepts::CSUM } else { Accepts::NONE };
        let mut whole = whole;
        let frame = frame(&mut cx, &whole.bytes(), whole.offload(), &cuts);
        if pushed && whole.tags < 2 {
            // As a port does that tags what it passes on.
            let head = cx.heads.get_mut(&frame);
            prop_assert!(head.push(4));
            head.bytes_mut().copy_within(4..16, 0);
            let tags: &[u8] = if whole.tags == 1 { &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 101] } else { &[0x81, 0, 0, 100] };
            head.bytes_mut()[12..12 + tags.len()].copy_from_slice(tags);
            head.offload = head.offload.shifted(4);
            whole.tags += 1;
        }
        let original = whole.bytes();
        // A copy, as a flood makes it, is not disturbed.
        let twin = cx.copy(&frame).unwrap();
        let segments = settle_with_twin(&mut cx, frame, twin, accepts, &original);
        let mss = usize::from(whole.mss);
        prop_assert_eq!(segments.len(), whole.payload.len().div_ceil(mss).max(1));
        let mut payload = Vec::new();
        for (n, (mut bytes, offload)) in segments.iter().cloned().enumerate() {
            prop_assert_eq!(offload.needs(), accepts);
            receiver(&mut bytes, offload);
            prop_assert_eq!(whole.masked(&bytes[..whole.headers()]), whole.masked(&original[..whole.headers()]));
            let (id, seq, flags, part) = dissect(&bytes, whole.tags);
            let last = n + 1 == segments.len();
            prop_assert!(part.len() == mss || last);
            if !whole.v6 {
                prop_assert_eq!(id, whole.id.wrapping_add(n as u16));
            }
            if whole.tcp {
                prop_assert_eq!(seq, whole.seq.wrapping_add(payload.len() as u32));
                let cleared = if last { 0 } else { 0x09 } | if n == 0 { 0 } else { 0x80 };
                prop_assert_eq!(flags, whole.flags & !cleared);
            }
            payload.extend(part);
        }
        prop_assert_eq!(payload, whole.payload);
    }

    #[test]
    fn a_plain_checksum_is_completed(whole in supers(3000), cuts in prop::collection::vec(1..700usize, 1..4)) {
        let mut cx = context();
        let bytes = whole.bytes();
        let mut expected = bytes.clone();
        receiver(&mut expected, whole.offload().whole());
        let frame = frame(&mut cx, &bytes, whole.offload().whole(), &cuts);
        let out = settle(&mut cx, frame, Accepts::NONE);
        prop_assert_eq!(out.len(), 1);
        prop_assert!(out[0].1.is_none());
        let at = whole.l4() + if whole.tcp { 16 } else { 6 };
        let same = |bytes: &[u8]| [&bytes[..at], &bytes[at + 2..]].concat();
        prop_assert_eq!(same(&out[0].0), same(&expected));
        let field = |bytes: &[u8]| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        prop_assert_eq!(field(&out[0].0) % 0xffff, field(&expected) % 0xffff);
        prop_assert!(whole.tcp || field(&out[0].0) != 0);
    }

    #[test]
    fn any_header_over_any_bytes_ends_in_frames_or_a_drop(
        bytes in prop::collection::vec(any::<u8>(), 14..400),
        low in any::<u64>(),
        high in any::<u32>(),
        gso in prop::sample::select(vec![0u64, 1, 4, 5, 0x81]),
    ) {
        let mut cx = context();
        let offload = Offload::from_words(low & !0xff00 | gso << 8 | 1, high & 0x1f).checked(bytes.len());
        let frame = frame(&mut cx, &bytes, offload.unwrap_or_default(), &[33]);
        settle(&mut cx, frame, Accepts::NONE);
    }

    #[test]
    fn spoilt_headers_end_in_frames_or_a_drop(
        whole in supers(2000),
        spoilt in prop::collection::vec((0..128usize, any::<u8>()), 0..6),
        cut_short in 14..2000usize,
        shifted in any::<bool>(),
    ) {
        let mut cx = context();
        let mut bytes = whole.bytes();
        for (at, value) in spoilt {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(cut_short);
        let offload = if shifted { whole.offload().shifted(2) } else { whole.offload() };
        let frame = frame(&mut cx, &bytes, offload, &[100]);
        settle(&mut cx, frame, Accepts::NONE);
    }
}

/// As [`settle`], for a frame that has a copy, which passes as it is and is not changed.
fn settle_with_twin(
    cx: &mut Context,
    frame: Frame,
    twin: Frame,
    accepts: Accepts,
    original: &[u8],
) -> Vec<(Vec<u8>, Offload)> {
    cx.ledger.held += 1;
    let out = settle(cx, frame, accepts);
    cx.ledger.held -= 1;
    let whole = settle(cx, twin, Accepts::ALL);
    assert_eq!(whole.len(), 1);
    assert!(whole[0].0 == original && whole[0].1.segment_size() > 0);
    out
}

fn drops(whole: &Super, offload: Offload) -> Vec<(DropReason, u64)> {
    let mut cx = context();
    let frame = frame(&mut cx, &whole.bytes(), offload, &[5000]);
    assert!(settle(&mut cx, frame, Accepts::NONE).is_empty());
    cx.counters(NicId(0)).unwrap().all_drops().collect()
}

#[test]
fn announcements_that_headers_contradict_are_refused() {
    let refused = vec![(DropReason::CannotSegment, 1)];
    let tcp = simple(true, 3000, 1000);
    assert_eq!(drops(&tcp, Offload::new(Gso::Tcp6, 66, 1000, 34, 16)), refused, "IPv4 is not IPv6");
    assert_eq!(drops(&tcp, Offload::new(Gso::Udp, 66, 1000, 34, 6)), refused, "TCP is not UDP");
    assert_eq!(drops(&tcp, Offload::new(Gso::Tcp4, 66, 1000, 38, 12)), refused, "checksum of something else");
    assert_eq!(drops(&tcp, Offload::new(Gso::None, 66, 0, 34, 100)), refused, "checksum past the head");
    let far = Super { v6: true, extra: 6, ..simple(true, 3000, 1000) };
    assert_eq!(drops(&far, far.offload()), refused, "headers past the head");
    let mut cx = context();
    let mut bytes = tcp.bytes();
    bytes[20] |= 0x20;
    let fragment = frame(&mut cx, &bytes, tcp.offload(), &[5000]);
    assert!(settle(&mut cx, fragment, Accepts::NONE).is_empty());
}

#[test]
fn what_the_receiver_accepts_passes_as_it_is() {
    let mut cx = context();
    let whole = simple(true, 3000, 1000);
    let untouched = frame(&mut cx, &whole.bytes(), whole.offload(), &[500]);
    let out = settle(&mut cx, untouched, Accepts::CSUM.with(Accepts::TSO4));
    assert_eq!(out, [(whole.bytes(), whole.offload())]);
    let plain = frame(&mut cx, &whole.bytes(), Offload::NONE, &[500]);
    assert_eq!(settle(&mut cx, plain, Accepts::NONE), [(whole.bytes(), Offload::NONE)]);
    assert_eq!((cx.ledger.copied, cx.ledger.dropped), (0, 0));
}

#[test]
fn no_heads_or_pieces_left_drops_the_rest_once() {
    for (heads, pieces, reason) in [(4, 100, DropReason::NoHeads), (100, 12, DropReason::NoBuffers)] {
        let mut cx = Context::new(Sizes { heads, pieces, pool: 1 << 16 }).unwrap();
        cx.add_nic(NicId(0));
        let whole = simple(false, 10_000, 1000);
        let frame = frame(&mut cx, &whole.bytes(), whole.offload(), &[1100]);
        assert_eq!(settle(&mut cx, frame, Accepts::NONE).len(), if reason == DropReason::NoHeads { 3 } else { 1 });
        assert_eq!(cx.counters(NicId(0)).unwrap().all_drops().collect::<Vec<_>>(), [(reason, 1)]);
    }
}

#[test]
fn payload_that_is_gone_is_not_sent() {
    let mut cx = context();
    let whole = simple(true, 10_000, 1000);
    let region = Region::new(0, 4096, 0, Mapping::anonymous(4096).unwrap().into(), 0).unwrap();
    let id = cx.arena.insert(GuestMemory::new(vec![region], None).unwrap().into());
    for offload in [whole.offload(), whole.offload().whole()] {
        let frame = frame(&mut cx, &whole.bytes(), offload, &[5000]);
        // Letting go of any memory makes everything stale that was lent before.
        cx.arena.remove(id);
        assert!(settle(&mut cx, frame, Accepts::NONE).is_empty());
    }
    assert_eq!(cx.counters(NicId(0)).unwrap().drops(DropReason::Stale), 2);
}

#[test]
fn a_udp_sum_of_zero_is_sent_as_ones() {
    let mut whole = simple(false, 2, 100);
    whole.payload = vec![0, 0];
    let mut bytes = whole.bytes();
    receiver(&mut bytes, whole.offload().whole());
    // The payload that makes everything add up to zero is the checksum without it.
    whole.payload = bytes[40..42].to_vec();
    for offload in [whole.offload(), whole.offload().whole()] {
        let mut cx = context();
        let frame = frame(&mut cx, &whole.bytes(), offload, &[1]);
        let out = settle(&mut cx, frame, Accepts::NONE);
        assert_eq!(out[0].0[40..42], [0xff, 0xff]);
    }
}

#[test]
fn the_largest_frame_is_cut() {
    let mut cx = context();
    let whole = Super { tags: 1, ..simple(true, 65_000, 1448) };
    let frame = frame(&mut cx, &whole.bytes(), whole.offload(), &[4096]);
    let out = settle(&mut cx, frame, Accepts::NONE);
    let payload: Vec<u8> = out.iter().flat_map(|(bytes, _)| dissect(bytes, 1).3).collect();
    assert_eq!((out.len(), cx.ledger.copied), (45, 44));
    assert_eq!(payload, whole.payload);
}

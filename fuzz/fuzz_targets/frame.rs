//! Frames of any bytes with any virtio-net header: parsed, cut, summed up, and forwarded in a network of any memberships.
//!
//! Invariant: nothing panics; the ledger balances; what comes out owes only what its receiver accepts, describes itself, is as long as
//! its pieces, and never goes back to where it came from.
//! Read first: `wire::layers`, `wire::segmentation`, `vswitch::forward`.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use vswitch::{Bridge, BridgeSpec, Egress, Membership, NicSpec};
use wire::{
    Accepts, Burst, Context, DropReason, FlowKey, Frame, HEAD_BYTES, Instant, Layers, MAX_FRAME, Mac, NicId, Offload,
    Origin, Sizes, Vid, segmentation::Settle,
};

const VIDS: [u16; 4] = [1, 2, 100, 4094];
/// Each NIC has this many lanes.
const LANES: u16 = 2;

fn vid(u: &mut Unstructured<'_>) -> Result<Option<Vid>> {
    Ok(Vid::new(*u.choose(&VIDS)?))
}

fn membership(u: &mut Unstructured<'_>) -> Result<Membership> {
    Ok(match u.int_in_range(0..=2)? {
        0 => Membership::Untagged,
        1 => vid(u)?.map_or(Membership::Untagged, Membership::Access),
        _ => {
            let native = if u.arbitrary()? { vid(u)? } else { None };
            let mut vlans = Vec::new();
            for _ in 0..u.int_in_range(0..=3)? {
                vlans.extend(vid(u)?);
            }
            Membership::Trunk { vlans, native }
        }
    })
}

fn accepts(u: &mut Unstructured<'_>) -> Result<Accepts> {
    let all = [Accepts::CSUM, Accepts::TSO4, Accepts::TSO6, Accepts::USO, Accepts::ECN];
    let bits = u.arbitrary::<u8>()?;
    let chosen = all.into_iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0);
    Ok(chosen.fold(Accepts::NONE, |set, (_, one)| set.with(one)))
}

/// The bytes of a frame: random ones, or headers that are right but for what is random in them.
fn bytes(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, Offload)> {
    let raw = usize::from(u.arbitrary::<u8>()?).min(u.len());
    let mut bytes = Vec::new();
    let mut offload = Offload::from_bytes(u.arbitrary()?);
    if u.arbitrary()? {
        let mac = |n: u8| if n & 7 == 7 { [0xff; 6] } else { [2, 0, 0, 0, 0, n & 7] };
        bytes.extend([mac(u.arbitrary()?), mac(u.arbitrary()?)].concat());
        let tags = u.int_in_range(0..=2usize)?;
        for _ in 0..tags {
            bytes.extend([0x81, 0, u.arbitrary::<u8>()? & 0xef, u.arbitrary()?]);
        }
        let (v6, udp) = (u.arbitrary::<bool>()?, u.arbitrary::<bool>()?);
        let protocol = if udp { 17 } else { 6 };
        if v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0]);
            let extension = u.ratio(1, 4)?;
            bytes.extend([if extension { *u.choose(&[0, 43, 44, 51, 60])? } else { protocol }, 64]);
            bytes.extend([0xfe; 32]);
            if extension {
                bytes.extend([protocol, u.arbitrary::<u8>()? & 3, 0, 0, 0, 0, 0, 0]);
            }
        } else {
            bytes.extend([8, 0, 0x45, 0, 0, 0, 0, 1]);
            bytes.extend([if u.ratio(1, 8)? { 0x20 } else { 0x40 }, 0, 64, protocol, 0, 0]);
            bytes.extend([10; 8]);
        }
        if u.ratio(7, 8)? {
            let sum_at = if udp { 6 } else { 16 };
            let gso = match u.int_in_range(0..=2)? {
                0 => wire::Gso::None,
                _ if udp => wire::Gso::Udp,
                _ if v6 => wire::Gso::Tcp6,
                _ => wire::Gso::Tcp4,
            };
            offload = Offload::new(
                gso,
                u.arbitrary()?,
                u.arbitrary::<u16>()? >> u.int_in_range(0..=12)?,
                bytes.len() as u16,
                sum_at,
            );
        }
        let mut transport = [0; 20];
        transport[12] = if u.ratio(7, 8)? { 0x50 } else { u.arbitrary()? };
        transport[13] = u.arbitrary()?;
        bytes.extend(transport);
    }
    bytes.extend(u.bytes(raw.min(u.len()))?);
    let len = if u.ratio(1, 4)? { usize::from(u.arbitrary::<u16>()?).min(MAX_FRAME) } else { bytes.len() };
    bytes.resize(len.max(14), 0x5a);
    Ok((bytes, offload))
}

/// A frame as a port receives it: head and some pieces. What there is no room for is counted.
fn receive(u: &mut Unstructured<'_>, cx: &mut Context, nic: NicId) -> Result<Option<Frame>> {
    let (bytes, offload) = bytes(u)?;
    if let Some(layers) = Layers::parse(&bytes) {
        assert!(layers.l2_len <= bytes.len() && layers.l4.is_none_or(|l4| l4 <= bytes.len()), "{layers:?}");
    }
    FlowKey::of(&bytes).hash();
    cx.nic = nic;
    let Some(offload) = offload.checked(bytes.len()) else {
        cx.lost(DropReason::BadOffload);
        return Ok(None);
    };
    let Some((frame, head)) = cx.heads.begin(Origin { nic, lane: 0 }, bytes.len()) else {
        cx.lost(DropReason::NoHeads);
        return Ok(None);
    };
    head.offload = offload;
    let (front, mut rest) = bytes.split_at(bytes.len().min(HEAD_BYTES));
    head.fill().copy_from_slice(front);
    cx.received(1, bytes.len() as u64);
    while !rest.is_empty() {
        let cut = if u.arbitrary()? { rest.len() } else { usize::from(u.arbitrary::<u16>()?).clamp(1, rest.len()) };
        let (piece, after) = rest.split_at(cut);
        rest = after;
        if !cx.arena.pool(piece).is_some_and(|lent| cx.heads.add_piece(&frame, lent)) {
            cx.drop(frame, DropReason::NoBuffers);
            return Ok(None);
        }
    }
    Ok(Some(frame))
}

/// Ends a frame at a receiver that accepts this much.
fn transmit(cx: &mut Context, scratch: &mut [u8], frame: Frame, accepts: Accepts) {
    let mut settle = Settle::new(cx, frame, accepts);
    while let Some(frame) = settle.next(cx) {
        let head = cx.heads.get(&frame);
        let (len, offload) = (head.len(), head.offload);
        assert!(accepts.has(offload.needs()), "{offload:?}");
        assert!(offload.checked(len).is_some(), "{offload:?} of a frame of {len} bytes");
        assert_eq!(cx.read_all(&frame, scratch), Some(len));
        cx.transmitted(1, len as u64);
    }
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let Ok(mut cx) = Context::new(Sizes { heads: 256, pieces: 1024, pool: 1 << 18 }) else { return Ok(()) };
    let mut bridge = Bridge::new(BridgeSpec { fdb_capacity: 16, ageing: Duration::from_secs(2), ..BridgeSpec::new(7) });
    let mut egress = Egress::default();
    let nics = u.int_in_range(1..=4u16)?;
    egress.resize(usize::from(nics * LANES));
    let mut taken = Vec::new();
    for nic in 0..nics {
        let guard = if u.ratio(1, 4)? { Some(Mac::new([2, 0, 0, 0, 0, nic as u8])) } else { None };
        let spec = NicSpec {
            membership: membership(u)?,
            guard,
            isolated: u.ratio(1, 4)?,
            pass_reserved: u.arbitrary()?,
            ..NicSpec::default()
        };
        bridge.add_nic(NicId(nic), spec);
        cx.add_nic(NicId(nic));
        let lanes: Vec<u16> = (nic * LANES..(nic + 1) * LANES).collect();
        bridge.set_lanes(NicId(nic), &lanes[..u.int_in_range(0..=usize::from(LANES))?]);
        taken.push(accepts(u)?);
    }
    let mut scratch = vec![0; MAX_FRAME + 8];
    let mut now = Instant::START;
    while !u.is_empty() {
        now = now + Duration::from_millis(u64::from(u.arbitrary::<u8>()?) * 10);
        cx.begin_turn(now);
        let nic = NicId(u.int_in_range(0..=nics - 1)?);
        let mut burst = Burst::default();
        for _ in 0..u.int_in_range(1..=8)? {
            let Ok(frame) = receive(u, &mut cx, nic) else { break };
            if let Some(frame) = frame {
                let _ = burst.push(frame);
            }
        }
        bridge.forward(&mut cx, &mut burst, &mut egress);
        assert!(burst.is_empty());
        while let Some(lane) = egress.next_touched() {
            let to = lane / LANES;
            cx.nic = NicId(to);
            for frame in egress.burst(lane).drain() {
                assert_ne!(cx.heads.get(&frame).origin.nic, cx.nic, "a frame went back");
                transmit(&mut cx, &mut scratch, frame, taken[usize::from(to)]);
            }
        }
        assert!(cx.ledger.balances() && cx.ledger.held == 0, "{:?}", cx.ledger);
        if u.ratio(1, 16)? {
            bridge.sweep(now, 4);
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that ends early is as good as one that does not.
    let _ = run(&mut Unstructured::new(data));
});

//! ARP: who asks for the router's address is told, and the router asks for those of the segment.
//!
//! Invariant: an answer says nothing but that the router's address is at the router's MAC, and goes to the one who asked; only questions and
//! a defence of the address, at most one in ten seconds, are broadcasts. A sender is remembered only as what its frame says that it is, and one
//! who does not speak to the router only where its address is known already.
//! Read first: RFC 826 ("Packet Reception"), RFC 5227 sections 2.1.1 (probes) and 2.4 (defence).

use std::{net::Ipv4Addr, time::Duration};

use wire::{DropReason, Instant, Mac, Verdict, layers::ETHERNET_LEN};

use crate::{
    bytes::{array, be16},
    config::Config,
    gateway::{Change, Decision, Incoming},
    neighbours::Neighbours,
    packet,
};

/// EtherType of ARP.
pub(crate) const ETHERTYPE: u16 = 0x0806;
/// RFC 5227 section 1.1, DEFEND_INTERVAL.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// Hardware Ethernet, protocol IPv4, lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

struct Arp {
    operation: u16,
    sender: Mac,
    sender_address: Ipv4Addr,
    target_address: Ipv4Addr,
}

fn parse(bytes: &[u8]) -> Option<Arp> {
    if array(bytes, 0)? != ETHERNET_IPV4 {
        return None;
    }
    Some(Arp {
        operation: be16(bytes, 6)?,
        sender: Mac::new(array(bytes, 8)?),
        sender_address: array::<4>(bytes, 14)?.into(),
        target_address: array::<4>(bytes, 24)?.into(),
    })
}

pub(crate) fn decide(
    config: &Config,
    defended: Option<Instant>,
    neighbours: &Neighbours,
    incoming: &Incoming<'_>,
    now: Instant,
    out: &mut Vec<u8>,
) -> Decision {
    let Some(v4) = &config.v4 else { return Decision::drop(DropReason::NotForGateway) };
    let Some(arp) = incoming.bytes.get(ETHERNET_LEN..).and_then(parse) else {
        return Decision::drop(DropReason::BadPacket);
    };
    let ours = v4.address;
    if arp.sender_address == ours && arp.sender != config.mac {
        // Somebody else says that the address is theirs.
        if defended.is_some_and(|at| now < at + DEFEND_INTERVAL) {
            return Decision::drop(DropReason::NotForGateway);
        }
        write(out, Mac::BROADCAST, config.mac, REQUEST, ours, Mac::new([0; 6]), ours);
        return Decision { verdict: Verdict::Reply, change: Change::Defence };
    }
    let (_, asker) = incoming.macs();
    let shows = arp.sender == asker && v4.may_lease(arp.sender_address);
    let heard = Change::Heard { address: arp.sender_address.into(), mac: asker, nic: incoming.origin.nic };
    if arp.target_address != ours || !arp.sender.is_unicast() {
        // "Merge_flag": the pair is in the table, and is what was just said.
        return match shows && neighbours.mac(arp.sender_address.into()).is_some() {
            true => Decision { verdict: Verdict::Reply, change: heard },
            false => Decision::drop(DropReason::NotForGateway),
        };
    }
    let change = if shows { heard } else { Change::None };
    match arp.operation {
        REQUEST => write(out, asker, config.mac, REPLY, ours, arp.sender, arp.sender_address),
        REPLY => {}
        _ => return Decision::drop(DropReason::NotForGateway),
    }
    Decision { verdict: Verdict::Reply, change }
}

/// Asks who has `address`.
pub(crate) fn ask(out: &mut Vec<u8>, mac: Mac, ours: Ipv4Addr, address: Ipv4Addr) {
    write(out, Mac::BROADCAST, mac, REQUEST, ours, Mac::new([0; 6]), address);
}

fn write(out: &mut Vec<u8>, to: Mac, mac: Mac, operation: u16, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) {
    packet::ethernet(out, to, mac, ETHERTYPE);
    out.extend_from_slice(&ETHERNET_IPV4);
    out.extend_from_slice(&operation.to_be_bytes());
    out.extend_from_slice(&mac.bytes());
    out.extend_from_slice(&sender.octets());
    out.extend_from_slice(&target_mac.bytes());
    out.extend_from_slice(&target.octets());
}

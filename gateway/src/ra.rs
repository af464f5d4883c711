//! [`Advertiser`]: router advertisements, when asked for and now and then.
//!
//! Invariant: what is advertised is made once, from the configuration. To all nodes it is sent at most once in three seconds, however many
//! ask; to one node directly, within the NIC's budget of errors.
//!
//! Theory of operation: the first three advertisements come within 16 seconds of each other, so that guests that start with us learn
//! quickly; later ones after a random time between a third of the longest interval and all of it. A node that asks with an address is answered
//! at once and directly; one without brings the next advertisement to all forward, by up to half a second from now.
//! Read first: RFC 4861 sections 4.2, 6.1.1 and 6.2, RFC 8106 section 5.

use std::{net::Ipv6Addr, time::Duration};

use wire::{ALL_NODES, DropReason, Instant, Mac, NicId, Verdict, layers::ETHERTYPE_IPV6};

use crate::{
    config::{Config, ConfigError, RouterV6, encode_name},
    gateway::{Change, Decision, Protocols},
    icmp::Path,
    ndisc::{self, HOP_LIMIT, ROUTER_ADVERTISEMENT, SOURCE_LINK},
    packet::{self, TTL, V6},
};

/// RFC 4861 section 10.
const MAX_INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const INITIAL: u8 = 3;
const MIN_DELAY: Duration = Duration::from_secs(3);
const MAX_SOLICITED_DELAY: Duration = Duration::from_millis(500);

const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Advertiser {
    mac: Mac,
    link_local: Ipv6Addr,
    /// The ICMPv6 message, its checksum zero.
    message: Vec<u8>,
    max_interval: Duration,
    /// Advertisements to all so far, up to the initial ones.
    sent: u8,
    last: Option<Instant>,
    next: Instant,
    random: u64,
}

impl Advertiser {
    pub(crate) fn new(config: &Config, v6: &RouterV6, now: Instant) -> Result<Self, ConfigError> {
        Ok(Advertiser {
            mac: config.mac,
            link_local: v6.link_local,
            message: message(config, v6)?,
            max_interval: v6.max_interval,
            sent: 0,
            last: None,
            next: now,
            random: config.seed,
        })
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Answers a router solicitation whose checksum, code and hop limit are right.
    pub(crate) fn solicitation(
        &self,
        on: Protocols<'_>,
        nic: NicId,
        path: &Path<Ipv6Addr>,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Decision {
        let anonymous = path.to.is_unspecified();
        match message.get(8..).and_then(ndisc::options) {
            Some(source_link) if !(source_link && anonymous || path.to.is_multicast()) => {}
            _ => return Decision::drop(DropReason::BadPacket),
        }
        if anonymous || !on.errors.allows(nic, on.now) {
            return Decision { verdict: Verdict::Reply, change: Change::Solicited };
        }
        self.write(path.to, path.to_mac, out);
        Decision { verdict: Verdict::Reply, change: Change::Error(nic) }
    }

    /// Somebody waits for an advertisement to all.
    pub(crate) fn solicited(&mut self, now: Instant) {
        let soon = now + self.random(MAX_SOLICITED_DELAY);
        let earliest = self.last.map_or(now, |last| last + MIN_DELAY);
        self.next = self.next.min(soon.max(earliest));
    }

    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if now < self.next {
            return false;
        }
        self.write(ALL_NODES, Mac::of_group(ALL_NODES.into()), out);
        self.last = Some(now);
        self.sent = self.sent.saturating_add(1);
        // RFC 4861 section 6.2.1: a third of the longest, but not under three seconds.
        let least = (self.max_interval / 3).max(MIN_DELAY).min(self.max_interval);
        let mut interval = least + self.random(self.max_interval - least);
        if self.sent < INITIAL {
            interval = interval.min(MAX_INITIAL_INTERVAL);
        }
        self.next = now + interval;
        true
    }

    fn write(&self, to: Ipv6Addr, to_mac: Mac, out: &mut Vec<u8>) {
        let header = V6 { from: self.link_local, to, hop_limit: HOP_LIMIT };
        packet::ethernet(out, to_mac, self.mac, ETHERTYPE_IPV6);
        packet::icmpv6(out, &header);
        out.extend_from_slice(&self.message);
        packet::finish_icmpv6(out, &header);
    }

    /// A time from nothing to `most`, by splitmix64.
    fn random(&mut self, most: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = crate::dhcp::mix(self.random);
        Duration::from_millis(number % (most.as_millis() as u64 + 1))
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// The ICMPv6 message, without checksum.
fn message(config: &Config, v6: &RouterV6) -> Result<Vec<u8>, ConfigError> {
    // RFC 4861 section 6.2.1, RFC 8106 section 5.1: three times the longest interval.
    let lifetime = seconds(v6.max_interval) * 3;
    let router_lifetime = if v6.default_router { lifetime.min(9000) as u16 } else { 0 };
    let flags = u8::from(v6.managed) << 7 | u8::from(v6.other) << 6;
    let mut bytes = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, TTL, flags];
    bytes.extend(router_lifetime.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([SOURCE_LINK, 1]);
    bytes.extend(config.mac.bytes());
    bytes.extend([OPTION_MTU, 1, 0, 0]);
    bytes.extend(u32::from(config.mtu).to_be_bytes());
    if let Some((address, prefix)) = v6.global {
        let network = address.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        // On link; and for addresses of their own making where the prefix leaves the 64 bits that those need (RFC 4862 section 5.5.3),
        // unless DHCPv6 gives them out: then a guest has that one and no others.
        let flags = if prefix == 64 && !v6.managed { 0xc0 } else { 0x80 };
        bytes.extend([OPTION_PREFIX, 4, prefix, flags]);
        bytes.extend(seconds(v6.valid).to_be_bytes());
        bytes.extend(seconds(v6.preferred.min(v6.valid)).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(network.to_be_bytes());
    }
    if !v6.dns.is_empty() {
        bytes.extend([OPTION_RDNSS, 1 + 2 * v6.dns.len() as u8, 0, 0]);
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend(v6.dns.iter().flat_map(|address| address.octets()));
    }
    if !v6.search.is_empty() {
        let mut names = Vec::new();
        for name in &v6.search {
            encode_name(name, &mut names)?;
        }
        names.resize(names.len().next_multiple_of(8), 0);
        bytes.extend([OPTION_DNSSL, 1 + (names.len() / 8) as u8, 0, 0]);
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend(names);
    }
    Ok(bytes)
}

//! [`Link`]: an interface of the host as far as bridging asks for it, and the changes that bridging makes to interfaces.
//!
//! Read first: [`super::netlink`]; ip-link(8), `linux/if_link.h`.

use std::{fs, io, path::Path};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
};

use super::netlink::Netlink;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which it keeps for life.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address: six bytes where it is Ethernet.
    pub mac: Vec<u8>,
    /// The largest IP packet in bytes.
    pub mtu: u32,
    /// The number of the bridge, bond or other device that it is part of.
    pub master: Option<u32>,
    /// Set up.
    pub up: bool,
    /// It is Ethernet and not the loopback device.
    pub ethernet: bool,
    /// It is a bridge.
    pub bridge: bool,
    /// The text that `ip link` shows as its alias.
    pub alias: String,
}

impl Link {
    fn of(message: &LinkMessage) -> Link {
        let header = &message.header;
        let mut link = Link {
            index: header.index,
            name: String::new(),
            mac: Vec::new(),
            mtu: 0,
            master: None,
            up: header.flags.contains(LinkFlags::Up),
            ethernet: header.link_layer_type == LinkLayerType::Ether && !header.flags.contains(LinkFlags::Loopback),
            bridge: false,
            alias: String::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::LinkInfo(infos) => {
                    link.bridge |= infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        link
    }

    /// Whether it is a radio interface (`/sys/class/net/NAME/wireless` or `phy80211`).
    pub fn is_wireless(&self) -> bool {
        let dir = Path::new("/sys/class/net").join(&self.name);
        dir.join("wireless").exists() || dir.join("phy80211").exists()
    }
}

/// All interfaces of the namespace.
///
/// # Errors
/// What the kernel answers.
pub fn all(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::of(&message)),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(link).collect())
}

/// The interface of this name.
///
/// # Errors
/// What the kernel answers.
pub fn named(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    Ok(all(netlink)?.into_iter().find(|link| link.name == name))
}

/// Makes a bridge that forwards from the start: no spanning tree, no delay, and all multicast passes, as on a wire. It is left down.
///
/// # Errors
/// What the kernel answers.
pub fn add_bridge(netlink: &mut Netlink, name: &str, like: &Link, alias: &str) -> io::Result<Link> {
    let mut message = LinkMessage::default();
    let data = vec![
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(false),
    ];
    // Without multicast snooping in the kernel the last one is refused.
    let plain = data.iter().take(2).cloned().collect();
    let mut made = Err(io::ErrorKind::Other.into());
    for data in [data, plain] {
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(like.mac.clone()),
            LinkAttribute::Mtu(another_mtu(like.mtu)),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))]),
        ];
        made = netlink.change(RouteNetlinkMessage::NewLink(message.clone()), NLM_F_CREATE | NLM_F_EXCL);
        if !made.as_ref().is_err_and(|error| error.raw_os_error() == Some(NOT_SUPPORTED)) {
            break;
        }
    }
    made?;
    let link = named(netlink, name)?.ok_or(io::ErrorKind::NotFound)?;
    // The alias is what we know the bridge by: without it, it is not ours. An MTU that was changed stays, whoever joins; the one that a bridge was made
    // with follows the least of its members.
    for attribute in [LinkAttribute::IfAlias(alias.to_owned()), LinkAttribute::Mtu(like.mtu)] {
        set(netlink, link.index, attribute).inspect_err(|_| drop(delete(netlink, link.index)))?;
    }
    Ok(link)
}

/// An MTU that is not this one, and enough for IPv6: to set what is there already changes nothing.
fn another_mtu(mtu: u32) -> u32 {
    if mtu > 1280 { 1280 } else { 1500 }
}

/// EOPNOTSUPP of Linux.
const NOT_SUPPORTED: i32 = 95;

fn set(netlink: &mut Netlink, index: u32, attribute: LinkAttribute) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Puts an interface into a bridge; 0 takes it out of the one it is in.
///
/// # Errors
/// What the kernel answers.
pub fn set_master(netlink: &mut Netlink, index: u32, master: u32) -> io::Result<()> {
    set(netlink, index, LinkAttribute::Controller(master))
}

/// Sets an interface up or down.
///
/// # Errors
/// What the kernel answers.
pub fn set_up(netlink: &mut Netlink, index: u32, up: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes an interface.
///
/// # Errors
/// What the kernel answers.
pub fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.change(RouteNetlinkMessage::DelLink(message), 0)
}

/// What of an interface's settings in /proc/sys/net decides how the host receives and forwards on it.
const SETTINGS: [&str; 22] = [
    "ipv4/conf/*/forwarding",
    "ipv4/conf/*/rp_filter",
    "ipv4/conf/*/accept_redirects",
    "ipv4/conf/*/send_redirects",
    "ipv4/conf/*/accept_source_route",
    "ipv4/conf/*/accept_local",
    "ipv4/conf/*/arp_announce",
    "ipv4/conf/*/arp_ignore",
    "ipv4/conf/*/arp_filter",
    "ipv4/conf/*/arp_notify",
    "ipv4/conf/*/proxy_arp",
    "ipv4/conf/*/route_localnet",
    "ipv4/conf/*/log_martians",
    "ipv6/conf/*/disable_ipv6",
    "ipv6/conf/*/forwarding",
    "ipv6/conf/*/accept_ra",
    "ipv6/conf/*/accept_ra_defrtr",
    "ipv6/conf/*/accept_ra_pinfo",
    "ipv6/conf/*/accept_redirects",
    "ipv6/conf/*/autoconf",
    "ipv6/conf/*/addr_gen_mode",
    "ipv6/conf/*/use_tempaddr",
];

/// Gives one interface the settings of another, as far as this process may.
pub fn copy_settings(from: &str, to: &str) {
    for setting in SETTINGS {
        let path = |name: &str| format!("/proc/sys/net/{}", setting.replace('*', name));
        let (Ok(wanted), Ok(found)) = (fs::read_to_string(path(from)), fs::read_to_string(path(to))) else { continue };
        if wanted != found
            && let Err(error) = fs::write(path(to), wanted.trim())
        {
            tracing::warn!(%error, "{} is not as it is on {from}", path(to));
        }
    }
}

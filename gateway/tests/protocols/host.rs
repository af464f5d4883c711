//! A host with smoltcp's IP stack, which somebody else wrote, finds the router and is given all that it needs.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use gateway::{Config, RouterV6, dhcp::LeaseState};
use smoltcp::{
    iface::{self, Interface, SocketSet},
    phy::{self, Device, DeviceCapabilities, Medium},
    socket::{dhcpv4, icmp},
    time::Instant,
    wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr},
};

use crate::{
    dhcp::with,
    segment::{GLOBAL, GUEST_LINK_LOCAL, GUEST_MAC, ROUTER, Segment},
};

/// Frames from the host, and frames for it.
#[derive(Default)]
struct Link {
    sent: VecDeque<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
}

struct Sender<'a>(&'a mut VecDeque<Vec<u8>>);
struct Received(Vec<u8>);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        Some((Received(self.waiting.pop_front()?), Sender(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Host {
    segment: Segment,
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Host {
    fn new(config: Config) -> Self {
        let segment = Segment::new(config);
        let mut link = Link::default();
        let mut settings = iface::Config::new(EthernetAddress(GUEST_MAC.bytes()).into());
        settings.slaac = true;
        let mut interface = Interface::new(settings, &mut link, time(&segment));
        interface
            .update_ip_addrs(|addresses| addresses.push(IpCidr::new(IpAddress::Ipv6(GUEST_LINK_LOCAL), 64)).unwrap());
        Host { segment, link, interface, sockets: SocketSet::new(vec![]) }
    }

    /// Lets time pass, in steps of 50 ms, until `done` has something, a virtual minute at most.
    fn until<T>(&mut self, mut done: impl FnMut(&mut Host) -> Option<T>) -> T {
        for _ in 0..1200 {
            self.interface.poll(time(&self.segment), &mut self.link, &mut self.sockets);
            while let Some(frame) = self.link.sent.pop_front() {
                self.link.waiting.extend(self.segment.say(&frame).1);
            }
            self.link.waiting.extend(self.segment.tick());
            if let Some(found) = done(self) {
                return found;
            }
            if self.link.waiting.is_empty() {
                self.segment.later(Duration::from_millis(50));
            }
        }
        panic!("it did not come about within a minute");
    }
}

fn time(segment: &Segment) -> Instant {
    Instant::from_micros((segment.now.nanos() / 1000) as i64)
}

#[test]
fn a_host_is_configured_by_dhcp_and_by_advertisements_and_pings_the_router() {
    let mut config = with(|dhcp| dhcp.dns = vec![ROUTER]);
    config.v6 = config.v6.map(|v6| RouterV6 { default_router: true, ..v6 });
    let mut host = Host::new(config);
    let dhcp = host.sockets.add(dhcpv4::Socket::new());
    let lease = host.until(|host| match host.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll() {
        Some(dhcpv4::Event::Configured(config)) => Some((config.address, config.router, config.dns_servers.to_vec())),
        _ => None,
    });
    assert_eq!((lease.1, &lease.2[..]), (Some(ROUTER), &[ROUTER][..]));
    assert_eq!(lease.0.prefix_len(), 24);
    let held = host.segment.gateway.leases().next().unwrap();
    assert_eq!((held.address, held.state), (lease.0.address(), LeaseState::Bound));
    host.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(lease.0)).unwrap());

    let own = host.until(|host| {
        let found = host.interface.ip_addrs().iter().find(|cidr| match IpAddr::from(cidr.address()) {
            IpAddr::V6(address) => address.segments()[..4] == GLOBAL.segments()[..4],
            IpAddr::V4(_) => false,
        });
        found.copied()
    });
    assert_eq!(own.prefix_len(), 64);

    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 512]);
    let echo = host.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let socket = host.sockets.get_mut::<icmp::Socket>(echo);
    socket.bind(icmp::Endpoint::Ident(9)).unwrap();
    let request = Icmpv4Repr::EchoRequest { ident: 9, seq_no: 1, data: b"over v4" };
    let room = socket.send(request.buffer_len(), IpAddress::Ipv4(ROUTER)).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(room), &Default::default());
    let request = Icmpv6Repr::EchoRequest { ident: 9, seq_no: 1, data: b"over v6" };
    let room = socket.send(request.buffer_len(), IpAddress::Ipv6(GLOBAL)).unwrap();
    let IpAddress::Ipv6(source) = own.address() else { panic!("not IPv6") };
    request.emit(&source, &GLOBAL, &mut Icmpv6Packet::new_unchecked(room), &Default::default());
    let mut came = Vec::new();
    host.until(|host| {
        while let Ok((bytes, from)) = host.sockets.get_mut::<icmp::Socket>(echo).recv() {
            came.push((from, bytes[8..].to_vec()));
        }
        (came.len() == 2).then_some(())
    });
    came.sort();
    let expected = [(IpAddress::Ipv4(ROUTER), b"over v4".to_vec()), (IpAddress::Ipv6(GLOBAL), b"over v6".to_vec())];
    assert_eq!(came, expected);
}

#[test]
fn a_host_renews_before_its_lease_is_over() {
    let mut host = Host::new(with(|dhcp| dhcp.lease = Duration::from_secs(60)));
    let dhcp = host.sockets.add(dhcpv4::Socket::new());
    let address = host.until(|host| match host.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll() {
        Some(dhcpv4::Event::Configured(config)) => Some(config.address),
        _ => None,
    });
    host.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(address)).unwrap());
    let first = host.segment.gateway.leases().next().unwrap().expires;
    let second = host.until(|host| {
        assert!(!matches!(host.sockets.get_mut::<dhcpv4::Socket>(dhcp).poll(), Some(dhcpv4::Event::Deconfigured)));
        host.segment.gateway.leases().next().map(|lease| lease.expires).filter(|expires| *expires > first)
    });
    assert!(second.since(first) >= Duration::from_secs(25), "renewed at half the time");
    assert_eq!(host.segment.gateway.leases().count(), 1);
}

//! The API of GoBGP 4: parts of routes are alternatives of one message. Run against 4.8 by `tests/newer-speakers`.
//!
//! Invariant: an attribute or a kind of route that is not known is skipped. Read first: [`super`], `proto/v4.proto`.

use std::net::IpAddr;

use tonic::{Status, Streaming, transport::Channel};

use self::api::{go_bgp_service_client::GoBgpServiceClient, *};
use super::{
    AFI, About, BATCH, Generation, INGRESS_REPLICATION, Iter, ROUTE_TARGET, SAFI, Speaker, Told, VXLAN, bytes_of,
    is_own, told,
};
use crate::route::{Mobility, Prefix, Raw, RawRd, Rd, Route};

#[allow(missing_docs, clippy::all)]
mod api {
    tonic::include_proto!("api");
}

/// See the module's documentation.
pub(crate) struct Client {
    api: GoBgpServiceClient<Channel>,
    local: IpAddr,
    /// Route targets are named after it.
    asn: u32,
}

impl Client {
    pub(crate) fn new(channel: Channel, local: IpAddr) -> Client {
        // A table may come in messages of any length; a route is some hundred bytes.
        Client { api: GoBgpServiceClient::new(channel).max_decoding_message_size(64 << 20), local, asn: 0 }
    }
}

fn told_by(path: &Path, local: IpAddr) -> Option<Told> {
    let raw = raw(path)?;
    Some(told(&raw, path.is_withdraw, is_own(&path.neighbor_ip), local))
}

/// Of the routes with one prefix that several neighbours tell, the first is the best, and what a watch tells of.
fn best(destination: &Destination, local: IpAddr) -> Option<Told> {
    destination.paths.first().and_then(|path| told_by(path, local))
}

impl Speaker for Client {
    type Event = WatchEventResponse;

    async fn about(&mut self) -> Result<About, Status> {
        let global = self.api.get_bgp(GetBgpRequest {}).await?.into_inner().global.unwrap_or_default();
        self.asn = global.asn;
        let router = global.router_id.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        Ok(About { generation: Generation::V4, asn: global.asn, router })
    }

    async fn announce(&mut self, routes: Vec<Route>) -> Result<(), Status> {
        let messages: Vec<AddPathStreamRequest> = routes
            .chunks(BATCH)
            .map(|some| {
                let paths = some.iter().map(|route| path(route, self.asn)).collect();
                AddPathStreamRequest { table_type: GLOBAL, paths }
            })
            .collect();
        self.api.add_path_stream(Iter(messages.into_iter())).await.map(drop)
    }

    async fn withdraw(&mut self, prefix: &Prefix) -> Result<(), Status> {
        let path =
            Path { nlri: Some(nlri(prefix, None)), family: Some(family()), is_withdraw: true, ..Path::default() };
        let request = DeletePathRequest { table_type: GLOBAL, family: Some(family()), path: Some(path) };
        self.api.delete_path(request).await.map(drop)
    }

    async fn snapshot(&mut self, mut each: impl FnMut(Told)) -> Result<(), Status> {
        let request = ListPathRequest { table_type: GLOBAL, family: Some(family()) };
        let mut stream = self.api.list_path(request).await?.into_inner();
        while let Some(ListPathResponse { destination }) = stream.message().await? {
            destination.and_then(|destination| best(&destination, self.local)).into_iter().for_each(&mut each);
        }
        Ok(())
    }

    async fn watch(&mut self) -> Result<Streaming<WatchEventResponse>, Status> {
        use watch_event_request::{Table, table::Filter};
        let best = Filter { r#type: BEST, init: true };
        let request = WatchEventRequest { table: Some(Table { filters: vec![best] }) };
        Ok(self.api.watch_event(request).await?.into_inner())
    }

    fn read(&self, event: WatchEventResponse) -> Vec<Told> {
        event.table.unwrap_or_default().paths.iter().filter_map(|path| told_by(path, self.local)).collect()
    }
}

fn family() -> Family {
    Family { afi: AFI, safi: SAFI }
}

/// The table of all routes, and the best of each (enumerations of the API begin with a value that says nothing).
const GLOBAL: i32 = 1;
const BEST: i32 = 1;

fn nlri(prefix: &Prefix, label: Option<u32>) -> Nlri {
    use nlri::Nlri::{EvpnMacadv, EvpnMulticast};
    let nlri = match prefix {
        Prefix::Station { rd, tag, mac, ip } => EvpnMacadv(EvpnmacipAdvertisementRoute {
            rd: Some(rd_of(rd)),
            esi: Some(EthernetSegmentIdentifier { r#type: 0, value: vec![0; 9] }),
            ethernet_tag: *tag,
            mac_address: mac.to_string(),
            ip_address: ip.map(|ip| ip.to_string()).unwrap_or_default(),
            // A label is no part of what a route is known by, but the speaker wants one.
            labels: vec![label.unwrap_or(0)],
        }),
        Prefix::Endpoint { rd, tag, origin } => EvpnMulticast(EvpnInclusiveMulticastEthernetTagRoute {
            rd: Some(rd_of(rd)),
            ethernet_tag: *tag,
            ip_address: origin.to_string(),
        }),
    };
    Nlri { nlri: Some(nlri) }
}

fn rd_of(rd: &Rd) -> RouteDistinguisher {
    use route_distinguisher::Rd::{FourOctetAsn, IpAddress, TwoOctetAsn};
    let rd = match *rd {
        Rd::As2(admin, assigned) => TwoOctetAsn(RouteDistinguisherTwoOctetAsn { admin: admin.into(), assigned }),
        Rd::Address(admin, assigned) => {
            IpAddress(RouteDistinguisherIpAddress { admin: admin.to_string(), assigned: assigned.into() })
        }
        Rd::As4(admin, assigned) => FourOctetAsn(RouteDistinguisherFourOctetAsn { admin, assigned: assigned.into() }),
    };
    RouteDistinguisher { rd: Some(rd) }
}

fn path(route: &Route, asn: u32) -> Path {
    use attribute::Attr;
    use extended_community::Extcom;
    let vni = route.vni.get();
    let nlri = nlri(&route.prefix, Some(vni));
    let mut communities = vec![
        // An AS number of four bytes leaves no room for a VNI: its low half stands for it, as FRR has it.
        Extcom::TwoOctetAsSpecific(TwoOctetAsSpecificExtended {
            is_transitive: true,
            sub_type: ROUTE_TARGET,
            asn: asn & 0xffff,
            local_admin: vni,
        }),
        Extcom::Encap(EncapExtended { tunnel_type: VXLAN }),
    ];
    if route.mobility != Mobility::default() {
        let Mobility { sequence, sticky } = route.mobility;
        communities.push(Extcom::MacMobility(MacMobilityExtended { is_sticky: sticky, sequence_num: sequence }));
    }
    let communities = communities.into_iter().map(|one| ExtendedCommunity { extcom: Some(one) }).collect();
    let reach = MpReachNlriAttribute {
        family: Some(family()),
        next_hops: vec![route.next_hop.to_string()],
        nlris: vec![nlri.clone()],
    };
    let mut pattrs = vec![
        Attr::Origin(OriginAttribute { origin: 0 }),
        Attr::MpReach(reach),
        Attr::ExtendedCommunities(ExtendedCommunitiesAttribute { communities }),
    ];
    if let Prefix::Endpoint { origin, .. } = route.prefix {
        let pmsi = PmsiTunnelAttribute { flags: 0, r#type: INGRESS_REPLICATION, label: vni, id: bytes_of(origin) };
        pattrs.push(Attr::PmsiTunnel(pmsi));
    }
    let pattrs = pattrs.into_iter().map(|one| Attribute { attr: Some(one) }).collect();
    Path { nlri: Some(nlri), pattrs, family: Some(family()), ..Path::default() }
}

fn raw_rd(rd: RouteDistinguisher) -> Option<RawRd> {
    use route_distinguisher::Rd::{FourOctetAsn, IpAddress, TwoOctetAsn};
    Some(match rd.rd? {
        TwoOctetAsn(RouteDistinguisherTwoOctetAsn { admin, assigned }) => RawRd::As2(admin, assigned),
        IpAddress(RouteDistinguisherIpAddress { admin, assigned }) => RawRd::Address(admin, assigned),
        FourOctetAsn(RouteDistinguisherFourOctetAsn { admin, assigned }) => RawRd::As4(admin, assigned),
    })
}

/// What a path says; nothing: it is no route of types 2 and 3.
fn raw(path: &Path) -> Option<Raw> {
    use attribute::Attr;
    let mut raw = match path.nlri.clone()?.nlri? {
        nlri::Nlri::EvpnMacadv(route) => Raw {
            rd: route.rd.and_then(raw_rd),
            tag: route.ethernet_tag,
            mac: Some(route.mac_address),
            ip: route.ip_address,
            labels: route.labels,
            ..Raw::default()
        },
        nlri::Nlri::EvpnMulticast(route) => {
            Raw { rd: route.rd.and_then(raw_rd), tag: route.ethernet_tag, ip: route.ip_address, ..Raw::default() }
        }
    };
    for attribute in path.pattrs.iter().filter_map(|attribute| attribute.attr.as_ref()) {
        match attribute {
            Attr::MpReach(reach) => raw.next_hops.clone_from(&reach.next_hops),
            Attr::PmsiTunnel(pmsi) => raw.pmsi = Some((pmsi.r#type, pmsi.label)),
            Attr::ExtendedCommunities(all) => {
                all.communities.iter().filter_map(|one| one.extcom.as_ref()).for_each(|one| community(one, &mut raw));
            }
            Attr::Origin(_) => {}
        }
    }
    Some(raw)
}

fn community(one: &extended_community::Extcom, raw: &mut Raw) {
    use extended_community::Extcom;
    match one {
        Extcom::TwoOctetAsSpecific(one) if one.sub_type == ROUTE_TARGET => raw.targets.push(one.local_admin),
        Extcom::TwoOctetAsSpecific(_) => {}
        Extcom::Encap(one) => raw.understands(one.tunnel_type),
        Extcom::MacMobility(one) => raw.mobility = Mobility { sequence: one.sequence_num, sticky: one.is_sticky },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_was_written() {
        let local: IpAddr = [192, 0, 2, 9].into();
        let rds = [Rd::Address([192, 0, 2, 1].into(), 3), Rd::As2(65000, 70_000), Rd::As4(70_000, 3)];
        for rd in rds {
            for (ip, sequence) in [(None, 0), (Some([10, 0, 0, 7].into()), 4)] {
                let prefix = Prefix::Station { rd, tag: 0, mac: "02:00:00:00:00:01".parse().unwrap(), ip };
                let mobility = Mobility { sequence, sticky: sequence > 0 };
                let vni = wire::Vni::new(70_001).unwrap();
                let route = Route { prefix, vni, next_hop: [192, 0, 2, 1].into(), mobility };
                let mut path = path(&route, 4_200_000_000);
                assert_eq!(told(&raw(&path).unwrap(), false, false, local), Told::Route(route.clone()));
                path.pattrs.clear();
                assert_eq!(told(&raw(&path).unwrap(), true, false, local), Told::Withdrawn(prefix));
                assert!(matches!(told(&raw(&path).unwrap(), false, false, local), Told::Refused(Some(_), _)));
            }
            let prefix = Prefix::Endpoint { rd, tag: 0, origin: [192, 0, 2, 1].into() };
            let vni = wire::Vni::new(5).unwrap();
            let route = Route { prefix, vni, next_hop: [192, 0, 2, 1].into(), mobility: Mobility::default() };
            let path = path(&route, 65000);
            assert_eq!(told(&raw(&path).unwrap(), false, false, local), Told::Route(route));
            assert_eq!(told(&raw(&path).unwrap(), false, true, local), Told::Own(prefix, Some([192, 0, 2, 1].into())));
        }
        assert!(raw(&Path { nlri: Some(Nlri { nlri: None }), ..Path::default() }).is_none(), "of another kind");
    }

    #[test]
    fn of_several_neighbours_routes_the_best_counts() {
        let local: IpAddr = [192, 0, 2, 9].into();
        let rd = Rd::Address([192, 0, 2, 1].into(), 3);
        let prefix = Prefix::Station { rd, tag: 0, mac: "02:00:00:00:00:01".parse().unwrap(), ip: None };
        let vni = wire::Vni::new(5).unwrap();
        let by = |n: u8| {
            let route = Route { prefix, vni, next_hop: [192, 0, 2, n].into(), mobility: Mobility::default() };
            Path { neighbor_ip: format!("192.0.2.{n}"), ..path(&route, 65000) }
        };
        let destination = Destination { paths: vec![by(2), by(1)] };
        let Some(Told::Route(route)) = best(&destination, local) else { panic!() };
        assert_eq!(route.next_hop, IpAddr::from([192, 0, 2, 2]));
        assert_eq!(best(&Destination::default(), local), None);
    }
}

//! The API of GoBGP 3: parts of routes travel as `Any`, by the name of their type.
//!
//! Invariant: an attribute or a kind of route that is not known is skipped. Read first: [`super`], `proto/v3.proto`.

use std::net::IpAddr;

use prost::Message;
use tonic::{Status, Streaming, transport::Channel};

use self::api::{gobgp_api_client::GobgpApiClient, *};
use super::{
    AFI, About, BATCH, Generation, INGRESS_REPLICATION, Iter, ROUTE_TARGET, SAFI, Speaker, Told, VXLAN, bytes_of,
    is_own, told,
};
use crate::route::{Mobility, Prefix, Raw, RawRd, Rd, Route};

#[allow(missing_docs, clippy::all)]
mod api {
    tonic::include_proto!("apipb");
}

/// See the module's documentation.
pub(crate) struct Client {
    api: GobgpApiClient<Channel>,
    local: IpAddr,
    /// Route targets are named after it.
    asn: u32,
}

impl Client {
    pub(crate) fn new(channel: Channel, local: IpAddr) -> Client {
        // A table may come in messages of any length; a route is some hundred bytes.
        Client { api: GobgpApiClient::new(channel).max_decoding_message_size(64 << 20), local, asn: 0 }
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
        Ok(About { generation: Generation::V3, asn: global.asn, router })
    }

    async fn announce(&mut self, routes: Vec<Route>) -> Result<(), Status> {
        let messages: Vec<AddPathStreamRequest> = routes
            .chunks(BATCH)
            .map(|some| {
                let paths = some.iter().map(|route| path(route, self.asn)).collect();
                AddPathStreamRequest { table_type: 0, paths }
            })
            .collect();
        self.api.add_path_stream(Iter(messages.into_iter())).await.map(drop)
    }

    async fn withdraw(&mut self, prefix: &Prefix) -> Result<(), Status> {
        let path =
            Path { nlri: Some(nlri(prefix, None)), family: Some(family()), is_withdraw: true, ..Path::default() };
        let request = DeletePathRequest { table_type: 0, family: Some(family()), path: Some(path) };
        self.api.delete_path(request).await.map(drop)
    }

    async fn snapshot(&mut self, mut each: impl FnMut(Told)) -> Result<(), Status> {
        let request = ListPathRequest { table_type: 0, family: Some(family()) };
        let mut stream = self.api.list_path(request).await?.into_inner();
        while let Some(ListPathResponse { destination }) = stream.message().await? {
            destination.and_then(|destination| best(&destination, self.local)).into_iter().for_each(&mut each);
        }
        Ok(())
    }

    async fn watch(&mut self) -> Result<Streaming<WatchEventResponse>, Status> {
        use watch_event_request::{Table, table::Filter};
        let best = Filter { r#type: 0, init: true };
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

const TYPE: &str = "type.googleapis.com/apipb.";

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("{TYPE}{name}"), value: message.encode_to_vec() }
}

fn open<M: Message + Default>(any: &Any) -> Option<M> {
    M::decode(any.value.as_slice()).ok()
}

fn name(any: &Any) -> &str {
    any.type_url.rsplit('.').next().unwrap_or_default()
}

fn nlri(prefix: &Prefix, label: Option<u32>) -> Any {
    let rd_of = |rd: &Rd| match *rd {
        Rd::As2(admin, assigned) => {
            any("RouteDistinguisherTwoOctetASN", &RouteDistinguisherTwoOctetAsn { admin: admin.into(), assigned })
        }
        Rd::Address(admin, assigned) => any(
            "RouteDistinguisherIPAddress",
            &RouteDistinguisherIpAddress { admin: admin.to_string(), assigned: assigned.into() },
        ),
        Rd::As4(admin, assigned) => {
            any("RouteDistinguisherFourOctetASN", &RouteDistinguisherFourOctetAsn { admin, assigned: assigned.into() })
        }
    };
    match prefix {
        Prefix::Station { rd, tag, mac, ip } => any(
            "EVPNMACIPAdvertisementRoute",
            &EvpnmacipAdvertisementRoute {
                rd: Some(rd_of(rd)),
                esi: Some(EthernetSegmentIdentifier { r#type: 0, value: vec![0; 9] }),
                ethernet_tag: *tag,
                mac_address: mac.to_string(),
                ip_address: ip.map(|ip| ip.to_string()).unwrap_or_default(),
                // A label is no part of what a route is known by, but the speaker wants one.
                labels: vec![label.unwrap_or(0)],
            },
        ),
        Prefix::Endpoint { rd, tag, origin } => any(
            "EVPNInclusiveMulticastEthernetTagRoute",
            &EvpnInclusiveMulticastEthernetTagRoute {
                rd: Some(rd_of(rd)),
                ethernet_tag: *tag,
                ip_address: origin.to_string(),
            },
        ),
    }
}

fn path(route: &Route, asn: u32) -> Path {
    let vni = route.vni.get();
    let nlri = nlri(&route.prefix, Some(vni));
    let mut communities = vec![
        any(
            "TwoOctetAsSpecificExtended",
            // An AS number of four bytes leaves no room for a VNI: its low half stands for it, as FRR has it.
            &TwoOctetAsSpecificExtended {
                is_transitive: true,
                sub_type: ROUTE_TARGET,
                asn: asn & 0xffff,
                local_admin: vni,
            },
        ),
        any("EncapExtended", &EncapExtended { tunnel_type: VXLAN }),
    ];
    if route.mobility != Mobility::default() {
        let Mobility { sequence, sticky } = route.mobility;
        communities
            .push(any("MacMobilityExtended", &MacMobilityExtended { is_sticky: sticky, sequence_num: sequence }));
    }
    let reach = MpReachNlriAttribute {
        family: Some(family()),
        next_hops: vec![route.next_hop.to_string()],
        nlris: vec![nlri.clone()],
    };
    let mut pattrs = vec![
        any("OriginAttribute", &OriginAttribute { origin: 0 }),
        any("MpReachNLRIAttribute", &reach),
        any("ExtendedCommunitiesAttribute", &ExtendedCommunitiesAttribute { communities }),
    ];
    if let Prefix::Endpoint { origin, .. } = route.prefix {
        let pmsi = PmsiTunnelAttribute { flags: 0, r#type: INGRESS_REPLICATION, label: vni, id: bytes_of(origin) };
        pattrs.push(any("PmsiTunnelAttribute", &pmsi));
    }
    Path { nlri: Some(nlri), pattrs, family: Some(family()), ..Path::default() }
}

fn raw_rd(any: &Any) -> Option<RawRd> {
    Some(match name(any) {
        "RouteDistinguisherTwoOctetASN" => {
            let RouteDistinguisherTwoOctetAsn { admin, assigned } = open(any)?;
            RawRd::As2(admin, assigned)
        }
        "RouteDistinguisherIPAddress" => {
            let RouteDistinguisherIpAddress { admin, assigned } = open(any)?;
            RawRd::Address(admin, assigned)
        }
        "RouteDistinguisherFourOctetASN" => {
            let RouteDistinguisherFourOctetAsn { admin, assigned } = open(any)?;
            RawRd::As4(admin, assigned)
        }
        _ => return None,
    })
}

/// What a path says; nothing: it is no route of types 2 and 3.
fn raw(path: &Path) -> Option<Raw> {
    let nlri = path.nlri.as_ref()?;
    let mut raw = match name(nlri) {
        "EVPNMACIPAdvertisementRoute" => {
            let route: EvpnmacipAdvertisementRoute = open(nlri)?;
            Raw {
                rd: route.rd.as_ref().and_then(raw_rd),
                tag: route.ethernet_tag,
                mac: Some(route.mac_address),
                ip: route.ip_address,
                labels: route.labels,
                ..Raw::default()
            }
        }
        "EVPNInclusiveMulticastEthernetTagRoute" => {
            let route: EvpnInclusiveMulticastEthernetTagRoute = open(nlri)?;
            let rd = route.rd.as_ref().and_then(raw_rd);
            Raw { rd, tag: route.ethernet_tag, ip: route.ip_address, ..Raw::default() }
        }
        _ => return None,
    };
    for attribute in &path.pattrs {
        match name(attribute) {
            "MpReachNLRIAttribute" => {
                raw.next_hops = open::<MpReachNlriAttribute>(attribute).unwrap_or_default().next_hops;
            }
            "PmsiTunnelAttribute" => {
                raw.pmsi = open(attribute).map(|pmsi: PmsiTunnelAttribute| (pmsi.r#type, pmsi.label));
            }
            "ExtendedCommunitiesAttribute" => {
                let all: ExtendedCommunitiesAttribute = open(attribute).unwrap_or_default();
                all.communities.iter().for_each(|one| community(one, &mut raw));
            }
            _ => {}
        }
    }
    Some(raw)
}

fn community(any: &Any, raw: &mut Raw) {
    match name(any) {
        "TwoOctetAsSpecificExtended" => {
            let target = open(any).filter(|one: &TwoOctetAsSpecificExtended| one.sub_type == ROUTE_TARGET);
            raw.targets.extend(target.map(|one| one.local_admin));
        }
        "EncapExtended" => {
            if let Some(EncapExtended { tunnel_type }) = open(any) {
                raw.understands(tunnel_type);
            }
        }
        "MacMobilityExtended" => {
            if let Some(MacMobilityExtended { is_sticky: sticky, sequence_num: sequence }) = open(any) {
                raw.mobility = Mobility { sequence, sticky };
            }
        }
        _ => {}
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
        let other = Path { nlri: Some(any("EVPNIPPrefixRoute", &OriginAttribute::default())), ..Path::default() };
        assert!(raw(&other).is_none(), "of another kind");
        let torn = Any { type_url: format!("{TYPE}EVPNMACIPAdvertisementRoute"), value: vec![0xff; 9] };
        assert!(raw(&Path { nlri: Some(torn), ..Path::default() }).is_none());
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

//! What other nodes need, over rtnetlink: the VXLAN device, its neighbours and forwarding entries, routes to peers.

use std::io;
use std::net::Ipv4Addr;

use coracle_net_model::Cidr;
use coracle_net_model::overlay::{Change, Entries, Mac, PeerRoute};
use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::links::{self, ROUTE_PROTOCOL, Route, Vxlan};
use crate::socket::Socket;

const RTM_NEWNEIGH: u16 = 28;

/// Creates the VXLAN device, up. Not tied to a link below it: the outer packets go as the routes say, also when those
/// change.
pub(crate) fn create(socket: &mut Socket, name: &str, vxlan: &Vxlan, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut facts = vec![InfoVxlan::Id(vxlan.vni), InfoVxlan::Port(vxlan.port), InfoVxlan::Learning(vxlan.learning)];
    facts.extend(vxlan.local.map(InfoVxlan::Local));
    let mut message = LinkMessage::default();
    links::up(&mut message);
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(facts))]),
    ];
    links::request(socket, vec![(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)], &[])
}

/// Sets the device up, with this hardware address and MTU.
pub(crate) fn adjust(socket: &mut Socket, index: u32, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    links::up(&mut message);
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::Address(mac.0.to_vec())];
    links::request(socket, vec![(RouteNetlinkMessage::SetLink(message), 0)], &[])
}

/// Where the kernel would send a packet for `address`; `None` when nowhere.
pub(crate) fn lookup(socket: &mut Socket, address: Ipv4Addr) -> io::Result<Option<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
    let bytes = links::serialize(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST, 1);
    let answer = socket.ask(&bytes, |body| {
        let mut header = NetlinkHeader::default();
        header.message_type = links::RTM_NEWROUTE;
        match RouteNetlinkMessage::deserialize(&header, body).ok()? {
            RouteNetlinkMessage::NewRoute(message) => Some(links::read_route(&message)),
            _ => None,
        }
    });
    match answer {
        // No route, or one that refuses: unreachable, prohibit, blackhole.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        answer => answer,
    }
}

/// Routes of ours to blocks inside the cluster's, as peers have them.
pub(crate) fn peer_routes(socket: &mut Socket, cluster: Cidr) -> io::Result<Vec<PeerRoute>> {
    let ours = links::routes(socket)?.into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
    Ok(ours.filter_map(|route| peer_route(&route)).filter(|route| cluster.covers(&route.destination)).collect())
}

fn peer_route(route: &Route) -> Option<PeerRoute> {
    Some(PeerRoute {
        destination: Cidr::new(route.destination?, route.prefix).ok()?,
        link: route.link?,
        via: route.via,
        onlink: route.onlink,
        source: route.source,
        mtu: route.mtu,
    })
}

/// Neighbours and forwarding entries of the device.
pub(crate) fn observe(socket: &mut Socket, device: u32, cluster: Cidr) -> io::Result<Entries> {
    let mut entries = Entries { routes: peer_routes(socket, cluster)?, ..Entries::default() };
    for message in neighbours(socket, AddressFamily::Inet, device)? {
        if message.header.state == NeighbourState::Permanent
            && let (Some(at), Some(mac)) = (destination(&message), mac(&message))
        {
            entries.neighbours.insert(at, mac);
        }
    }
    for message in neighbours(socket, AddressFamily::Bridge, device)? {
        if let (Some(mac), Some(to)) = (mac(&message), destination(&message)) {
            entries.forwarding.insert(mac, to);
        }
    }
    Ok(entries)
}

fn neighbours(socket: &mut Socket, family: AddressFamily, device: u32) -> io::Result<Vec<NeighbourMessage>> {
    let mut question = NeighbourMessage::default();
    question.header.family = family;
    links::list(socket, RouteNetlinkMessage::GetNeighbour(question), RTM_NEWNEIGH, |message| match message {
        RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == device => Some(message),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from)
        }
        _ => None,
    })
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

/// Does one change. What is to go and is gone is no error.
pub(crate) fn change(socket: &mut Socket, device: Option<u32>, change: &Change) -> io::Result<()> {
    use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewNeighbour, NewRoute};
    let device = device.unwrap_or(0);
    let set = NLM_F_CREATE | NLM_F_REPLACE;
    let gone = [libc::ENOENT, libc::ESRCH, libc::ENODEV];
    let (message, flags, tolerated) = match change {
        Change::SetNeighbour(at, mac) => (NewNeighbour(neighbour(device, *at, Some(*mac))), set, &[][..]),
        Change::DeleteNeighbour(at) => (DelNeighbour(neighbour(device, *at, None)), 0, &gone[..]),
        Change::SetForwarding(mac, to) => (NewNeighbour(forwarding(device, *mac, *to)), set, &[][..]),
        Change::DeleteForwarding(mac, to) => (DelNeighbour(forwarding(device, *mac, *to)), 0, &gone[..]),
        Change::AddRoute(to) => (NewRoute(route(to)), NLM_F_CREATE | NLM_F_EXCL, &[][..]),
        Change::ReplaceRoute(to) => (NewRoute(route(to)), set, &[][..]),
        Change::DeleteRoute(to) => {
            let block = Some((to.destination.network(), to.destination.prefix()));
            (DelRoute(links::route_message(to.link, block, RouteScope::NoWhere)), 0, &gone[..])
        }
    };
    links::request(socket, vec![(message, flags)], tolerated)
}

fn neighbour(device: u32, at: Ipv4Addr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::Destination(at.into())];
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn forwarding(device: u32, mac: Mac, to: Ipv4Addr) -> NeighbourMessage {
    let mut message = neighbour(device, to, Some(mac));
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message
}

fn route(to: &PeerRoute) -> RouteMessage {
    let block = Some((to.destination.network(), to.destination.prefix()));
    let mut message = links::route_message(to.link, block, RouteScope::Universe);
    if to.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.extend(to.via.map(|via| RouteAttribute::Gateway(RouteAddress::Inet(via))));
    attributes.extend(to.source.map(|source| RouteAttribute::PrefSource(RouteAddress::Inet(source))));
    attributes.extend(to.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

//! Links, addresses and routes over rtnetlink: the bridge, the pods' veth pairs and the route for service addresses.
//! What other nodes need is in `tunnel`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use coracle_net_model::Cidr;
use coracle_net_model::overlay::Mac;

use crate::socket::Socket;

/// The number on every route of ours (`proto 67` in `ip route`), so that they can be told from others'.
pub(crate) const ROUTE_PROTOCOL: u8 = 67;
/// Name of a pod's own link.
const POD_LINK: &str = "eth0";
const MAIN_TABLE: u8 = 254;

/// A link as far as we need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<String>,
    pub(crate) alias: Option<String>,
    pub(crate) master: Option<u32>,
    pub(crate) peer: Option<u32>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) mac: Option<Mac>,
    /// Our number of the namespace the peer lives in, if it is another.
    pub(crate) peer_namespace: Option<i32>,
    /// Whoever is on it can be found by asking: an Ethernet link.
    pub(crate) resolves: bool,
    pub(crate) loopback: bool,
    pub(crate) vxlan: Option<Vxlan>,
}

/// What makes a VXLAN device the one we want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: Option<Ipv4Addr>,
    pub(crate) learning: bool,
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) link: Option<u32>,
    pub(crate) destination: Option<Ipv4Addr>,
    pub(crate) prefix: u8,
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) protocol: u8,
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) onlink: bool,
    pub(crate) mtu: Option<u32>,
    /// It leads to this machine itself.
    pub(crate) local: bool,
}

/// Hardware address of whoever has `address`: stable, so that a successor at the same address leaves no stale
/// neighbour entry behind. Locally administered.
fn hardware_address(address: Ipv4Addr) -> Vec<u8> {
    [&[0x0a, 0x58][..], &address.octets()].concat()
}

/// Several requests in one datagram; errors of `tolerated` numbers count as done.
pub(crate) fn request(
    socket: &mut Socket,
    messages: Vec<(RouteNetlinkMessage, u16)>,
    tolerated: &[i32],
) -> io::Result<()> {
    let expected = messages.len();
    let mut bytes = Vec::new();
    for (sequence, (message, flags)) in messages.into_iter().enumerate() {
        bytes.extend(serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags, sequence as u32 + 1));
    }
    let mut done = 0;
    let mut failure = None;
    socket.exchange(&bytes, |_, errno| match errno {
        0 => done += 1,
        errno if tolerated.contains(&errno) => done += 1,
        errno => failure = failure.or(Some(errno)),
    })?;
    match failure {
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None if done == expected => Ok(()),
        None => Err(io::Error::other("the kernel did not answer every request")),
    }
}

pub(crate) fn serialize(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

pub(crate) fn list<T>(
    socket: &mut Socket,
    question: RouteNetlinkMessage,
    kind: u16,
    read: impl Fn(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    let bytes = serialize(question, NLM_F_REQUEST | NLM_F_DUMP, 1);
    socket.list(&bytes, |body, found| {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        found.extend(RouteNetlinkMessage::deserialize(&header, body).ok().and_then(&read));
    })
}

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_NEWROUTE: u16 = 24;

/// All links.
pub(crate) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    list(socket, RouteNetlinkMessage::GetLink(LinkMessage::default()), RTM_NEWLINK, |message| match message {
        RouteNetlinkMessage::NewLink(message) => Some(read_link(message)),
        _ => None,
    })
}

/// The link of a name.
pub(crate) fn link(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let bytes = serialize(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST, 1);
    socket.ask(&bytes, |body| {
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_NEWLINK;
        match RouteNetlinkMessage::deserialize(&header, body).ok()? {
            RouteNetlinkMessage::NewLink(message) => Some(read_link(message)),
            _ => None,
        }
    })
}

fn read_link(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        resolves: message.header.link_layer_type == LinkLayerType::Ether && !flags.contains(LinkFlags::Noarp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(facts)) => link.vxlan = Some(read_vxlan(facts)),
                        _ => {}
                    }
                }
            }
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = Some(id),
            _ => {}
        }
    }
    link
}

fn read_vxlan(facts: Vec<InfoVxlan>) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for fact in facts {
        match fact {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(address) => vxlan.local = Some(address),
            InfoVxlan::Learning(on) => vxlan.learning = on,
            _ => {}
        }
    }
    vxlan
}

/// All IPv4 addresses.
pub(crate) fn addresses(socket: &mut Socket) -> io::Result<Vec<Address>> {
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    list(socket, RouteNetlinkMessage::GetAddress(question), RTM_NEWADDR, |message| match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some(Address { link: message.header.index, address, prefix: message.header.prefix_len })
        }
        _ => None,
    })
}

/// All IPv4 routes of the main table.
pub(crate) fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    list(socket, RouteNetlinkMessage::GetRoute(question), RTM_NEWROUTE, |message| match message {
        RouteNetlinkMessage::NewRoute(message) if message.header.table == MAIN_TABLE => Some(read_route(&message)),
        _ => None,
    })
}

pub(crate) fn read_route(message: &RouteMessage) -> Route {
    let mut route = Route {
        link: None,
        destination: None,
        prefix: message.header.destination_prefix_length,
        source: None,
        protocol: message.header.protocol.into(),
        via: None,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        mtu: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(link) => route.link = Some(*link),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => route.destination = Some(*address),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => route.source = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => route.via = Some(*address),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route
}

pub(crate) fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

/// Creates the bridge, with the gateway's hardware address so that ports coming and going never change it.
pub(crate) fn create_bridge(socket: &mut Socket, name: &str, gateway: Ipv4Addr, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    up(&mut message);
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        // A bridge follows its ports' MTU, and has 1,500 without any, until it is given another than it has.
        LinkAttribute::Mtu(mtu ^ 1),
        LinkAttribute::Address(hardware_address(gateway)),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
        ]),
    ];
    let mut given = LinkMessage::default();
    given.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(mtu)];
    request(
        socket,
        vec![
            (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL),
            (RouteNetlinkMessage::SetLink(given), 0),
        ],
        &[libc::EEXIST],
    )
}

/// Sets a link up, with this MTU and as a port of `master` if one is given.
pub(crate) fn adjust(socket: &mut Socket, index: u32, mtu: u32, master: Option<u32>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    up(&mut message);
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    message.attributes.extend(master.map(LinkAttribute::Controller));
    let mut messages = vec![(RouteNetlinkMessage::SetLink(message), 0)];
    if master.is_some() {
        let mut port = LinkMessage::default();
        port.header.index = index;
        port.attributes = vec![hairpin()];
        messages.push((RouteNetlinkMessage::NewLink(port), 0));
    }
    request(socket, messages, &[])
}

/// Sets a link's MTU and nothing else.
pub(crate) fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    request(socket, vec![(RouteNetlinkMessage::SetLink(message), 0)], &[])
}

/// Inside a pod's namespace: gives its end of the pair whose other end is `host` another MTU. False when it is not there.
pub(crate) fn set_pod_mtu(socket: &mut Socket, host: &Link, mtu: u32) -> io::Result<bool> {
    match link(socket, POD_LINK)?.filter(|own| own.peer == Some(host.index) && host.peer == Some(own.index)) {
        Some(own) => set_mtu(socket, own.index, mtu).map(|()| true),
        None => Ok(false),
    }
}

/// Lets a bridge port give back a packet where it came from. Only needed where br_netfilter is loaded (Docker does
/// that): it then translates a service's address inside the bridge, before the packet is routed. The kernel reads this
/// attribute in RTM_NEWLINK for an existing link, and ignores it in RTM_SETLINK.
fn hairpin() -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ])
}

/// Deletes a link; one that is not there is no error.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    request(socket, vec![(RouteNetlinkMessage::DelLink(message), 0)], &[libc::ENODEV])
}

/// Deletes the link of a number; one that is not there is no error.
pub(crate) fn delete_index(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    request(socket, vec![(RouteNetlinkMessage::DelLink(message), 0)], &[libc::ENODEV])
}

fn address_message(link: u32, address: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = link;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    message
}

/// Gives a link an address; one it has already is no error.
pub(crate) fn add_address(socket: &mut Socket, link: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewAddress(address_message(link, address, prefix));
    request(socket, vec![(message, NLM_F_CREATE | NLM_F_EXCL)], &[libc::EEXIST])
}

/// Takes an address from a link.
pub(crate) fn delete_address(socket: &mut Socket, address: &Address) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelAddress(address_message(address.link, address.address, address.prefix));
    request(socket, vec![(message, 0)], &[libc::EADDRNOTAVAIL])
}

pub(crate) fn route_message(link: u32, destination: Option<(Ipv4Addr, u8)>, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = MAIN_TABLE;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(link));
    if let Some((address, prefix)) = destination {
        message.header.destination_prefix_length = prefix;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
    }
    message
}

/// The route that lets the host itself reach service addresses: without one, connecting fails before any rule sees it.
pub(crate) fn set_service_route(socket: &mut Socket, bridge: u32, block: Cidr, source: Ipv4Addr) -> io::Result<()> {
    let mut message = route_message(bridge, Some((block.network(), block.prefix())), RouteScope::Link);
    message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    request(socket, vec![(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)], &[])
}

/// Deletes a route of ours.
pub(crate) fn delete_route(socket: &mut Socket, route: &Route) -> io::Result<()> {
    let (Some(link), Some(destination)) = (route.link, route.destination) else { return Ok(()) };
    let message = route_message(link, Some((destination, route.prefix)), RouteScope::NoWhere);
    request(socket, vec![(RouteNetlinkMessage::DelRoute(message), 0)], &[libc::ESRCH])
}

/// Creates a pod's pair: the host's end `name` a port of the bridge, the other end `eth0` born inside the pod's
/// namespace (moving it there costs twenty times as much), the alias set, all in one datagram. The pod's end cannot be
/// up from birth: the kernel opens it before the two ends know each other.
pub(crate) fn create_pair(
    socket: &mut Socket,
    name: &str,
    alias: &str,
    bridge: u32,
    mtu: u32,
    address: Ipv4Addr,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(POD_LINK.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(hardware_address(address)),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut host = LinkMessage::default();
    up(&mut host);
    host.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let mut named = LinkMessage::default();
    named.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned()), hairpin()];
    request(
        socket,
        vec![(RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL), (RouteNetlinkMessage::NewLink(named), 0)],
        &[],
    )
}

/// Inside the pod's namespace: `lo` and `eth0` up, the address with its on-link gateway, the default route. One datagram.
pub(crate) fn configure_pod(socket: &mut Socket, address: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<()> {
    let link = link(socket, POD_LINK)?.ok_or(io::ErrorKind::NotFound)?.index;
    let mut loopback = LinkMessage::default();
    up(&mut loopback);
    loopback.header.index = 1;
    let mut own = LinkMessage::default();
    up(&mut own);
    own.header.index = link;
    let on_link = route_message(link, Some((gateway, 32)), RouteScope::Link);
    let mut default = route_message(link, None, RouteScope::Universe);
    default.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    let create = NLM_F_CREATE | NLM_F_EXCL;
    request(
        socket,
        vec![
            (RouteNetlinkMessage::SetLink(loopback), 0),
            (RouteNetlinkMessage::SetLink(own), 0),
            (RouteNetlinkMessage::NewAddress(address_message(link, address, 32)), create),
            (RouteNetlinkMessage::NewRoute(on_link), create),
            (RouteNetlinkMessage::NewRoute(default), create),
        ],
        &[libc::EEXIST],
    )
}

/// Whether the pod's side of the host's link `host` is complete: `eth0` up, with the address and a default route.
pub(crate) fn pod_is_configured(socket: &mut Socket, host: &Link, address: Ipv4Addr) -> io::Result<bool> {
    let Some(own) = link(socket, POD_LINK)? else { return Ok(false) };
    let connected = own.up && own.peer == Some(host.index) && host.peer == Some(own.index);
    Ok(connected
        && addresses(socket)?.iter().any(|a| a.link == own.index && a.address == address)
        && routes(socket)?.iter().any(|route| route.link == Some(own.index) && route.destination.is_none()))
}

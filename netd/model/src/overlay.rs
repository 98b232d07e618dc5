//! How this node reaches the pods of the others: which of them it can use, what must stand in the kernel for them, and
//! the difference to what stands there.
//!
//! A peer on a link of ours is reached directly (a route over its own address). Any other peer is reached through the
//! VXLAN device by exactly three static entries, so that nothing is learned and nothing is asked:
//!
//! ```text
//! route       10.42.r.0/24 via 10.42.r.0 dev vx onlink     packets for its pods
//! neighbour   10.42.r.0 -> hardware address                made of the block, on both ends
//! forwarding  hardware address -> the peer's own address   where the outer packet goes
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use crate::Cidr;

/// Bytes that VXLAN adds to a packet: inner Ethernet, VXLAN, UDP and outer IPv4 header.
pub const VXLAN_OVERHEAD: u32 = 50;

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The node's name, for messages.
    pub node: String,
    /// Its pods' addresses.
    pub pod_cidr: Cidr,
    /// Its own address, where this node reaches it without any overlay.
    pub address: Ipv4Addr,
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Hardware address of the VXLAN device of the node that has the block: locally administered, and known to both ends
/// without being told.
#[must_use]
pub fn tunnel_mac(pod_cidr: Cidr) -> Mac {
    let [a, b, c, d] = pod_cidr.network().octets();
    Mac([0x0e, 0x58, a, b, c, d])
}

/// The largest packet of a pod, in bytes, where the node's own link carries `underlay` bytes. With an overlay there is
/// always room for its headers, also while no peer needs it: a pod's packets must not become too large later.
#[must_use]
pub fn pod_mtu(underlay: u32, overlay: bool) -> u32 {
    // 68 is the least that IPv4 works with.
    underlay.saturating_sub(if overlay { VXLAN_OVERHEAD } else { 0 }).clamp(68, 65_535)
}

/// The name of the VXLAN device of the cluster that has the bridge: at most 15 bytes.
#[must_use]
pub fn device_name(bridge: &str) -> String {
    if bridge.len() <= 12 {
        format!("{bridge}-vx")
    } else {
        format!("vx{:012x}", crate::rules::fnv1a(bridge.as_bytes()) & 0xffff_ffff_ffff)
    }
}

/// What this node knows about itself when it judges its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Its own address; none: it is alone.
    pub address: Option<Ipv4Addr>,
    /// Its pods' addresses.
    pub node_cidr: Cidr,
    /// All pods' addresses.
    pub cluster_cidr: Cidr,
    /// All service addresses.
    pub service_cidr: Cidr,
}

/// A peer that cannot be reached, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The peer.
    pub peer: Peer,
    /// Why, with a hint.
    pub why: String,
}

/// Tells peers that can be used from those that cannot. Of two with overlapping blocks the first by name stays. What is
/// used comes in order of names.
#[must_use]
pub fn judge(own: &Own, mut peers: Vec<Peer>) -> (Vec<Peer>, Vec<Refused>) {
    peers.sort_unstable();
    peers.dedup();
    let (mut usable, mut refused) = (Vec::<Peer>::new(), Vec::new());
    for peer in peers {
        match objection(own, &peer).or_else(|| overlapping(&usable, &peer)) {
            Some(why) => refused.push(Refused { peer, why }),
            None => usable.push(peer),
        }
    }
    (usable, refused)
}

fn objection(own: &Own, peer: &Peer) -> Option<String> {
    let Peer { pod_cidr, address, .. } = peer;
    let ours = own.address.map(|address| address.to_string());
    let why = if ours.is_none() {
        "this node has no address that other machines reach (hint: give it one with --node-ip)".to_owned()
    } else if own.address == Some(*address) {
        format!("its address {address} is this node's own (hint: give each node an address of its own with --node-ip)")
    } else if address.is_loopback() || address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        format!("its address {address} is not one that other machines reach (hint: start it with --node-ip)")
    } else if own.cluster_cidr.contains(*address) || own.service_cidr.contains(*address) {
        format!(
            "its address {address} lies in a block of pods or services (hint: choose other blocks, or another --node-ip)"
        )
    } else if !own.cluster_cidr.covers(pod_cidr) {
        format!("its block {pod_cidr} is not inside the cluster's {}", own.cluster_cidr)
    } else if own.node_cidr.overlaps(pod_cidr) {
        format!(
            "its block {pod_cidr} overlaps this node's {} (hint: remove the node and let it join again)",
            own.node_cidr
        )
    } else {
        return None;
    };
    Some(why)
}

fn overlapping(usable: &[Peer], peer: &Peer) -> Option<String> {
    let other = usable.iter().find(|other| other.pod_cidr.overlaps(&peer.pod_cidr))?;
    let (block, node, theirs) = (peer.pod_cidr, &other.node, other.pod_cidr);
    Some(format!("its block {block} overlaps {theirs} of node {node} (hint: remove one of them and let it join again)"))
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Over its own address on this link.
    Direct(u32),
    /// Through the VXLAN device.
    Tunnel,
}

/// A route to a peer's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerRoute {
    /// The peer's block.
    pub destination: Cidr,
    /// Number of the link packets leave by.
    pub link: u32,
    /// The next hop.
    pub via: Option<Ipv4Addr>,
    /// The next hop counts as a neighbour although no address of ours says so.
    pub onlink: bool,
    /// The source address of this host's own packets: the bridge's, so that answers come back over the overlay.
    pub source: Option<Ipv4Addr>,
    /// The largest packet, in bytes, where it is less than the link's.
    pub mtu: Option<u32>,
}

/// Everything in the kernel that is there for peers, the device itself excepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Routes to peers' blocks.
    pub routes: Vec<PeerRoute>,
    /// Permanent neighbours of the VXLAN device.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Where the VXLAN device sends a hardware address's packets.
    pub forwarding: BTreeMap<Mac, Ipv4Addr>,
}

/// What must stand for these peers. `device` is the number of the VXLAN device; while there is none, peers that need it
/// are left out. `gateway` is the bridge's address, `mtu` the pods'.
#[must_use]
pub fn wanted(peers: &[(Peer, Way)], device: Option<u32>, gateway: Ipv4Addr, mtu: u32) -> Entries {
    let mut entries = Entries::default();
    for (peer, way) in peers {
        let (destination, source) = (peer.pod_cidr, Some(gateway));
        match (way, device) {
            (Way::Direct(link), _) => entries.routes.push(PeerRoute {
                destination,
                link: *link,
                via: Some(peer.address),
                onlink: false,
                source,
                mtu: Some(mtu),
            }),
            (Way::Tunnel, Some(link)) => {
                let via = destination.network();
                entries.routes.push(PeerRoute { destination, link, via: Some(via), onlink: true, source, mtu: None });
                entries.neighbours.insert(via, tunnel_mac(destination));
                entries.forwarding.insert(tunnel_mac(destination), peer.address);
            }
            (Way::Tunnel, None) => {}
        }
    }
    entries
}

/// One step from what is there to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds or overwrites a neighbour.
    SetNeighbour(Ipv4Addr, Mac),
    /// Adds or overwrites where a hardware address lives.
    SetForwarding(Mac, Ipv4Addr),
    /// Adds a route; another's to the same block is a conflict.
    AddRoute(PeerRoute),
    /// Puts a route in the place of ours to the same block: no packet finds none.
    ReplaceRoute(PeerRoute),
    /// Removes a route of ours.
    DeleteRoute(PeerRoute),
    /// Removes a neighbour.
    DeleteNeighbour(Ipv4Addr),
    /// Removes where a hardware address lives.
    DeleteForwarding(Mac, Ipv4Addr),
}

/// The way from `found` to `wanted`. What a route needs comes before it and goes after it.
#[must_use]
pub fn diff(found: &Entries, wanted: &Entries) -> Vec<Change> {
    let mut changes = Vec::new();
    let missing = |(at, mac): &(&Ipv4Addr, &Mac)| found.neighbours.get(at) != Some(mac);
    changes.extend(wanted.neighbours.iter().filter(missing).map(|(at, mac)| Change::SetNeighbour(*at, *mac)));
    let missing = |(mac, to): &(&Mac, &Ipv4Addr)| found.forwarding.get(mac) != Some(to);
    changes.extend(wanted.forwarding.iter().filter(missing).map(|(mac, to)| Change::SetForwarding(*mac, *to)));
    let mut stale: Vec<&PeerRoute> = found.routes.iter().filter(|route| !wanted.routes.contains(route)).collect();
    for route in wanted.routes.iter().filter(|route| !found.routes.contains(route)) {
        match stale.iter().position(|old| old.destination == route.destination) {
            Some(replaced) => {
                stale.remove(replaced);
                changes.push(Change::ReplaceRoute(*route));
            }
            None => changes.push(Change::AddRoute(*route)),
        }
    }
    changes.extend(stale.into_iter().map(|route| Change::DeleteRoute(*route)));
    let stale = found.neighbours.keys().filter(|at| !wanted.neighbours.contains_key(at));
    changes.extend(stale.map(|at| Change::DeleteNeighbour(*at)));
    let stale = found.forwarding.iter().filter(|(mac, _)| !wanted.forwarding.contains_key(mac));
    changes.extend(stale.map(|(mac, to)| Change::DeleteForwarding(*mac, *to)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);

    fn peer(n: u8) -> Peer {
        Peer {
            node: format!("n{n}"),
            pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(),
            address: Ipv4Addr::new(192, 0, 2, n),
        }
    }

    fn own() -> Own {
        Own {
            address: Some(Ipv4Addr::new(192, 0, 2, 100)),
            node_cidr: "10.42.0.0/24".parse().unwrap(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
        }
    }

    #[test]
    fn peers_that_cannot_be_reached_are_refused_and_the_others_stay() {
        let at = |n: u8, address: [u8; 4]| Peer { address: address.into(), ..peer(n) };
        let with = |n: u8, block: &str| Peer { pod_cidr: block.parse().unwrap(), ..peer(n) };
        let bad = [
            (at(1, [192, 0, 2, 100]), "is this node's own"),
            (at(2, [127, 0, 0, 1]), "not one that other machines reach"),
            (at(3, [10, 42, 9, 9]), "lies in a block of pods"),
            (at(4, [10, 43, 0, 1]), "lies in a block of pods or services"),
            (with(5, "10.50.0.0/24"), "not inside the cluster's 10.42.0.0/16"),
            (with(6, "10.42.0.128/25"), "overlaps this node's"),
            (Peer { node: "z".to_owned(), ..peer(9) }, "overlaps 10.42.9.0/24 of node n9"),
        ];
        let mut all: Vec<Peer> = bad.iter().map(|(peer, _)| peer.clone()).collect();
        all.extend([peer(9), peer(8), peer(8)]);
        let (usable, refused) = judge(&own(), all);
        assert_eq!(usable, [peer(8), peer(9)]);
        assert_eq!(refused.len(), bad.len());
        for (refused, (peer, why)) in refused.iter().zip(&bad) {
            assert_eq!(&refused.peer, peer);
            assert!(refused.why.contains(why), "{refused:?}");
        }
        let (usable, refused) = judge(&Own { address: None, ..own() }, vec![peer(8)]);
        assert!(usable.is_empty() && refused[0].why.contains("--node-ip"));
    }

    #[test]
    fn a_peer_is_one_route_or_three_entries() {
        let peers = [(peer(1), Way::Direct(3)), (peer(2), Way::Tunnel)];
        let entries = wanted(&peers, Some(9), GATEWAY, 1450);
        assert_eq!(entries.routes.len(), 2);
        assert_eq!((entries.routes[0].via, entries.routes[0].mtu), (Some(peer(1).address), Some(1450)));
        let via = Ipv4Addr::new(10, 42, 2, 0);
        assert_eq!((entries.routes[1].via, entries.routes[1].onlink, entries.routes[1].link), (Some(via), true, 9));
        let mac = Mac([0x0e, 0x58, 10, 42, 2, 0]);
        assert_eq!(entries.neighbours, BTreeMap::from([(via, mac)]));
        assert_eq!(entries.forwarding, BTreeMap::from([(mac, peer(2).address)]));
        assert_eq!(wanted(&peers, None, GATEWAY, 1450).routes.len(), 1, "without a device only what needs none");
    }

    #[test]
    fn only_what_changes_is_touched() {
        let entries = |peers: &[(Peer, Way)]| wanted(peers, Some(9), GATEWAY, 1450);
        let before = entries(&[(peer(1), Way::Tunnel), (peer(2), Way::Tunnel)]);
        assert_eq!(diff(&before, &before), []);
        let moved = Peer { address: Ipv4Addr::new(192, 0, 2, 77), ..peer(1) };
        let mac = tunnel_mac(peer(1).pod_cidr);
        let after = entries(&[(moved.clone(), Way::Tunnel), (peer(2), Way::Tunnel)]);
        assert_eq!(diff(&before, &after), [Change::SetForwarding(mac, moved.address)]);
        // It comes onto our link: the route is exchanged, then the rest goes.
        let after = entries(&[(peer(1), Way::Direct(3)), (peer(2), Way::Tunnel)]);
        let changes = diff(&before, &after);
        assert!(matches!(changes[0], Change::ReplaceRoute(route) if route.link == 3), "{changes:?}");
        assert_eq!(
            changes[1..],
            [Change::DeleteNeighbour(peer(1).pod_cidr.network()), Change::DeleteForwarding(mac, peer(1).address)]
        );
        let changes = diff(&before, &entries(&[(peer(2), Way::Tunnel)]));
        assert!(matches!(changes[0], Change::DeleteRoute(route) if route.destination == peer(1).pod_cidr));
        let changes = diff(&Entries::default(), &entries(&[(peer(1), Way::Tunnel)]));
        assert!(matches!(changes[2], Change::AddRoute(_)), "what a route needs comes first: {changes:?}");
    }

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(device_name("coracle0"), "coracle0-vx");
        let (a, b) = (device_name("coracle-abcdef0"), device_name("coracle-abcdef1"));
        assert!(a != b && a.len() <= 15 && b.len() <= 15, "{a} {b}");
    }

    #[test]
    fn the_headers_always_have_room() {
        assert_eq!((pod_mtu(1500, true), pod_mtu(1500, false), pod_mtu(9001, true)), (1450, 1500, 8951));
        assert_eq!((pod_mtu(65_536, false), pod_mtu(60, true)), (65_535, 68));
    }
}

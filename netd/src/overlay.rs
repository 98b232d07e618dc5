//! Makes what other nodes need stand in the kernel: the VXLAN device if some peer needs it, routes, neighbours and
//! forwarding entries. Observes, compares, applies; touches only what differs.

use std::io;
use std::net::Ipv4Addr;

use coracle_net_model::overlay::{self, Change, Entries, Mac, Own, Peer, Refused, Way};

use crate::handle::{NetConfig, Report};
use crate::links::{self, Address, Link, Vxlan};
use crate::socket::Socket;
use crate::{NetError, settings, tunnel};

/// What the node's own links say, as of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// The link that other machines are reached by: the one with our address, else the one with the default route.
    pub(crate) link: Option<u32>,
    /// Our address is an address of this machine.
    pub(crate) present: bool,
    /// The pods' MTU.
    pub(crate) mtu: u32,
}

/// MTU of a node that has no link to take one from.
const ALONE: u32 = 1500;

impl Underlay {
    pub(crate) fn observe(socket: &mut Socket, config: &NetConfig, links: &[Link]) -> io::Result<Underlay> {
        let own = config.underlay;
        let holder = links::addresses(socket)?.into_iter().find(|Address { address, .. }| Some(*address) == own);
        // An address on lo says nothing about the way to others.
        let holder_link = holder.and_then(|holder| links.iter().find(|l| l.index == holder.link && !l.loopback));
        let link = match holder_link {
            Some(link) => Some(link),
            None => {
                let default = links::routes(socket)?.into_iter().find(|route| route.destination.is_none());
                default.and_then(|route| links.iter().find(|l| Some(l.index) == route.link && !l.loopback))
            }
        };
        let mtu = overlay::pod_mtu(link.map_or(ALONE, |link| link.mtu), own.is_some());
        Ok(Underlay { link: link.map(|link| link.index), present: holder.is_some(), mtu })
    }
}

/// The peers we were told of, and how each is reached as of the last look.
pub(crate) struct Overlay {
    name: String,
    /// `None` until first told: what an earlier run left stays as it is until then.
    usable: Option<Vec<Peer>>,
    refused: Vec<Refused>,
    pub(crate) ways: Vec<(Peer, Way)>,
    /// Peers at an address of this very machine, as of the last look.
    here: Vec<Refused>,
}

impl Overlay {
    pub(crate) fn new(config: &NetConfig) -> Overlay {
        let name = overlay::device_name(&config.bridge);
        Overlay { name, usable: None, refused: Vec::new(), ways: Vec::new(), here: Vec::new() }
    }

    /// Takes the whole set of peers.
    pub(crate) fn tell(&mut self, config: &NetConfig, peers: Vec<Peer>) {
        let own = Own {
            address: config.underlay,
            node_cidr: config.node_cidr,
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
        };
        let (usable, refused) = overlay::judge(&own, peers);
        for refused in refused.iter().filter(|new| !self.refused.contains(new)) {
            let Refused { peer: Peer { node, address, pod_cidr }, why } = refused;
            tracing::warn!(node, %address, %pod_cidr, why, "pods of this node cannot be reached");
        }
        self.refused = refused;
        self.usable = Some(usable);
    }

    /// Peers that cannot be reached, and why.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.iter().chain(&self.here)
    }

    /// Name of the VXLAN device.
    pub(crate) fn device(&self) -> &str {
        &self.name
    }

    /// Makes the kernel match. What fails does not keep the rest from being done; the first failure is told.
    pub(crate) fn ensure(
        &mut self,
        socket: &mut Socket,
        config: &NetConfig,
        underlay: &Underlay,
        links: &[Link],
    ) -> Result<Report, NetError> {
        let Some(peers) = self.usable.clone() else { return Ok(Report::default()) };
        let mut report = Report::default();
        self.find_ways(socket, config, peers, links).map_err(asking("for the way to other nodes"))?;
        let found = links.iter().find(|link| link.name == self.name);
        let (device, mut failure) = if self.ways.iter().any(|(_, way)| *way == Way::Tunnel) {
            match self.ensure_device(socket, config, underlay, found, links, &mut report) {
                Ok(device) => (Some(device), None),
                Err(error) => (None, Some(error)),
            }
        } else {
            self.remove_device(socket, found, &mut report)?;
            (None, None)
        };
        let entries = match device {
            Some(device) => tunnel::observe(socket, device, config.cluster_cidr),
            None => {
                tunnel::peer_routes(socket, config.cluster_cidr).map(|routes| Entries { routes, ..Entries::default() })
            }
        };
        let entries = entries.map_err(asking("for what stands for other nodes"))?;
        let wanted = overlay::wanted(&self.ways, device, config.gateway(), underlay.mtu);
        for change in overlay::diff(&entries, &wanted) {
            match tunnel::change(socket, device, &change) {
                Ok(()) => count(&mut report, &change),
                Err(source) => {
                    let error = self.failed(&change, source);
                    failure.get_or_insert(error);
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(report),
        }
    }

    fn find_ways(
        &mut self,
        socket: &mut Socket,
        config: &NetConfig,
        peers: Vec<Peer>,
        links: &[Link],
    ) -> io::Result<()> {
        self.ways.clear();
        self.here.clear();
        for peer in peers {
            let route = tunnel::lookup(socket, peer.address)?;
            if route.as_ref().is_some_and(|route| route.local) {
                let why = format!("its address {} is one of this machine's (hint: --node-ip)", peer.address);
                self.here.push(Refused { peer, why });
                continue;
            }
            let link = route.filter(|route| route.via.is_none()).and_then(|route| route.link);
            // A tunnel of another kind (WireGuard, tun) carries only addresses it knows, and those are not the pods'.
            let link = link
                .and_then(|index| links.iter().find(|link| link.index == index))
                .filter(|link| link.resolves && link.name != config.bridge && link.name != self.name);
            let way = link.map_or(Way::Tunnel, |link| Way::Direct(link.index));
            self.ways.push((peer, way));
        }
        Ok(())
    }

    /// The VXLAN device as it must be; its number.
    fn ensure_device(
        &self,
        socket: &mut Socket,
        config: &NetConfig,
        underlay: &Underlay,
        found: Option<&Link>,
        links: &[Link],
        report: &mut Report,
    ) -> Result<u32, NetError> {
        let mac = overlay::tunnel_mac(config.node_cidr);
        // Behind an address translation our address is not on this machine: the kernel then takes the route's.
        let local = config.underlay.filter(|_| underlay.present);
        let wanted = Vxlan { vni: config.vni, port: config.vxlan_port, local, learning: false };
        let mut found = found;
        if let Some(link) = found {
            let Some(actual) = link.vxlan else { return Err(self.not_ours(link)) };
            if actual != wanted {
                links::delete(socket, &self.name)
                    .map_err(|source| self.error(config, "deleting an old one", source))?;
                found = None;
            } else if !link.up || link.mtu != underlay.mtu || link.mac != Some(mac) {
                let adjusted = tunnel::adjust(socket, link.index, mac, underlay.mtu);
                adjusted.map_err(|source| self.taken(config, links, "setting it up", source))?;
                report.added += 1;
            }
        }
        let index = match found {
            Some(link) => link.index,
            None => {
                let made = tunnel::create(socket, &self.name, &wanted, mac, underlay.mtu);
                made.map_err(|source| self.taken(config, links, "creating it", source))?;
                report.added += 1;
                self.check_made(socket, config, mac)?
            }
        };
        // A link without any address checks sources strictly whatever its rp_filter says: packets of a node that finds us
        // only through the tunnel, while we find it on our link, would be lost.
        let address = Address { link: index, address: config.node_cidr.network(), prefix: 32 };
        let found = links::addresses(socket).map_err(|source| self.error(config, "listing addresses", source))?;
        if !found.contains(&address) {
            let added = links::add_address(socket, index, address.address, address.prefix);
            added.map_err(|source| self.error(config, "adding its address", source))?;
            report.added += 1;
        }
        report.added += settings::ensure(settings::wanted_of_tunnel(&self.name))?;
        Ok(index)
    }

    /// Others (udev) may have given the new device another hardware address at once.
    fn check_made(&self, socket: &mut Socket, config: &NetConfig, mac: Mac) -> Result<u32, NetError> {
        let made = links::link(socket, &self.name).and_then(|link| link.ok_or_else(|| io::ErrorKind::NotFound.into()));
        let made = made.map_err(|source| self.error(config, "finding it", source))?;
        if made.mac != Some(mac) {
            let adjusted = tunnel::adjust(socket, made.index, mac, made.mtu);
            adjusted.map_err(|source| self.error(config, "setting its hardware address", source))?;
        }
        Ok(made.index)
    }

    fn remove_device(&self, socket: &mut Socket, found: Option<&Link>, report: &mut Report) -> Result<(), NetError> {
        if found.is_some_and(|link| link.vxlan.is_some()) {
            links::delete(socket, &self.name).map_err(asking("to delete the VXLAN device"))?;
            report.removed += 1;
        }
        Ok(())
    }

    /// Takes everything of ours down, also what an earlier run left.
    pub(crate) fn remove(&mut self, socket: &mut Socket, config: &NetConfig) -> Result<(), NetError> {
        let routes = tunnel::peer_routes(socket, config.cluster_cidr).map_err(asking("for routes"))?;
        for route in routes {
            let deleted = tunnel::change(socket, None, &Change::DeleteRoute(route));
            deleted.map_err(asking("to delete a route"))?;
        }
        let found = links::link(socket, &self.name).map_err(asking("for the VXLAN device"))?;
        self.remove_device(socket, found.as_ref(), &mut Report::default())
    }

    fn not_ours(&self, link: &Link) -> NetError {
        let kind = link.kind.clone().unwrap_or_else(|| "physical or loopback link".to_owned());
        NetError::NotAVxlan { name: self.name.clone(), kind }
    }

    fn error(&self, config: &NetConfig, operation: &str, source: io::Error) -> NetError {
        let (name, operation) = (self.name.clone(), operation.to_owned());
        NetError::Vxlan { name, vni: config.vni, port: config.vxlan_port, operation, source }
    }

    /// An error that may be because another has our number or our port.
    fn taken(&self, config: &NetConfig, links: &[Link], operation: &str, source: io::Error) -> NetError {
        let (vni, port) = (config.vni, config.vxlan_port);
        let same = |link: &&Link| {
            link.name != self.name && link.vxlan.is_some_and(|other| other.vni == vni && other.port == port)
        };
        let why = match (source.raw_os_error(), links.iter().find(same)) {
            (Some(libc::EEXIST), Some(other)) => format!(
                " (device {} has this number and port; hint: give one of them another number or port, or remove it)",
                other.name
            ),
            (Some(libc::EADDRINUSE), _) => format!(
                " (another program has UDP port {port}; hint: `ss -lunp sport = {port}` shows which, stop it or choose another port on every node)"
            ),
            (Some(libc::EOPNOTSUPP), _) => " (this kernel has no VXLAN; hint: `modprobe vxlan`)".to_owned(),
            _ => String::new(),
        };
        self.error(config, &format!("{operation}{why}"), source)
    }

    fn failed(&self, change: &Change, source: io::Error) -> NetError {
        let by_block = |at: Ipv4Addr| self.ways.iter().find(|(peer, _)| peer.pod_cidr.contains(at));
        let (at, operation) = match change {
            Change::AddRoute(route) | Change::ReplaceRoute(route) => {
                let taken = source.raw_os_error() == Some(libc::EEXIST);
                let why = if taken {
                    " (another's route to it is there; hint: `ip route` shows it, remove it or choose other blocks)"
                } else {
                    ""
                };
                (Some(route.destination.network()), format!("adding the route{why}"))
            }
            Change::SetNeighbour(at, _) => (Some(*at), "setting the neighbour".to_owned()),
            Change::SetForwarding(Mac([_, _, a, b, c, d]), _) => {
                (Some(Ipv4Addr::new(*a, *b, *c, *d)), "setting the forwarding entry".to_owned())
            }
            Change::DeleteRoute(_) | Change::DeleteNeighbour(_) | Change::DeleteForwarding(..) => (None, String::new()),
        };
        match at.and_then(by_block) {
            Some((peer, _)) => NetError::Peer {
                node: peer.node.clone(),
                block: peer.pod_cidr,
                address: peer.address,
                operation,
                source,
            },
            None => NetError::Netlink { operation: "to delete what stands for a node that left".to_owned(), source },
        }
    }
}

fn count(report: &mut Report, change: &Change) {
    match change {
        Change::DeleteRoute(_) | Change::DeleteNeighbour(_) | Change::DeleteForwarding(..) => report.removed += 1,
        _ => report.added += 1,
    }
}

fn asking(what: &str) -> impl FnOnce(io::Error) -> NetError + use<> {
    let operation = what.to_owned();
    move |source| NetError::Netlink { operation, source }
}

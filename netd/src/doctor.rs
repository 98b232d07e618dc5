//! What on a node, and between it and others, stands in the network's way, found by looking and asking only.

use coracle_net_model::overlay::{Refused, Way};
use coracle_net_model::{Cidr, Peer, nft};

use crate::firewall::Firewall;
use crate::firewalld::Firewalld;
use crate::handle::{Finding, NetConfig};
use crate::links::{self, Link, Route};
use crate::overlay::{Overlay, Underlay};
use crate::probe::{Circumstances, Probe};
use crate::socket::Socket;
use crate::{NetError, settings, tunnel};

/// What the kernel lacks, or keeps from us, without which there is no network at all. Looks only; needs no network of ours.
#[must_use]
pub fn missing(bridge: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let asked = Socket::netfilter().and_then(|mut socket| socket.ask(&nft::get_generation(), nft::generation));
    if let Err(error) = asked {
        let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
            "it needs CAP_NET_ADMIN in the network namespace it runs in".to_owned()
        } else {
            "load it with `modprobe nf_tables`; a kernel of one's own needs CONFIG_NF_TABLES".to_owned()
        };
        findings
            .push(Finding { problem: format!("the kernel's packet filter nf_tables does not answer: {error}"), hint });
    }
    if let Some((path, error)) = settings::locked(bridge) {
        findings.push(Finding {
            problem: format!("{path} must be changed and cannot be written: {error}"),
            hint: "make /proc/sys writable: in a container, run it with --privileged".to_owned(),
        });
    }
    findings
}

/// What `examine` needs to know of the node.
pub(crate) struct Patient<'a> {
    pub(crate) config: &'a NetConfig,
    pub(crate) overlay: &'a Overlay,
    pub(crate) firewalld: Option<&'a Firewalld>,
    pub(crate) underlay: Underlay,
    pub(crate) links: Vec<Link>,
}

/// Looks at settings, others' forward chains, clashing addresses, the MTU of the way out and what stands between the
/// nodes. What must be asked of other nodes is under way in the probe.
pub(crate) fn examine(
    patient: &Patient<'_>,
    route: &mut Socket,
    firewall: &mut Firewall,
) -> Result<(Vec<Finding>, Option<Probe>), NetError> {
    let mut findings = Vec::new();
    let Patient { config, overlay, links, .. } = patient;
    let tunnel = links.iter().any(|link| link.name == overlay.device());
    let mut settings = settings::wanted(&config.bridge);
    settings.extend(tunnel.then(|| settings::wanted_of_tunnel(overlay.device())).into_iter().flatten());
    for (path, value) in settings {
        let actual = settings::read(&path).unwrap_or_else(|| "absent".to_owned());
        if actual != value {
            let problem = format!("{path} is {actual}, not {value}");
            findings.push(Finding { problem, hint: format!("find what resets it; `echo {value} > {path}`") });
        }
    }
    for chain in firewall.dropping_forward_chains()? {
        let others = if overlay.ways.is_empty() { "" } else { " and pods of other nodes" };
        let link = if tunnel {
            format!("links {} and {}", config.bridge, overlay.device())
        } else {
            format!("link {}", config.bridge)
        };
        findings.push(Finding {
            problem: format!("firewall chain {chain} drops forwarded packets that it does not know: pods reach nothing outside{others}"),
            hint: format!("accept packets from and to {link} there (Docker: in its DOCKER-USER chain)"),
        });
    }
    if let Some(firewalld) = patient.firewalld
        && firewalld.is_deaf(&firewall.chains()?)
    {
        let zone = firewalld.zone();
        findings.push(Finding {
            problem: format!(
                "firewalld does not know the zone {zone}: it refuses what pods send, and what is for them"
            ),
            hint: format!("`firewall-cmd --reload` has it read /etc/firewalld/zones/{zone}.xml"),
        });
    }
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |source| NetError::Netlink { operation, source }
    };
    let routes = links::routes(route).map_err(failed("listing routes"))?;
    findings.extend(overlapping_routes(patient, &routes));
    let way_out = routes.iter().find(|route| route.destination.is_none()).and_then(|route| route.link);
    let mtu = patient.underlay.mtu;
    if let Some(link) = links.iter().find(|link| Some(link.index) == way_out && link.mtu < mtu) {
        findings.push(Finding {
            problem: format!("link {} carries {} bytes, pods send up to {mtu}", link.name, link.mtu),
            hint: format!("set the MTU of link {} to {mtu} or more", link.name),
        });
    }
    findings.extend(no_overlay(patient));
    findings.extend(wrong_ways(patient, route).map_err(failed("asking for the way to other nodes"))?);
    let probe = match overlay.ways.as_slice() {
        [] => None,
        peers => {
            let strict = links.iter().find(|link| Some(link.index) == patient.underlay.link);
            let strict = strict.map(|link| link.name.clone()).filter(|name| settings::is_strict(name));
            let circumstances = Circumstances { mtu, port: config.vxlan_port, strict };
            Some(Probe::examine(peers, circumstances).map_err(failed("opening a socket to ask other nodes"))?)
        }
    };
    Ok((findings, probe))
}

/// Routes of others into blocks of ours: packets to some of our addresses leave by them.
fn overlapping_routes(patient: &Patient<'_>, routes: &[Route]) -> Vec<Finding> {
    let Patient { config, overlay, links, .. } = patient;
    let name = |index: Option<u32>| {
        links.iter().find(|link| Some(link.index) == index).map_or("?", |link| link.name.as_str()).to_owned()
    };
    let bridge = links.iter().find(|link| link.name == config.bridge).map(|link| link.index);
    let mut findings = Vec::new();
    for other in routes.iter().filter(|r| r.link != bridge && r.protocol != links::ROUTE_PROTOCOL) {
        let Some(block) = other.destination.and_then(|to| Cidr::new(to, other.prefix).ok()) else { continue };
        for (what, ours) in [("pods", config.cluster_cidr), ("services", config.service_cidr)] {
            if block.overlaps(&ours) {
                let peer = overlay.ways.iter().find(|(peer, _)| what == "pods" && block.overlaps(&peer.pod_cidr));
                let hides = peer.map_or(String::new(), |(peer, _)| format!(" and hides pods of node {}", peer.node));
                findings.push(Finding {
                    problem: format!(
                        "route {block} on link {} overlaps the block of {what}, {ours}{hides}",
                        name(other.link)
                    ),
                    hint: "choose other blocks with --cluster-cidr and --service-cidr, or remove the route".to_owned(),
                });
            }
        }
    }
    findings
}

/// What keeps this node or single peers out of the overlay.
fn no_overlay(patient: &Patient<'_>) -> Vec<Finding> {
    let Patient { config, overlay, underlay, links, .. } = patient;
    let mut findings = Vec::new();
    if let Some(own) = config.underlay.filter(|_| !underlay.present) {
        findings.push(Finding {
            problem: format!("this node's own address {own} is on none of its links"),
            hint: "fine where a translator in front of the machine has it; else give the node's real address with --node-ip".to_owned(),
        });
    }
    for Refused { peer: Peer { node, pod_cidr, .. }, why } in overlay.refused() {
        let (why, hint) = match why.split_once(" (hint: ") {
            Some((why, hint)) => (why, hint.trim_end_matches(')')),
            None => (why.as_str(), "remove the node and let it join again"),
        };
        findings.push(Finding {
            problem: format!("pods of node {node} ({pod_cidr}) cannot be reached: {why}"),
            hint: hint.to_owned(),
        });
    }
    let tunnelled = overlay.ways.iter().filter(|(_, way)| *way == Way::Tunnel).count();
    let device = links.iter().find(|link| link.name == overlay.device());
    if tunnelled > 0 && !device.is_some_and(|link| link.up && link.vxlan.is_some()) {
        let (vni, port) = (config.vni, config.vxlan_port);
        let name = overlay.device();
        let other = links
            .iter()
            .find(|link| link.name != name && link.vxlan.is_some_and(|other| other.vni == vni && other.port == port));
        let hint = match other {
            Some(other) => format!(
                "device {} has number {vni} and UDP port {port}: remove it, or give one of them others",
                other.name
            ),
            None => {
                format!("`ss -lunp sport = {port}` shows who has the port: stop it; is there none, `modprobe vxlan`")
            }
        };
        findings.push(Finding {
            problem: format!("VXLAN device {name} does not stand: pods of {tunnelled} other nodes cannot be reached"),
            hint,
        });
    }
    findings
}

/// Peers' pods to whom packets would not go as we want it: another route or rule is stronger than ours.
fn wrong_ways(patient: &Patient<'_>, route: &mut Socket) -> std::io::Result<Vec<Finding>> {
    let Patient { overlay, links, .. } = patient;
    let device = links.iter().find(|link| link.name == overlay.device()).map(|link| link.index);
    let mut findings = Vec::new();
    for (peer, way) in &overlay.ways {
        let wanted = match way {
            Way::Direct(link) => Some(*link),
            Way::Tunnel => device,
        };
        let Some(wanted) = wanted else { continue };
        let actual = tunnel::lookup(route, peer.pod_cidr.gateway())?;
        if actual.as_ref().and_then(|route| route.link) != Some(wanted) {
            let name = |index: u32| links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
            let by = actual
                .and_then(|route| route.link)
                .map_or("nowhere".to_owned(), |link| format!("to link {}", name(link)));
            let Peer { node, pod_cidr, .. } = peer;
            findings.push(Finding {
                problem: format!("packets for pods of node {node} ({pod_cidr}) go {by}, not to link {}", name(wanted)),
                hint: format!(
                    "`ip route get {}` and `ip rule` show what is stronger than our route: remove it",
                    pod_cidr.gateway()
                ),
            });
        }
    }
    Ok(findings)
}

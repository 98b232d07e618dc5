//! What on a node stands in the network's way, found by looking only.

use coracle_net_model::{Cidr, nft};

use crate::firewall::Firewall;
use crate::handle::{Finding, NetConfig};
use crate::owner::overlap;
use crate::socket::Socket;
use crate::{NetError, links, settings};

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

/// Looks at settings, others' forward chains, clashing addresses and the MTU of the way out.
pub(crate) fn examine(
    config: &NetConfig,
    route: &mut Socket,
    firewall: &mut Firewall,
) -> Result<Vec<Finding>, NetError> {
    let mut findings = Vec::new();
    let mut found = |problem: String, hint: String| findings.push(Finding { problem, hint });
    for (path, value) in settings::wanted(&config.bridge) {
        let actual = settings::read(&path).unwrap_or_else(|| "absent".to_owned());
        if actual != value {
            found(format!("{path} is {actual}, not {value}"), format!("find what resets it; `echo {value} > {path}`"));
        }
    }
    for chain in firewall.dropping_forward_chains()? {
        found(
            format!("firewall chain {chain} drops forwarded packets that it does not know: pods reach nothing outside"),
            format!("accept packets from and to link {} there (Docker: in its DOCKER-USER chain)", config.bridge),
        );
    }
    let netlink = |operation: &str| {
        let operation = operation.to_owned();
        move |source| NetError::Netlink { operation, source }
    };
    let all = links::links(route).map_err(netlink("listing links"))?;
    let routes = links::routes(route).map_err(netlink("listing routes"))?;
    let bridge = all.iter().find(|link| link.name == config.bridge).map(|link| link.index);
    let name = |index: Option<u32>| {
        all.iter().find(|link| Some(link.index) == index).map_or("?", |link| link.name.as_str()).to_owned()
    };
    for other in routes.iter().filter(|r| r.link != bridge && r.protocol != links::ROUTE_PROTOCOL) {
        let Some(block) = other.destination.and_then(|to| Cidr::new(to, other.prefix).ok()) else { continue };
        for (what, ours) in [("pods", config.cluster_cidr), ("services", config.service_cidr)] {
            if overlap(block, ours) {
                found(
                    format!("route {block} on link {} overlaps the block of {what}, {ours}", name(other.link)),
                    "choose other blocks with --cluster-cidr and --service-cidr, or remove the route".to_owned(),
                );
            }
        }
    }
    let way_out = routes.iter().find(|route| route.destination.is_none()).and_then(|route| route.link);
    if let Some(link) = all.iter().find(|link| Some(link.index) == way_out && link.mtu < config.mtu) {
        found(
            format!("link {} carries {} bytes, pods send up to {}", link.name, link.mtu, config.mtu),
            format!("set the pods' MTU to {} or less", link.mtu),
        );
    }
    Ok(findings)
}

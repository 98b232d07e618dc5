//! The one thread that does this node's netlink work, in the namespace it was started for: commands in, answers out.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use coracle_net_model::overlay::Refused;
use coracle_net_model::rules::fnv1a;
use coracle_net_model::{Desired, Layout, Peer};
use tokio::sync::oneshot;

use crate::firewall::Firewall;
use crate::firewalld::Firewalld;
use crate::handle::{Finding, NetConfig, NodeLink, PodLink, Report};
use crate::links::{self, Address, Link, ROUTE_PROTOCOL};
use crate::overlay::{Overlay, Underlay};
use crate::probe::{Circumstances, Probe};
use crate::reaper::{Doomed, Reaper};
use crate::socket::Socket;
use crate::sweeper::Sweeper;
use crate::{NetError, doctor, namespace, pod_mtu, reaper, settings};

/// How often the thread looks, unasked, whether all is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How soon a waiting sweep of UDP flows is offered again.
const SWEEP_AGAIN: Duration = Duration::from_millis(50);

type Answer<T> = oneshot::Sender<Result<T, NetError>>;

/// What the handle can ask for.
pub(crate) enum Command {
    Attach { netns: OwnedFd, pod: String, ip: Ipv4Addr, answer: Answer<PodLink> },
    Detach { pod: String, answer: Answer<()> },
    List { answer: Answer<Vec<PodLink>> },
    Apply { desired: Box<Desired>, answer: Answer<Report> },
    Peers { peers: Vec<Peer>, answer: Answer<Report> },
    Repair { answer: Answer<Report> },
    Doctor { answer: Answer<Vec<Finding>> },
    NodeLinks { answer: Answer<Vec<NodeLink>> },
    RemoveAll { answer: Answer<()> },
}

pub(crate) struct Owner {
    config: NetConfig,
    route: Socket,
    firewall: Firewall,
    firewalld: Option<Firewalld>,
    sweeper: Sweeper,
    reaper: Reaper,
    overlay: Overlay,
    bridge: u32,
    /// MTU of bridge and pods as of the last look at the node's own links.
    mtu: u32,
    /// The node's own links when its address was last on one of them.
    home: Option<Underlay>,
    /// The failure of the last unasked look: told once.
    told: Option<String>,
    /// The same for pods' MTU.
    told_mtu: Option<String>,
    /// Service addresses that are addresses of the bridge.
    local_vips: Vec<Ipv4Addr>,
}

/// Waits for other nodes on a thread of its own. Without it the asker learns that nobody answers.
fn wait_apart(wait: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("netd-probe".to_owned()).spawn(wait) {
        tracing::error!(%error, "starting a thread to wait for other nodes' answers");
    }
}

impl Owner {
    /// Observes what is there and makes what is missing. Runs on the owner's thread, already in its namespace.
    pub(crate) fn start(config: NetConfig) -> Result<Owner, NetError> {
        let netlink = |operation: &str| {
            let operation = operation.to_owned();
            move |source| NetError::Netlink { operation, source }
        };
        let route = Socket::route().map_err(netlink("socket for links and routes"))?;
        let firewall = Firewall::start(layout(&config))?;
        let sweeper = Sweeper::start(config.service_cidr, config.cluster_cidr)
            .map_err(netlink("thread for connection tracking"))?;
        let reaper = Reaper::start().map_err(netlink("thread for deleting links"))?;
        let local_vips = firewall.tables().local_vips().collect();
        let overlay = Overlay::new(&config);
        let firewalld = Firewalld::here(&config.table, &[&config.bridge, overlay.device()]);
        let mut owner = Owner {
            config,
            route,
            firewall,
            firewalld,
            sweeper,
            reaper,
            overlay,
            bridge: 0,
            mtu: 0,
            home: None,
            told: None,
            told_mtu: None,
            local_vips,
        };
        owner.ensure_links()?;
        owner.tell_firewalld();
        Ok(owner)
    }

    /// Works until told to remove everything or until nobody holds a handle.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let wait = if self.sweeper.hand_over() { SWEEP_AGAIN } else { CHECK_EVERY };
            match commands.recv_timeout(wait) {
                Ok(Command::RemoveAll { answer }) => {
                    let removed = self.remove_all();
                    let stop = removed.is_ok();
                    reply(answer, removed);
                    if stop {
                        return;
                    }
                }
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => self.check_unasked(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Attach { netns, pod, ip, answer } => reply(answer, self.attach(&netns, &pod, ip)),
            Command::Detach { pod, answer } => self.detach(&pod, answer),
            Command::List { answer } => reply(answer, self.list()),
            Command::Apply { desired, answer } => reply(answer, self.apply(&desired)),
            Command::Peers { peers, answer } => {
                self.overlay.tell(&self.config, peers);
                reply(answer, self.ensure_overlay());
            }
            Command::Repair { answer } => reply(answer, self.repair()),
            Command::Doctor { answer } => self.doctor(answer),
            Command::NodeLinks { answer } => self.node_links(answer),
            Command::RemoveAll { answer } => reply(answer, self.remove_all()),
        }
    }

    /// What must be waited for is left to a thread of its own.
    fn doctor(&mut self, answer: Answer<Vec<Finding>>) {
        let examined = self.look().and_then(|(underlay, links)| {
            let (config, overlay, firewalld) = (&self.config, &self.overlay, self.firewalld.as_ref());
            let patient = doctor::Patient { config, overlay, firewalld, underlay, links };
            doctor::examine(&patient, &mut self.route, &mut self.firewall)
        });
        let (mut findings, probe) = match examined {
            Ok((findings, Some(probe))) => (findings, probe),
            Ok((findings, None)) => return reply(answer, Ok(findings)),
            Err(error) => return reply(answer, Err(error)),
        };
        wait_apart(move || {
            findings.extend(probe.finish());
            reply(answer, Ok(findings));
        });
    }

    fn node_links(&mut self, answer: Answer<Vec<NodeLink>>) {
        let no_way = |refused: &Refused| NodeLink {
            node: refused.peer.node.clone(),
            direct: false,
            answered: None,
            refused: Some(refused.why.clone()),
        };
        let mut links: Vec<NodeLink> = self.overlay.refused().map(no_way).collect();
        if self.overlay.ways.is_empty() {
            return reply(answer, Ok(links));
        }
        let circumstances = Circumstances { mtu: self.mtu, port: self.config.vxlan_port, strict: None };
        let probe = match Probe::look(&self.overlay.ways, circumstances) {
            Ok(probe) => probe,
            Err(source) => return reply(answer, Err(self.netlink("opening a socket to ask other nodes")(source))),
        };
        wait_apart(move || {
            links.extend(probe.links());
            links.sort_by(|left, right| left.node.cmp(&right.node));
            reply(answer, Ok(links));
        });
    }

    /// A firewalld that stands in the way is no reason to have no network.
    fn tell_firewalld(&mut self) {
        let Some(firewalld) = &mut self.firewalld else { return };
        match firewalld.tell() {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "firewalld knows pods from its next start on"),
            Err(error) => tracing::warn!(%error, "writing a zone for firewalld"),
        }
        match self.firewall.chains() {
            Ok(chains) if firewalld.is_deaf(&chains) => firewalld.ask(),
            Ok(_) => {}
            Err(error) => tracing::warn!(error = %coracle_base::one_line(&error), "looking for firewalld"),
        }
    }

    fn check_unasked(&mut self) {
        self.tell_firewalld();
        let outcome = self.repair();
        let failure = outcome.as_ref().err().map(|error| coracle_base::one_line(error));
        match outcome {
            Ok(report) if report == Report::default() => {}
            Ok(report) => tracing::warn!(?report, "the node's network had been changed by others and was put right"),
            Err(_) if failure == self.told => {}
            Err(_) => tracing::warn!(error = failure, "checking the node's network"),
        }
        self.told = failure;
    }

    fn repair(&mut self) -> Result<Report, NetError> {
        let rebuilt = self.firewall.check()?;
        let added = self.ensure_links()?;
        let mut report = self.ensure_overlay()?;
        report.added += added;
        report.rebuilt = rebuilt;
        Ok(report)
    }

    /// What other nodes need, once we were told of them.
    fn ensure_overlay(&mut self) -> Result<Report, NetError> {
        let (underlay, links) = self.steady_look()?;
        // Routes to peers carry the pods' MTU, so bridge and pods must have it too.
        let links = match underlay.mtu == self.mtu {
            true => links,
            false => {
                self.ensure_links()?;
                self.steady_look()?.1
            }
        };
        self.overlay.ensure(&mut self.route, &self.config, &underlay, &links)
    }

    /// A look that overlooks an address that is gone for a moment (a lease that is renewed): nothing is to be rebuilt.
    fn steady_look(&mut self) -> Result<(Underlay, Vec<Link>), NetError> {
        let (underlay, links) = self.look()?;
        if underlay.present {
            self.home = Some(underlay);
        }
        Ok((self.home.unwrap_or(underlay), links))
    }

    fn look(&mut self) -> Result<(Underlay, Vec<Link>), NetError> {
        let links = links::links(&mut self.route).map_err(self.netlink("listing links"))?;
        let underlay = Underlay::observe(&mut self.route, &self.config, &links);
        Ok((underlay.map_err(self.netlink("looking at the node's own link"))?, links))
    }

    fn apply(&mut self, desired: &Desired) -> Result<Report, NetError> {
        let report = self.firewall.apply(desired)?;
        let local: Vec<Ipv4Addr> = self.firewall.tables().local_vips().collect();
        if local != self.local_vips {
            self.local_vips = local;
            self.ensure_links()?;
        }
        if let Some(services) = self.firewall.changed_udp_services() {
            self.sweeper.wish(services);
        }
        Ok(report)
    }

    /// Bridge, addresses, settings, service route and the pods' ports as they should be. Says how many things were
    /// missing or wrong.
    fn ensure_links(&mut self) -> Result<usize, NetError> {
        let mut changed = 0;
        self.mtu = self.steady_look()?.0.mtu;
        let (name, mtu) = (self.config.bridge.clone(), self.mtu);
        let mut bridge = self.find(&name)?;
        if bridge.is_none() {
            links::create_bridge(&mut self.route, &name, self.config.gateway(), mtu)
                .map_err(self.netlink("creating the bridge"))?;
            changed += 1;
            bridge = self.find(&name)?;
        }
        let bridge = bridge.ok_or_else(|| self.netlink("finding the bridge")(io::ErrorKind::NotFound.into()))?;
        if bridge.kind.as_deref() != Some("bridge") {
            let kind = bridge.kind.unwrap_or_else(|| "physical or loopback link".to_owned());
            return Err(NetError::NotABridge { name, kind });
        }
        self.bridge = bridge.index;
        if !bridge.up || bridge.mtu != mtu {
            links::adjust(&mut self.route, bridge.index, mtu, None).map_err(self.netlink("setting the bridge up"))?;
            changed += 1;
        }
        changed += self.ensure_addresses()?;
        changed += settings::ensure(settings::wanted(&name))?;
        changed += self.ensure_routes()?;
        changed += self.ensure_ports()?;
        Ok(changed)
    }

    fn ensure_addresses(&mut self) -> Result<usize, NetError> {
        let bridge = self.bridge;
        let address = |address, prefix| Address { link: bridge, address, prefix };
        let mut wanted = vec![address(self.config.gateway(), self.config.node_cidr.prefix())];
        wanted.extend(self.local_vips.iter().map(|vip| address(*vip, 32)));
        let mut found = links::addresses(&mut self.route).map_err(self.netlink("listing addresses"))?;
        found.retain(|address| address.link == bridge);
        let mut changed = 0;
        for stale in found.iter().filter(|address| !wanted.contains(address)) {
            links::delete_address(&mut self.route, stale).map_err(self.netlink("deleting an address"))?;
            changed += 1;
        }
        for missing in wanted.iter().filter(|address| !found.contains(address)) {
            links::add_address(&mut self.route, bridge, missing.address, missing.prefix)
                .map_err(self.netlink("adding an address"))?;
            changed += 1;
        }
        Ok(changed)
    }

    fn ensure_routes(&mut self) -> Result<usize, NetError> {
        let (bridge, services, gateway) = (self.bridge, self.config.service_cidr, self.config.gateway());
        let routes = links::routes(&mut self.route).map_err(self.netlink("listing routes"))?;
        let (ours, others): (Vec<_>, Vec<_>) =
            routes.into_iter().filter(|r| r.link == Some(bridge) && r.protocol == ROUTE_PROTOCOL).partition(|route| {
                route.destination == Some(services.network())
                    && route.prefix == services.prefix()
                    && route.source == Some(gateway)
            });
        for stale in &others {
            links::delete_route(&mut self.route, stale).map_err(self.netlink("deleting a route"))?;
        }
        if ours.is_empty() {
            links::set_service_route(&mut self.route, bridge, services, gateway)
                .map_err(self.netlink("adding the route for service addresses"))?;
        }
        Ok(others.len() + usize::from(ours.is_empty()))
    }

    /// Pods' links are ports of the bridge, up, and have the right MTU at both ends, also after the bridge was made anew.
    fn ensure_ports(&mut self) -> Result<usize, NetError> {
        let (bridge, mtu) = (self.bridge, self.mtu);
        let mut changed = 0;
        let pods: Vec<Link> = self.pods()?.into_iter().map(|(_, link)| link).collect();
        for link in pods.iter().filter(|link| link.master != Some(bridge) || !link.up) {
            let attached = links::adjust(&mut self.route, link.index, link.mtu, Some(bridge));
            attached.map_err(self.netlink("attaching a port"))?;
            changed += 1;
        }
        let other: Vec<Link> = pods.into_iter().filter(|link| link.mtu != mtu).collect();
        if !other.is_empty() {
            let (set, failure) = pod_mtu::set(&mut self.route, &other, mtu);
            changed += set;
            // One pod's namespace that cannot be entered is no reason to have no network.
            let failure = failure.map(|error| error.to_string());
            if let Some(error) = failure.as_ref().filter(|_| failure != self.told_mtu) {
                tracing::warn!(error, mtu, "a running pod keeps another MTU");
            }
            self.told_mtu = failure;
        }
        Ok(changed)
    }

    fn attach(&mut self, netns: &OwnedFd, pod: &str, ip: Ipv4Addr) -> Result<PodLink, NetError> {
        let failed = |operation: &str| {
            let (pod, operation) = (pod.to_owned(), operation.to_owned());
            move |source| NetError::Pod { pod, ip, operation, source }
        };
        let name = link_name(&self.config, pod);
        let alias = alias(&self.config, pod, ip);
        if alias.len() > 255 || pod.is_empty() {
            return Err(NetError::Config(format!("pod id `{pod}` is empty or longer than a link's alias may be")));
        }
        let mut inside = namespace::inside(netns.as_fd(), Socket::route)
            .map_err(failed("opening a netlink socket in the pod's namespace"))?;
        let found = PodLink { pod: pod.to_owned(), ip, link: name.clone() };
        if let Some(link) = self.find(&name)? {
            let owner = link.alias.as_deref().and_then(|alias| read_alias(&self.config, alias));
            if let Some((_, other)) = owner.filter(|(_, other)| other != pod) {
                return Err(NetError::Config(format!("pods {pod} and {other} would share the link name {name}")));
            }
            let same = link.alias.as_deref() == Some(&alias) && link.master == Some(self.bridge) && link.up;
            if same && links::pod_is_configured(&mut inside, &link, ip).map_err(failed("looking at the pod's link"))? {
                if link.mtu != self.mtu {
                    let set = pod_mtu::set_one(&mut self.route, netns.as_fd(), &link, self.mtu);
                    set.map_err(failed("setting the MTU"))?;
                }
                return Ok(found);
            }
            links::delete(&mut self.route, &name).map_err(failed("removing a half-made link"))?;
        }
        let create = |owner: &mut Owner| {
            let (bridge, mtu) = (owner.bridge, owner.mtu);
            links::create_pair(&mut owner.route, &name, &alias, bridge, mtu, ip, netns.as_fd())
        };
        if let Err(error) = create(self) {
            // The bridge may have been taken away since the last look.
            if self.ensure_links()? == 0 {
                return Err(failed("creating the link")(error));
            }
            links::delete(&mut self.route, &name).map_err(failed("removing a half-made link"))?;
            create(self).map_err(failed("creating the link"))?;
            // Routes to other nodes went with the bridge's address. They are not this pod's trouble if they fail.
            if let Err(error) = self.ensure_overlay() {
                tracing::warn!(error = %coracle_base::one_line(&error), "routes to other nodes");
            }
        }
        let gateway = self.config.gateway();
        if let Err(error) = links::configure_pod(&mut inside, ip, gateway) {
            links::delete(&mut self.route, &name).map_err(failed("removing a half-made link"))?;
            return Err(failed("setting address and routes")(error));
        }
        Ok(found)
    }

    fn detach(&mut self, pod: &str, answer: Answer<()>) {
        let index = match self.find(&link_name(&self.config, pod)) {
            Ok(Some(link)) => link.index,
            Ok(None) => return reply(answer, Ok(())),
            Err(error) => return reply(answer, Err(error)),
        };
        if let Err(doomed) = self.reaper.take(Doomed { index, answer }) {
            reaper::delete(&mut self.route, doomed);
        }
    }

    fn list(&mut self) -> Result<Vec<PodLink>, NetError> {
        Ok(self.pods()?.into_iter().map(|(pod, _)| pod).collect())
    }

    fn pods(&mut self) -> Result<Vec<(PodLink, Link)>, NetError> {
        let found = links::links(&mut self.route).map_err(self.netlink("listing links"))?;
        let pods = found.into_iter().filter_map(|link| {
            let (ip, pod) = read_alias(&self.config, link.alias.as_deref()?)?;
            Some((PodLink { pod, ip, link: link.name.clone() }, link))
        });
        Ok(pods.collect())
    }

    fn remove_all(&mut self) -> Result<(), NetError> {
        for (_, link) in self.pods()? {
            links::delete(&mut self.route, &link.name).map_err(self.netlink("deleting a pod's link"))?;
        }
        self.overlay.remove(&mut self.route, &self.config)?;
        let bridge = self.config.bridge.clone();
        if self.find(&bridge)?.is_some_and(|link| link.kind.as_deref() == Some("bridge")) {
            links::delete(&mut self.route, &bridge).map_err(self.netlink("deleting the bridge"))?;
        }
        if let Some(firewalld) = &self.firewalld
            && let Err(error) = firewalld.forget(&self.firewall.chains()?)
        {
            tracing::warn!(%error, "removing the zone for firewalld");
        }
        self.firewall.remove()
    }

    fn find(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        let found = links::link(&mut self.route, name);
        found.map_err(|source| NetError::Netlink { operation: format!("asking for link {name}"), source })
    }

    fn netlink(&self, operation: &str) -> impl FnOnce(io::Error) -> NetError + use<> {
        let operation = format!("{operation} ({})", self.config.bridge);
        move |source| NetError::Netlink { operation, source }
    }
}

impl NetConfig {
    /// The bridge's address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.node_cidr.gateway()
    }

    /// Refuses names and blocks that cannot work.
    pub(crate) fn validate(&self) -> Result<(), NetError> {
        let plain = |name: &str, max: usize| {
            !name.is_empty()
                && name.len() <= max
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let problem = if !plain(&self.bridge, 15) {
            format!("bridge name `{}` must be 1 to 15 letters, digits, - or _", self.bridge)
        } else if !plain(&self.table, 64) {
            format!("table name `{}` must be 1 to 64 letters, digits, - or _", self.table)
        } else if self.node_cidr.prefix() > 29 {
            format!("node block {} is too small: /29 is the least", self.node_cidr)
        } else if !self.cluster_cidr.covers(&self.node_cidr) {
            format!("node block {} is not inside the cluster's {}", self.node_cidr, self.cluster_cidr)
        } else if self.cluster_cidr.overlaps(&self.service_cidr) {
            format!("service block {} overlaps the cluster's {}", self.service_cidr, self.cluster_cidr)
        } else if !(1..1 << 24).contains(&self.vni) {
            format!("VXLAN number {} is not between 1 and {}", self.vni, (1 << 24) - 1)
        } else if self.vxlan_port == 0 {
            "VXLAN port 0 is no port".to_owned()
        } else if self.underlay.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
            format!(
                "own address {:?} is not one that other machines reach",
                self.underlay.unwrap_or(Ipv4Addr::UNSPECIFIED)
            )
        } else {
            return Ok(());
        };
        Err(NetError::Config(problem))
    }
}

fn layout(config: &NetConfig) -> Layout {
    Layout {
        table: config.table.clone(),
        bridge: config.bridge.clone(),
        node_cidr: config.node_cidr,
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
    }
}

/// Name of the host's end of a pod's link: 14 bytes, the same each time, different for another cluster's pods.
fn link_name(config: &NetConfig, pod: &str) -> String {
    let hash = fnv1a(format!("{}/{}/{pod}", config.bridge, config.table).as_bytes());
    format!("cp{:012x}", hash & 0xffff_ffff_ffff)
}

/// The alias tells a restarted agent whose link it is.
fn alias(config: &NetConfig, pod: &str, ip: Ipv4Addr) -> String {
    format!("coracle/{}/{}/{ip}/{pod}", config.bridge, config.table)
}

fn read_alias(config: &NetConfig, alias: &str) -> Option<(Ipv4Addr, String)> {
    let rest = alias.strip_prefix(&format!("coracle/{}/{}/", config.bridge, config.table))?;
    let (ip, pod) = rest.split_once('/')?;
    Some((ip.parse().ok()?, pod.to_owned()))
}

/// A caller that no longer waits needs no answer.
fn reply<T>(answer: Answer<T>, result: Result<T, NetError>) {
    drop(answer.send(result));
}

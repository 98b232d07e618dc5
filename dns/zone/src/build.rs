//! From plain values to records, section by section of the Kubernetes DNS specification 1.1.0.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};

use crate::zone::{RecordSet, Skipped, TTL_S, Zone, ZoneError};
use crate::{Endpoint, Port, ServiceRecord, Target, ZoneInput};

/// Version of the specification the records follow, as its section 2.2 wants it told.
const SPEC_VERSION: &str = "1.1.0";
/// Sum of the weights of a service's SRV records.
const SRV_WEIGHT: u16 = 100;

pub(crate) struct Builder {
    origin: Name,
    names: HashMap<LowerName, Vec<RecordSet>>,
    skipped: Vec<Skipped>,
}

impl Builder {
    pub(crate) fn build(input: &ZoneInput) -> Result<Zone, ZoneError> {
        let domain = input.domain.trim_end_matches('.');
        let bad = || ZoneError::Domain(input.domain.clone());
        if domain.is_empty() {
            return Err(bad());
        }
        let origin = Name::from_labels(domain.split('.').map(str::as_bytes)).map_err(|_| bad())?.to_lowercase();
        let mut builder = Builder {
            origin: origin.clone(),
            names: HashMap::with_capacity(2 * (input.services.len() + input.pods.len()) + 8),
            skipped: Vec::new(),
        };
        let server = builder.name(&["ns", "dns"]).map_err(|_| bad())?;
        let soa = builder.apex(&server, input);
        for service in &input.services {
            if let Err(reason) = builder.service(service) {
                builder.skipped.push(Skipped { name: format!("{}/{}", service.namespace, service.name), reason });
            }
        }
        for pod in &input.pods {
            if let Err(reason) = builder.pod(&pod.namespace, pod.address) {
                builder.skipped.push(Skipped { name: format!("{}/{}", pod.namespace, pod.address), reason });
            }
        }
        Ok(Zone {
            origin: LowerName::new(&origin),
            names: builder.names,
            reverse_blocks: input.reverse_blocks.iter().map(|(a, prefix)| (u32::from(*a), (*prefix).min(32))).collect(),
            soa,
            skipped: builder.skipped,
        })
    }

    /// SOA, NS and the specification's version. Returns the SOA record.
    fn apex(&mut self, server: &Name, input: &ZoneInput) -> Record {
        let origin = self.origin.clone();
        let mailbox = self.name(&["hostmaster"]).unwrap_or_else(|_| origin.clone());
        let soa = RData::SOA(SOA::new(server.clone(), mailbox, input.serial, 7200, 1800, 86400, TTL_S));
        self.add(&origin, soa.clone());
        self.add(&origin, RData::NS(NS(server.clone())));
        self.exists(server);
        if let Some(address) = input.nameserver {
            self.add(server, RData::A(A(address)));
        }
        if let Ok(version) = self.name(&["dns-version"]) {
            self.add(&version, RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()])));
        }
        for branch in ["svc", "pod"] {
            if let Ok(name) = self.name(&[branch]) {
                self.exists(&name);
            }
        }
        Record::from_rdata(origin, TTL_S, soa)
    }

    fn service(&mut self, service: &ServiceRecord) -> Result<(), String> {
        let name = self.name(&[&service.name, &service.namespace, "svc"])?;
        match &service.target {
            Target::Cluster { address, ports } => {
                self.add(&name, RData::A(A(*address)));
                for port in ports.iter().filter(|port| !port.name.is_empty()) {
                    let owner = port_name(&name, port)?;
                    self.add(&owner, RData::SRV(SRV::new(0, SRV_WEIGHT, port.port, name.clone())));
                }
                self.add_pointer(*address, &name);
            }
            Target::Headless { endpoints } => self.headless(&name, endpoints)?,
            Target::External { name: target } => {
                let labels = target.trim_end_matches('.').split('.').map(str::as_bytes);
                let target = Name::from_labels(labels).map_err(|e| format!("`{target}` is not a domain name: {e}"))?;
                self.add(&name, RData::CNAME(CNAME(target)));
            }
        }
        Ok(())
    }

    fn headless(&mut self, service: &Name, endpoints: &[Endpoint]) -> Result<(), String> {
        let mut srv: Vec<(Name, u16, Name)> = Vec::new();
        for address in endpoints.iter().map(|endpoint| endpoint.address).collect::<BTreeSet<Ipv4Addr>>() {
            self.add(service, RData::A(A(address)));
        }
        for endpoint in endpoints {
            let hostname = endpoint.hostname.clone().unwrap_or_else(|| dashed(endpoint.address));
            let host = prepend(service, &hostname)?;
            self.add(&host, RData::A(A(endpoint.address)));
            self.add_pointer(endpoint.address, &host);
            for port in endpoint.ports.iter().filter(|port| !port.name.is_empty()) {
                srv.push((port_name(service, port)?, port.port, host.clone()));
            }
        }
        let mut counts: BTreeMap<Name, usize> = BTreeMap::new();
        for (owner, _, _) in &srv {
            *counts.entry(owner.clone()).or_default() += 1;
        }
        for (owner, port, host) in srv {
            let count = counts.get(&owner).copied().unwrap_or(1);
            let weight = (usize::from(SRV_WEIGHT) / count).max(1) as u16;
            self.add(&owner, RData::SRV(SRV::new(0, weight, port, host)));
        }
        Ok(())
    }

    fn pod(&mut self, namespace: &str, address: Ipv4Addr) -> Result<(), String> {
        let name = self.name(&[&dashed(address), namespace, "pod"])?;
        self.add(&name, RData::A(A(address)));
        Ok(())
    }

    /// A name below the zone's.
    fn name(&self, labels: &[&str]) -> Result<Name, String> {
        if let Some(bad) = labels.iter().find(|label| !is_label(label)) {
            return Err(format!("`{bad}` is not a DNS label"));
        }
        Name::from_labels(labels.iter().map(|label| label.as_bytes()))
            .and_then(|name| name.append_domain(&self.origin))
            .map(|name| name.to_lowercase())
            .map_err(|error| error.to_string())
    }

    fn add_pointer(&mut self, address: Ipv4Addr, target: &Name) {
        let [a, b, c, d] = address.octets().map(|octet| octet.to_string());
        let labels = [&d, &c, &b, &a, "in-addr", "arpa"].map(str::as_bytes);
        if let Ok(name) = Name::from_labels(labels) {
            self.insert(&name, RData::PTR(PTR(target.clone())));
        }
    }

    /// Adds a record and makes the names between it and the zone's exist: asked for, they have no data, but they are
    /// not unknown (RFC 8020; resolvers that take NXDOMAIN to cover all below would lose whole branches).
    fn add(&mut self, name: &Name, data: RData) {
        self.insert(name, data);
        self.exists(&name.base_name());
    }

    fn exists(&mut self, name: &Name) {
        let mut name = name.clone();
        while name.num_labels() >= self.origin.num_labels() {
            let key = LowerName::new(&name);
            if self.names.contains_key(&key) {
                return;
            }
            self.names.insert(key, Vec::new());
            name = name.base_name();
        }
    }

    fn insert(&mut self, name: &Name, data: RData) {
        let sets = self.names.entry(LowerName::new(name)).or_default();
        let kind = data.record_type();
        // An alias stands alone; whoever came first keeps the name.
        let alias = sets.iter().any(|set| set.kind == RecordType::CNAME);
        if alias || (kind == RecordType::CNAME && !sets.is_empty()) {
            return;
        }
        let record = Record::from_rdata(name.clone(), TTL_S, data);
        match sets.iter_mut().find(|set| set.kind == kind) {
            Some(set) if set.records.iter().any(|other| other.data == record.data) => {}
            Some(set) => set.records.push(record),
            None => sets.push(RecordSet { kind, records: vec![record] }),
        }
    }
}

/// `_port._proto.<service>`
fn port_name(service: &Name, port: &Port) -> Result<Name, String> {
    let protocol = prepend(service, &format!("_{}", port.protocol.to_ascii_lowercase()))?;
    prepend(&protocol, &format!("_{}", port.name.to_ascii_lowercase()))
}

fn prepend(name: &Name, label: &str) -> Result<Name, String> {
    if !is_label(label) {
        return Err(format!("`{label}` is not a DNS label"));
    }
    name.prepend_label(label.as_bytes()).map(|name| name.to_lowercase()).map_err(|error| error.to_string())
}

/// One to 63 letters, digits, `-` and `_`: no dots, which would be two labels.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// `10-42-1-3`: the name of an address.
fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

//! What stands in our table's sets, and the element changes that make it match what is desired.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use crate::nft::{Batch, ElementData, RawElement, Verdict};
use crate::rules::{self, EP, HAIRPIN, LOCAL, SVC, VIPS};
use crate::{Desired, Layout, Protocol, ServiceKey};

/// Address and port of an endpoint.
pub type Backend = (Ipv4Addr, u16);

/// The content of the table's sets: what we last wrote, or what was read from the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Endpoints by slot. Never empty: a service without endpoints has no key here.
    services: HashMap<ServiceKey, Vec<Backend>>,
    vips: HashSet<Ipv4Addr>,
    hairpin: HashSet<Ipv4Addr>,
    local: BTreeSet<Ipv4Addr>,
    /// Spreading chains that exist, by number of endpoints.
    spreads: BTreeSet<u32>,
}

/// Elements of one set or map to remove and to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements<K, V> {
    /// Keys that go (also those whose value changes: the kernel does not overwrite).
    pub removed: Vec<K>,
    /// Elements that come.
    pub added: Vec<(K, V)>,
}

impl<K, V> Default for Elements<K, V> {
    fn default() -> Self {
        Elements { removed: Vec::new(), added: Vec::new() }
    }
}

/// The way from one [`Tables`] to another: one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    spreads: BTreeSet<u32>,
    svc: Elements<ServiceKey, u32>,
    ep: Elements<(ServiceKey, u32), Backend>,
    vips: Elements<Ipv4Addr, ()>,
    hairpin: Elements<Ipv4Addr, ()>,
    local: Elements<Ipv4Addr, ()>,
    /// Services whose slots change, with the new slots.
    slots: Vec<(ServiceKey, Vec<Backend>)>,
}

/// What a table's sets and chains held when they were read.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Elements by set name.
    pub elements: BTreeMap<String, Vec<RawElement>>,
    /// Number of rules by chain.
    pub chains: BTreeMap<String, usize>,
}

impl Delta {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Delta::default()
    }

    /// Number of set elements that come.
    pub fn added(&self) -> usize {
        self.svc.added.len()
            + self.ep.added.len()
            + self.vips.added.len()
            + self.hairpin.added.len()
            + self.local.added.len()
    }

    /// Number of set elements that go.
    pub fn removed(&self) -> usize {
        self.svc.removed.len()
            + self.ep.removed.len()
            + self.vips.removed.len()
            + self.hairpin.removed.len()
            + self.local.removed.len()
    }

    /// Whether an endpoint of a UDP service came or went, so that flows of connection tracking may be stale.
    pub fn touches_udp(&self) -> bool {
        let udp = |key: &ServiceKey| key.proto == Protocol::Udp;
        self.slots.iter().any(|(key, _)| udp(key))
    }

    /// The change as messages. Removals come first, since a changed value is a removal and an addition.
    pub fn write(&self, batch: &mut Batch) {
        self.spreads.iter().for_each(|n| rules::write_spread_chain(batch, *n));
        batch.delete_elements(SVC.name, self.svc.removed.iter().map(service_bytes));
        batch.delete_elements(EP.name, self.ep.removed.iter().map(|(key, slot)| slot_bytes(key, *slot)));
        batch.delete_elements(VIPS.name, self.vips.removed.iter().map(|a| a.octets().to_vec()));
        batch.delete_elements(HAIRPIN.name, self.hairpin.removed.iter().map(|a| rules::hairpin_key(*a)));
        batch.delete_elements(LOCAL.name, self.local.removed.iter().map(|a| a.octets().to_vec()));
        let plain = |key: Vec<u8>| (key, ElementData::None);
        batch.add_elements(
            EP.name,
            self.ep
                .added
                .iter()
                .map(|((key, slot), backend)| (slot_bytes(key, *slot), ElementData::Value(backend_bytes(*backend)))),
        );
        batch.add_elements(
            SVC.name,
            self.svc
                .added
                .iter()
                .map(|(key, n)| (service_bytes(key), ElementData::Verdict(Verdict::Goto(rules::spread_chain(*n))))),
        );
        batch.add_elements(VIPS.name, self.vips.added.iter().map(|(a, ())| plain(a.octets().to_vec())));
        batch.add_elements(HAIRPIN.name, self.hairpin.added.iter().map(|(a, ())| plain(rules::hairpin_key(*a))));
        batch.add_elements(LOCAL.name, self.local.added.iter().map(|(a, ())| plain(a.octets().to_vec())));
    }
}

impl Tables {
    /// The way from here to what is desired. Endpoints keep their slots; a removed one's slot is filled by the last,
    /// so that a change costs a handful of elements whatever the size of the service.
    pub fn diff(&self, desired: &Desired, layout: &Layout) -> Delta {
        let mut delta = Delta::default();
        let local: BTreeSet<Ipv4Addr> = desired.local_vips.iter().copied().collect();
        let mut wanted: HashMap<ServiceKey, &[Backend]> = HashMap::with_capacity(desired.services.len());
        let mut vips = HashSet::with_capacity(desired.services.len());
        let mut hairpin = HashSet::new();
        for entry in desired.services.iter().filter(|entry| !local.contains(&entry.vip)) {
            vips.insert(entry.vip);
            hairpin.extend(entry.backends.iter().map(|(a, _)| *a).filter(|a| layout.node_cidr.contains(*a)));
            wanted.insert(entry.key(), &entry.backends);
        }
        let mut known = 0;
        for (key, backends) in &wanted {
            let before = self.services.get(key).map(Vec::as_slice).unwrap_or(&[]);
            known += usize::from(!before.is_empty());
            if before != *backends {
                delta.reslot(*key, before, backends);
            }
        }
        if known < self.services.len() {
            for (key, before) in self.services.iter().filter(|(key, _)| !wanted.contains_key(key)) {
                delta.reslot(*key, before, &[]);
            }
        }
        delta.spreads = delta.svc.added.iter().map(|(_, n)| *n).filter(|n| !self.spreads.contains(n)).collect();
        delta.vips = set_difference(&self.vips, &vips);
        delta.hairpin = set_difference(&self.hairpin, &hairpin);
        delta.local.removed = self.local.difference(&local).copied().collect();
        delta.local.added = local.difference(&self.local).map(|a| (*a, ())).collect();
        delta.sort();
        delta
    }

    /// Takes note that a delta was committed.
    pub fn commit(&mut self, delta: Delta) {
        for (key, slots) in delta.slots {
            match slots.is_empty() {
                true => self.services.remove(&key),
                false => self.services.insert(key, slots),
            };
        }
        self.spreads.extend(delta.spreads);
        commit_set(&mut self.vips, delta.vips);
        commit_set(&mut self.hairpin, delta.hairpin);
        delta.local.removed.iter().for_each(|a| {
            self.local.remove(a);
        });
        self.local.extend(delta.local.added.into_iter().map(|(a, ())| a));
    }

    /// Reads what the kernel holds. `None`: the elements contradict each other or do not look like ours, so the table
    /// must be made anew.
    pub fn from_observed(observed: &Observed, layout: &Layout) -> Option<Tables> {
        let elements = |name: &str| observed.elements.get(name).map(Vec::as_slice).unwrap_or(&[]);
        let mut tables = Tables::default();
        let fixed = rules::chains(layout);
        let expected: usize = fixed.len();
        let found = fixed.iter().filter(|chain| observed.chains.contains_key(chain.name)).count();
        let fixed_rules: usize = fixed.iter().filter_map(|chain| observed.chains.get(chain.name)).sum();
        if found != expected || fixed_rules != rules::fixed_rule_count(layout) {
            return None;
        }
        for (name, count) in observed.chains.iter().filter(|(name, _)| fixed.iter().all(|chain| chain.name != **name)) {
            tables.spreads.insert(rules::spread_of(name).filter(|_| *count == 1)?);
        }
        for element in elements(SVC.name) {
            let n = rules::spread_of(element.chain.as_deref()?)?;
            tables.services.insert(service_from(&element.key)?, vec![(Ipv4Addr::UNSPECIFIED, 0); n as usize]);
        }
        let mut total: usize = tables.services.values().map(Vec::len).sum();
        for element in elements(EP.name) {
            let slot = u32::from_ne_bytes(element.key.get(12..16)?.try_into().ok()?) as usize;
            let service = service_from(element.key.get(..12)?)?;
            *tables.services.get_mut(&service)?.get_mut(slot)? = backend_from(&element.value)?;
            total = total.checked_sub(1)?;
        }
        if total != 0 {
            return None;
        }
        let address = |element: &RawElement| -> Option<Ipv4Addr> {
            element.key.get(..4)?.try_into().ok().map(|octets: [u8; 4]| octets.into())
        };
        tables.vips = elements(VIPS.name).iter().map(address).collect::<Option<_>>()?;
        tables.hairpin = elements(HAIRPIN.name).iter().map(address).collect::<Option<_>>()?;
        tables.local = elements(LOCAL.name).iter().map(address).collect::<Option<_>>()?;
        Some(tables)
    }

    /// Everything in it, as a change to a table that has only the fixed part.
    pub fn whole(&self) -> Delta {
        let mut delta = Delta { spreads: self.services.values().map(|s| s.len() as u32).collect(), ..Delta::default() };
        for (key, slots) in &self.services {
            delta.reslot(*key, &[], slots);
        }
        delta.vips.added = self.vips.iter().map(|a| (*a, ())).collect();
        delta.hairpin.added = self.hairpin.iter().map(|a| (*a, ())).collect();
        delta.local.added = self.local.iter().map(|a| (*a, ())).collect();
        delta.sort();
        delta
    }

    /// Forgets spreading chains that no service uses, as making the table anew does.
    pub fn without_unused_chains(mut self) -> Tables {
        self.spreads = self.services.values().map(|slots| slots.len() as u32).collect();
        self
    }

    /// Service addresses answered here.
    pub fn local_vips(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.local.iter().copied()
    }

    /// Endpoints of each UDP service: what connection tracking may have flows to.
    pub fn udp_services(&self) -> HashMap<(Ipv4Addr, u16), Vec<Backend>> {
        let udp = self.services.iter().filter(|(key, _)| key.proto == Protocol::Udp);
        udp.map(|(key, slots)| ((key.vip, key.port), slots.clone())).collect()
    }

    /// Number of service ports with endpoints.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether no service port has endpoints.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

/// The messages that make our table anew with this content, also over an older one: nobody sees the time between.
pub fn rebuild(layout: &Layout, tables: &Tables, generation: Option<u32>) -> Batch {
    let mut batch = Batch::new(&layout.table, generation);
    let stamp = rules::stamp(layout);
    // Creating first makes the deletion work whether or not there was one.
    batch.add_table(&stamp);
    batch.delete_table();
    batch.add_table(&stamp);
    rules::write_fixed(&mut batch, layout);
    tables.whole().write(&mut batch);
    batch
}

impl Delta {
    /// Records what a service's change of endpoints does to the maps.
    fn reslot(&mut self, key: ServiceKey, before: &[Backend], wanted: &[Backend]) {
        let slots = new_slots(before, wanted);
        if slots == before {
            return;
        }
        for slot in 0..before.len().max(slots.len()) {
            let (old, new) = (before.get(slot), slots.get(slot));
            if old != new {
                self.ep.removed.extend(old.map(|_| (key, slot as u32)));
                self.ep.added.extend(new.map(|backend| ((key, slot as u32), *backend)));
            }
        }
        if before.len() != slots.len() {
            self.svc.removed.extend((!before.is_empty()).then_some(key));
            self.svc.added.extend((!slots.is_empty()).then_some((key, slots.len() as u32)));
        }
        self.slots.push((key, slots));
    }

    /// Hash maps have no order; the same change should give the same bytes.
    fn sort(&mut self) {
        self.svc.removed.sort_unstable();
        self.svc.added.sort_unstable();
        self.ep.removed.sort_unstable();
        self.ep.added.sort_unstable();
        self.vips.removed.sort_unstable();
        self.vips.added.sort_unstable();
        self.hairpin.removed.sort_unstable();
        self.hairpin.added.sort_unstable();
        self.slots.sort_unstable();
    }
}

/// Slots after a change: who stays keeps its slot, newcomers fill the gaps, then the last ones fill what is left.
fn new_slots(before: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let wanted_set: HashSet<Backend> = wanted.iter().copied().collect();
    let present: HashSet<Backend> = before.iter().copied().collect();
    let mut seen = HashSet::new();
    let mut newcomers = wanted.iter().copied().filter(|b| !present.contains(b) && seen.insert(*b));
    let mut slots: Vec<Option<Backend>> =
        before.iter().map(|b| if wanted_set.contains(b) { Some(*b) } else { newcomers.next() }).collect();
    slots.extend(newcomers.map(Some));
    let mut slot = 0;
    while slot < slots.len() {
        match slots[slot] {
            Some(_) => slot += 1,
            None => drop(slots.swap_remove(slot)),
        }
    }
    slots.into_iter().flatten().collect()
}

fn set_difference(before: &HashSet<Ipv4Addr>, wanted: &HashSet<Ipv4Addr>) -> Elements<Ipv4Addr, ()> {
    Elements {
        removed: before.difference(wanted).copied().collect(),
        added: wanted.difference(before).map(|a| (*a, ())).collect(),
    }
}

fn commit_set(set: &mut HashSet<Ipv4Addr>, elements: Elements<Ipv4Addr, ()>) {
    elements.removed.iter().for_each(|a| {
        set.remove(a);
    });
    set.extend(elements.added.into_iter().map(|(a, ())| a));
}

/// vip . proto . port, each part padded to four bytes.
fn service_bytes(key: &ServiceKey) -> Vec<u8> {
    let mut bytes = key.vip.octets().to_vec();
    bytes.extend([key.proto.number(), 0, 0, 0]);
    bytes.extend(key.port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// The slot is in host order: it is compared with a random number, not with packet bytes.
fn slot_bytes(key: &ServiceKey, slot: u32) -> Vec<u8> {
    let mut bytes = service_bytes(key);
    bytes.extend(slot.to_ne_bytes());
    bytes
}

fn backend_bytes((address, port): Backend) -> Vec<u8> {
    let mut bytes = address.octets().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn service_from(bytes: &[u8]) -> Option<ServiceKey> {
    let vip: [u8; 4] = bytes.get(0..4)?.try_into().ok()?;
    let proto = Protocol::from_number(*bytes.get(4)?)?;
    Some(ServiceKey { vip: vip.into(), proto, port: u16::from_be_bytes(bytes.get(8..10)?.try_into().ok()?) })
}

fn backend_from(bytes: &[u8]) -> Option<Backend> {
    let address: [u8; 4] = bytes.get(0..4)?.try_into().ok()?;
    Some((address.into(), u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?)))
}

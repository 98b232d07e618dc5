//! What stands in our table's sets, and the element changes that make it match what is desired.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use crate::nft::{Batch, ElementData, RawElement, Verdict};
use crate::rules::{
    self, ALLOWED, Chosen, EP, GUARDED, HAIRPIN, INNER, INSIDE_SLOTS, KEEP, LOCAL, OUTSIDE, SHUT, SVC, VIPS,
};
use crate::{Cidr, Clients, Desired, Layout, Protocol, ServiceEntry, ServiceKey};

/// The maps from ports to chains, and whose connections each is for.
const MAPS: [(&str, Clients); 2] = [(SVC.name, Clients::All), (INNER.name, Clients::Inside)];

/// Address and port of an endpoint.
pub type Backend = (Ipv4Addr, u16);

/// The sets that are compared whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plain {
    vips: HashSet<Ipv4Addr>,
    hairpin: HashSet<Ipv4Addr>,
    outside: HashSet<Ipv4Addr>,
    /// Ports whose `clients` is always `All`.
    shut: HashSet<ServiceKey>,
    /// The same, and for how many seconds their clients stay with their endpoint.
    keep: HashSet<(ServiceKey, u32)>,
    /// Ports again, and the clients that may reach them.
    guarded: HashSet<ServiceKey>,
    allowed: HashSet<(ServiceKey, Cidr)>,
}

/// The content of the table's sets: what we last wrote, or what was read from the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Endpoints by slot. Never empty: a port without endpoints has no key here.
    services: HashMap<ServiceKey, Vec<Backend>>,
    plain: Plain,
    local: BTreeSet<Ipv4Addr>,
    /// Chains that exist beside the fixed ones.
    chosen: BTreeSet<Chosen>,
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
    chosen: BTreeSet<Chosen>,
    svc: Elements<ServiceKey, u32>,
    ep: Elements<(ServiceKey, u32), Backend>,
    vips: Elements<Ipv4Addr, ()>,
    hairpin: Elements<Ipv4Addr, ()>,
    outside: Elements<Ipv4Addr, ()>,
    shut: Elements<ServiceKey, ()>,
    keep: Elements<(ServiceKey, u32), ()>,
    guarded: Elements<ServiceKey, ()>,
    allowed: Elements<(ServiceKey, Cidr), ()>,
    local: Elements<Ipv4Addr, ()>,
    /// Ports whose slots change, with the new slots.
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
            + self.outside.added.len()
            + self.shut.added.len()
            + self.keep.added.len()
            + self.guarded.added.len()
            + self.allowed.added.len()
            + self.local.added.len()
    }

    /// Number of set elements that go.
    pub fn removed(&self) -> usize {
        self.svc.removed.len()
            + self.ep.removed.len()
            + self.vips.removed.len()
            + self.hairpin.removed.len()
            + self.outside.removed.len()
            + self.shut.removed.len()
            + self.keep.removed.len()
            + self.guarded.removed.len()
            + self.allowed.removed.len()
            + self.local.removed.len()
    }

    /// Whether an endpoint of a UDP service came or went, so that flows of connection tracking may be stale.
    pub fn touches_udp(&self) -> bool {
        self.slots.iter().any(|(key, _)| key.proto == Protocol::Udp)
    }

    /// The change as messages. Removals come first, since a changed value is a removal and an addition.
    pub fn write(&self, batch: &mut Batch) {
        self.chosen.iter().for_each(|chosen| rules::write_chosen_chain(batch, *chosen));
        for (map, clients) in MAPS {
            let theirs = self.svc.removed.iter().filter(|key| key.clients == clients);
            batch.delete_elements(map, theirs.map(service_bytes));
        }
        batch.delete_elements(EP.name, self.ep.removed.iter().map(|(key, slot)| slot_bytes(key, *slot)));
        batch.delete_elements(VIPS.name, self.vips.removed.iter().map(|a| a.octets().to_vec()));
        batch.delete_elements(HAIRPIN.name, self.hairpin.removed.iter().map(|a| rules::hairpin_key(*a)));
        batch.delete_elements(OUTSIDE.name, self.outside.removed.iter().map(|a| a.octets().to_vec()));
        batch.delete_elements(SHUT.name, self.shut.removed.iter().map(service_bytes));
        batch.delete_elements(KEEP.name, self.keep.removed.iter().map(|(key, _)| service_bytes(key)));
        batch.delete_elements(GUARDED.name, self.guarded.removed.iter().map(service_bytes));
        batch.delete_ranges(ALLOWED.name, self.allowed.removed.iter().map(allowed_bytes));
        batch.delete_elements(LOCAL.name, self.local.removed.iter().map(|a| a.octets().to_vec()));
        let plain = |key: Vec<u8>| (key, ElementData::None);
        let to = |chosen: Chosen| ElementData::Verdict(Verdict::Goto(chosen.chain()));
        batch.add_elements(
            EP.name,
            self.ep
                .added
                .iter()
                .map(|((key, slot), backend)| (slot_bytes(key, *slot), ElementData::Value(backend_bytes(*backend)))),
        );
        for (map, clients) in MAPS {
            let theirs = self.svc.added.iter().filter(|(key, _)| key.clients == clients);
            batch.add_elements(map, theirs.map(|(key, n)| (service_bytes(key), to(Chosen::Spread(*n, clients)))));
        }
        batch.add_elements(VIPS.name, self.vips.added.iter().map(|(a, ())| plain(a.octets().to_vec())));
        batch.add_elements(HAIRPIN.name, self.hairpin.added.iter().map(|(a, ())| plain(rules::hairpin_key(*a))));
        batch.add_elements(OUTSIDE.name, self.outside.added.iter().map(|(a, ())| plain(a.octets().to_vec())));
        batch.add_elements(SHUT.name, self.shut.added.iter().map(|(key, ())| plain(service_bytes(key))));
        let keep = self.keep.added.iter().map(|((key, seconds), ())| (service_bytes(key), to(Chosen::Keep(*seconds))));
        batch.add_elements(KEEP.name, keep);
        batch.add_elements(GUARDED.name, self.guarded.added.iter().map(|(key, ())| plain(service_bytes(key))));
        let ranges = self.allowed.added.iter().map(|(allowed, ())| allowed_bytes(allowed));
        batch.add_elements(ALLOWED.name, ranges.map(|(first, last)| (first, ElementData::Until(last))));
        batch.add_elements(LOCAL.name, self.local.added.iter().map(|(a, ())| plain(a.octets().to_vec())));
    }
}

impl Tables {
    /// The way from here to what is desired. Endpoints keep their slots; a removed one's slot is filled by the last,
    /// so that a change costs a handful of elements whatever the size of the service.
    pub fn diff(&self, desired: &Desired, layout: &Layout) -> Delta {
        let mut delta = Delta::default();
        let local: BTreeSet<Ipv4Addr> = desired.local_vips.iter().copied().collect();
        let mut wanted: HashMap<ServiceKey, &ServiceEntry> = HashMap::with_capacity(desired.services.len());
        let entries = desired.services.iter().chain(&desired.host_ports);
        for entry in entries.filter(|entry| !local.contains(&entry.vip)) {
            wanted.insert(entry.key(), entry);
        }
        let plain = Plain::of(wanted.values().copied(), layout);
        let mut known = 0;
        for (key, entry) in &wanted {
            let before = self.services.get(key).map(Vec::as_slice).unwrap_or(&[]);
            known += usize::from(!before.is_empty());
            if before != entry.backends {
                delta.reslot(*key, before, &entry.backends);
            }
        }
        if known < self.services.len() {
            for (key, before) in self.services.iter().filter(|(key, _)| !wanted.contains_key(key)) {
                delta.reslot(*key, before, &[]);
            }
        }
        delta.vips = set_difference(&self.plain.vips, &plain.vips);
        delta.hairpin = set_difference(&self.plain.hairpin, &plain.hairpin);
        delta.outside = set_difference(&self.plain.outside, &plain.outside);
        delta.shut = set_difference(&self.plain.shut, &plain.shut);
        delta.keep = set_difference(&self.plain.keep, &plain.keep);
        delta.guarded = set_difference(&self.plain.guarded, &plain.guarded);
        delta.allowed = set_difference(&self.plain.allowed, &plain.allowed);
        let spreads = delta.svc.added.iter().map(|(key, n)| Chosen::Spread(*n, key.clients));
        let keeps = delta.keep.added.iter().map(|((_, seconds), ())| Chosen::Keep(*seconds));
        delta.chosen = spreads.chain(keeps).filter(|chosen| !self.chosen.contains(chosen)).collect();
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
        self.chosen.extend(delta.chosen);
        commit_set(&mut self.plain.vips, delta.vips);
        commit_set(&mut self.plain.hairpin, delta.hairpin);
        commit_set(&mut self.plain.outside, delta.outside);
        commit_set(&mut self.plain.shut, delta.shut);
        commit_set(&mut self.plain.keep, delta.keep);
        commit_set(&mut self.plain.guarded, delta.guarded);
        commit_set(&mut self.plain.allowed, delta.allowed);
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
            tables.chosen.insert(Chosen::of(name).filter(|chosen| *count == chosen.rule_count())?);
        }
        for (map, clients) in MAPS {
            for element in elements(map) {
                let Chosen::Spread(n, theirs) = Chosen::of(element.chain.as_deref()?)? else { return None };
                let key = ServiceKey { clients, ..service_from(&element.key)? };
                (theirs == clients).then_some(())?;
                tables.services.insert(key, vec![(Ipv4Addr::UNSPECIFIED, 0); n as usize]);
            }
        }
        let mut total: usize = tables.services.values().map(Vec::len).sum();
        for element in elements(EP.name) {
            let slot = u32::from_ne_bytes(element.key.get(12..16)?.try_into().ok()?);
            let clients = if slot & INSIDE_SLOTS == 0 { Clients::All } else { Clients::Inside };
            let service = ServiceKey { clients, ..service_from(element.key.get(..12)?)? };
            let slots = tables.services.get_mut(&service)?;
            *slots.get_mut((slot & !INSIDE_SLOTS) as usize)? = backend_from(&element.value)?;
            total = total.checked_sub(1)?;
        }
        if total != 0 {
            return None;
        }
        let address = |element: &RawElement| -> Option<Ipv4Addr> {
            element.key.get(..4)?.try_into().ok().map(|octets: [u8; 4]| octets.into())
        };
        let port = |element: &RawElement| service_from(element.key.get(..12)?);
        let keep = |element: &RawElement| match Chosen::of(element.chain.as_deref()?)? {
            Chosen::Keep(seconds) => Some((port(element)?, seconds)),
            Chosen::Spread(..) => None,
        };
        tables.plain = Plain {
            vips: elements(VIPS.name).iter().map(address).collect::<Option<_>>()?,
            hairpin: elements(HAIRPIN.name).iter().map(address).collect::<Option<_>>()?,
            outside: elements(OUTSIDE.name).iter().map(address).collect::<Option<_>>()?,
            shut: elements(SHUT.name).iter().map(port).collect::<Option<_>>()?,
            keep: elements(KEEP.name).iter().map(keep).collect::<Option<_>>()?,
            guarded: elements(GUARDED.name).iter().map(port).collect::<Option<_>>()?,
            allowed: elements(ALLOWED.name).iter().map(allowed_from).collect::<Option<_>>()?,
        };
        tables.local = elements(LOCAL.name).iter().map(address).collect::<Option<_>>()?;
        Some(tables)
    }

    /// Everything in it, as a change to a table that has only the fixed part.
    pub fn whole(&self) -> Delta {
        let mut delta = Delta { chosen: self.used_chains(), ..Delta::default() };
        for (key, slots) in &self.services {
            delta.reslot(*key, &[], slots);
        }
        delta.vips = set_difference(&HashSet::new(), &self.plain.vips);
        delta.hairpin = set_difference(&HashSet::new(), &self.plain.hairpin);
        delta.outside = set_difference(&HashSet::new(), &self.plain.outside);
        delta.shut = set_difference(&HashSet::new(), &self.plain.shut);
        delta.keep = set_difference(&HashSet::new(), &self.plain.keep);
        delta.guarded = set_difference(&HashSet::new(), &self.plain.guarded);
        delta.allowed = set_difference(&HashSet::new(), &self.plain.allowed);
        delta.local.added = self.local.iter().map(|a| (*a, ())).collect();
        delta.sort();
        delta
    }

    /// Forgets chains that no service uses, as making the table anew does.
    pub fn without_unused_chains(mut self) -> Tables {
        self.chosen = self.used_chains();
        self
    }

    fn used_chains(&self) -> BTreeSet<Chosen> {
        let spreads = self.services.iter().map(|(key, slots)| Chosen::Spread(slots.len() as u32, key.clients));
        spreads.chain(self.plain.keep.iter().map(|(_, seconds)| Chosen::Keep(*seconds))).collect()
    }

    /// Keys of what packets noted of clients and of endpoints that these would not go to any more.
    pub fn stale_clients(&self, noted: &[RawElement], layout: &Layout) -> Vec<Vec<u8>> {
        let kept: HashSet<ServiceKey> = self.plain.keep.iter().map(|(key, _)| *key).collect();
        let goes_on = |element: &RawElement| {
            let (key, backend) = (service_from(element.key.get(..12)?)?, backend_from(&element.value)?);
            let client: [u8; 4] = element.key.get(12..16)?.try_into().ok()?;
            let pod = layout.cluster_cidr.contains(client.into());
            let inside = self.services.get(&ServiceKey { clients: Clients::Inside, ..key }).filter(|_| pod);
            let slots = inside.or_else(|| self.services.get(&key))?;
            Some(kept.contains(&key) && slots.contains(&backend))
        };
        noted.iter().filter(|element| goes_on(element) != Some(true)).map(|element| element.key.clone()).collect()
    }

    /// Service addresses answered here.
    pub fn local_vips(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.local.iter().copied()
    }

    /// Endpoints of each UDP service: what connection tracking may have flows to.
    pub fn udp_services(&self) -> HashMap<(Ipv4Addr, u16), Vec<Backend>> {
        let mut found: HashMap<(Ipv4Addr, u16), Vec<Backend>> = HashMap::new();
        for (key, slots) in self.services.iter().filter(|(key, _)| key.proto == Protocol::Udp) {
            found.entry((key.vip, key.port)).or_default().extend(slots);
        }
        found
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

    /// Whether what packets noted of clients may be wrong after it.
    pub fn touches_kept(&self, before: &Tables) -> bool {
        if !self.keep.removed.is_empty() || before.plain.keep.is_empty() {
            return !self.keep.removed.is_empty();
        }
        let kept: HashSet<ServiceKey> = before.plain.keep.iter().map(|(key, _)| *key).collect();
        self.slots.iter().any(|(key, _)| kept.contains(&ServiceKey { clients: Clients::All, ..*key }))
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
        self.outside.removed.sort_unstable();
        self.outside.added.sort_unstable();
        self.shut.removed.sort_unstable();
        self.shut.added.sort_unstable();
        self.keep.removed.sort_unstable();
        self.keep.added.sort_unstable();
        self.guarded.removed.sort_unstable();
        self.guarded.added.sort_unstable();
        self.allowed.removed.sort_unstable();
        self.allowed.added.sort_unstable();
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

impl Plain {
    /// What the sets hold when the ports are these.
    fn of<'a>(entries: impl Iterator<Item = &'a ServiceEntry>, layout: &Layout) -> Plain {
        let mut plain = Plain::default();
        for entry in entries {
            let is_service = layout.service_cidr.contains(entry.vip);
            if is_service {
                plain.vips.insert(entry.vip);
            }
            for (address, _) in &entry.backends {
                if layout.node_cidr.contains(*address) {
                    plain.hairpin.insert(*address);
                } else if !layout.cluster_cidr.contains(*address) {
                    plain.outside.insert(*address);
                }
            }
            // Where there is another choice for the inside, there is one for all too, and these are the port's.
            if entry.clients == Clients::Inside {
                continue;
            }
            let key = entry.key();
            if entry.backends.is_empty() && !is_service {
                plain.shut.insert(key);
            }
            plain.keep.extend(entry.affinity_s.map(|seconds| (key, seconds)));
            if let Some(blocks) = &entry.allowed {
                plain.guarded.insert(key);
                // Ranges must not overlap, and of blocks that do one holds the other.
                let within = |block: &Cidr| blocks.iter().any(|other| other != block && other.covers(block));
                plain.allowed.extend(blocks.iter().filter(|block| !within(block)).map(|block| (key, *block)));
            }
        }
        plain
    }
}

fn set_difference<T: Copy + Eq + std::hash::Hash>(before: &HashSet<T>, wanted: &HashSet<T>) -> Elements<T, ()> {
    Elements {
        removed: before.difference(wanted).copied().collect(),
        added: wanted.difference(before).map(|a| (*a, ())).collect(),
    }
}

fn commit_set<T: Eq + std::hash::Hash>(set: &mut HashSet<T>, elements: Elements<T, ()>) {
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
    let slot = if key.clients == Clients::Inside { slot | INSIDE_SLOTS } else { slot };
    bytes.extend(slot.to_ne_bytes());
    bytes
}

/// The first and the last key of a range of clients.
fn allowed_bytes((key, block): &(ServiceKey, Cidr)) -> (Vec<u8>, Vec<u8>) {
    let with = |client: Ipv4Addr| [&service_bytes(key)[..], &client.octets()].concat();
    (with(block.network()), with(block.last()))
}

fn allowed_from(element: &RawElement) -> Option<(ServiceKey, Cidr)> {
    let client = |key: &[u8]| Some(u32::from_be_bytes(key.get(12..16)?.try_into().ok()?));
    let (first, last) = (client(&element.key)?, client(&element.last)?);
    let block = Cidr::new(first.into(), (first ^ last).leading_zeros() as u8).ok()?;
    Some((service_from(element.key.get(..12)?)?, block))
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
    let port = u16::from_be_bytes(bytes.get(8..10)?.try_into().ok()?);
    Some(ServiceKey { vip: vip.into(), proto, port, clients: Clients::All })
}

fn backend_from(bytes: &[u8]) -> Option<Backend> {
    let address: [u8; 4] = bytes.get(0..4)?.try_into().ok()?;
    Some((address.into(), u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?)))
}

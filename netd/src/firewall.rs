//! Our nftables table: knows what it last wrote, notices when that is no longer true, and writes the difference.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;

use coracle_net_model::nft::{self, Batch};
use coracle_net_model::tables::{Backend, rebuild};
use coracle_net_model::{Desired, Layout, Observed, Tables, rules};

use crate::NetError;
use crate::handle::Report;
use crate::socket::Socket;

/// How often a transaction is tried when others change their tables at the same moment.
const ATTEMPTS: usize = 20;

/// The owner of one table.
pub(crate) struct Firewall {
    socket: Socket,
    layout: Layout,
    stamp: String,
    /// What the table holds as long as `seen` is still so.
    tables: Tables,
    seen: Option<Seen>,
    /// Somebody changed some table since the last full comparison.
    unverified: bool,
    /// An endpoint of a UDP service came or went (or may have, before the start) since the owner last asked.
    udp_changed: bool,
    /// What packets noted of clients may be wrong (or may have been before the start).
    clients_changed: bool,
}

/// The kernel's state when `tables` was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Generation of all tables of the namespace.
    generation: u32,
    /// Number of our very table.
    handle: u64,
}

/// Endpoints by service address and port.
type UdpServices = HashMap<(Ipv4Addr, u16), Vec<Backend>>;

impl Firewall {
    /// Takes over the table that is there, or makes one. Elements of an older release's table are kept if they can be
    /// read, so that services go on.
    pub(crate) fn start(layout: Layout) -> Result<Firewall, NetError> {
        let stamp = rules::stamp(&layout);
        let socket = Socket::netfilter()
            .map_err(|source| NetError::Netlink { operation: "socket for nf_tables".to_owned(), source })?;
        let mut firewall = Firewall {
            socket,
            layout,
            stamp,
            tables: Tables::default(),
            seen: None,
            unverified: false,
            udp_changed: true,
            clients_changed: true,
        };
        firewall.load()?;
        Ok(firewall)
    }

    /// Makes the table match `desired`.
    pub(crate) fn apply(&mut self, desired: &Desired) -> Result<Report, NetError> {
        let mut report = Report { rebuilt: self.ensure_ours()?, ..Report::default() };
        let delta = self.tables.diff(desired, &self.layout);
        if delta.is_empty() {
            self.forget_clients();
            return Ok(report);
        }
        report.added = delta.added();
        report.removed = delta.removed();
        let written = self.transact("changing elements", |table, generation| {
            let mut batch = Batch::new(table, generation);
            delta.write(&mut batch);
            batch
        });
        self.udp_changed |= delta.touches_udp();
        self.clients_changed |= delta.touches_kept(&self.tables);
        self.tables.commit(delta);
        if let Err(error) = written {
            tracing::warn!(error = %coracle_base::one_line(&error), "table is not as expected; making it anew");
            self.rebuild()?;
            report.rebuilt = true;
        }
        self.forget_clients();
        Ok(report)
    }

    /// Clients that stayed with endpoints which are gone are sent elsewhere from now on. Tried again with the next change when the
    /// kernel refuses: until then they find nobody, or the time of the note runs out.
    fn forget_clients(&mut self) {
        if !self.clients_changed {
            return;
        }
        match self.try_forget_clients() {
            Ok(()) => self.clients_changed = false,
            Err(error) => {
                let error = self.error("forgetting clients of endpoints that are gone", error);
                tracing::warn!(error = %coracle_base::one_line(&error), "clients may be sent to endpoints that are gone");
            }
        }
    }

    fn try_forget_clients(&mut self) -> io::Result<()> {
        let request = nft::list_elements(&self.layout.table, rules::STICKY.name);
        for _ in 0..ATTEMPTS {
            let noted = self.socket.list(&request, |body, found| found.extend(nft::element_infos(body)))?;
            let stale = self.tables.stale_clients(&noted, &self.layout);
            if stale.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new(&self.layout.table, None);
            batch.delete_elements(rules::STICKY.name, stale);
            match self.send(batch) {
                // Our own change: what was seen of the table is seen still.
                Ok(()) => {
                    self.seen = self.seen.map(|seen| Seen { generation: seen.generation.wrapping_add(1), ..seen })
                }
                // One of them ran out by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Cheap look whether the table is still the one we made; another or none is put right. True when rebuilt. Others
    /// changing their own tables also raise the generation, so a full comparison is left to the next [`Self::check`].
    fn ensure_ours(&mut self) -> Result<bool, NetError> {
        let generation = self.generation()?;
        let Some(seen) = self.seen else { return self.verify() };
        if seen.generation == generation {
            return Ok(false);
        }
        if self.table()?.map(|table| table.handle) != Some(seen.handle) {
            return self.verify();
        }
        self.unverified = true;
        self.seen = Some(Seen { generation, ..seen });
        Ok(false)
    }

    /// A full comparison, but only if anybody changed any table since the last. True when rebuilt.
    pub(crate) fn check(&mut self) -> Result<bool, NetError> {
        let rebuilt = self.ensure_ours()?;
        match self.unverified {
            true => self.verify(),
            false => Ok(rebuilt),
        }
    }

    /// Compares every element with what should be there. True when the table had to be made anew.
    pub(crate) fn verify(&mut self) -> Result<bool, NetError> {
        self.unverified = false;
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let found = self.observe()?;
            if self.generation()? != before {
                continue;
            }
            match found {
                Some((handle, comment, observed))
                    if comment.as_deref() == Some(&self.stamp)
                        && Tables::from_observed(&observed, &self.layout).as_ref() == Some(&self.tables) =>
                {
                    self.seen = Some(Seen { generation: before, handle });
                    return Ok(false);
                }
                _ => {
                    self.rebuild()?;
                    return Ok(true);
                }
            }
        }
        Err(self.error("reading", io::ErrorKind::Interrupted.into()))
    }

    /// Deletes the table.
    pub(crate) fn remove(&mut self) -> Result<(), NetError> {
        self.seen = None;
        let mut batch = Batch::new(&self.layout.table, None);
        batch.delete_table();
        match self.send(batch) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(self.error("deleting", error)),
            _ => Ok(()),
        }
    }

    /// Endpoints of the UDP services, if they changed since this was last asked.
    pub(crate) fn changed_udp_services(&mut self) -> Option<UdpServices> {
        std::mem::take(&mut self.udp_changed).then(|| self.tables.udp_services())
    }

    /// What the table holds.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Everybody's chains.
    pub(crate) fn chains(&mut self) -> Result<Vec<nft::ChainInfo>, NetError> {
        let chains = self.socket.list(&nft::list_chains(0), |body, found| found.extend(nft::chain_info(body)));
        chains.map_err(|source| self.error("listing chains", source))
    }

    /// Base chains of others at the forward hook that drop what nobody accepts.
    pub(crate) fn dropping_forward_chains(&mut self) -> Result<Vec<String>, NetError> {
        const NF_INET_FORWARD: u32 = 2;
        let dropping = self.chains()?.into_iter().filter(|c| c.hook == Some(NF_INET_FORWARD) && c.drops);
        Ok(dropping.filter(|c| c.table != self.layout.table).map(|c| format!("{}/{}", c.table, c.name)).collect())
    }

    fn load(&mut self) -> Result<(), NetError> {
        let generation = self.generation()?;
        let Some((handle, comment, observed)) = self.observe()? else { return self.rebuild() };
        let tables = Tables::from_observed(&observed, &self.layout);
        let intact = comment.as_deref() == Some(&self.stamp) && tables.is_some();
        self.tables = tables.unwrap_or_default();
        if !intact || self.generation()? != generation {
            tracing::info!(table = self.layout.table, "table is of another release or was changed; making it anew");
            return self.rebuild();
        }
        self.seen = Some(Seen { generation, handle });
        Ok(())
    }

    fn rebuild(&mut self) -> Result<(), NetError> {
        self.tables = std::mem::take(&mut self.tables).without_unused_chains();
        let (layout, tables) = (self.layout.clone(), std::mem::take(&mut self.tables));
        let written = self.transact("creating", |_, generation| rebuild(&layout, &tables, generation));
        self.tables = tables;
        written
    }

    /// Sends a transaction bound to the generation it was made for, again when others were faster.
    fn transact(&mut self, operation: &str, make: impl Fn(&str, Option<u32>) -> Batch) -> Result<(), NetError> {
        // Until it is done nobody knows what the table holds: a failure must not look like success the next time.
        self.seen = None;
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            match self.send(make(&self.layout.table, Some(generation))) {
                Ok(()) => {
                    let handle = self.table()?.map(|table| table.handle);
                    self.seen = handle.map(|handle| Seen { generation: generation.wrapping_add(1), handle });
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::ERESTART) => {}
                Err(error) => return Err(self.error(operation, error)),
            }
        }
        Err(self.error(operation, io::Error::from_raw_os_error(libc::ERESTART)))
    }

    fn send(&mut self, batch: Batch) -> io::Result<()> {
        let (bytes, last) = batch.finish();
        let (mut committed, mut failure) = (false, None);
        self.socket.exchange(&bytes, |sequence, errno| match errno {
            0 => committed |= sequence == last,
            errno => failure = failure.or(Some(errno)),
        })?;
        match failure {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None if committed => Ok(()),
            None => Err(io::Error::other("the kernel did not confirm the transaction")),
        }
    }

    fn generation(&mut self) -> Result<u32, NetError> {
        let answer = self.socket.ask(&nft::get_generation(), nft::generation);
        answer.map(Option::unwrap_or_default).map_err(|source| self.error("asking for the generation", source))
    }

    fn table(&mut self) -> Result<Option<nft::TableInfo>, NetError> {
        let answer = self.socket.ask(&nft::get_table(&self.layout.table), nft::table_info);
        answer.map_err(|source| self.error("asking for the table", source))
    }

    fn observe(&mut self) -> Result<Option<(u64, Option<String>, Observed)>, NetError> {
        let Some(table) = self.table()? else { return Ok(None) };
        let observed = self.read_content().map_err(|source| self.error("reading", source))?;
        Ok(Some((table.handle, table.comment, observed)))
    }

    fn read_content(&mut self) -> io::Result<Observed> {
        let name = self.layout.table.clone();
        let chains = self
            .socket
            .list(&nft::list_chains(nft::NFPROTO_IPV4), |body, found| found.extend(nft::chain_info(body)))?;
        let mut chains: BTreeMap<String, usize> =
            chains.into_iter().filter(|chain| chain.table == name).map(|chain| (chain.name, 0)).collect();
        for chain in self.socket.list(&nft::list_rules(&name), |body, found| found.extend(nft::rule_chain(body)))? {
            *chains.entry(chain).or_default() += 1;
        }
        let mut elements = BTreeMap::new();
        for set in rules::SETS {
            let request = nft::list_elements(&name, set.name);
            let found = self.socket.list(&request, |body, found| found.extend(nft::element_infos(body)))?;
            elements.insert(set.name.to_owned(), found);
        }
        Ok(Observed { elements, chains })
    }

    fn error(&self, operation: &str, source: io::Error) -> NetError {
        NetError::Tables { table: self.layout.table.clone(), operation: operation.to_owned(), source }
    }
}

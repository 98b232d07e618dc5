//! Deletes connection-tracking flows of UDP services whose endpoint is gone, off the way of rule changes.
//!
//! Each sweep compares all translated flows with all endpoints, so it also finds what an earlier run missed.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use coracle_net_model::tables::Backend;
use coracle_net_model::{Cidr, conntrack};

use crate::socket::Socket;

type UdpServices = HashMap<(Ipv4Addr, u16), Vec<Backend>>;

/// Hands sweeps to a thread of their own. Wishes that come while it works are merged: the last one holds.
pub(crate) struct Sweeper {
    queue: SyncSender<UdpServices>,
    pending: Option<UdpServices>,
}

impl Sweeper {
    /// Starts the thread in the calling thread's network namespace.
    pub(crate) fn start(service_cidr: Cidr, cluster_cidr: Cidr) -> io::Result<Sweeper> {
        let socket = Socket::netfilter()?;
        let (queue, wishes) = sync_channel(1);
        std::thread::Builder::new()
            .name("netd-conntrack".to_owned())
            .spawn(move || sweep_on_demand(socket, &wishes, [service_cidr, cluster_cidr]))?;
        Ok(Sweeper { queue, pending: None })
    }

    /// Wants all flows gone that go to none of these endpoints.
    pub(crate) fn wish(&mut self, services: UdpServices) {
        self.pending = Some(services);
        self.hand_over();
    }

    /// Hands over what waits, if the thread has room. True when something still waits.
    pub(crate) fn hand_over(&mut self) -> bool {
        if let Some(services) = self.pending.take()
            && let Err(TrySendError::Full(services)) = self.queue.try_send(services)
        {
            self.pending = Some(services);
        }
        self.pending.is_some()
    }
}

fn sweep_on_demand(mut socket: Socket, wishes: &Receiver<UdpServices>, blocks: [Cidr; 2]) {
    while let Ok(services) = wishes.recv() {
        match sweep(&mut socket, &services, blocks) {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted stale UDP flows"),
            Err(error) => tracing::warn!(%error, "deleting stale UDP flows"),
        }
    }
}

fn sweep(socket: &mut Socket, services: &UdpServices, [service, cluster]: [Cidr; 2]) -> io::Result<usize> {
    let flows = socket.list(&conntrack::list_translated(), |body, found| found.extend(conntrack::udp_flow(body)))?;
    let stale: Vec<_> = flows.iter().filter(|flow| conntrack::is_stale(flow, services, service, cluster)).collect();
    let mut failure = None;
    for batch in stale.chunks(128) {
        let requests: Vec<u8> = batch.iter().flat_map(|flow| conntrack::delete(flow, 1)).collect();
        socket.exchange(&requests, |_, errno| {
            if errno != 0 && errno != libc::ENOENT {
                failure = Some(errno);
            }
        })?;
    }
    match failure {
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Ok(stale.len()),
    }
}

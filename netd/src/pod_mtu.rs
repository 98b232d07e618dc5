//! Gives running pods another MTU. The pod's end of its link lives in the pod's namespace, and nothing but a process in
//! there leads to it after a restart of the agent: so processes are looked through, but only namespaces that the kernel
//! says are those of our links are entered.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::links::{self, Link};
use crate::namespace;
use crate::socket::Socket;

const RTM_NEWNSID: u16 = 88;

/// Sets the MTU of both ends of pods' links, of which `ends` are the host's. Says how many were set, and why one was not,
/// if any. One whose namespace has no process has nobody who sends, and stays.
pub(crate) fn set(socket: &mut Socket, ends: &[Link], mtu: u32) -> (usize, Option<io::Error>) {
    let mut wanted: HashMap<i32, &Link> =
        ends.iter().filter_map(|link| link.peer_namespace.map(|id| (id, link))).collect();
    let (mut seen, mut done, mut failure) = (HashSet::new(), 0, None);
    let processes = match fs::read_dir("/proc") {
        Ok(processes) => processes,
        Err(error) => return (0, Some(error)),
    };
    for process in processes.flatten() {
        if wanted.is_empty() {
            break;
        }
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process may end, and may be none of our business.
        let Ok(netns) = File::open(process.path().join("ns/net")) else { continue };
        let Ok(facts) = netns.metadata() else { continue };
        if !seen.insert((facts.dev(), facts.ino())) {
            continue;
        }
        let number = number(socket, netns.as_fd());
        let set = number.map(|number| number.and_then(|id| wanted.remove(&id))).and_then(|link| match link {
            Some(link) => set_one(socket, netns.as_fd(), link, mtu),
            None => Ok(false),
        });
        match set {
            Ok(set) => done += usize::from(set),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    (done, failure)
}

/// Sets the MTU of both ends, the host's last: it tells that both are as they should be.
pub(crate) fn set_one(socket: &mut Socket, netns: BorrowedFd<'_>, link: &Link, mtu: u32) -> io::Result<bool> {
    let set = namespace::inside(netns, || links::set_pod_mtu(&mut Socket::route()?, link, mtu))?;
    if set {
        links::set_mtu(socket, link.index, mtu)?;
    }
    Ok(set)
}

/// Our number of a namespace, if it has one: those that hold the other end of a link of ours do.
fn number(socket: &mut Socket, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().unsigned_abs()));
    let bytes = links::serialize(RouteNetlinkMessage::GetNsId(message), NLM_F_REQUEST, 1);
    socket.ask(&bytes, |body| {
        let mut header = NetlinkHeader::default();
        header.message_type = RTM_NEWNSID;
        let RouteNetlinkMessage::NewNsId(message) = RouteNetlinkMessage::deserialize(&header, body).ok()? else {
            return None;
        };
        message.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
            _ => None,
        })
    })
}

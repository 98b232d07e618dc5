//! Asks other nodes for echoes, at their own address and through the overlay, small and of full size: what comes back
//! tells a closed port from a wrong MTU. Everything is sent on the owner's thread, in its namespace; the waiting is left
//! to a thread of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use coracle_net_model::overlay::{Peer, Way};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

use crate::handle::{Finding, NodeLink};

/// How long answers may take, and when everything not answered is sent once more.
const PATIENCE: Duration = Duration::from_millis(1500);
const AGAIN: Duration = Duration::from_millis(500);
/// Peers that are asked; three numbers each must fit 16 bits.
const MOST: usize = 4096;
/// Bytes of an IPv4 header without options and of an ICMP header.
const IP: usize = 20;
const ICMP: usize = 8;
const SMALL: u32 = 84;
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const DONT_FRAGMENT: u16 = 0x4000;

/// What to say about the peers, apart from what comes back.
pub(crate) struct Circumstances {
    /// The pods' MTU.
    pub(crate) mtu: u32,
    /// UDP port of VXLAN.
    pub(crate) port: u16,
    /// Name of the link others are reached by, if it checks sources strictly.
    pub(crate) strict: Option<String>,
}

/// Questions that were sent.
pub(crate) struct Probe {
    peers: Vec<(Peer, Way)>,
    circumstances: Circumstances,
    /// Sends packets with our own header, so that they are never cut up on the way.
    sender: OwnedFd,
    receiver: OwnedFd,
    id: u16,
    questions: &'static [Question],
    asked: BTreeMap<u16, Instant>,
    answered: BTreeMap<u16, Duration>,
}

/// The three questions to a peer, in order of their numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    Node,
    Pods,
    FullSize,
}
const QUESTIONS: [Question; 3] = [Question::Node, Question::Pods, Question::FullSize];

/// Tells probes of one process apart.
static STARTED: AtomicU16 = AtomicU16::new(0);

impl Probe {
    /// Sends all questions once.
    pub(crate) fn examine(peers: &[(Peer, Way)], circumstances: Circumstances) -> io::Result<Probe> {
        Self::start(peers, circumstances, &QUESTIONS)
    }

    /// Asks for one small answer of each peer's pods' gateway.
    pub(crate) fn look(peers: &[(Peer, Way)], circumstances: Circumstances) -> io::Result<Probe> {
        Self::start(peers, circumstances, &[Question::Pods])
    }

    fn start(peers: &[(Peer, Way)], circumstances: Circumstances, questions: &'static [Question]) -> io::Result<Probe> {
        let raw = |protocol| socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
        let (sender, receiver) = (raw(ipproto::RAW)?, raw(ipproto::ICMP)?);
        // All answers may come at once.
        sockopt::set_socket_recv_buffer_size(&receiver, 4 << 20)?;
        sockopt::set_socket_timeout(&receiver, sockopt::Timeout::Recv, Some(Duration::from_millis(50)))?;
        // The port makes the number differ from those of other programs and of our other probes.
        let id = (std::process::id() as u16).rotate_left(8) ^ circumstances.port ^ (circumstances.mtu as u16);
        let id = id.wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed));
        let peers = peers.iter().take(MOST).cloned().collect();
        let (asked, answered) = (BTreeMap::new(), BTreeMap::new());
        let mut probe = Probe { peers, circumstances, sender, receiver, id, questions, asked, answered };
        probe.send();
        Ok(probe)
    }

    /// Waits for answers and says what they mean.
    pub(crate) fn finish(mut self) -> Vec<Finding> {
        self.wait();
        let answered = |peer: usize, question: Question| self.answered.contains_key(&number(peer, question));
        let judged = self.peers.iter().enumerate().filter_map(|(i, (peer, way))| {
            let [node, pods, full] = QUESTIONS.map(|question| answered(i, question));
            judge(peer, *way, node, pods, full, &self.circumstances)
        });
        judged.collect()
    }

    /// Waits for answers and says how long each took.
    pub(crate) fn links(mut self) -> Vec<NodeLink> {
        self.wait();
        let link = |(i, (peer, way)): (usize, &(Peer, Way))| NodeLink {
            node: peer.node.clone(),
            direct: matches!(way, Way::Direct(_)),
            answered: self.answered.get(&number(i, Question::Pods)).copied(),
            refused: None,
        };
        self.peers.iter().enumerate().map(link).collect()
    }

    fn wait(&mut self) {
        let started = Instant::now();
        let all = self.peers.len() * self.questions.len();
        let mut again = true;
        while self.answered.len() < all && started.elapsed() < PATIENCE {
            if again && started.elapsed() > AGAIN {
                self.send();
                again = false;
            }
            self.receive();
        }
    }

    fn send(&mut self) {
        for (i, (peer, _)) in self.peers.iter().enumerate() {
            for question in self.questions.iter().copied() {
                let number = number(i, question);
                if self.answered.contains_key(&number) {
                    continue;
                }
                let (to, length) = match question {
                    Question::Node => (peer.address, SMALL),
                    Question::Pods => (peer.pod_cidr.gateway(), SMALL),
                    Question::FullSize => (peer.pod_cidr.gateway(), self.circumstances.mtu.max(SMALL)),
                };
                // The first time counts: an answer to the first may come after the second was sent.
                self.asked.entry(number).or_insert_with(Instant::now);
                // No route, too large, refused: as good as no answer.
                let _ = sendto(
                    &self.sender,
                    &echo(to, length, self.id, number),
                    SendFlags::empty(),
                    &SocketAddrV4::new(to, 0),
                );
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; 2048];
        // An error is a timeout or an interruption; the caller counts the time.
        if let Ok((length, _)) = recv(&self.receiver, &mut buffer[..], RecvFlags::TRUNC) {
            let packet = &buffer[..length.min(buffer.len())];
            let Some(number) = reply(packet, self.id) else { return };
            if let Some(asked) = self.asked.get(&number) {
                self.answered.entry(number).or_insert_with(|| asked.elapsed());
            }
        }
    }
}

fn number(peer: usize, question: Question) -> u16 {
    (peer * QUESTIONS.len() + question as usize) as u16
}

/// An echo request of `length` bytes with its IPv4 header. The kernel fills in source, identification and checksum.
fn echo(to: Ipv4Addr, length: u32, id: u16, number: u16) -> Vec<u8> {
    let mut packet = vec![0; length as usize];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    packet[8] = 64;
    packet[9] = 1;
    packet[16..20].copy_from_slice(&to.octets());
    let body = &mut packet[IP..];
    body[0] = ECHO;
    body[4..6].copy_from_slice(&id.to_be_bytes());
    body[6..8].copy_from_slice(&number.to_be_bytes());
    let sum = checksum(body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The number of the question that the packet answers, if it is one of ours.
fn reply(packet: &[u8], id: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let body = packet.get(header..header + ICMP)?;
    let ours = body[0] == ECHO_REPLY && body[4..6] == id.to_be_bytes();
    ours.then(|| u16::from_be_bytes([body[6], body[7]]))
}

fn judge(peer: &Peer, way: Way, node: bool, pods: bool, full: bool, at: &Circumstances) -> Option<Finding> {
    let Peer { node: name, pod_cidr, address } = peer;
    let (problem, hint) = match (node, pods, full) {
        (_, true, true) => return None,
        (_, true, false) => (
            format!("packets of {} bytes to pods of node {name} ({pod_cidr} at {address}) are lost, small ones arrive", at.mtu),
            "give all links between the nodes the same MTU; where that cannot be, lower the MTU of this node's own link, and the pods' follows".to_owned(),
        ),
        (true, false, _) => {
            let problem = format!("node {name} answers at {address}, its pods ({pod_cidr}) cannot be reached");
            match way {
                Way::Tunnel => {
                    let strict = at.strict.as_ref().map_or(String::new(), |link| {
                        format!(
                            "; or the node answers directly and link {link} checks sources strictly: `echo 2 > /proc/sys/net/ipv4/conf/{link}/rp_filter`"
                        )
                    });
                    (problem, format!("open UDP port {} between the nodes, and look at `coracle doctor` there{strict}", at.port))
                }
                Way::Direct(_) => (
                    problem,
                    "look at `coracle doctor` there; in a cloud, switch off the check of sources and destinations of the machines' links".to_owned(),
                ),
            }
        }
        (false, false, _) => (
            format!("node {name} does not answer at {address}, and neither do its pods' addresses ({pod_cidr})"),
            "the machine is down, its address has changed, or a firewall between the nodes drops what they send".to_owned(),
        ),
    };
    Some(Finding { problem, hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_what_the_standard_says_and_its_answer_is_known() {
        let mut packet = echo(Ipv4Addr::new(192, 0, 2, 1), 84, 0xabcd, 7);
        assert_eq!(packet.len(), 84);
        assert_eq!(checksum(&packet[IP..]), 0, "a right checksum makes the sum zero");
        assert_eq!(reply(&packet, 0xabcd), None, "a question is no answer");
        packet[IP] = ECHO_REPLY;
        assert_eq!(reply(&packet, 0xabcd), Some(7));
        assert_eq!(reply(&packet, 0xabce), None);
        assert_eq!(reply(&packet[..25], 0xabcd), None);
        assert_eq!(reply(&[], 0xabcd), None);
    }
}

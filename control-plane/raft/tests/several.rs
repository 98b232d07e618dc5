//! Several servers in one process, joined by channels that can be cut: they elect, replicate, forward, catch up and change members.

mod common;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{Hooked, Tiny, fill, keys};
use coracle_raft::rescue::Place;
use coracle_raft::{
    Carried, Identity, Member, Message, OpenError, PeerError, Peers, ProposeError, Raft, RaftConfig, Release, Space,
    Vault,
};
use coracle_store::{Expect, Key, Op, Transaction};
use serde_json::json;
use tokio::time::Instant;

/// Who is where, and between whom nothing passes.
#[derive(Default)]
struct Wires {
    servers: Mutex<HashMap<String, Raft>>,
    cut: Mutex<HashSet<(String, String)>>,
    /// Between whom only bulk passes: writes that are forwarded, and snapshots.
    hushed: Mutex<HashSet<(String, String)>>,
    /// Questions of bulk that got through.
    bulky: AtomicU32,
    /// Levels of servers that say another one than they have.
    lies: Mutex<HashMap<String, u32>>,
}

impl Wires {
    fn said(&self, by: &str, mut message: Message) -> Message {
        if let Some(level) = self.lies.lock().unwrap().get(by) {
            message.release.level = *level;
        }
        message
    }
}

struct Plug {
    from: String,
    wires: Arc<Wires>,
}

impl Peers for Plug {
    fn ask(&self, address: &str, bulk: bool, question: Message, _within: Duration) -> Carried<'_> {
        let address = address.to_owned();
        Box::pin(async move {
            let lost = |from: &str, to: &str| {
                let way = (from.to_owned(), to.to_owned());
                let hushed = !bulk && self.wires.hushed.lock().unwrap().contains(&way);
                hushed || self.wires.cut.lock().unwrap().contains(&way)
            };
            let server = self.wires.servers.lock().unwrap().get(&address).cloned();
            let Some(server) = server else {
                return Err(PeerError::Unreachable { address, reason: "nobody is there".to_owned() });
            };
            if lost(&self.from, &address) {
                std::future::pending::<()>().await;
            }
            if bulk {
                self.wires.bulky.fetch_add(1, Ordering::Relaxed);
            }
            let answer = server.answer(&self.wires.said(&self.from, question)).await;
            if lost(&address, &self.from) {
                std::future::pending::<()>().await;
            }
            Ok(self.wires.said(&address, answer))
        })
    }
}

struct Site {
    wires: Arc<Wires>,
    directory: tempfile::TempDir,
    cluster: u128,
    /// Of the release of servers that start from now on.
    level: AtomicU32,
}

fn address(number: usize) -> String {
    format!("m{number}:6444")
}

impl Site {
    fn new() -> Self {
        Self {
            wires: Arc::default(),
            directory: tempfile::tempdir().unwrap(),
            cluster: 77,
            level: Release::own().level.into(),
        }
    }

    fn config(&self, number: usize) -> RaftConfig {
        let member = Member { address: address(number), name: format!("m{number}"), api_port: 6443 };
        let dir = self.directory.path().join(format!("m{number}"));
        RaftConfig {
            member,
            release: self.release(),
            // Every server seals with a key of its own.
            keys: Some(keys(&dir)),
            segment_bytes: 1 << 20,
            reserve_bytes: 1 << 20,
            snapshot_bytes: 64 << 10,
            ..RaftConfig::new(dir)
        }
    }

    fn release(&self) -> Release {
        Release::stated(self.level.load(Ordering::Relaxed), "")
    }

    async fn open(&self, number: usize, config: RaftConfig) -> Result<Raft, OpenError> {
        let plug = Plug { from: address(number), wires: self.wires.clone() };
        let raft = Raft::open_among(config, Arc::new(plug)).await?;
        self.wires.servers.lock().unwrap().insert(address(number), raft.clone());
        Ok(raft)
    }

    async fn first(&self) -> Raft {
        let identity = Identity { node: 1, cluster: self.cluster };
        self.open(1, RaftConfig { identity: Some(identity), ..self.config(1) }).await.unwrap()
    }

    async fn joined(&self, number: usize, node: u64) -> Raft {
        let identity = Identity { node, cluster: self.cluster };
        let config = RaftConfig { identity: Some(identity), join: Some(vec![address(1)]), ..self.config(number) };
        let raft = self.open(number, config).await.unwrap();
        raft.join(&[address(1)], Duration::from_secs(10)).await.unwrap();
        raft
    }

    async fn three(&self) -> [Raft; 3] {
        let servers = [self.first().await, self.joined(2, 2).await, self.joined(3, 3).await];
        voters(&servers[0], &[1, 2, 3]).await;
        servers
    }

    async fn stop(&self, number: usize) {
        let server = self.wires.servers.lock().unwrap().remove(&address(number));
        if let Some(server) = server {
            server.shutdown().await;
        }
    }

    fn cut(&self, from: usize, to: usize) {
        self.wires.cut.lock().unwrap().insert((address(from), address(to)));
    }

    fn isolate(&self, number: usize) {
        for other in (1..=5).filter(|other| *other != number) {
            self.cut(number, other);
            self.cut(other, number);
        }
    }

    fn hush(&self, one: usize, other: usize) {
        self.wires.hushed.lock().unwrap().extend([(address(one), address(other)), (address(other), address(one))]);
    }

    fn heal(&self) {
        self.wires.cut.lock().unwrap().clear();
        self.wires.hushed.lock().unwrap().clear();
    }
}

async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !look() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await; // poll
    }
}

async fn voters(raft: &Raft, wanted: &[u64]) {
    let wanted: BTreeSet<u64> = wanted.iter().copied().collect();
    until(&format!("the voters become {wanted:?}"), || raft.members().voters == [wanted.clone()]).await;
}

async fn agreed_leader(servers: &[&Raft]) -> u64 {
    let leaders = || servers.iter().map(|raft| *raft.leader_changes().borrow()).collect::<HashSet<_>>();
    until("all agree on a leader", || leaders().len() == 1 && !leaders().contains(&None)).await;
    leaders().into_iter().next().unwrap().unwrap()
}

fn create(name: &str) -> Transaction {
    let value =
        json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "data": {"x": "y".repeat(2000)}});
    Op::Create { key: Key::new("configmaps", "default", name), value: Arc::new(value), claims: Vec::new() }.into()
}

fn has(raft: &Raft, name: &str) -> bool {
    raft.view().find("configmaps", "default", name).is_some()
}

fn place(config: &RaftConfig) -> Place {
    Place {
        directory: config.dir.clone(),
        keys: config.keys.clone(),
        member: config.member.clone(),
        also: vec![],
        limits: config.limits,
    }
}

async fn shut(servers: impl IntoIterator<Item = Raft>) {
    for server in servers {
        server.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_server_takes_writes_and_reads_what_was_acknowledged() {
    let site = Site::new();
    let servers = site.three().await;
    for (index, server) in servers.iter().enumerate() {
        let name = format!("by{index}");
        server.propose(create(&name)).await.unwrap();
        assert!(has(server, &name), "a server sees its own write");
        for other in &servers {
            let view = other.read_barrier().await.unwrap();
            assert!(view.find("configmaps", "default", &name).is_some());
        }
        // A refusal comes back in the same words.
        let refused = server.propose(create(&name)).await.unwrap_err().to_string();
        assert!(refused.contains("already exists"), "{refused}");
    }
    let hashes = || servers.iter().map(|raft| raft.metrics().state_hash).collect::<HashSet<_>>();
    until("the states are the same", || hashes().len() == 1).await;
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_leads_when_the_leader_is_cut_off_and_nothing_is_lost() {
    let site = Site::new();
    let servers = site.three().await;
    servers[1].propose(create("before")).await.unwrap();
    site.isolate(1);
    let began = Instant::now();
    // What was on its way to the old leader may be lost; whoever asks again is served.
    while let Err(error) = servers[1].propose(create("after")).await {
        assert!(!error.to_string().contains("already exists"), "it was lost with the old leader: {error}");
    }
    println!("written again after {:?}", began.elapsed());
    assert!(has(&servers[1], "before"));
    // The old leader can promise nothing any more.
    assert!(!servers[0].confirm_leading().await);
    assert!(servers[0].read_barrier().await.is_err());
    site.heal();
    until("the old leader learns of it", || has(&servers[0], "after")).await;
    agreed_leader(&[&servers[0], &servers[1], &servers[2]]).await;
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_the_cut_off_leader_is_uncertain_and_never_acknowledged() {
    let site = Site::new();
    let servers = site.three().await;
    site.isolate(1);
    let written = servers[0].propose_here(vec![create("lonely")]).await;
    assert!(written[0].is_err(), "{written:?}");
    servers[2].propose(create("other")).await.unwrap();
    site.heal();
    until("the old leader follows", || has(&servers[0], "other")).await;
    let hashes = || servers.iter().map(|raft| raft.metrics().state_hash).collect::<HashSet<_>>();
    until("the states are the same", || hashes().len() == 1).await;
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_leader_turned_away_is_tried_again_at_once_also_by_a_server_that_is_behind() {
    let site = Site::new();
    let servers = site.three().await;
    site.hush(1, 2);
    servers[0].propose(create("missed")).await.unwrap();
    // Its followers are silent: the leader takes nothing now, but knows of no other.
    site.isolate(3);
    let silent = || servers[0].health().get(&3).and_then(|health| health.silent);
    until("the leader has no majority", || silent().is_some_and(|silent| silent > Duration::from_secs(1))).await;
    assert!(servers[0].is_leader() && !has(&servers[1], "missed"));
    let before = site.wires.bulky.load(Ordering::Relaxed);
    let writer = servers[1].clone();
    let writing = tokio::spawn(async move { writer.propose(create("asked for")).await });
    until("it is asked again", || site.wires.bulky.load(Ordering::Relaxed) > before + 2).await;
    site.heal();
    writing.await.unwrap().unwrap();
    until("it has caught up", || has(&servers[1], "asked for")).await;
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_change_of_the_leader_is_quick() {
    let site = Site::new();
    let servers = site.three().await;
    let began = Instant::now();
    servers[0].hand_over().await.unwrap();
    println!("handed over after {:?}", began.elapsed());
    assert_ne!(agreed_leader(&[&servers[0], &servers[1], &servers[2]]).await, 1);
    servers[0].propose(create("a")).await.unwrap();
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_under_a_leadership_that_is_over_never_happens() {
    let site = Site::new();
    let servers = site.three().await;
    let all = [&servers[0], &servers[1], &servers[2]];
    let before = servers[0].led_term().expect("the first server leads");
    assert!(servers[1].led_term().is_none());
    servers[0].propose_led(before, vec![create("in time")]).await.pop().unwrap().unwrap();
    // Away and back: the same server leads, in another term.
    loop {
        let leader = agreed_leader(&all).await;
        if leader == 1 && servers[0].led_term().is_some_and(|term| term != before) {
            break;
        }
        // One that is not ready yet is asked again.
        drop(servers[usize::try_from(leader - 1).unwrap()].hand_over().await);
    }
    let late = vec![create("late"), create("later")];
    for refused in servers[0].propose_led(before, late).await {
        assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    }
    let now = servers[0].led_term().expect("it leads again");
    servers[0].propose_led(now, vec![create("new")]).await.pop().unwrap().unwrap();
    assert!(has(&servers[0], "in time") && has(&servers[0], "new"));
    assert!(!has(&servers[0], "late") && !has(&servers[0], "later"));
    shut(servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_for_long_gets_a_snapshot() {
    let site = Site::new();
    let servers = site.three().await;
    site.stop(3).await;
    for index in 0..300 {
        servers[0].propose(create(&format!("c{index}"))).await.unwrap();
    }
    let first = servers[0].metrics();
    assert!(first.snapshot_bytes > 0, "the log was not shortened: {first:?}");
    let again = site.open(3, site.config(3)).await.unwrap();
    until("it has caught up", || has(&again, "c299")).await;
    servers[0].propose(create("later")).await.unwrap();
    until("it follows", || has(&again, "later")).await;
    site.stop(3).await;
    // What it got is durable.
    let again = site.open(3, site.config(3)).await.unwrap();
    assert!(has(&again, "c100"));
    until("it follows", || has(&again, "later")).await;
    let [first, second, _] = servers;
    shut([first, second, again]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_with_exchanged_addresses_find_each_other() {
    let site = Site::new();
    let servers = site.three().await;
    servers[0].propose(create("before")).await.unwrap();
    for number in 1..=3 {
        site.stop(number).await;
    }
    // m1's directory comes back at m2's address, and so on.
    let mut back = Vec::new();
    for (number, at) in [(1, 2), (2, 3), (3, 1)] {
        let member = Member { address: address(at), ..site.config(number).member };
        back.push(site.open(at, RaftConfig { member, ..site.config(number) }).await.unwrap());
    }
    back[0].propose(create("after")).await.unwrap();
    let all = [&back[0], &back[1], &back[2]];
    agreed_leader(&all).await;
    until("the log says where they are", || all.iter().all(|raft| raft.members().servers[&1].address == address(2)))
        .await;
    shut(back).await;
}

/// The leader looks for the third where it is itself, the third for the leader where the first is, and where the third is nobody asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_new_address_nobody_would_ask_is_found() {
    let site = Site::new();
    let servers = site.three().await;
    // The third knows less than the others: it cannot lead.
    site.stop(3).await;
    servers[1].propose(create("without the third")).await.unwrap();
    site.stop(1).await;
    site.stop(2).await;
    // The third, now at m1, hears nobody until the second leads with the vote of the first.
    site.isolate(1);
    let mut back = Vec::new();
    for (number, at) in [(1, 2), (2, 3), (3, 1)] {
        let member = Member { address: address(at), ..site.config(number).member };
        let plug = Plug { from: address(at), wires: site.wires.clone() };
        let raft = Raft::open_among(RaftConfig { member, ..site.config(number) }, Arc::new(plug)).await.unwrap();
        back.push(raft);
    }
    // All at once: while they open, none is asked.
    for (raft, at) in back.iter().zip([2, 3, 1]) {
        site.wires.servers.lock().unwrap().insert(address(at), raft.clone());
    }
    let end = Instant::now() + Duration::from_secs(20);
    while agreed_leader(&[&back[0], &back[1]]).await != 2 {
        let handed_over = back[0].hand_over().await;
        assert!(Instant::now() < end, "the second does not lead: {handed_over:?}");
        tokio::time::sleep(Duration::from_millis(10)).await; // poll
    }
    site.heal();
    until("the third follows", || has(&back[2], "without the third")).await;
    let right = |raft: &Raft| {
        [(1, 2), (2, 3), (3, 1)].iter().all(|(node, at)| raft.members().servers[node].address == address(*at))
    };
    until("the log says where they are", || back.iter().all(right)).await;
    shut(back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_directory_is_refused_and_a_lost_disk_is_another_server() {
    let site = Site::new();
    let servers = site.three().await;
    let copy = site.directory.path().join("m9");
    let copied = std::process::Command::new("cp").arg("-r").arg(site.directory.path().join("m2")).arg(&copy).status();
    assert!(copied.unwrap().success());
    let refused = site.open(9, site.config(9)).await.expect_err("a copy runs");
    assert!(matches!(&refused, OpenError::Cloned { address } if *address == "m2:6444"), "{refused}");
    // The third loses its disk, and comes back under its name.
    site.stop(3).await;
    std::fs::remove_dir_all(site.directory.path().join("m3")).unwrap();
    let new = site.joined(3, 33).await;
    voters(&servers[0], &[1, 2, 33]).await;
    servers[1].propose(create("a")).await.unwrap();
    until("it follows", || has(&new, "a")).await;
    assert!(!servers[0].members().servers.contains_key(&3));
    let [first, second, _] = servers;
    shut([first, second, new]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_vote_and_one_that_leaves_is_forgotten() {
    let site = Site::new();
    let [first, second, third] = site.three().await;
    let fourth = site.joined(4, 4).await;
    let fifth = site.joined(5, 5).await;
    voters(&first, &[1, 2, 3, 4, 5]).await;
    // The leader itself leaves.
    first.remove(1).await.unwrap();
    until("it is no member", || !second.members().servers.contains_key(&1)).await;
    voters(
        &second,
        &[2, 3, 4, 5].into_iter().filter(|id| second.members().all_voters().contains(id)).collect::<Vec<_>>(),
    )
    .await;
    until("three vote", || second.members().all_voters().len() == 3).await;
    second.propose(create("a")).await.unwrap();
    shut([first, second, third, fourth, fifth]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_begins_anew_from_a_backup_or_from_one_of_its_servers() {
    let site = Site::new();
    let [first, second, third] = site.three().await;
    for index in 0..40 {
        first.propose(create(&format!("c{index}"))).await.unwrap();
    }
    second.read_barrier().await.unwrap();
    let backup = site.directory.path().join("backup");
    let once = Some(Arc::new(Vault::ephemeral().unwrap()));
    let (file, saved) = second.save_to(&backup, once).unwrap();
    assert!(saved.reach.last.index >= 40);
    first.propose(create("later")).await.unwrap();
    until("the third has it", || has(&third, "later")).await;
    let before = third.view().generation();
    for number in 1..=3 {
        site.stop(number).await;
    }
    drop([first, second, third]);

    let config = RaftConfig { ..site.config(4) };
    let rescued = coracle_raft::rescue::restore(&file, saved.reach.last.index, site.cluster, place(&config)).unwrap();
    let restored = site.open(4, config).await.unwrap();
    assert!(restored.is_leader() && has(&restored, "c39") && !has(&restored, "later"));
    assert!(restored.view().epoch() > before.epoch && restored.view().epoch() == rescued.epoch);
    assert!(restored.view().revision() > before.revision, "revisions of the old life are all older");
    restored.propose(create("new")).await.unwrap();
    site.stop(4).await;
    let restored = site.open(4, site.config(4)).await.unwrap();
    assert!(has(&restored, "new") && restored.is_alone());

    // Two of three are lost for good: the third one's directory.
    let config = site.config(5);
    let old = site.config(3).dir;
    // It is this server's own folder, and its own keys.
    let config = RaftConfig { keys: Some(keys(&old)), ..config };
    let rescued = coracle_raft::rescue::recover(&old, place(&config)).unwrap();
    println!("{rescued:?}");
    let recovered = site.open(5, config).await.unwrap();
    assert!(recovered.is_leader() && has(&recovered, "later") && has(&recovered, "c0"));
    // Others join it as new ones.
    let identity = Identity { node: 66, cluster: site.cluster };
    let config = RaftConfig { identity: Some(identity), join: Some(vec![address(5)]), ..site.config(6) };
    let joined = site.open(6, config).await.unwrap();
    joined.join(&[address(5)], Duration::from_secs(10)).await.unwrap();
    until("it follows", || has(&joined, "later")).await;
    shut([restored, recovered, joined]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_server_cannot_leave_the_others_without_a_majority() {
    let site = Site::new();
    let [first, second, third] = site.three().await;
    site.stop(3).await;
    // While its last word is fresh it counts as alive.
    until("the third is silent", || {
        first.health().get(&3).is_none_or(|health| health.silent.is_none_or(|silent| silent.as_secs() >= 2))
    })
    .await;
    let refused = first.remove(2).await.unwrap_err();
    assert!(refused.contains("2 of 3"), "{refused}");
    second.propose(create("a")).await.unwrap();
    // The dead one can go, and then one of the two.
    first.remove(3).await.unwrap();
    until("two are left", || first.members().servers.len() == 2 && first.members().voters.len() == 1).await;
    second.propose(create("b")).await.unwrap();
    shut([first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_was_full_goes_on_by_itself() {
    let site = Site::new();
    let config = site.config(3);
    std::fs::create_dir_all(&config.dir).unwrap();
    let Some(_tiny) = Tiny::mount(&config.dir, "8m") else { return };
    let servers = site.three().await;
    fill(&config.dir.join("junk"));
    let mut written = 0;
    // Two of three take it all: nobody who writes notices.
    while servers[2].metrics().disk != Space::Out {
        servers[0].propose(create(&format!("c{written}"))).await.unwrap();
        written += 1;
        assert!(written < 5000, "the disk never got full: {:?}", servers[2].metrics());
    }
    for index in 0..200 {
        servers[1].propose(create(&format!("d{index}"))).await.unwrap();
    }
    // A client of the full server is served, and soon: it does not wait for a state that does not come.
    let began = Instant::now();
    servers[2].propose(create("through")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(has(&servers[0], "through") && !has(&servers[2], "d199"));

    std::fs::remove_file(config.dir.join("junk")).unwrap();
    until("it has caught up", || has(&servers[2], "d199") && has(&servers[2], "through")).await;
    assert_eq!(servers[2].metrics().failure, None);
    servers[2].propose(create("later")).await.unwrap();
    assert!(has(&servers[2], "later"));
    let hashes = || servers.iter().map(|raft| raft.metrics().state_hash).collect::<HashSet<_>>();
    until("the states are the same", || hashes().len() == 1).await;
    drop(servers);
    for number in 1..=3 {
        site.stop(number).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_leader_whose_disk_hangs_are_served_by_the_next_one() {
    let site = Site::new();
    let gate = Arc::new((Mutex::new(true), Condvar::new()));
    let waits = gate.clone();
    let sync = move || {
        let open = waits.0.lock().unwrap();
        drop(waits.1.wait_while(open, |open| !*open).unwrap());
        Ok(())
    };
    let config = site.config(1);
    let disk = Hooked::open(&config.dir.join("log"), sync);
    let identity = Identity { node: 1, cluster: site.cluster };
    let first = RaftConfig { identity: Some(identity), log_disk: Some(Arc::new(disk)), ..config };
    let first = site.open(1, first).await.unwrap();
    let [second, third] = [site.joined(2, 2).await, site.joined(3, 3).await];
    voters(&first, &[1, 2, 3]).await;

    *gate.0.lock().unwrap() = false;
    let hung = tokio::spawn({
        let first = first.clone();
        async move { first.propose(create("hung")).await }
    });
    until("another leads", || second.is_leader() || third.is_leader()).await;
    // The old one cannot store that, but its clients are told.
    let began = Instant::now();
    until("the old leader knows", || !first.is_leader()).await;
    first.propose(create("next")).await.unwrap();
    println!("served after {:?}", began.elapsed());
    assert!(has(&second, "next") || has(&third, "next"));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // Two of three have it, or it is not known.
    assert!(matches!(hung.await.unwrap(), Ok(_) | Err(ProposeError::Uncertain)));

    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    until("the old leader follows", || has(&first, "next")).await;
    shut([first, second, third]).await;
}

/// Waits until these servers have the level.
async fn reach(servers: &[&Raft], level: u32) {
    until(&format!("the level is {level}"), || servers.iter().all(|raft| raft.view().level() == level)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_rises_with_the_last_server_and_an_older_release_is_told_so() {
    let site = Site::new();
    site.level.store(2, Ordering::Relaxed);
    let mut servers = site.three().await;
    reach(&servers.each_ref(), 2).await;
    // One after the other is given the new release; old ones and new ones lead in turn.
    site.level.store(3, Ordering::Relaxed);
    for number in 1..=3 {
        site.stop(number).await;
        if number == 3 {
            // It is away for longer than what it said of itself counts: it may come back as it was.
            // Whoever leads now need not have heard of it at all.
            let gone = Instant::now();
            until("what it said is old", || gone.elapsed() > Duration::from_millis(2500)).await;
            reach(&[&servers[0], &servers[1]], 2).await;
        }
        servers[number - 1] = site.open(number, site.config(number)).await.unwrap();
        if number == 1 {
            // It goes back to what it was, and forth again.
            for level in [2, 3] {
                site.stop(1).await;
                site.level.store(level, Ordering::Relaxed);
                servers[0] = site.open(1, site.config(1)).await.unwrap();
                servers[0].propose(create(&format!("back{level}"))).await.unwrap();
            }
        }
        let leader = agreed_leader(&servers.each_ref()).await;
        for (index, server) in servers.iter().enumerate() {
            server.propose(create(&format!("n{number}-{index}"))).await.unwrap();
            until("each knows what the others run", || (1..=3).all(|other| server.release_of(other).is_some())).await;
            let lowest = if number < 3 { 2 } else { server.view().level() };
            assert_eq!(server.view().level(), lowest, "not before the last one");
        }
        servers[usize::try_from(leader).unwrap() - 1].hand_over().await.unwrap();
        servers[0].propose(create(&format!("after{number}"))).await.unwrap();
    }
    reach(&servers.each_ref(), 3).await;
    let hashes = || servers.iter().map(|raft| raft.metrics().state_hash).collect::<HashSet<_>>();
    until("the states are the same", || hashes().len() == 1).await;

    // What every server does not know may not be proposed.
    let early = servers[0].propose(Op::RaiseLevel { level: 4 }.into()).await.unwrap_err();
    assert_eq!(early, ProposeError::Early { needs: 4, level: 3 });

    // The third one is to go back, and another old one wants to join.
    let identity = site.config(3).dir.join("identity");
    let noted = || std::fs::read_to_string(&identity).unwrap().contains("level 3");
    until("the level is noted beside the log", noted).await;
    site.stop(3).await;
    site.level.store(2, Ordering::Relaxed);
    let refused = site.open(3, site.config(3)).await.expect_err("it must not run").to_string();
    assert!(refused.contains("has level 3, this release knows levels up to 2\nhint: "), "{refused}");
    let identity = Identity { node: 4, cluster: site.cluster };
    let config = RaftConfig { identity: Some(identity), join: Some(vec![address(1)]), ..site.config(4) };
    let old = site.open(4, config).await.unwrap();
    let refused = old.join(&[address(1)], Duration::from_secs(5)).await.unwrap_err();
    assert!(refused.contains("a release of level 2, and the cluster is at level 3"), "{refused}");
    let [first, second, third] = servers;
    shut([first, second, third, old]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_know_what_was_written_stops_and_leaves_nothing_out() {
    let site = Site::new();
    site.level.store(3, Ordering::Relaxed);
    let [first, second, third] = site.three().await;
    reach(&[&first, &second, &third], 3).await;
    first.propose(create("before")).await.unwrap();
    // The entry comes while it runs: it has been let in for what it is not.
    site.level.store(2, Ordering::Relaxed);
    site.wires.lies.lock().unwrap().insert(address(4), 3);
    let old = site.joined(4, 4).await;
    until("it stops", || old.trouble().is_some()).await;
    let trouble = old.trouble().unwrap();
    assert!(trouble.contains("cannot be applied") && trouble.contains("the cluster has level 3"), "{trouble}");
    assert!(trouble.contains("\nhint: "), "{trouble}");
    assert!(!has(&old, "before"), "nothing behind what it does not know is applied");
    assert!(matches!(old.propose(create("there")).await, Err(ProposeError::Poisoned(_))));
    assert!(old.read_barrier().await.is_err());
    // The others go on.
    second.propose(create("after")).await.unwrap();

    // The same at a start, as if the power had gone between the entry and the note of it beside the log.
    let file = site.config(3).dir.join("identity");
    let text = || std::fs::read_to_string(&file).unwrap();
    until("the level is noted beside the log", || text().contains("level 3")).await;
    third.read_barrier().await.unwrap();
    site.stop(3).await;
    std::fs::write(&file, text().replace("level 3", "level 2")).unwrap();
    let trouble = match site.open(3, site.config(3)).await {
        Err(refused) => refused.to_string(),
        // It did not know yet how much of its log is certain.
        Ok(again) => {
            until("it stops", || again.trouble().is_some()).await;
            again.trouble().unwrap()
        }
    };
    assert!(trouble.contains("cannot be applied") && trouble.contains("the cluster has level 3"), "{trouble}");
    site.stop(3).await;
    second.propose(create("again")).await.unwrap();
    shut([first, second, third, old]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_many_callers_share_the_way_to_the_leader_and_each_keeps_its_order() {
    const CALLERS: u32 = 64;
    let site = Site::new();
    let servers = site.three().await;
    let follower = servers.iter().find(|server| !server.is_leader()).unwrap();
    let before = site.wires.bulky.load(Ordering::Relaxed);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (raft, name) = (follower.clone(), format!("c{number}"));
            let key = Key::new("configmaps", "default", name.as_str());
            let gone: Transaction = Op::Delete { key, expect: Expect::default() }.into();
            // In any other order one of them is refused.
            let writes = vec![create(&name), gone.clone(), create(&name), gone, create(&name)];
            tokio::spawn(async move { raft.propose_many(writes).await })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap().iter().all(Result::is_ok));
    }
    let messages = site.wires.bulky.load(Ordering::Relaxed) - before;
    assert!(messages <= CALLERS / 4, "{messages} messages for {CALLERS} callers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_may_say_more_than_the_queue_holds() {
    let site = Site::new();
    let server = site.first().await;
    // Of objects that are not there: each comes to nothing, and is answered.
    let status = |number: usize| -> Transaction {
        let key = Key::new("pods", "default", format!("p{number}"));
        Op::Status { key, uid: "u".into(), status: Arc::new(json!({})) }.into()
    };
    let answers = server.propose_here((0..10_000).map(status).collect()).await;
    assert_eq!(answers.len(), 10_000);
    assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|answer| answer.is_err()));
    shut([server]).await;
}

//! What becomes of writes, reads and watches when the server that leads is killed, frozen, cut off, or has a bad disk: others lead
//! in seconds, nothing acknowledged is lost, no read goes back in time, watchers miss and repeat nothing.
//!
//! `CORACLE_SEED=n` replays what the clients ask for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_cluster_tests::client::Crew;
use coracle_cluster_tests::history::{Outage, outage};
use coracle_cluster_tests::machine::have;
use coracle_cluster_tests::site::{Answered, Site, Slow, Where};
use serde_json::json;

const SERVERS: [usize; 3] = [1, 2, 3];
/// Big objects that are more than a log on a full disk takes.
const BULK: usize = 60;

/// What is done to the machine whose server leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// SIGKILL, and started again later.
    Killed,
    /// SIGSTOP.
    Frozen,
    /// Cut off, both ways.
    Cut,
    /// Nothing reaches it.
    Deaf,
    /// Nothing of it arrives.
    Mute,
    /// Its disk is full, and its log has used up what it has set aside.
    Full,
    /// Its disk takes a few writes in each fifth of a second.
    Slow,
    /// Its disk takes no write at all.
    Hung,
}

impl Fault {
    /// How long nobody may be able to write through the others.
    fn limit(self) -> Duration {
        Duration::from_millis(if self == Self::Killed { 1500 } else { 3000 })
    }

    /// How long it stays.
    fn stays(self) -> Duration {
        Duration::from_millis(if self == Self::Killed { 2500 } else { 6000 })
    }
}

/// Outages are measured: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn leader(site: &Site, seen_by: usize) -> usize {
    let mut leader = None;
    site.wait("a leader", |site| {
        leader = site.leader(seen_by);
        leader.is_some()
    });
    leader.expect("a leader")
}

/// Objects of 700 kB, until the log of the leader has no room and says so, or another takes them.
fn fill_log(site: &Site, leader: usize) {
    let mut api = site.api(Where::Outside, leader).within(Duration::from_secs(3));
    let text = "x".repeat(700_000);
    for number in 0..BULK {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("bulk{number}")}, "data": {"text": text}});
        let answered = api.request("POST", "/api/v1/namespaces/kube-system/configmaps", Some(&map));
        if !matches!(answered, Answered::Acknowledged(_)) {
            println!("the log of m{leader} after {number} objects: {answered:?}");
            return;
        }
        if site.at(leader).log().contains("only deletions and status are accepted") {
            println!("the log of m{leader} is full after {number} objects");
            return;
        }
    }
    panic!("the log of m{leader} takes everything on a full disk");
}

fn strike(site: &mut Site, leader: usize, fault: Fault) {
    match fault {
        Fault::Killed => site.at_mut(leader).kill(),
        Fault::Frozen => site.at(leader).freeze(true),
        Fault::Cut => site.cut(leader),
        Fault::Deaf => site.cut_to(leader),
        Fault::Mute => site.cut_from(leader),
        Fault::Full => {
            site.fill_disk(leader);
            fill_log(site, leader);
        }
        Fault::Slow => site.slow_disk(leader, Slow::dying()),
        Fault::Hung => site.slow_disk(leader, Slow::hung()),
    }
}

fn heal(site: &mut Site, number: usize, fault: Fault) {
    match fault {
        Fault::Killed => _ = site.at_mut(number).start(),
        Fault::Frozen => site.at(number).freeze(false),
        Fault::Cut | Fault::Deaf | Fault::Mute => site.heal(number),
        Fault::Full => {
            site.free_disk(number);
            let mut api =
                site.api(Where::Outside, SERVERS.into_iter().find(|other| *other != number).unwrap_or(number));
            for object in 0..BULK {
                // Those that were refused are not there.
                let _ = api.request("DELETE", &format!("/api/v1/namespaces/kube-system/configmaps/bulk{object}"), None);
            }
        }
        Fault::Slow | Fault::Hung => site.fast_disk(number),
    }
}

/// One fault of the leader under load, and its end.
fn suffer(site: &mut Site, fault: Fault) {
    let seed = std::env::var("CORACLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    let leader = leader(site, 1);
    let left: Vec<usize> = SERVERS.into_iter().filter(|number| *number != leader).collect();
    let name = format!("{fault:?}").to_lowercase();
    println!("--- {name}: m{leader} leads, CORACLE_SEED={seed}");
    let crew = Crew::start(site, &SERVERS, &name, seed);
    let begun = Instant::now();
    site.wait("every server to take writes", |_| crew.served(&SERVERS, begun, 20));

    let since = Instant::now();
    strike(site, leader, fault);
    let struck = if fault == Fault::Full { since } else { Instant::now() };
    site.wait("the others to take writes", |_| crew.served(&left, struck, 1));
    site.wait("the fault to be over", |_| since.elapsed() > fault.stays());
    if fault == Fault::Slow {
        let p99 = figure(site, leader, "coracle_log_fsync_p99_seconds");
        println!("the log of m{leader} syncs in {p99:?} s (p99)");
        assert!(!have("bash") || p99.is_some_and(|p99| p99 > 0.15), "the disk is not slow");
    }
    let healing = Instant::now();
    heal(site, leader, fault);
    site.wait("every server to take writes again", |_| crew.served(&SERVERS, healing, 3));
    let healed = Instant::now();
    let seal = crew.end(site, &SERVERS);

    let acks = &seal.acks;
    let measured = |through: &[usize]| outage(acks, through, since, struck, healing).expect("they have taken writes");
    let before = outage(acks, &left, begun, begun, since).expect("they have taken writes");
    let during = measured(&left);
    let each: Vec<String> = left.iter().map(|one| format!("m{one} after {:?}", measured(&[*one]).first)).collect();
    let after = outage(acks, &left, healing, healing, healed);
    println!("first write after {:?} ({})", during.first, each.join(", "));
    println!(
        "longest pause {:?} from {:?} on; before the fault {:?}",
        during.longest, during.longest_from, before.longest
    );
    println!(
        "all served {:?} after the end; longest pause then {:?}",
        healed - healing,
        after.map(|after| after.longest)
    );
    println!("m{} leads; load {}", self::leader(site, left[0]), load());
    println!("{} writes, {} reads, watches {:?}", acks.len(), seal.reads, seal.watches);
    for (words, count) in &seal.odd {
        println!("  {count} x {words}");
    }
    assert!(seal.stale.is_empty(), "refused by who was behind: {:#?}", seal.stale);
    if !seal.complaints.is_empty() {
        panic!("{name}, CORACLE_SEED={seed}:\n{}", seal.complaints.join("\n"));
    }
    site.await_same(&SERVERS);
    assert_quick(fault, during);
}

/// Busy machines get twice the time.
fn assert_quick(fault: Fault, outage: Outage) {
    let busy = load() > 4.0;
    let limit = fault.limit() * if busy { 2 } else { 1 };
    assert!(outage.first < limit, "{fault:?}: nobody could write for {:?}", outage.first);
    assert!(outage.longest < limit, "{fault:?}: nobody could write for {:?}", outage.longest);
}

/// A figure of a server, in the words of its metrics.
fn figure(site: &Site, number: usize, name: &str) -> Option<f64> {
    let text = site.at(number).http("127.0.0.1:6480", "/metrics")?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

#[test]
fn the_leader_is_killed_or_frozen() {
    let _alone = alone();
    let mut site = Site::new(3);
    site.form(3, 0);
    suffer(&mut site, Fault::Killed);
    suffer(&mut site, Fault::Frozen);
}

#[test]
fn the_leader_is_cut_off_or_hears_nobody_or_is_not_heard() {
    let _alone = alone();
    let mut site = Site::new(3);
    site.form(3, 0);
    suffer(&mut site, Fault::Cut);
    suffer(&mut site, Fault::Deaf);
    suffer(&mut site, Fault::Mute);
}

#[test]
fn the_leaders_disk_is_slow_hangs_or_is_full() {
    let _alone = alone();
    let mut site = Site::new(3);
    for number in SERVERS {
        site.on_disk(number, 320);
    }
    site.form(3, 0);
    suffer(&mut site, Fault::Slow);
    suffer(&mut site, Fault::Hung);
    suffer(&mut site, Fault::Full);
}

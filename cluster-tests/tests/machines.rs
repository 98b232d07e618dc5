//! The site itself: are its faults real, and does it leave nothing behind. Every other test of several machines stands on it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_cluster_tests::linear::{History, Op};
use coracle_cluster_tests::site::{Answered, Seen, Site, Slow, Where};

/// Longer than a datagram takes on a busy machine; an arrival ends the wait, so that only lost ones cost it.
const LOST: Duration = Duration::from_millis(150);

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: \"coracle.local/hello:1\"}]\n";

/// A socket on each machine.
fn sockets(site: &Site) -> Vec<UdpSocket> {
    let sockets: Vec<UdpSocket> = site
        .all()
        .map(|machine| machine.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)).expect("a free port")))
        .collect();
    sockets.iter().for_each(|socket| socket.set_read_timeout(Some(LOST)).expect("a socket"));
    sockets
}

/// Whether a datagram of the first arrives at the second.
fn hears(site: &Site, sockets: &[UdpSocket], from: usize, to: usize) -> bool {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    // Without a neighbour's hardware address sending may fail, which is lost too.
    if sockets[from - 1].send_to(&number, (site.address(to), 7000)).is_err() {
        return false;
    }
    let mut buffer = [0; 8];
    // What was held up in a queue before does not count.
    std::iter::from_fn(|| sockets[to - 1].recv(&mut buffer).ok().map(|_| buffer)).any(|got| got == number)
}

/// All pairs of three machines that hear each other, as `12` for from 1 to 2.
fn heard(site: &Site, sockets: &[UdpSocket]) -> Vec<usize> {
    [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]
        .into_iter()
        .filter(|(from, to)| hears(site, sockets, *from, *to))
        .map(|(from, to)| from * 10 + to)
        .collect()
}

#[test]
fn cuts_are_what_they_say_and_heal() {
    let all = [12, 13, 21, 23, 31, 32];
    let site = Site::new(3);
    let sockets = sockets(&site);
    assert_eq!(heard(&site, &sockets), all);
    site.cut(2);
    assert_eq!(heard(&site, &sockets), [13, 31]);
    site.heal(2);
    assert_eq!(heard(&site, &sockets), all);
    site.cut_to(1);
    assert_eq!(heard(&site, &sockets), [12, 13, 23, 32]);
    site.heal(1);
    site.cut_from(1);
    assert_eq!(heard(&site, &sockets), [21, 23, 31, 32]);
    site.heal(1);
    site.cut_between(1, 2);
    assert_eq!(heard(&site, &sockets), [13, 21, 23, 31, 32]);
    site.cut_between(2, 1);
    assert_eq!(heard(&site, &sockets), [13, 23, 31, 32]);
    site.heal_between(1, 2);
    site.cut(1);
    site.cut(3);
    site.heal_all();
    assert_eq!(heard(&site, &sockets), all);
}

#[test]
fn subnets_are_joined_by_a_router_and_machines_change_addresses() {
    let mut site = Site::routed(&[2, 1]);
    assert_eq!(site.address(3), Ipv4Addr::new(10, 99, 1, 1));
    let sockets = sockets(&site);
    assert_eq!(heard(&site, &sockets), [12, 13, 21, 23, 31, 32]);
    site.cut_between(1, 3);
    assert_eq!(heard(&site, &sockets), [12, 21, 23, 31, 32]);
    let (one, two) = (site.address(1), site.address(2));
    site.readdress(1, Ipv4Addr::new(10, 99, 0, 77));
    site.readdress(2, one);
    site.readdress(1, two);
    // The cut is the machine's, not the address's.
    assert_eq!(heard(&site, &sockets), [12, 21, 23, 31, 32]);
    site.heal(3);
    assert_eq!(heard(&site, &sockets), [12, 13, 21, 23, 31, 32]);
}

/// How long a synced write to a folder takes, so many times.
fn synced_writes(folder: &Path, times: usize) -> Vec<Duration> {
    let mut file = std::fs::File::create(folder.join("probe")).expect("a file");
    let mut took: Vec<Duration> = (0..times)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("a working disk");
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    took
}

#[test]
fn disks_are_slow_full_and_forget_what_was_not_synced() {
    let mut site = Site::new(1);
    site.on_disk(1, 64);
    let folder = site.at(1).data();
    std::fs::create_dir(&folder).expect("a folder");
    let fast = synced_writes(&folder, 20);
    site.slow_disk(1, Slow::dying());
    let slow = synced_writes(&folder, 20);
    println!("synced writes: {fast:?}\non a dying disk: {slow:?}");
    assert!(slow.iter().sum::<Duration>() > Duration::from_secs(1), "20 writes take a second at least");
    site.slow_disk(1, Slow::hung());
    let writer = std::thread::spawn({
        let folder = folder.clone();
        move || synced_writes(&folder, 1)
    });
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(!writer.is_finished(), "a hung disk takes a write");
    site.fast_disk(1);
    assert_eq!(writer.join().expect("it is written").len(), 1);

    site.fill_disk(1);
    let full = std::fs::write(folder.join("more"), [0; 1 << 16]).expect_err("a full disk takes more");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    site.free_disk(1);
    let mut synced = std::fs::File::create(folder.join("synced")).expect("a file");
    synced.write_all(b"kept").and_then(|()| synced.sync_all()).expect("a working disk");
    drop(synced);
    std::fs::write(folder.join("cached"), b"lost").expect("a working disk");
    site.power_off(1);
    assert!(!folder.exists(), "a disk without power can be read");
    site.power_on(1);
    assert_eq!(std::fs::read(folder.join("synced")).expect("what was synced is there"), b"kept");
    let cached = std::fs::read(folder.join("cached")).unwrap_or_default();
    assert!(cached != b"lost", "what was only in the cache has survived");
    // Also while it hangs and is full.
    site.fill_disk(1);
    site.slow_disk(1, Slow::hung());
    site.power_off(1);
    site.power_on(1);
    assert!(std::fs::write(folder.join("more"), [0; 1 << 16]).is_err(), "what filled it was synced by the stall");
    site.free_disk(1);
    assert_eq!(synced_writes(&folder, 1).len(), 1);
}

fn version(answered: &Answered) -> String {
    let object = answered.object().unwrap_or_else(|| panic!("not acknowledged: {answered:?}"));
    object["metadata"]["resourceVersion"].as_str().expect("a version").to_owned()
}

#[test]
fn the_program_is_asked_from_other_machines_frozen_cut_off_and_switched_off() {
    let mut site = Site::new(2);
    site.on_disk(1, 512);
    site.at_mut(1).up();
    // As a user on another machine does.
    let said = site.coracle_from(Where::At(2), 1, &["get", "nodes"]);
    assert!(said.code == 0 && said.out.contains("m1"), "{said:?}");

    let history = History::new();
    let mut api = site.api(Where::At(2), 1);
    let mut outside = site.api(Where::Outside, 1).within(Duration::from_millis(500));
    let begin = version(&api.list());
    let call = history.ask(0, "k", Op::Swap { from: None, to: Some(1) });
    let first = api.create("k", "1");
    history.tell(call, first.of_write());
    let call = history.ask(0, "k", Op::Write(Some(2)));
    history.tell(call, api.update("k", "2", None).of_write());
    assert_eq!(api.update("k", "9", Some(&version(&first))).code(), Some(409));
    assert_eq!(api.create("k", "9").code(), Some(409));
    assert_eq!(api.get("other").code(), Some(404));
    let mut watch = site.api(Where::At(2), 1).watch(&begin).expect("a watch");
    let seen: Vec<_> = std::iter::from_fn(|| match watch.next(Duration::from_secs(5)) {
        Seen::Event(kind, object) if object["metadata"]["name"] == "k" => Some((kind, object["data"]["value"].clone())),
        other => panic!("{other:?}"),
    })
    .take(2)
    .collect();
    assert_eq!(seen, [("ADDED".to_owned(), "1".into()), ("MODIFIED".to_owned(), "2".into())]);
    assert_eq!(watch.next(Duration::from_millis(1)), Seen::Nothing);

    // It runs a pod, and is stopped with everything in it.
    site.at(1).import_hello();
    site.at(1).apply(POD);
    let ready = |site: &Site| site.at(1).get(&["pod", "a"])["status"]["phase"] == "Running";
    site.wait("the pod to run", ready);
    let processes = site.processes(1);
    assert!(processes.len() >= 3, "the program, a monitor and a container: {processes:?}");
    assert_eq!(outside.get("k").of_read(), coracle_cluster_tests::linear::Told::Saw(Some(2)));
    site.pause(1);
    let stat = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(site.processes(1).iter().all(|pid| stat(pid).contains(") T ")), "somebody runs");
    let call = history.ask(1, "k", Op::Write(Some(3)));
    let answered = outside.update("k", "3", None);
    assert!(matches!(answered, Answered::Unknown(_)), "{answered:?}");
    history.tell(call, answered.of_write());
    site.resume(1);
    site.wait("it to answer again", |_| outside.get("k").object().is_some());
    assert!(processes.iter().all(|pid| site.processes(1).contains(pid)), "it is not the same any more");

    // Frozen alone, its pod goes on.
    site.at(1).freeze(true);
    assert!(matches!(outside.get("k"), Answered::Unknown(_)));
    site.at(1).freeze(false);

    // Cut off: a new connection is not made, which is a refusal.
    site.cut(1);
    let mut fresh = site.api(Where::Outside, 1).within(Duration::from_millis(300));
    assert_eq!(fresh.create("never", "1").code(), Some(0));
    site.heal(1);
    site.wait("it to be reached", |_| fresh.get("k").object().is_some());

    // No power. What was acknowledged comes back, and nothing else does.
    let cgroup = site.at(1).cgroup();
    site.power_off(1);
    assert_eq!(site.processes(1), Vec::<u32>::new());
    assert_eq!(traces(&[cgroup]), Vec::<String>::new());
    assert!(!site.at(1).run().exists(), "the run folder has outlived the power");
    assert_eq!(fresh.get("k").object(), None);
    site.power_on(1);
    site.at_mut(1).up();
    let call = history.ask(0, "k", Op::Read);
    history.tell(call, api_read(&site));
    history.check().unwrap_or_else(|error| panic!("{error}"));
    site.wait("the pod to run again", ready);
}

fn api_read(site: &Site) -> coracle_cluster_tests::linear::Told {
    site.api(Where::At(2), 1).get("k").of_read()
}

/// Processes, cgroups, mounts and loop devices that have one of these words in their name.
fn traces(words: &[String]) -> Vec<String> {
    let named = |text: &str| words.iter().any(|word| text.contains(word.as_str()));
    let read = |path: &Path| std::fs::read(path).map(|text| String::from_utf8_lossy(&text).replace('\0', " "));
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let text = ["cmdline", "cgroup"].map(|file| read(&entry.path().join(file)).unwrap_or_default()).concat();
        let stat = read(&entry.path().join("stat")).unwrap_or_default();
        if named(&text) && !stat.contains(") Z ") {
            found.push(format!("process {text}"));
        }
    }
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    folders.extend(std::fs::read_dir(&folders[0]).into_iter().flatten().flatten().map(|entry| entry.path()));
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten()) {
        found.extend(Some(entry.path().display().to_string()).filter(|path| named(path)));
    }
    let mounts = read(Path::new("/proc/self/mounts")).unwrap_or_default();
    found.extend(mounts.lines().filter(|line| named(line)).map(ToOwned::to_owned));
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = read(&entry.path().join("loop/backing_file")).unwrap_or_default();
        found.extend(Some(file).filter(|file| named(file)));
    }
    found
}

/// Network namespaces that a process is in.
fn namespaces() -> BTreeSet<PathBuf> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok()).collect()
}

#[test]
fn a_test_that_fails_in_the_worst_moment_leaves_nothing_behind() {
    let (mut words, mut networks) = (Vec::new(), Vec::new());
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut site = Site::new(2);
        site.on_disk(1, 512);
        let machine = site.at(1);
        let disk = machine.data().parent().and_then(Path::parent).expect("a disk").display().to_string();
        words.extend([machine.cgroup(), machine.folder().display().to_string(), disk]);
        site.at_mut(1).up();
        site.at(1).import_hello();
        site.at(1).apply(POD);
        site.wait("the pod to run", |site| site.at(1).get(&["pod", "a"])["status"]["phase"] == "Running");
        networks
            .extend(site.processes(1).iter().filter_map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()));
        networks
            .extend([site.outside(), site.at(2).namespace()].iter().filter_map(|path| std::fs::read_link(path).ok()));
        assert!(!traces(&words).is_empty() && networks.iter().all(|network| namespaces().contains(network)));
        site.cut(2);
        site.pause(1);
        site.fill_disk(1);
        site.slow_disk(1, Slow::hung());
        panic!("the worst moment");
    }));
    assert_eq!(*failed.expect_err("it fails").downcast::<&str>().expect("by itself"), "the worst moment");
    assert_eq!(traces(&words), Vec::<String>::new());
    let left: Vec<_> = networks.iter().filter(|network| namespaces().contains(*network)).collect();
    assert!(left.is_empty() && networks.len() >= 5, "{left:?} of {networks:?}");
}

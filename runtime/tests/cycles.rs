//! Pods come and go for months: nothing of them may stay. A program of its own, so that nobody else's descriptors count.

mod lab;

use lab::{ended, lab};

const ROUNDS: usize = 200;

#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    mounts: usize,
    monitors: usize,
    network_namespaces: usize,
}

fn held(dir: &std::path::Path) -> Held {
    let name = dir.display().to_string();
    let mut namespaces = std::collections::HashSet::new();
    let mut monitors = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&name) {
            monitors += 1;
            namespaces.extend(std::fs::read_link(entry.path().join("ns/net")));
        }
    }
    Held {
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        mounts: std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| line.contains(&name))
            .count(),
        monitors,
        network_namespaces: namespaces.len(),
    }
}

#[tokio::test]
async fn pods_that_come_and_go_leave_nothing_behind() {
    let Some(lab) = lab("cycles").await else { return };
    let mut before = None;
    for round in 0..ROUNDS {
        let pod = lab.pod(&format!("p{round}")).await;
        // Some end by themselves, some are ended, some never started.
        match round % 3 {
            0 => {
                lab.start(&pod, "a", "exit 0").await;
                ended(&pod, "a").await;
            }
            1 => {
                lab.start(&pod, "a", "sleep 1000 & sleep 1000").await;
            }
            _ => {}
        }
        pod.remove().await.unwrap();
        drop(pod);
        if round == 5 {
            before = Some(held(lab.dir.path()));
        }
    }
    lab::wait("everything to be as after the first rounds", || Some(held(lab.dir.path())) == before).await;
    assert_eq!(before.map(|held| held.monitors), Some(0));
    assert_eq!(std::fs::read_dir(lab.config.run_dir.join("pods")).unwrap().count(), 0);
    lab.finish().await;
}

//! Ways out of a container that were open once, each tried as an attacker would. Needs root and a static busybox.

mod lab;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_runtime::{Limits, Runtime};
use lab::{Lab, ended, exec, exec_as, lab, spec, wait};
use serde_json::json;

const PROBE: &str = "CORACLE_ESCAPE_PROBE";
/// Looks at processes that have just come, before it is believed that nothing is to be seen.
const ENOUGH: u32 = 30;

/// Not a test but what runs in the container: it looks at every process that appears and asks for its root folder.
#[test]
#[allow(clippy::print_stdout)] // its standard output is what the test reads
fn probe_process() {
    if std::env::var_os(PROBE).is_none() {
        return;
    }
    let own = std::fs::metadata("/").unwrap();
    println!("looking");
    // The last word there is the number of the process that was born last here.
    let newest = || -> u32 {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap();
        load.trim().rsplit(' ').next().unwrap().parse().unwrap()
    };
    let mut seen = 0;
    while seen < ENOUGH {
        let next = newest() + 1;
        let path = format!("/proc/{next}/root/.");
        // As fast as can be, until it is there or has come and gone.
        let found = (0..1000).find_map(|_| std::fs::metadata(&path).ok());
        let Some(root) = found else { continue };
        if (root.dev(), root.ino()) != (own.dev(), own.ino()) {
            println!("ESCAPED through process {next}");
            return;
        }
        seen += 1;
    }
    println!("saw {seen} processes come");
}

/// Puts this program into the layer.
fn with_probe(lab: &Lab) {
    std::fs::copy(std::env::current_exe().unwrap(), lab.layer.join("probe")).unwrap();
}

#[tokio::test]
async fn a_command_is_not_seen_before_it_has_left_the_machine() {
    let Some(lab) = lab("seen").await else { return };
    with_probe(&lab);
    let pod = lab.pod("p1").await;
    let mut tracer = spec(&["/probe", "--exact", "probe_process", "--nocapture"]);
    tracer["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    tracer["process"]["env"].as_array_mut().unwrap().push(json!(format!("{PROBE}=1")));
    lab.try_start(&pod, "a", tracer, Limits::default()).await.unwrap();
    wait("the probe", || lab.said("a").contains("looking")).await;
    let until = Instant::now() + Duration::from_secs(60);
    // It has looked at what came: otherwise this proves nothing.
    while !lab.said("a").contains("processes come") {
        assert!(Instant::now() < until, "the probe sees too little: {}", lab.said("a"));
        assert!(!lab.said("a").contains("ESCAPED"), "{}", lab.said("a"));
        // Its last one may find the container at its end.
        let _ = exec(&pod, "a", &["true"], 5000).await;
    }
    ended(&pod, "a").await;
    lab.finish().await;
}

#[tokio::test]
async fn the_machines_null_device_cannot_be_changed() {
    let Some(lab) = lab("null").await else { return };
    std::os::unix::fs::symlink("busybox", lab.layer.join("bin/chmod")).unwrap();
    let pod = lab.pod("p1").await;
    // The mode it has already: where this is allowed, nothing is harmed.
    let script = "exec 2>&1; chmod 666 /dev/stdin; echo stdin $?; chmod 666 /proc/keys; echo mask $?; \
                  echo x > /proc/keys; echo written $?; cat /dev/stdin; echo read $?; sleep 1000";
    lab.start(&pod, "a", script).await;
    wait("the script", || lab.said("a").contains("read")).await;
    assert_eq!(
        lab.said("a").replace("Read-only file system", "ro"),
        "chmod: /dev/stdin: ro\nstdin 1\nchmod: /proc/keys: ro\nmask 1\nwritten 0\nread 0\n"
    );
    let inside = exec(&pod, "a", &["sh", "-c", "chmod 666 /dev/stdin; echo $?"], 5000).await.unwrap();
    assert!(inside.output.ends_with(b"1\n"), "{inside:?}");
    lab.finish().await;
}

#[tokio::test]
async fn commands_of_an_agent_that_is_gone_end_and_are_nobody_elses() {
    let Some(lab) = lab("gone-agent").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "sleep 1000").await;
    // Another agent, in a runtime of its own that is torn down as a killed process would be.
    let config = lab.config.clone();
    let (started, has_started) = std::sync::mpsc::sync_channel(1); // one word
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let second = Runtime::open(config).await.unwrap();
            let theirs = second.pod("p1").unwrap();
            let long = tokio::spawn(async move {
                exec(&theirs, "a", &["sh", "-c", "echo $$ > /tmp/pid; exec sleep 1000"], 600_000).await.map(drop)
            });
            let mine = second.pod("p1").unwrap();
            while exec(&mine, "a", &["test", "-s", "/tmp/pid"], 5000).await.unwrap().exit_code != 0 {}
            started.send(()).unwrap();
            long.abort();
        });
        runtime.shutdown_background();
    });
    has_started.recv().unwrap();
    // This agent's first command has the number the other's had.
    let mine = exec(&pod, "a", &["sh", "-c", "sleep 0.3; exit 7"], 5000).await.unwrap();
    assert_eq!(mine.exit_code, 7);
    other.join().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while exec(&pod, "a", &["sh", "-c", "test -d /proc/$(cat /tmp/pid)"], 5000).await.unwrap().exit_code == 0 {
        assert!(Instant::now() < until, "the command outlives its agent");
    }
    lab.finish().await;
}

#[tokio::test]
async fn a_users_dev_and_links_to_nothing_are_mounted_on() {
    let Some(lab) = lab("odd-places").await else { return };
    let pod = lab.pod("p1").await;
    let (dev, file) = (lab.dir.path().join("dev"), lab.dir.path().join("resolv"));
    std::fs::create_dir(&dev).unwrap();
    std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
    for (link, to) in
        [("etc/resolv.conf", "../run/deep/stub.conf"), ("etc/abs", "/run/other/abs"), ("etc/loop", "loop")]
    {
        std::os::unix::fs::symlink(to, lab.layer.join(link)).unwrap();
    }
    let bind = |to: &str, from: &Path| json!({"destination": to, "type": "bind", "source": from, "options": ["bind"]});
    let mut odd = spec(&["sh", "-c", "cat /etc/resolv.conf /etc/abs; ls /dev; echo done"]);
    let mounts = odd["mounts"].as_array_mut().unwrap();
    mounts[1] = bind("/dev", &dev);
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev/"));
    mounts.extend([bind("/etc/resolv.conf", &file), bind("/etc/abs", &file)]);
    for attempt in ["first", "again"] {
        lab.try_start(&pod, attempt, odd.clone(), Limits::default()).await.unwrap();
        ended(&pod, attempt).await;
        assert_eq!(lab.said(attempt), "nameserver 192.0.2.1\nnameserver 192.0.2.1\ndone\n");
    }
    assert_eq!(std::fs::read_dir(&dev).unwrap().count(), 0, "devices were made in a folder of the machine");
    let mut endless = spec(&["true"]);
    endless["mounts"].as_array_mut().unwrap().push(bind("/etc/loop", &file));
    let error = lab.try_start(&pod, "endless", endless, Limits::default()).await.unwrap_err();
    assert!(coracle_base::chain(&error).contains("symbolic links"), "{error}");
    lab.finish().await;
}

#[tokio::test]
async fn a_command_ends_as_its_program_does() {
    let Some(lab) = lab("ends").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "sleep 1000").await;
    let missing = exec(&pod, "a", &["/nothing"], 5000).await;
    assert!(missing.is_err_and(|error| coracle_base::chain(&error).contains("No such file")));
    let mut other = spec(&["sh", "-c", "id -u; kill -9 $$"])["process"].clone();
    other["user"] = json!({"uid": 1000, "gid": 1000});
    let killed = exec_as(&pod, "a", serde_json::from_value(other).unwrap(), 5000).await.unwrap();
    assert_eq!((killed.exit_code, killed.output.as_slice()), (137, b"1000\n".as_slice()));
    let late = exec(&pod, "a", &["sh", "-c", "sleep 1000 & sleep 1000"], 200).await;
    assert!(late.is_err() || late.is_ok_and(|late| late.timed_out));
    let until = Instant::now() + Duration::from_secs(20);
    let count = async || exec(&pod, "a", &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"], 5000).await.unwrap().output;
    // The container's first process, the shell and its two programs.
    while count().await != b"4\n" {
        assert!(Instant::now() < until, "a late command's children are left");
    }
    lab.finish().await;
}

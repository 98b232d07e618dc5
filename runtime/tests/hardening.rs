//! What hostile images, volumes and processes try, each after an incident of another runtime. Needs root and a static busybox.

mod lab;

use std::path::Path;
use std::time::{Duration, Instant};

use coracle_plan::message::{MAX_PACKET, Packet, request};
use coracle_runtime::{Limits, Runtime};
use lab::{ended, exec, exec_as, lab, spec, wait};
use serde_json::json;

/// The value of a line of /proc/self/status in what was printed.
fn status<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

#[tokio::test]
async fn system_calls_are_limited_in_the_container_and_in_execs() {
    let Some(lab) = lab("seccomp").await else { return };
    let pod = lab.pod("p1").await;
    let show = ["sh", "-c", "cat /proc/self/status"];
    lab.start(&pod, "ours", "cat /proc/self/status; sleep 1000").await;
    wait("the status", || status(&lab.said("ours"), "Seccomp").is_some()).await;
    assert_eq!(status(&lab.said("ours"), "Seccomp"), Some("2"));
    let inside = exec(&pod, "ours", &show, 5000).await.unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&inside.output), "Seccomp"), Some("2"));
    let mut free = spec(&["sh", "-c", "cat /proc/self/status; sleep 1000"]);
    free["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    lab.try_start(&pod, "free", free, Limits::default()).await.unwrap();
    wait("the status", || status(&lab.said("free"), "Seccomp").is_some()).await;
    assert_eq!(status(&lab.said("free"), "Seccomp"), Some("0"));
    let mut own = spec(&["sh", "-c", "mkdir /tmp/x 2>&1; echo done; sleep 1000"]);
    own["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}],
    });
    lab.try_start(&pod, "own", own, Limits::default()).await.unwrap();
    wait("the refusal", || lab.said("own").contains("done")).await;
    assert!(lab.said("own").contains("Disk quota exceeded"), "{}", lab.said("own"));
    // The next agent knows the profile too.
    let second = Runtime::open(lab.config.clone()).await.unwrap();
    let refused = exec(&second.pod("p1").unwrap(), "own", &["mkdir", "/tmp/y"], 5000).await.unwrap();
    assert!(String::from_utf8_lossy(&refused.output).contains("Disk quota exceeded"), "{refused:?}");
    lab.finish().await;
}

#[tokio::test]
async fn a_container_sees_its_limits_and_only_its_own_cgroup() {
    let Some(lab) = lab("shown").await else { return };
    let pod = lab.pod("p1").await;
    let script = "cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes 2>/dev/null; cat /proc/self/cgroup; \
                  for f in cgroup.procs unified/cgroup.procs memory/cgroup.procs; do echo 0 > $f; done 2>&1; \
                  mkdir x 2>&1; cat /proc/self/oom_score_adj; echo done; sleep 1000";
    let limits = Limits { memory_bytes: Some(48 << 20), ..Limits::default() };
    lab.try_start(&pod, "a", spec(&["sh", "-c", script]), limits).await.unwrap();
    wait("the log", || lab.said("a").contains("done")).await;
    let said = lab.said("a");
    assert!(said.starts_with("50331648\n"), "{said}");
    assert!(!said.contains("p1") && said.contains("0::/\n"), "the path on the host is told: {said}");
    assert!(said.contains("mkdir: can't create directory 'x': Read-only file system"), "{said}");
    // The monitor's own score is not the container's, nor that of a process that is run in it.
    assert!(said.ends_with("\n0\ndone\n"), "{said}");
    let score = exec(&pod, "a", &["cat", "/proc/self/oom_score_adj"], 5000).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&score.output), "0\n");
    lab.finish().await;
}

#[tokio::test]
async fn a_device_node_opens_nothing_of_the_machine() {
    let Some(lab) = lab("devices").await else { return };
    let pod = lab.pod("p1").await;
    // 1:11 is the kernel's log: it is there on every machine, as a disk may not be.
    let script = "mknod /dev/log c 1 11 && mknod /dev/disk b 8 0 && echo made; head -c1 /dev/log 2>&1; \
                  head -c4 /dev/zero | wc -c; echo x > /dev/null && echo done";
    for (id, privileged) in [("a", false), ("b", true)] {
        let mut maker = spec(&["sh", "-c", script]);
        maker["process"]["capabilities"]["bounding"] = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_ADMIN"]);
        maker["linux"]["resources"] = json!({"devices": [{"allow": privileged, "access": "rwm"}]});
        lab.try_start(&pod, id, maker, Limits::default()).await.unwrap();
        ended(&pod, id).await;
        wait("the log", || lab.said(id).contains("done")).await;
        let said = lab.said(id);
        assert!(said.contains("made") && said.contains("4\n"), "{said}");
        assert_eq!(said.contains("Operation not permitted"), !privileged, "{id}: {said}");
    }
    lab.finish().await;
}

#[tokio::test]
async fn an_image_cannot_say_where_the_kernels_files_are() {
    // runc CVE-2019-19921, CVE-2023-28642, CVE-2026-41579.
    for place in ["proc", "sys", "dev"] {
        let Some(lab) = lab(&format!("link-{place}")).await else { return };
        let outside = lab.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::remove_dir(lab.layer.join(place)).unwrap();
        for target in [outside.display().to_string(), "tmp".to_owned(), "nowhere".to_owned()] {
            std::os::unix::fs::symlink(&target, lab.layer.join(place)).unwrap();
            let pod = lab.pod("p1").await;
            let error = lab.try_start(&pod, "a", spec(&["true"]), Limits::default()).await.unwrap_err();
            assert!(coracle_base::one_line(&error).contains("Too many levels of symbolic links"), "{error:?}");
            pod.remove().await.unwrap();
            std::fs::remove_file(lab.layer.join(place)).unwrap();
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        lab.finish().await;
    }
}

#[tokio::test]
async fn a_volume_that_changes_under_the_mount_leads_nowhere() {
    // runc CVE-2021-30465: one container swaps a folder and a link while another mounts below it.
    let Some(lab) = lab("race").await else { return };
    let (volume, outside) = (lab.dir.path().join("volume"), lab.dir.path().join("outside"));
    for folder in [volume.join("sub"), outside.clone()] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let up = format!("{}{}", "../".repeat(20), outside.display());
    std::os::unix::fs::symlink(up, volume.join("link")).unwrap();
    let pod = lab.pod("p1").await;
    let source = volume.display().to_string();
    let shared = json!({"destination": "/vol", "type": "bind", "source": source, "options": ["rbind", "rw"]});
    let mut swapper = spec(&["sh", "-c", "cd /vol; while true; do mv sub s; mv link sub; mv sub link; mv s sub; done"]);
    swapper["mounts"].as_array_mut().unwrap().push(shared.clone());
    lab.try_start(&pod, "swapper", swapper, Limits::default()).await.unwrap();
    let mut started = 0;
    for round in 0..60 {
        let mut victim = spec(&["true"]);
        let mounts = victim["mounts"].as_array_mut().unwrap();
        mounts.push(shared.clone());
        mounts.push(json!({"destination": "/vol/sub/deep/in", "type": "tmpfs", "source": "tmpfs", "options": []}));
        let id = format!("v{round}");
        // It may fail, when the folder is just away. It may not reach out.
        if lab.try_start(&pod, &id, victim, Limits::default()).await.is_ok() {
            started += 1;
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "round {round}");
    }
    assert!(started > 0, "no start of sixty found the folder in its place");
    lab.finish().await;
}

#[tokio::test]
async fn mounts_are_shared_with_nobody() {
    // systemd shares all mounts of a machine: copies of them must neither show a container's mounts nor be shown others.
    let Some(lab) = lab("shared").await else { return };
    let volume = lab.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let source = volume.display().to_string();
    let mount = |words: &[&str]| {
        let done = std::process::Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(done.success(), "{words:?}");
    };
    mount(&["mount", "-t", "tmpfs", "shared", &source]);
    mount(&["mount", "--make-shared", &source]);
    let pod = lab.pod("p1").await;
    let mut spec = spec(&["sh", "-c", "cat /proc/self/mountinfo; echo done; sleep 100"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/vol", "type": "bind", "source": source, "options": ["rbind", "rw"]}));
    mounts.push(json!({"destination": "/vol/inner", "type": "tmpfs", "source": "tmpfs", "options": []}));
    let started = lab.try_start(&pod, "a", spec, Limits::default()).await;
    let outside = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    wait("its mounts", || lab.said("a").contains("done")).await;
    mount(&["umount", "-l", &source]);
    started.unwrap();
    assert!(!outside.contains(&format!("{source}/inner")), "a mount of the container is one of the machine: {outside}");
    let inside = lab.said("a");
    assert!(inside.contains(" /vol/inner ") && !inside.contains("shared:") && !inside.contains("master:"), "{inside}");
    lab.finish().await;
}

#[tokio::test]
async fn execs_leak_nothing_and_wait_for_nobody() {
    let Some(lab) = lab("execs").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "sleep 1000").await;
    let list = exec(&pod, "a", &["ls", "/proc/self/fd"], 5000).await.unwrap();
    // 0, 1, 2 and the folder that ls itself has open.
    assert_eq!(String::from_utf8_lossy(&list.output), "0\n1\n2\n3\n");
    // runc CVE-2024-21626: a working folder behind a descriptor.
    for number in 3..24 {
        let mut process = spec(&["true"])["process"].clone();
        process["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let outcome = exec_as(&pod, "a", serde_json::from_value(process).unwrap(), 5000).await;
        assert!(outcome.is_err(), "fd {number}: {outcome:?}");
    }
    // A process that stays holds the output open: the probe's answer does not wait for it.
    let began = Instant::now();
    let left = exec(&pod, "a", &["sh", "-c", "sleep 1000 & echo answered"], 20_000).await.unwrap();
    assert_eq!((left.exit_code, left.output.as_slice()), (0, b"answered\n".as_slice()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // A user that is not root may write to the output by its name, and has no capability.
    let mut process = spec(&["sh", "-c", "cat /proc/self/status > /proc/self/fd/1"])["process"].clone();
    process["user"] = json!({"uid": 1000, "gid": 1000});
    let own = exec_as(&pod, "a", serde_json::from_value(process).unwrap(), 5000).await.unwrap();
    let text = String::from_utf8_lossy(&own.output).into_owned();
    assert_eq!(
        (status(&text, "CapEff"), status(&text, "CapInh")),
        (Some("0000000000000000"), Some("0000000000000000"))
    );
    assert_eq!(status(&text, "Groups"), Some(""), "{text}");
    lab.finish().await;
}

#[tokio::test]
async fn an_exec_whose_caller_goes_away_is_killed() {
    let Some(lab) = lab("gone").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "sleep 1000").await;
    let theirs = pod.clone();
    let long = tokio::spawn(async move {
        exec(&theirs, "a", &["sh", "-c", "echo $$ > /tmp/pid; exec sleep 1000"], 600_000).await.map(drop)
    });
    let until = Instant::now() + Duration::from_secs(20);
    let ask = async |script: &str| exec(&pod, "a", &["sh", "-c", script], 5000).await.unwrap().exit_code;
    while ask("test -s /tmp/pid").await != 0 {
        assert!(Instant::now() < until, "the exec does not start");
    }
    assert_eq!(ask("test -d /proc/$(cat /tmp/pid)").await, 0);
    long.abort();
    while ask("test -d /proc/$(cat /tmp/pid)").await == 0 {
        assert!(Instant::now() < until, "the exec outlives its caller");
    }
    lab.finish().await;
}

#[tokio::test]
async fn logs_are_as_long_as_they_may_be() {
    let Some(lab) = lab("logs").await else { return };
    let pod = lab.pod("p1").await;
    let mut user = spec(&["sh", "-c", "echo named > /proc/self/fd/2; seq 100000 130000; echo; printf end"]);
    user["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let log = coracle_runtime::LogSpec { path: lab.log("a"), max_bytes: 200_000, files: 3 };
    let launch = coracle_runtime::ContainerLaunch {
        id: "a".into(),
        attempt: 0,
        spec: serde_json::from_value(user).unwrap(),
        rootfs: lab.root("p1-a"),
        log,
        limits: Limits::default(),
    };
    pod.start(launch).await.unwrap();
    ended(&pod, "a").await;
    wait("the last line", || lab.said("a").ends_with("\nend\n")).await;
    let path = |number: u32| match number {
        0 => lab.log("a"),
        _ => Path::new(&format!("{}.{number}", lab.log("a").display())).to_owned(),
    };
    for number in 0..3 {
        assert!(std::fs::metadata(path(number)).unwrap().len() <= 200_000, "{number}");
    }
    assert!(!path(3).exists());
    // The files follow on each other without a gap.
    let numbers: Vec<u32> = (0..3)
        .rev()
        .flat_map(|number| {
            std::fs::read_to_string(path(number)).unwrap().lines().map(ToOwned::to_owned).collect::<Vec<_>>()
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    assert!(numbers.len() > 5000 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(numbers.last(), Some(&130_000));
    lab.finish().await;
}

#[tokio::test]
async fn a_monitor_answers_what_it_does_not_know_and_survives_noise() {
    let Some(lab) = lab("noise").await else { return };
    let pod = lab.pod("p1").await;
    let path = lab.config.run_dir.join("pods/p1/podmon.sock");
    let connect = || {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        socket
    };
    let socket = connect();
    rustix::net::send(&socket, Packet::new(4711, 9).bytes(), rustix::net::SendFlags::empty()).unwrap();
    let mut answer = [0_u8; 64];
    let (length, _) = rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty()).unwrap();
    let mut fields = coracle_plan::message::Fields::new(&answer[..length]);
    let told: Vec<u32> = std::iter::from_fn(|| fields.u32()).collect();
    assert_eq!(told, [coracle_plan::message::answer::ERROR, 9, libc::ENOSYS.cast_unsigned(), 0]);
    drop(socket);
    // Packets of every length with every code but the one that ends the pod.
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    let socket = connect();
    for _ in 0..3000 {
        let code = next() % 8;
        let mut bytes = Packet::new(if code == request::END { 0 } else { code }, 1).bytes().to_vec();
        let length = (next() as usize % 200).min(MAX_PACKET);
        bytes.extend((0..length).map(|_| if next() % 3 == 0 { 0 } else { next() as u8 }));
        bytes.truncate(4 + next() as usize % 300);
        rustix::net::send(&socket, &bytes, rustix::net::SendFlags::empty()).unwrap();
        let mut answer = [0_u8; 256];
        while rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::DONTWAIT).is_ok() {}
    }
    drop(socket);
    lab.start(&pod, "a", "exit 4").await;
    assert_eq!(ended(&pod, "a").await.exit_code, 4);
    assert!(!pod.is_lost());
    lab.finish().await;
}

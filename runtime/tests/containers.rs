//! Real containers on this kernel, with a busybox root. Needs root and a static busybox.

mod lab;

use std::path::Path;
use std::time::Duration;

use coracle_runtime::{ExecRequest, Limits, PodSpec, Runtime, RuntimeError};
use lab::{ended, lab, left_over, spec, wait};
use oci_spec::runtime::Process;
use serde_json::json;

#[tokio::test]
async fn exit_codes_signals_logs_and_events() {
    let Some(lab) = lab("exit").await else { return };
    let pod = lab.pod("p1").await;
    let mut events = pod.events().unwrap();
    lab.start(&pod, "a", "echo one; echo two >&2; printf three; exit 7").await;
    let state = ended(&pod, "a").await;
    assert_eq!((state.exit_code, state.signal, state.oom_killed), (7, None, false));
    assert!(state.ended_ms >= state.started_ms && state.started_ms > 0);
    assert_eq!(events.recv().await.unwrap().state.exit_code, 7);
    wait("the log", || lab.said("a").contains("three")).await;
    let mut lines: Vec<String> = lab.said("a").lines().map(ToOwned::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
    assert!(std::fs::read_to_string(lab.log("a")).unwrap().contains("stderr F two"));
    lab.start(&pod, "b", "sleep 100").await;
    pod.kill("b", 9).await.unwrap();
    let state = ended(&pod, "b").await;
    assert_eq!((state.exit_code, state.signal), (137, Some(9)));
    pod.kill("b", 9).await.unwrap();
    lab.finish().await;
}

#[tokio::test]
async fn failures_are_worded() {
    let Some(lab) = lab("fail").await else { return };
    let pod = lab.pod("p1").await;
    let error = lab.try_start(&pod, "a", spec(&["nothing-here"]), Limits::default()).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Launch { exec: true, .. }), "{error:?}");
    assert_eq!(coracle_base::one_line(&error), "cannot execute `nothing-here`: No such file or directory (os error 2)");
    // A working folder that would lead out through a descriptor (CVE-2024-21626).
    for number in 3..16 {
        let mut leak = spec(&["true"]);
        leak["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let outcome = lab.try_start(&pod, "a", leak, Limits::default()).await;
        assert!(outcome.is_err(), "fd {number}");
    }
    let mut unknown = spec(&["true"]);
    unknown["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "ext4", "source": "/dev/vda"}));
    let error = lab.try_start(&pod, "a", unknown, Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("a mount of type `ext4` is not supported"), "{error}");
    assert!(lab.runtime.create_pod(PodSpec { id: "../x".into(), ..PodSpec::default() }).await.is_err());
    lab.finish().await;
}

#[tokio::test]
async fn a_container_sees_only_its_own() {
    let Some(lab) = lab("inside").await else { return };
    let pod = lab.pod("p1").await;
    let script = "echo pid $$; cat /proc/self/status | grep Cap; ls /proc/self/fd; readlink /proc/self/cwd; \
                  cat /proc/sys/kernel/hostname; touch /proc/sys/kernel/x 2>&1; head -c1 /proc/kcore | wc -c; \
                  test -c /dev/null && echo null; ls /; echo x > /tmp/y && echo wrote";
    lab.start(&pod, "a", script).await;
    ended(&pod, "a").await;
    wait("the log", || lab.said("a").contains("wrote")).await;
    let said = lab.said("a");
    for expected in [
        "pid 1\n",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "CapEff:\t00000000000000eb",
        "\n/\n",
        "\nlab\n",
        "null\n",
        "wrote",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing in {said}");
    }
    // 0, 1, 2 and the folder that ls itself has open.
    assert!(said.contains("\n0\n1\n2\n3\n/\n"), "{said}");
    let mut readonly = spec(&["sh", "-c", "touch /x 2>&1; id; echo done"]);
    readonly["root"]["readonly"] = json!(true);
    readonly["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 2000]});
    readonly["process"]["noNewPrivileges"] = json!(true);
    lab.try_start(&pod, "b", readonly, Limits::default()).await.unwrap();
    ended(&pod, "b").await;
    wait("the log", || lab.said("b").contains("done")).await;
    assert!(
        lab.said("b").contains("Read-only file system") || lab.said("b").contains("Permission denied"),
        "{}",
        lab.said("b")
    );
    assert!(lab.said("b").contains("uid=1000 gid=1001 groups=1001,2000"), "{}", lab.said("b"));
    lab.finish().await;
}

#[tokio::test]
async fn volumes_and_hostile_targets_stay_inside() {
    let Some(lab) = lab("volumes").await else { return };
    let outside = lab.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    // Links in the image that point out of the root, absolutely and through parents; /proc itself a link.
    std::os::unix::fs::symlink(&outside, lab.layer.join("evil")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../tmp", lab.layer.join("up")).unwrap();
    let volume = lab.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "from the host").unwrap();
    let pod = lab.pod("p1").await;
    let mut bad = spec(&["true"]);
    let source = volume.display().to_string();
    bad["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/evil/in", "type": "bind", "source": source, "options": ["rbind"]}));
    let error = lab.try_start(&pod, "bad", bad, Limits::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot mount a volume at /evil/in");
    let mut spec = spec(&["sh", "-c", "cat /up/in/f /data/f /one; echo; touch /data/x 2>&1; echo done"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/up/in", "type": "bind", "source": source, "options": ["rbind", "ro"]}));
    mounts
        .push(json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid"]}));
    mounts.push(
        json!({"destination": "/one", "type": "bind", "source": format!("{source}/f"), "options": ["bind", "ro"]}),
    );
    lab.try_start(&pod, "a", spec, Limits::default()).await.unwrap();
    ended(&pod, "a").await;
    wait("the log", || lab.said("a").contains("done")).await;
    assert!(lab.said("a").contains("from the hostfrom the hostfrom the host"), "{}", lab.said("a"));
    assert!(lab.said("a").contains("Read-only file system"), "{}", lab.said("a"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was made outside of the root");
    lab.finish().await;
}

#[tokio::test]
async fn folders_made_on_the_way_are_for_every_user() {
    let Some(lab) = lab("made").await else { return };
    let volume = lab.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "from the host").unwrap();
    let pod = lab.pod("p1").await;
    let mut spec = spec(&["sh", "-c", "cat /made/on/the/way/f; stat -c ' %a' /made /made/on /job; pwd; echo done"]);
    spec["process"]["user"] = json!({"uid": 33, "gid": 33});
    spec["process"]["cwd"] = json!("/job/here");
    spec["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/made/on/the/way", "type": "bind", "source": volume.display().to_string(), "options": ["rbind"]}),
    );
    lab.try_start(&pod, "a", spec, Limits::default()).await.unwrap();
    ended(&pod, "a").await;
    wait("the log", || lab.said("a").contains("done")).await;
    assert!(lab.said("a").contains("from the host 755"), "{}", lab.said("a"));
    assert!(lab.said("a").contains("/job/here"), "{}", lab.said("a"));
    lab.finish().await;
}

#[tokio::test]
async fn memory_is_limited_and_the_kill_is_told() {
    let Some(lab) = lab("oom").await else { return };
    let pod = lab.pod("p1").await;
    let limits =
        Limits { memory_bytes: Some(16 << 20), pids: Some(50), cpu_quota_us: Some(50_000), cpu_shares: Some(102) };
    // tail keeps what it cannot print yet: endless zeros without a line end.
    let hungry = spec(&["sh", "-c", "tail /dev/zero"]);
    lab.try_start(&pod, "a", hungry, limits).await.unwrap();
    let state = ended(&pod, "a").await;
    assert!(state.oom_killed, "{state:?}");
    assert_eq!(state.exit_code, 137);
    lab.finish().await;
}

#[tokio::test]
async fn exec_output_codes_and_timeouts() {
    let Some(lab) = lab("exec").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "echo up > /tmp/mark; sleep 1000").await;
    let exec = |args: &[&str], timeout: u64| {
        let process: Process = serde_json::from_value(spec(args)["process"].clone()).unwrap();
        pod.exec(ExecRequest {
            container: "a".into(),
            process,
            timeout: Duration::from_millis(timeout),
            max_output: 100,
        })
    };
    wait("the container's file", || true).await;
    let mut result = exec(&["cat", "/tmp/mark"], 5000).await.unwrap();
    for _ in 0..100 {
        if result.exit_code == 0 {
            break;
        }
        result = exec(&["cat", "/tmp/mark"], 5000).await.unwrap();
    }
    assert_eq!((result.exit_code, result.output.as_slice(), result.timed_out), (0, b"up\n".as_slice(), false));
    assert_eq!(exec(&["sh", "-c", "exit 5"], 5000).await.unwrap().exit_code, 5);
    assert_eq!(exec(&["sh", "-c", "ls /proc | grep -c '^[0-9]'"], 5000).await.unwrap().exit_code, 0);
    let flood = exec(&["sh", "-c", "while true; do echo 0123456789; done"], 300).await.unwrap();
    assert!(flood.timed_out && flood.exit_code == 137 && flood.output.len() == 100, "{flood:?}");
    let error = exec(&["nothing"], 1000).await.unwrap_err();
    assert!(coracle_base::one_line(&error).starts_with("cannot execute `nothing`"), "{error}");
    lab.finish().await;
}

#[tokio::test]
async fn an_agent_that_comes_back_finds_its_pods() {
    let Some(lab) = lab("adopt").await else { return };
    let pod = lab.pod("p1").await;
    let pid = lab.start(&pod, "long", "sleep 1000").await;
    lab.start(&pod, "short", "cat /tmp/go; exit 3").await;
    drop(pod);
    let second = Runtime::open(lab.config.clone()).await.unwrap();
    let adopted = second.pod("p1").unwrap();
    let long = adopted.containers().into_iter().find(|state| state.id == "long").unwrap();
    assert_eq!((long.pid, long.running), (pid, true));
    assert_eq!(ended(&adopted, "short").await.exit_code, 3);
    let result = std::fs::read_to_string(lab.config.run_dir.join("pods/p1/exits")).unwrap();
    assert!(result.starts_with("short"), "{result}");
    // The monitor dies: the pod is lost, and nothing of it stays.
    let monitor = adopted.monitor_pid();
    assert!(monitor > 0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(monitor.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait("the loss to be seen", || adopted.is_lost()).await;
    let third = Runtime::open(lab.config.clone()).await.unwrap();
    assert!(third.pod("p1").is_none());
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists()
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    );
    third.cleanup_all().await.unwrap();
    assert!(left_over(&lab.config.cgroup_name).is_empty());
}

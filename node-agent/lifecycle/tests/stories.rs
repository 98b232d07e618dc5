//! Pods lived through in virtual time: scripted stories with their whole transcript, and random lives that must always end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use coracle_lifecycle::observed::{Exit, Observed, Run, StopReason};
use coracle_lifecycle::pod::{Deletion, Pod, Role};
use coracle_lifecycle::{Step, next, status};
use proptest::prelude::*;
use serde_json::{Value, json};

/// How a run of a container goes.
#[derive(Debug, Clone)]
struct Life {
    /// It does not start: reason.
    start_error: Option<&'static str>,
    /// It ends by itself after so long, with this code.
    ends: Option<(u64, i32)>,
    /// It heeds the stop signal after so long; `None` = never.
    heeds: Option<u64>,
    /// Probes succeed from then on (from the start of the run), until then.
    well: (u64, u64),
}

impl Default for Life {
    fn default() -> Self {
        Self { start_error: None, ends: None, heeds: Some(100), well: (0, u64::MAX) }
    }
}

type Script = Box<dyn FnMut(&str, u32) -> Life>;

struct World {
    pod: Pod,
    seen: Observed,
    now: u64,
    script: Script,
    /// Ends of runs to come: container, run -> when, code.
    ends: BTreeMap<(usize, u32), (u64, i32)>,
    lives: BTreeMap<(usize, u32), Life>,
    /// Ends of hooks to come.
    hooks: BTreeMap<(usize, u32), u64>,
    /// The same of those after the start.
    first_hooks: BTreeMap<(usize, u32), u64>,
    hook_fails: bool,
    hook_ms: u64,
    pulls_fail: u32,
    transcript: String,
    /// Every step but probes and waits, for checks.
    steps: Vec<Step>,
}

const START: u64 = 1_000_000;

impl World {
    fn new(spec: &Value, script: Script) -> Self {
        let pod = Pod::parse(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap();
        let seen = Observed::new(&pod, START);
        Self {
            pod,
            seen,
            now: START,
            script,
            ends: BTreeMap::new(),
            lives: BTreeMap::new(),
            hooks: BTreeMap::new(),
            first_hooks: BTreeMap::new(),
            hook_fails: false,
            hook_ms: 500,
            pulls_fail: 0,
            transcript: String::new(),
            steps: Vec::new(),
        }
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.transcript, "{:>8.1}s  {line}", (self.now - START) as f64 / 1000.0);
    }

    fn name(&self, index: usize) -> String {
        self.pod.containers[index].name.clone()
    }

    /// Lives until `until`, `Gone`, or nothing can happen any more. Returns whether it is gone.
    fn live(&mut self, until: u64) -> bool {
        for _ in 0..100_000 {
            let step = next(&self.pod, &self.seen, self.now);
            match step {
                Step::Gone => {
                    self.say("gone");
                    return true;
                }
                Step::Wait { until: wake } => {
                    let end = self.ends.values().map(|(at, _)| *at).min();
                    let hook = self.hooks.values().chain(self.first_hooks.values()).copied().min();
                    let Some(at) = [wake, end, hook].into_iter().flatten().min().filter(|at| *at <= until) else {
                        self.now = self.now.max(until);
                        return false;
                    };
                    assert!(at > self.now || wake.is_none_or(|wake| wake > self.now), "a wait that does not wait");
                    self.now = self.now.max(at);
                    self.happen();
                }
                step => self.take(step),
            }
        }
        panic!("the pod never rests:\n{}", &self.transcript[self.transcript.len().saturating_sub(2000)..]);
    }

    /// Ends of runs and hooks that are due.
    fn happen(&mut self) {
        let due: Vec<_> =
            self.ends.iter().filter(|(_, (at, _))| *at <= self.now).map(|(key, end)| (*key, *end)).collect();
        for ((index, attempt), (_, code)) in due {
            self.ends.remove(&(index, attempt));
            self.end(index, attempt, code, if code == 0 { "Completed" } else { "Error" });
        }
        let due: Vec<_> = self.hooks.iter().filter(|(_, at)| **at <= self.now).map(|(key, _)| *key).collect();
        for (index, attempt) in due {
            self.hooks.remove(&(index, attempt));
            self.seen.containers[index].pre_stop_done(attempt);
        }
        let due: Vec<_> = self.first_hooks.iter().filter(|(_, at)| **at <= self.now).map(|(key, _)| *key).collect();
        for (index, attempt) in due {
            self.first_hooks.remove(&(index, attempt));
            let outcome = if self.hook_fails { Err("no".to_owned()) } else { Ok(()) };
            let spec = self.pod.containers[index].clone();
            self.seen.containers[index].post_start_done(&spec, attempt, &outcome, self.pod.grace_ms, self.now);
        }
    }

    fn end(&mut self, index: usize, attempt: u32, code: i32, reason: &str) {
        let Run::Running { started_at, .. } = self.seen.containers[index].run else { return };
        self.say(&format!("{} ends: {code} {reason}", self.name(index)));
        let exit = Exit {
            code,
            signal: None,
            reason: reason.into(),
            message: String::new(),
            started_at,
            finished_at: self.now,
            attempt,
        };
        self.seen.containers[index].exited(exit, self.now);
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        if !matches!(step, Step::Probe { .. }) {
            self.steps.push(step.clone());
        }
        match step {
            Step::Sandbox => {
                self.say("sandbox");
                self.seen.sandbox_ready(Ipv4Addr::new(10, 42, 0, 2));
            }
            Step::Volumes => {
                self.say("volumes");
                self.seen.volumes_ready();
            }
            Step::Pull { container } => {
                if self.pulls_fail > 0 {
                    self.pulls_fail -= 1;
                    self.say(&format!("pull {}: fails", self.name(container)));
                    self.seen.containers[container].image_failed("ErrImagePull", "no such image".into(), now);
                } else {
                    self.say(&format!("pull {}", self.name(container)));
                    self.seen.containers[container].image_present("sha256:0".into(), "i".into(), None);
                }
            }
            Step::Start { container, attempt } => self.start(container, attempt),
            Step::Probe { container, kind, attempt } => {
                let Run::Running { started_at, .. } = self.seen.containers[container].run else {
                    panic!("probe of a dead one")
                };
                let (from, to) = self.lives[&(container, attempt)].well;
                let age = now - started_at;
                let outcome = if age >= from && age < to { Ok(()) } else { Err("no".to_owned()) };
                let spec = self.pod.containers[container].clone();
                self.seen.containers[container].probe_begun(kind);
                let changed =
                    self.seen.containers[container].probed(&spec, kind, attempt, &outcome, self.pod.grace_ms, now);
                if let Some(verdict) = changed {
                    self.say(&format!("{} {} -> {verdict}", self.name(container), kind.as_str().to_lowercase()));
                }
            }
            Step::PostStart { container, attempt } => {
                self.say(&format!("post-start of {}", self.name(container)));
                self.seen.containers[container].post_start_begun();
                self.first_hooks.insert((container, attempt), now + self.hook_ms);
            }
            Step::PreStop { container, attempt, until } => {
                self.say(&format!(
                    "pre-stop of {}, until {:.1}s",
                    self.name(container),
                    (until - START) as f64 / 1000.0
                ));
                self.seen.containers[container].pre_stop_begun();
                self.hooks.insert((container, attempt), now + self.hook_ms);
            }
            Step::Signal { container } => {
                self.say(&format!("signal {}", self.name(container)));
                self.seen.containers[container].signalled(now);
                let Run::Running { attempt, .. } = self.seen.containers[container].run else {
                    panic!("signal to a dead one")
                };
                if let Some(heeds) = self.lives[&(container, attempt)].heeds {
                    let end = self.ends.entry((container, attempt)).or_insert((u64::MAX, 0));
                    *end = (*end).min((now + heeds, 0));
                }
            }
            Step::Kill { container } => {
                self.say(&format!("kill {}", self.name(container)));
                let Run::Running { attempt, .. } = self.seen.containers[container].run else {
                    panic!("kill of a dead one")
                };
                self.seen.containers[container].killed(now);
                self.ends.insert((container, attempt), (now + 1, 137));
            }
            Step::Stop { why, message, grace_ms } => {
                self.say(&format!("stop: {why:?}"));
                self.seen.stop(why, message, grace_ms, now);
            }
            Step::TearDown => {
                self.say("tear down");
                self.seen.torn_down();
            }
            Step::Gone | Step::Wait { .. } => unreachable!("handled by live"),
        }
    }

    fn start(&mut self, container: usize, attempt: u32) {
        let name = self.name(container);
        let life = (self.script)(&name, attempt);
        let spec = self.pod.containers[container].clone();
        if let Some(reason) = life.start_error {
            self.say(&format!("start {} #{attempt}: {reason}", self.name(container)));
            let exit = Exit {
                code: 128,
                signal: None,
                reason: reason.into(),
                message: "exec: no such file".into(),
                started_at: self.now,
                finished_at: self.now,
                attempt,
            };
            self.seen.containers[container].exited(exit, self.now);
            return;
        }
        self.say(&format!("start {} #{attempt}", self.name(container)));
        self.seen.containers[container].running(&spec, attempt, 100 + attempt, self.now);
        if let Some((after, code)) = life.ends {
            self.ends.insert((container, attempt), (self.now + after, code));
        }
        self.lives.insert((container, attempt), life);
    }

    fn delete(&mut self, grace_ms: u64) {
        self.say("-- deleted --");
        self.pod.deletion = Some(Deletion { grace_ms });
    }

    fn status(&self) -> Value {
        let facts = status::Facts { host_ip: Ipv4Addr::LOCALHOST, now: self.now };
        status::pod_status(&self.pod, &self.seen, facts, &Value::Null)
    }

    fn phase(&self) -> &'static str {
        status::phase(&self.pod, &self.seen)
    }
}

fn always(life: Life) -> Script {
    Box::new(move |_, _| life.clone())
}

const MINUTE: u64 = 60_000;

#[test]
fn a_service_starts_becomes_ready_and_is_deleted() {
    let spec = json!({"containers": [{"name": "web", "readinessProbe": {"httpGet": {"port": 80}}}]});
    let mut world = World::new(&spec, always(Life { well: (250, u64::MAX), ..Life::default() }));
    world.live(START + MINUTE);
    assert!(status::is_ready(&world.pod, &world.seen));
    world.delete(30_000);
    assert!(world.live(START + 2 * MINUTE));
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn a_crashing_container_waits_longer_each_time() {
    let spec = json!({"containers": [{"name": "c"}]});
    let mut world = World::new(&spec, always(Life { ends: Some((50, 1)), ..Life::default() }));
    world.live(START + 3 * MINUTE);
    insta::assert_snapshot!(world.transcript);
    let status = world.status();
    let container = &status["containerStatuses"][0];
    assert_eq!(status["phase"], "Running");
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["restartCount"], 8);
}

#[test]
fn init_containers_sidecars_and_apps_in_their_order() {
    let spec = json!({
        "restartPolicy": "OnFailure",
        "initContainers": [
            {"name": "init1"},
            {"name": "proxy", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 9}},
            {"name": "tail", "restartPolicy": "Always"},
            {"name": "init2"},
        ],
        "containers": [{"name": "app", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}, {"name": "other"}],
    });
    let script: Script = Box::new(|name, attempt| match (name, attempt) {
        ("init1", 0) => Life { ends: Some((1000, 3)), ..Life::default() },
        ("init1" | "init2", _) => Life { ends: Some((1000, 0)), ..Life::default() },
        ("proxy", _) => Life { well: (2500, u64::MAX), ..Life::default() },
        _ => Life::default(),
    });
    let mut world = World::new(&spec, script);
    world.live(START + 500);
    assert_eq!(world.phase(), "Pending");
    let status = world.status();
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    world.live(START + MINUTE);
    assert_eq!(world.phase(), "Running");
    world.delete(10_000);
    assert!(world.live(START + 2 * MINUTE));
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn nothing_counts_on_a_container_before_its_first_hook_has_ended() {
    let spec = json!({"containers": [
        {"name": "app", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}, "livenessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1}},
        {"name": "next"},
    ]});
    let mut world = World::new(&spec, always(Life::default()));
    world.hook_ms = 5000;
    world.live(START + 4000);
    let status = world.status();
    assert_eq!(
        (&status["containerStatuses"][0]["ready"], &status["containerStatuses"][0]["started"]),
        (&json!(false), &json!(false))
    );
    assert!(!world.transcript.contains("start next"), "{}", world.transcript);
    world.live(START + 6000);
    assert!(world.transcript.contains("start next"), "{}", world.transcript);
    assert!(status::is_ready(&world.pod, &world.seen));
    // An agent that comes back knows of no hook under way: the container goes on.
    let mut other = World::new(&spec, always(Life::default()));
    other.hook_ms = 5000;
    other.live(START + 1000);
    other.first_hooks.clear();
    let running = BTreeMap::from([("app".to_owned(), (0, 100, START))]);
    other.seen.adopt(&other.pod, &running, &[], START + 1000);
    other.live(START + 2000);
    assert!(status::is_ready(&other.pod, &other.seen), "{}", other.transcript);
}

#[test]
fn a_container_whose_first_hook_fails_is_started_again() {
    let spec = json!({"containers": [
        {"name": "app", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}, {"name": "next"},
    ]});
    let mut world = World::new(&spec, always(Life::default()));
    world.hook_fails = true;
    world.live(START + 5000);
    assert!(world.transcript.contains("signal app"), "{}", world.transcript);
    assert!(world.transcript.contains("start next"), "the others need not wait for ever: {}", world.transcript);
    assert!(!status::is_ready(&world.pod, &world.seen));
    world.hook_fails = false;
    world.live(START + MINUTE);
    assert!(status::is_ready(&world.pod, &world.seen), "{}", world.transcript);
    assert!(world.status()["containerStatuses"][0]["restartCount"].as_u64() > Some(0));
}

#[test]
fn a_job_ends_and_its_sidecar_with_it() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "work"}, {"name": "more"}],
    });
    let script: Script = Box::new(|name, _| match name {
        "work" => Life { ends: Some((5000, 0)), ..Life::default() },
        "more" => Life { ends: Some((9000, 0)), ..Life::default() },
        _ => Life::default(),
    });
    let mut world = World::new(&spec, script);
    assert!(!world.live(START + MINUTE));
    assert_eq!(world.phase(), "Succeeded");
    assert!(world.seen.torn_down);
    insta::assert_snapshot!(world.transcript);
    world.delete(30_000);
    assert!(world.live(START + 2 * MINUTE));
}

#[test]
fn deaf_containers_are_killed_when_their_grace_is_over() {
    let spec = json!({
        "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "deaf", "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}],
    });
    let mut world = World::new(&spec, always(Life { heeds: None, ..Life::default() }));
    world.hook_ms = MINUTE;
    world.live(START + 1000);
    world.delete(5000);
    assert!(world.live(START + MINUTE));
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn a_failed_liveness_probe_restarts_with_the_probes_grace() {
    let probe = json!({"tcpSocket": {"port": 1}, "periodSeconds": 2, "failureThreshold": 2, "terminationGracePeriodSeconds": 3});
    let spec = json!({"containers": [{"name": "c", "livenessProbe": probe}]});
    let script: Script = Box::new(|_, attempt| match attempt {
        0 => Life { well: (0, 5000), heeds: None, ..Life::default() },
        _ => Life::default(),
    });
    let mut world = World::new(&spec, script);
    world.live(START + MINUTE);
    insta::assert_snapshot!(world.transcript);
    assert_eq!(world.seen.containers[0].restarts, 1);
}

#[test]
fn an_image_that_is_not_there_is_asked_for_less_and_less() {
    let mut world = World::new(&json!({"containers": [{"name": "c"}]}), always(Life::default()));
    world.pulls_fail = 3;
    world.live(START + 5000);
    let waiting = world.status()["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting, json!({"reason": "ErrImagePull", "message": "no such image"}));
    world.live(START + 15_000);
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "ImagePullBackOff");
    world.live(START + 5 * MINUTE);
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn what_cannot_start_says_why_not_that_it_waits() {
    let script = always(Life { start_error: Some("ContainerCannotRun"), ..Life::default() });
    let mut world = World::new(&json!({"containers": [{"name": "c"}]}), script);
    world.live(START + 5000);
    let container = world.status()["containerStatuses"][0].clone();
    assert_eq!(container["state"]["waiting"], json!({"reason": "RunContainerError", "message": "exec: no such file"}));
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 128);
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let mut world = World::new(&spec, always(Life { ends: Some((10, 7)), ..Life::default() }));
    world.live(START + MINUTE);
    assert_eq!(world.phase(), "Failed");
    assert!(world.seen.torn_down);
    assert!(!world.steps.iter().any(|step| matches!(step, Step::Start { container: 1, .. })));
}

#[test]
fn an_active_deadline_ends_the_pod() {
    let spec = json!({"activeDeadlineSeconds": 20, "terminationGracePeriodSeconds": 5, "containers": [{"name": "c"}]});
    let mut world = World::new(&spec, always(Life::default()));
    world.live(START + MINUTE);
    let status = world.status();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert!(world.seen.torn_down);
}

#[test]
fn a_pod_that_had_ended_before_a_reboot_is_not_run_again() {
    let mut world = World::new(&json!({"containers": [{"name": "c"}]}), always(Life::default()));
    world.pod.recorded_phase = "Succeeded".into();
    world.live(START + MINUTE);
    assert!(world.seen.torn_down);
    assert!(!world.steps.iter().any(|step| matches!(step, Step::Start { .. } | Step::Sandbox)));
}

#[test]
fn a_lost_sandbox_is_made_anew_and_init_containers_run_again() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let script: Script = Box::new(|name, _| match name {
        "i" => Life { ends: Some((10, 0)), ..Life::default() },
        _ => Life::default(),
    });
    let mut world = World::new(&spec, script);
    world.live(START + 5000);
    let pod = world.pod.clone();
    world.seen.sandbox_lost(&pod, world.now);
    world.ends.clear();
    world.live(START + 10_000);
    insta::assert_snapshot!(world.transcript);
    assert_eq!(world.phase(), "Running");
    assert_eq!(world.seen.containers[1].restarts, 1);
}

#[test]
fn a_record_read_back_meets_what_really_runs() {
    let mut world = World::new(&json!({"containers": [{"name": "a"}, {"name": "b"}]}), always(Life::default()));
    world.live(START + 1000);
    let stored = serde_json::to_string(&world.seen).unwrap();
    let mut seen: Observed = serde_json::from_str(&stored).unwrap();
    assert_eq!(seen, world.seen);
    let exit = Exit {
        code: 3,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
        started_at: START,
        finished_at: START + 2000,
        attempt: 0,
    };
    let running = BTreeMap::from([("a".to_owned(), (0, 100, START))]);
    seen.adopt(&world.pod, &running, &[("b".into(), exit)], START + 3000);
    assert_eq!(seen.containers[0], world.seen.containers[0]);
    assert!(matches!(&seen.containers[1].run, Run::Exited(exit) if exit.code == 3));
    assert_eq!(next(&world.pod, &seen, START + 3000), Step::Start { container: 1, attempt: 1 });
}

#[test]
fn a_fenced_pod_is_started_only_under_a_lease() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}, {"name": "d"}]});
    let script: Script = Box::new(|name, _| match name {
        "i" => Life { ends: Some((10, 0)), ..Life::default() },
        _ => Life::default(),
    });
    let mut world = World::new(&spec, script);
    let object = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": {"coracle.dev/fenced": "true"}}, "spec": spec});
    world.pod = Pod::parse(&object).unwrap();
    world.seen = Observed::new(&world.pod, START);
    world.live(START + 5000);
    assert_eq!(world.phase(), "Pending");
    let reason = |status: &Value, list: &str, index: usize| status[list][index]["state"]["waiting"]["reason"].clone();
    let status = world.status();
    assert_eq!(reason(&status, "initContainerStatuses", 0), "WaitingForLease");
    assert_eq!(reason(&status, "containerStatuses", 0), "PodInitializing");
    assert_eq!(status::summary(&world.pod, &world.seen), "WaitingForLease");
    world.say("-- a lease --");
    world.seen.lease(true, world.now);
    world.live(START + 10_000);
    assert!(status::is_ready(&world.pod, &world.seen));
    world.say("-- the lease has run out --");
    world.seen.lease(false, world.now);
    world.ends.clear();
    world.end(1, 0, 137, "FencedLeaseExpired");
    world.end(2, 0, 137, "FencedLeaseExpired");
    world.live(START + 60_000);
    let status = world.status();
    assert_eq!(status["phase"], "Running");
    for index in 0..2 {
        assert_eq!(reason(&status, "containerStatuses", index), "WaitingForLease");
        let last = &status["containerStatuses"][index]["lastState"]["terminated"];
        assert_eq!((&last["reason"], &last["exitCode"]), (&json!("FencedLeaseExpired"), &json!(137)));
    }
    world.say("-- a lease --");
    world.seen.lease(true, world.now);
    world.live(START + 70_000);
    assert!(status::is_ready(&world.pod, &world.seen));
    // Deleted while there is none, it ends like any other.
    world.seen.lease(false, world.now);
    world.delete(1000);
    assert!(world.live(START + 80_000));
    insta::assert_snapshot!(world.transcript);
}

#[test]
fn a_lease_makes_up_for_tries_that_failed_without_one() {
    let mut world = World::new(&json!({"containers": [{"name": "c"}]}), always(Life::default()));
    world.seen.fenced = true;
    world.seen.lease(true, world.now);
    world.seen.sandbox_ready(Ipv4Addr::new(10, 42, 0, 2));
    world.seen.volumes_ready();
    world.seen.containers[0].image_present("sha256:0".into(), "i".into(), None);
    for _ in 0..8 {
        world.seen.containers[0].setup_failed("WaitingForLease", "too late".into(), world.now);
    }
    assert!(matches!(next(&world.pod, &world.seen, world.now), Step::Wait { until: Some(_) }));
    world.seen.lease(false, world.now);
    assert_eq!(next(&world.pod, &world.seen, world.now), Step::Wait { until: None });
    world.seen.lease(true, world.now);
    assert_eq!(next(&world.pod, &world.seen, world.now), Step::Start { container: 0, attempt: 0 });
    // What is made anew after a loss is what the pod asks for now.
    let pod = world.pod.clone();
    world.seen.sandbox_lost(&pod, world.now);
    assert!(!world.seen.fenced);
}

/// Where a pod stands, as a number that may only grow.
fn progress(seen: &Observed) -> u32 {
    let deleted = seen.stop.as_ref().is_some_and(|stop| stop.why == StopReason::Deleted);
    u32::from(seen.stop.is_some()) + 2 * u32::from(seen.torn_down) + 4 * u32::from(deleted)
}

fn any_spec() -> impl Strategy<Value = Value> {
    let policy = prop::sample::select(vec!["Always", "OnFailure", "Never"]);
    let inits = prop::collection::vec(prop::bool::ANY, 0..3);
    let probe = prop::bool::ANY;
    (policy, inits, 1_usize..3, probe, prop::bool::ANY, prop::option::of(5_u64..40)).prop_map(
        |(policy, inits, apps, probe, hook, deadline)| {
            let init: Vec<Value> = inits
                .iter()
                .enumerate()
                .map(|(index, sidecar)| {
                    let mut container = json!({"name": format!("i{index}")});
                    if *sidecar {
                        container["restartPolicy"] = json!("Always");
                    }
                    container
                })
                .collect();
            let apps: Vec<Value> = (0..apps)
                .map(|index| {
                    let mut container = json!({"name": format!("a{index}")});
                    if probe {
                        for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
                            container[kind] = json!({"tcpSocket": {"port": 1}, "periodSeconds": 1});
                        }
                    }
                    if hook {
                        let command = json!({"exec": {"command": ["x"]}});
                        container["lifecycle"] = json!({"preStop": command, "postStart": command});
                    }
                    container
                })
                .collect();
            let mut spec = json!({"restartPolicy": policy, "initContainers": init, "containers": apps});
            if let Some(deadline) = deadline {
                spec["activeDeadlineSeconds"] = json!(deadline);
            }
            spec
        },
    )
}

fn any_life() -> impl Strategy<Value = Life> {
    (
        prop::option::weighted(0.1, Just("StartError")),
        prop::option::of((1_u64..20_000, 0_i32..3)),
        prop::option::weighted(0.8, 0_u64..3000),
        (0_u64..5000, 1000_u64..40_000),
    )
        .prop_map(|(start_error, ends, heeds, well)| Life { start_error, ends, heeds, well })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens, a pod never goes backwards, starts nothing after its stop began, keeps the order of its init
    /// containers, and is gone soon after it was deleted.
    #[test]
    fn every_life_goes_forward_and_ends(
        spec in any_spec(),
        lives in prop::collection::vec(any_life(), 1..20),
        pulls_fail in 0_u32..4,
        delete_at in 0_u64..120_000,
        grace_ms in prop::sample::select(vec![0_u64, 1, 1000, 30_000]),
        hook_ms in 0_u64..60_000,
    ) {
        let mut turn = 0;
        let script: Script = Box::new(move |_, _| {
            turn += 1;
            lives[turn % lives.len()].clone()
        });
        let mut world = World::new(&spec, script);
        world.pulls_fail = pulls_fail;
        world.hook_ms = hook_ms;
        let mut before = progress(&world.seen);
        let mut at = START;
        while at < START + delete_at {
            at += 500;
            world.live(at);
            let now = progress(&world.seen);
            prop_assert!(now >= before);
            before = now;
            let status = world.status();
            prop_assert!(["Pending", "Running", "Succeeded", "Failed"].contains(&status["phase"].as_str().unwrap()));
            let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["status"] == "True";
            prop_assert!(!ready || status["phase"] == "Running", "{status}");
        }
        world.delete(grace_ms);
        let gone = world.live(at + grace_ms + 20_000);
        prop_assert!(gone, "not gone:\n{}", world.transcript);
        let stop = world.steps.iter().position(|step| matches!(step, Step::Stop { .. })).unwrap();
        let starts = |step: &Step| matches!(step, Step::Start { .. } | Step::Sandbox | Step::Volumes | Step::Pull { .. });
        prop_assert!(!world.steps[stop..].iter().any(starts), "{}", world.transcript);
        prop_assert_eq!(world.steps.iter().filter(|step| matches!(step, Step::TearDown)).count(), 1);
        prop_assert!(!world.seen.any_running());
        // An app is never started before every init container had run.
        let first_app = world.steps.iter().position(|step| matches!(step, Step::Start { container, .. } if world.pod.containers[*container].role == Role::App));
        if let Some(first_app) = first_app {
            for (index, _) in world.pod.containers.iter().enumerate().filter(|(_, container)| container.role != Role::App) {
                let began = world.steps.iter().position(|step| matches!(step, Step::Start { container, .. } if *container == index));
                prop_assert!(began.is_some_and(|began| began < first_app));
            }
        }
    }
}

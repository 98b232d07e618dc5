//! What only the leader does: it runs the controllers and the scheduler, level-triggered, until nothing is left to do.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::{Memory, ProposeError};
use coracle_controllers::nodehealth::Beat;
use coracle_controllers::{Controller, Ids};
use coracle_daemon::DrainWatch;
use coracle_store::{Expect, Key, Op, View};
use tokio::time::Instant;

use crate::backup;
use crate::cidr::Cidr;
use crate::memory::LogHandle;
use crate::now;
use crate::sessions::{BeatAge, Sessions};

/// A node that has missed so many beats is not ready.
const DEAD_AFTER_BEATS: u64 = 4;
/// Agents that all come at once, after the servers were away, come this far apart: a server shakes hands with about a thousand in a
/// second, and the last of thousands is not dead.
const APART: Duration = Duration::from_millis(1);
/// Controllers whose plan depends on the time are asked so often when nothing changes.
const TICK: Duration = Duration::from_secs(1);
/// And when a look takes long, only so much of the time: one in twenty at most.
const LOOK_SHARE: u32 = 20;
/// After a round the planners rest for as long as they planned, so that what changes meanwhile is looked at together; not when that
/// was next to nothing, and not for long.
const ROUND_IS_SHORT: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_millis(200);
/// A round that only made refused proposals is not repeated at once: the objects it fights over must change first.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);
/// And the longest pause while all is refused.
const LONGEST_REFUSAL: Duration = Duration::from_secs(2);

/// How long the nodes of a cluster that begins anew have to come, and to say what they run.
const HEAR_AT_MOST: Duration = Duration::from_secs(20);
const HEAR_EACH: Duration = Duration::from_secs(2);

/// Random names and uids for planners.
struct Random;

impl Ids for Random {
    fn uid(&mut self) -> String {
        now::uuid().to_string()
    }

    fn suffix(&mut self) -> String {
        let letters = b"bcdfghjklmnpqrstvwxz2456789";
        now::uuid().as_bytes()[..5].iter().map(|byte| char::from(letters[usize::from(*byte) % letters.len()])).collect()
    }
}

/// What controllers did so far, for metrics.
#[derive(Debug, Default)]
pub struct Work {
    /// Per controller: rounds, transactions proposed, refused, microseconds spent planning.
    pub by_name: std::sync::Mutex<BTreeMap<&'static str, [u64; 4]>>,
}

/// What a leader needs beside its memory.
pub(crate) struct Duties {
    pub log: LogHandle,
    pub sessions: Sessions,
    pub work: Arc<Work>,
    /// All services, and the port of the API of a server whose own is not known.
    pub services: Cidr,
    pub api_port: u16,
}

/// Leads whenever this server's log does, until the drain.
pub(crate) async fn run(duties: Duties, drain: DrainWatch) {
    let own = duties.log.raft().identity().node;
    let mut leader = duties.log.raft().leader_changes();
    loop {
        tokio::select! {
            // Cancel safe both.
            led = leader.wait_for(|leader| *leader == Some(own)) => if led.is_err() { return },
            () = drain.signaled() => return,
        }
        let mut lost = leader.clone();
        tokio::select! {
            // Not cancel safe, and need not be: what was proposed comes to something or not, and the next leader looks anew.
            () = lead(&duties, &drain) => {}
            lost = lost.wait_for(|leader| *leader != Some(own)) => if lost.is_err() { return },
        }
        duties.sessions.forget();
        if drain.is_signaled() {
            return;
        }
    }
}

/// One leadership. A new leader first sees everything that was acknowledged before.
async fn lead(duties: &Duties, drain: &DrainWatch) {
    duties.sessions.forget();
    // Everything below is decided in this term, and happens in it or not at all.
    let Some(term) = duties.log.raft().led_term() else { return tokio::time::sleep(AFTER_REFUSAL).await };
    while duties.log.raft().read_barrier().await.is_err() {
        tokio::select! {
            // Cancel safe both.
            () = tokio::time::sleep(AFTER_REFUSAL) => {}
            () = drain.signaled() => return,
        }
    }
    let memory = duties.log.led(term);
    if memory.view().find("configmaps", backup::NAMESPACE, backup::MARKER).is_some() {
        hear_the_nodes(&*memory, &duties.sessions, drain).await;
    }
    let (sessions, work) = (&duties.sessions, &duties.work);
    let mut changes = memory.changes();
    let mut unheard = Unheard { began: Instant::now(), nodes: BTreeMap::new() };
    let mut rests = Rests::default();
    let mut seen: Option<View> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut timed = true;
    let mut pause = AFTER_REFUSAL;
    // A leadership lost and won again is another one: what was seen and heard in the one before does not count.
    while duties.log.raft().led_term() == Some(term) {
        changes.borrow_and_update();
        if timed {
            keep_own_objects(&*memory, duties).await;
        }
        let done = round(&*memory, sessions, work, (&mut unheard, &mut rests), seen.as_ref(), timed).await;
        seen = done.view;
        if done.only_refused {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = drain.signaled() => return,
            }
            // A full disk refuses for hours.
            pause = (pause * 2).min(LONGEST_REFUSAL);
            // What was refused is planned again, whether or not anything else has changed.
            seen = None;
            timed = true;
            continue;
        }
        timed = false;
        pause = AFTER_REFUSAL;
        if done.planned > ROUND_IS_SHORT {
            tokio::select! {
                // Cancel safe both.
                () = tokio::time::sleep(done.planned.min(LONGEST_REST)) => {}
                () = drain.signaled() => return,
            }
        }
        tokio::select! {
            // Cancel safe all: a change stays marked as unseen, a tick comes again.
            changed = changes.changed() => if changed.is_err() { return },
            _ = tick.tick() => timed = true,
            () = drain.signaled() => return,
        }
    }
}

/// The first leadership of a cluster that begins anew from a backup or from what was left: its nodes may run what this state does
/// not know of. They are heard first, and only then is anything made or ended.
async fn hear_the_nodes(memory: &dyn Memory, sessions: &Sessions, drain: &DrainWatch) {
    tracing::info!("the cluster begins anew: its nodes are heard before anything is changed");
    let began = Instant::now();
    let mut all_since: Option<Instant> = None;
    while began.elapsed() < HEAR_AT_MOST {
        tokio::select! {
            // Cancel safe both.
            () = tokio::time::sleep(AFTER_REFUSAL) => {}
            () = drain.signaled() => return,
        }
        let (view, beats) = (memory.view(), sessions.beats());
        let away = |node: &str| !beats.get(node).is_some_and(|beat| beat.connected);
        if view.list("nodes", None).any(|node| away(&node.key.name)) {
            all_since = None;
        } else if all_since.get_or_insert_with(Instant::now).elapsed() > HEAR_EACH {
            break;
        }
    }
    let key = Key::new("configmaps", backup::NAMESPACE, backup::MARKER);
    let done = Op::Delete { key, expect: Expect::default() };
    // One that stays costs the next leader the same pause.
    let _ = memory.propose(done.into()).await;
}

/// The namespaces every cluster has, and the Service of its own API with all its servers.
async fn keep_own_objects(memory: &dyn Memory, duties: &Duties) {
    let members = duties.log.raft().members();
    let mut servers: Vec<(Ipv4Addr, u16)> = members
        .servers
        .values()
        .filter_map(|member| {
            let address: SocketAddr = member.address.parse().ok()?;
            let port = if member.api_port == 0 { duties.api_port } else { member.api_port };
            match address.ip() {
                IpAddr::V4(ip) => Some((ip, port)),
                IpAddr::V6(_) => None,
            }
        })
        .collect();
    servers.sort_unstable();
    if servers.is_empty() {
        return;
    }
    for outcome in memory.propose_many(crate::bootstrap::missing(&memory.view(), duties.services, &servers)).await {
        if let Err(error) = outcome {
            tracing::debug!(%error, "the cluster's own objects are looked at again");
        }
    }
}

/// How a round ended.
struct Round {
    /// What the controllers have seen.
    view: Option<View>,
    /// Proposals were made and every one was refused.
    only_refused: bool,
    /// How long was planned.
    planned: Duration,
}

async fn round(
    memory: &dyn Memory,
    sessions: &Sessions,
    work: &Work,
    (unheard, rests): (&mut Unheard, &mut Rests),
    seen: Option<&View>,
    timed: bool,
) -> Round {
    let first = memory.view();
    let changed = changed_resources(memory, seen, &first);
    let (mut made, mut refused, mut all_planned) = (0_usize, 0_usize, Duration::ZERO);
    let mut mark =
        |name: &'static str, planned: Duration, outcomes: &[Result<Vec<coracle_store::Outcome>, ProposeError>]| {
            let bad = outcomes.iter().filter(|outcome| outcome.is_err()).count();
            made += outcomes.len();
            refused += bad;
            all_planned += planned;
            for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
                match error {
                    ProposeError::Rejected { .. } => tracing::debug!(controller = name, %error, "a plan was overtaken"),
                    _ => tracing::warn!(controller = name, %error, "a plan could not be stored"),
                }
            }
            let mut all = work.by_name.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let entry = all.entry(name).or_default();
            entry[0] += 1;
            entry[1] += outcomes.len() as u64;
            entry[2] += bad as u64;
            entry[3] += u64::try_from(planned.as_micros()).unwrap_or(u64::MAX);
        };
    if timed {
        let started = Instant::now();
        let mut beats = unheard.beat_ages(&memory.view(), &sessions.beats(), Instant::now());
        // Silenced first, then asked when they were granted something last: nothing is granted to them in between.
        let dead_after_ms = DEAD_AFTER_BEATS * u64::from(sessions.beat_every());
        let granted = sessions.silence(coracle_controllers::nodehealth::silent(&beats, dead_after_ms));
        for (node, beat) in &mut beats {
            if let Some(granted) = granted.get(node) {
                beat.granted_ms = u64::try_from(granted.as_millis()).unwrap_or(u64::MAX);
            }
        }
        let plan = coracle_controllers::nodehealth::plan(&memory.view(), now::ms(), &beats, dead_after_ms);
        let planned = started.elapsed();
        let outcomes = if plan.is_empty() { Vec::new() } else { memory.propose_many(plan).await };
        mark("nodehealth", planned, &outcomes);
    }
    for controller in coracle_controllers::all() {
        let started = Instant::now();
        if !concerns(controller, changed.as_deref(), timed && rests.over(controller.name, started)) {
            continue;
        }
        // Each sees what the one before it did: a rollout goes from Deployment to bound pod in one round.
        let plan = (controller.plan)(&memory.view(), now::ms(), &mut Random);
        let planned = started.elapsed();
        rests.took(controller.name, started + planned, planned);
        let outcomes = if plan.is_empty() { Vec::new() } else { memory.propose_many(plan).await };
        mark(controller.name, planned, &outcomes);
    }
    // The view before the round: what the round itself changed is looked at in the next one.
    Round { view: Some(first), only_refused: made > 0 && made == refused, planned: all_planned }
}

/// The resources that changed since the last round; `None` when that cannot be told, which means all.
fn changed_resources(memory: &dyn Memory, seen: Option<&View>, now: &View) -> Option<Vec<String>> {
    let seen = seen?;
    if seen.epoch() != now.epoch() {
        return None;
    }
    let mut changed: Vec<String> =
        memory.events_after(seen.revision(), None)?.iter().map(|event| event.object.key.resource.to_string()).collect();
    changed.sort();
    changed.dedup();
    Some(changed)
}

/// Whether a controller must look: its input changed, or time is its input.
fn concerns(controller: &Controller, changed: Option<&[String]>, timed: bool) -> bool {
    if timed && controller.timed {
        return true;
    }
    let Some(changed) = changed else { return true };
    changed.iter().any(|resource| controller.reads.is_empty() || controller.reads.contains(&resource.as_str()))
}

/// Until when controllers are not asked only because time has passed: a plan over 100,000 pods takes a good part of a second, and
/// would take it every second while nothing happens.
#[derive(Default)]
struct Rests(HashMap<&'static str, Instant>);

impl Rests {
    fn over(&self, controller: &str, now: Instant) -> bool {
        self.0.get(controller).is_none_or(|until| *until <= now)
    }

    fn took(&mut self, controller: &'static str, now: Instant, planned: Duration) {
        self.0.insert(controller, now + planned * (LOOK_SHARE - 1));
    }
}

/// Nodes that have not beaten since this leadership began, and since when each is known.
struct Unheard {
    began: Instant,
    nodes: BTreeMap<Arc<str>, Instant>,
}

impl Unheard {
    /// How long each node has been silent. One never heard of is as old as this leadership, or as its object when that is younger: a
    /// new leader gives everybody a full period before it says anything, and a node that has just joined gets one too. When many are
    /// missing they have that much longer.
    fn beat_ages(&mut self, view: &View, beats: &HashMap<String, BeatAge>, now: Instant) -> BTreeMap<String, Beat> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let silent: Vec<Arc<str>> = view
            .list("nodes", None)
            .map(|node| node.key.name.clone())
            .filter(|node| !beats.contains_key(&**node))
            .collect();
        let longer = APART * u32::try_from(silent.len()).unwrap_or(u32::MAX);
        self.nodes = silent
            .into_iter()
            .map(|node| {
                let since = self.nodes.get(&node).copied().unwrap_or(now);
                (node, since)
            })
            .collect();
        let granted_ms = ms(now - self.began);
        let age = |node: &str| match beats.get(node) {
            Some(beat) => beat.age,
            None => (now - self.nodes.get(node).copied().unwrap_or(now)).saturating_sub(longer),
        };
        view.list("nodes", None)
            .map(|node| (node.key.name.to_string(), Beat { age_ms: ms(age(&node.key.name)), granted_ms }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_store::{Limits, Store};
    use serde_json::json;

    fn view(nodes: usize) -> View {
        let mut store = Store::new(Limits::default());
        for number in 0..nodes {
            let name = format!("n{number}");
            let value = Arc::new(json!({"metadata": {"name": name, "namespace": "", "uid": format!("u{number}")}}));
            let create = Op::Create { key: Key::new("nodes", "", name.as_str()), value, claims: Vec::new() };
            assert!(store.apply(&[create.into()])[0].is_ok());
        }
        store.view()
    }

    #[test]
    fn a_slow_planner_rests_and_a_quick_one_is_asked_every_second() {
        let (mut rests, now) = (Rests::default(), Instant::now());
        assert!(rests.over("slow", now));
        rests.took("slow", now, Duration::from_millis(300));
        rests.took("quick", now, Duration::from_millis(2));
        let at = |ms| now + Duration::from_millis(ms);
        assert!(!rests.over("slow", at(5_000)) && rests.over("slow", at(5_700)));
        assert!(rests.over("quick", at(1_000)));
        assert!(
            concerns(&coracle_controllers::all()[3], Some(&["pods".to_owned()]), false),
            "a change is always looked at"
        );
    }

    #[test]
    fn a_node_never_heard_of_is_as_old_as_what_is_known_of_it() {
        let began = Instant::now();
        let mut unheard = Unheard { began, nodes: BTreeMap::new() };
        let at = |seconds| began + Duration::from_secs(seconds);
        let heard = BeatAge { age: Duration::from_millis(300), connected: true };
        let beats = HashMap::from([("n0".to_owned(), heard)]);
        unheard.beat_ages(&view(2), &beats, at(0));
        let ages = unheard.beat_ages(&view(3), &beats, at(100));
        assert_eq!((ages["n0"].age_ms, ages["n0"].granted_ms), (300, 100_000));
        assert_eq!(ages["n1"].age_ms, 100_000 - 2, "since the beginning, less a moment for each that is missing");
        assert_eq!(ages["n2"].age_ms, 0, "it has just joined");
        assert_eq!(ages["n2"].granted_ms, 100_000, "what was granted before this leadership is not known");
        let ages = unheard.beat_ages(&view(3), &beats, at(104));
        assert_eq!(ages["n2"].age_ms, 4_000 - 2);
        // Thousands that come back one after the other are not dead.
        let mut unheard = Unheard { began, nodes: BTreeMap::new() };
        unheard.beat_ages(&view(9000), &HashMap::new(), at(0));
        let ages = unheard.beat_ages(&view(9000), &HashMap::new(), at(10));
        assert_eq!(ages["n8999"].age_ms, 1_000);
    }
}

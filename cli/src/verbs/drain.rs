//! `coracle drain`: empties a node, so that its machine can be stopped and what runs on it goes on elsewhere.
//!
//! A look at the node decides what may go now; the shell asks for it, waits a moment and looks again. Of one ReplicaSet one ready pod
//! goes at a time: the next only when as many are available as there were, so that a Deployment of several replicas keeps serving.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use coracle_manifests::kinds;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{controller, controller_uid, is_deleting, is_finished, is_true, list, text};
use http::Method;
use serde_json::{Value, json};

use super::cordon;
use crate::client::{Client, ClientError, JSON};
use crate::failure::Failure;
use crate::{output, resource};

/// Between looks at the node: at first, and at most.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_AT_MOST: Duration = Duration::from_millis(500);
/// What is waited for is told when nothing has happened for so long.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// Move the pods of a node elsewhere, and keep new ones away
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle drain m2\n  coracle drain m2 --timeout 15m --force\n\nCloses the node to new pods (`cordon`), then ends its pods, each within its own grace, and waits until they are gone and others are ready in their place. Of one ReplicaSet one ready pod goes at a time, so that a Deployment of two replicas or more keeps serving; one of a single replica is away until its new pod is ready. What a pod keeps in an emptyDir goes with it. Pods that have run to their end are removed. PodDisruptionBudgets are not supported in this release.\n\nA drain that is stopped or fails leaves the node closed: `coracle uncordon` opens it, another `coracle drain` goes on.\n\nExit codes: 0 empty, 1 failed or not empty in time, 2 wrong usage, 3 no such node, 4 refused: pods that nobody replaces"
)]
pub struct Drain {
    /// The node's name
    node: String,
    /// How long it may take: 90s, 5m, 1h
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = duration)]
    timeout: Duration,
    /// End pods without a controller too: nobody makes them anew
    #[arg(long)]
    force: bool,
    /// Leave pods of DaemonSets where they are: they belong to the node
    #[arg(long)]
    ignore_daemonsets: bool,
    /// `json`: what was ended and what was left, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// How to empty a node.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// For how long.
    pub timeout: Duration,
    /// Pods without a controller too.
    pub force: bool,
    /// Pods of DaemonSets stay and are no reason to refuse.
    pub ignore_daemonsets: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Drained {
    /// `namespace/name` of pods that were ended.
    pub ended: Vec<String>,
    /// Of those that stay, because they belong to the node.
    pub left: Vec<String>,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, drain: &Drain) -> Result<(), Failure> {
    let options = Options { timeout: drain.timeout, force: drain.force, ignore_daemonsets: drain.ignore_daemonsets };
    let drained = empty(client, &drain.node, options).await?;
    if drain.output == output::Format::Json {
        let value = json!({"node": drain.node, "drained": true, "ended": drained.ended, "left": drained.left});
        output::line(&output::json(&value));
    } else {
        output::line(&format!("node/{} drained", drain.node));
    }
    Ok(())
}

/// Closes a node and empties it.
///
/// # Errors
/// No such node (3); pods that nobody replaces, and nothing was changed (4); not empty in time, or the API refuses (1).
pub async fn empty(client: &Client, node: &str, options: Options) -> Result<Drained, Failure> {
    let _ = cordon::find(client, node).await?;
    let mut work = Work { client, node, options, owners: BTreeMap::new(), drained: Drained::default() };
    // Before anything is changed.
    let first = work.look().await?;
    refuse(node, &first)?;
    let changed = cordon::set(client, node, true).await?;
    output::note(&cordon::said(node, true, changed));
    work.finish().await
}

/// A time: a number and its unit.
///
/// # Errors
/// Anything else, in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "a time is a number and its unit: 90s, 5m, 1h".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let each: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(bad()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    count.checked_mul(each).filter(|seconds| *seconds <= 365 * 86_400).map(Duration::from_secs).ok_or_else(bad)
}

/// What makes new pods in place of those that go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Owner {
    /// `replicaset.apps/hello-x`
    shown: String,
    /// Of the object, and of the pods of its namespace.
    path: String,
    pods: String,
    /// Whether it is still there.
    there: bool,
    /// Replicas it should have.
    wanted: usize,
    /// Pods that serve now.
    serving: usize,
    /// The most that have served since the drain began.
    most: usize,
}

impl Owner {
    /// Whether as many pods serve as have before.
    fn is_whole(&self) -> bool {
        !self.there || self.serving >= self.most.min(self.wanted)
    }
}

/// What becomes of the pods of a node now.
#[derive(Debug, Default)]
struct Plan {
    /// To be ended at once: their objects.
    end: Vec<Value>,
    /// That wait for others of their owner, or for their own end: `namespace/name`.
    waiting: Vec<String>,
    /// That stay.
    left: Vec<String>,
    /// That may not be ended, with the reason.
    refused: Vec<String>,
}

/// Decides. `owners` are the pods' controllers, by uid.
fn plan(pods: &[Value], owners: &BTreeMap<String, Owner>, options: Options) -> Plan {
    let mut plan = Plan::default();
    let mut asked: Vec<&str> = Vec::new();
    for pod in pods {
        let name = name_of(pod);
        if is_deleting(pod) {
            plan.waiting.push(name);
            continue;
        }
        if is_finished(pod) {
            plan.end.push(pod.clone());
            continue;
        }
        let owner = controller(pod);
        if let Some(owner) = owner.filter(|owner| owner["kind"] == "DaemonSet") {
            if options.ignore_daemonsets {
                plan.left.push(name);
            } else {
                plan.refused.push(format!(
                    "pod {name} belongs to the DaemonSet {}: --ignore-daemonsets leaves it there",
                    text(&owner["name"])
                ));
            }
            continue;
        }
        match controller_uid(pod).and_then(|uid| owners.get_key_value(uid)).filter(|(_, owner)| owner.there) {
            Some((uid, owner)) => {
                let serves = is_true(pod, "Ready");
                if serves && (!owner.is_whole() || asked.contains(&uid.as_str())) {
                    plan.waiting.push(name);
                    continue;
                }
                if serves {
                    asked.push(uid);
                }
                plan.end.push(pod.clone());
            }
            None if options.force => plan.end.push(pod.clone()),
            None => plan.refused.push(match owner {
                Some(owner) => format!(
                    "pod {name}: its {} {} is gone, nobody makes it anew",
                    text(&owner["kind"]),
                    text(&owner["name"])
                ),
                None => format!("pod {name} has no controller: nobody makes it anew"),
            }),
        }
    }
    plan
}

fn refuse(node: &str, plan: &Plan) -> Result<(), Failure> {
    if plan.refused.is_empty() {
        return Ok(());
    }
    let words = format!(
        "node {node} cannot be drained:\n  {}\nhint: --force ends pods that nobody makes anew; or delete or move them first",
        plan.refused.join("\n  ")
    );
    Err(Failure { code: 4, message: words })
}

fn name_of(object: &Value) -> String {
    format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

/// One drain.
struct Work<'a> {
    client: &'a Client,
    node: &'a str,
    options: Options,
    /// By uid; those of all pods seen so far.
    owners: BTreeMap<String, Owner>,
    drained: Drained,
}

impl Work<'_> {
    async fn finish(mut self) -> Result<Drained, Failure> {
        let until = Instant::now() + self.options.timeout;
        let (mut pause, mut moved) = (LOOK, Instant::now());
        let mut going: Vec<String> = Vec::new();
        loop {
            let mut trouble = None;
            match self.look().await {
                Ok(plan) => {
                    refuse(self.node, &plan)?;
                    let present: Vec<String> =
                        plan.end.iter().map(name_of).chain(plan.waiting.iter().cloned()).collect();
                    let mut progress = !plan.end.is_empty();
                    going.retain(|name| {
                        let stays = present.contains(name);
                        if !stays {
                            output::note(&format!("pod {name} is gone"));
                            progress = true;
                        }
                        stays
                    });
                    for pod in &plan.end {
                        if let Err(failure) = self.end(pod, &mut going).await {
                            trouble = Some(failure);
                        }
                    }
                    self.drained.left = plan.left;
                    let missing = self.missing();
                    if present.is_empty() && missing.is_empty() {
                        return Ok(self.drained);
                    }
                    if progress {
                        (pause, moved) = (LOOK, Instant::now());
                    }
                    let words = waited_for(&plan.waiting, &missing);
                    if Instant::now() >= until {
                        return Err(late(self.node, &trouble.map_or(words, |failure: Failure| failure.message)));
                    }
                    if moved.elapsed() >= TELL_AFTER {
                        output::note(&format!("still waiting: {words}"));
                        moved = Instant::now();
                    }
                }
                // Another server may lead in a moment.
                Err(failure) if Instant::now() >= until => return Err(late(self.node, &failure.message)),
                Err(failure) if failure.code != 1 => return Err(failure),
                Err(_) => {}
            }
            tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(LOOK_AT_MOST);
        }
    }

    /// What is on the node, and what may go.
    async fn look(&mut self) -> Result<Plan, Failure> {
        let path = format!("/api/v1/pods?fieldSelector={}", resource::encode(&format!("spec.nodeName={}", self.node)));
        let pods = self.client.get(&path).await?;
        let pods = list(&pods["items"]);
        for pod in pods.iter().filter(|pod| !is_deleting(pod) && !is_finished(pod)) {
            let Some(reference) = controller(pod) else { continue };
            // One of a kind that this release does not have makes no pods.
            if let Some(owner) = owner_of(reference, text(&pod["metadata"]["namespace"])) {
                self.owners.entry(text(&reference["uid"]).to_owned()).or_insert(owner);
            }
        }
        for (uid, owner) in &mut self.owners {
            refresh(self.client, uid, owner).await?;
        }
        Ok(plan(pods, &self.owners, self.options))
    }

    /// Asks a pod to end, within its own grace.
    async fn end(&mut self, pod: &Value, going: &mut Vec<String>) -> Result<(), Failure> {
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let path = format!("/api/v1/namespaces/{}/pods/{}", resource::encode(namespace), resource::encode(name));
        // A pod of the same name that has been made since is another.
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": pod["metadata"]["uid"]},
        });
        match self.client.json(Method::DELETE, &path, JSON, Some((JSON, &options))).await {
            Ok(_) => {
                let name = name_of(pod);
                output::note(&format!("pod {name} is asked to end"));
                self.drained.ended.push(name.clone());
                going.push(name);
                Ok(())
            }
            // Somebody was faster: the next look shows it.
            Err(ClientError::Refused { code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Owners that do not have as many pods that serve as before, in words.
    fn missing(&self) -> Vec<String> {
        let short = |owner: &&Owner| !owner.is_whole();
        let words = |owner: &Owner| {
            format!("{} serves with {} of {} pods", owner.shown, owner.serving, owner.most.min(owner.wanted))
        };
        self.owners.values().filter(short).map(words).collect()
    }
}

/// The owner that a pod names, before anything is known of it; `None` when there is no such kind.
fn owner_of(reference: &Value, namespace: &str) -> Option<Owner> {
    let kind = kinds::by_name(text(&reference["apiVersion"]), text(&reference["kind"]))?;
    let name = text(&reference["name"]);
    Some(Owner {
        shown: format!("{} in {namespace}", resource::shown(kind, name)),
        path: resource::path(kind, Some(namespace), Some(name)),
        pods: format!("/api/v1/namespaces/{}/pods", resource::encode(namespace)),
        ..Owner::default()
    })
}

/// Looks how an owner does.
async fn refresh(client: &Client, uid: &str, owner: &mut Owner) -> Result<(), Failure> {
    let object = match client.get(&owner.path).await {
        Ok(object) => object,
        Err(error) if error.is_not_found() => Value::Null,
        Err(error) => return Err(error.into()),
    };
    owner.there = object["metadata"]["uid"] == uid && !is_deleting(&object);
    if !owner.there {
        return Ok(());
    }
    let selector = Labels::of_pods(&object).map(|labels| labels.to_string()).unwrap_or_default();
    let pods = client.get(&format!("{}?labelSelector={}", owner.pods, resource::encode(&selector))).await?;
    let serves = |pod: &&Value| controller_uid(pod) == Some(uid) && !is_deleting(pod) && is_true(pod, "Ready");
    let ready = list(&pods["items"]).iter().filter(serves).count();
    let number = |value: &Value, otherwise: u64| usize::try_from(value.as_u64().unwrap_or(otherwise)).unwrap_or(0);
    owner.wanted = number(&object["spec"]["replicas"], 1);
    // What is going is not counted in the one, pods of silent nodes and those that are ready too shortly not in the other.
    owner.serving = ready.min(number(&object["status"]["availableReplicas"], 0));
    owner.most = owner.most.max(owner.serving);
    Ok(())
}

/// What a drain waits for, in words.
fn waited_for(pods: &[String], owners: &[String]) -> String {
    let mut parts = Vec::new();
    match pods {
        [] => {}
        [one] => parts.push(format!("pod {one} is still there")),
        several => parts.push(format!("pods {} are still there", several.join(", "))),
    }
    parts.extend(owners.iter().cloned());
    if parts.is_empty() { "pods are being ended".to_owned() } else { parts.join("; ") }
}

fn late(node: &str, words: &str) -> Failure {
    Failure::failed(format!(
        "node {node} is not drained in time: {words}\nhint: `coracle describe pods -A` says what they wait for; the node stays closed, another `coracle drain {node}` goes on, `coracle uncordon {node}` opens it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Options = Options { timeout: Duration::ZERO, force: false, ignore_daemonsets: false };

    fn pod(name: &str, owner: Option<(&str, &str)>, ready: bool) -> Value {
        let owners: Vec<Value> = owner
            .map(|(kind, uid)| json!({"controller": true, "apiVersion": "apps/v1", "kind": kind, "name": uid, "uid": uid}))
            .into_iter()
            .collect();
        json!({
            "metadata": {"namespace": "a", "name": name, "ownerReferences": owners},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        })
    }

    fn owners(all: &[(&str, usize, usize)]) -> BTreeMap<String, Owner> {
        let of = |serving, most| Owner { there: true, wanted: 3, serving, most, ..Owner::default() };
        all.iter().map(|(uid, serving, most)| ((*uid).to_owned(), of(*serving, *most))).collect()
    }

    fn ended(plan: &Plan) -> Vec<String> {
        plan.end.iter().map(name_of).collect()
    }

    #[test]
    fn of_each_owner_one_ready_pod_goes_and_only_from_a_whole() {
        let set = |uid| Some(("ReplicaSet", uid));
        let pods =
            [pod("1", set("x"), true), pod("2", set("x"), true), pod("3", set("y"), true), pod("4", set("y"), false)];
        let all = plan(&pods, &owners(&[("x", 3, 3), ("y", 3, 3)]), PLAIN);
        assert_eq!(ended(&all), ["a/1", "a/3", "a/4"]);
        assert_eq!(all.waiting, ["a/2"]);
        // One of x is on its way: what does not serve goes all the same.
        let all = plan(&pods, &owners(&[("x", 2, 3), ("y", 1, 3)]), PLAIN);
        assert_eq!(ended(&all), ["a/4"]);
        // It never had more; it was scaled down meanwhile.
        assert_eq!(ended(&plan(&pods[..2], &owners(&[("x", 2, 2)]), PLAIN)), ["a/1"]);
        let mut scaled = owners(&[("x", 1, 3)]);
        scaled.get_mut("x").unwrap().wanted = 1;
        assert_eq!(ended(&plan(&pods[..2], &scaled, PLAIN)), ["a/1"]);
    }

    #[test]
    fn what_nobody_makes_anew_is_refused_by_name() {
        let mut done = pod("done", None, false);
        done["status"]["phase"] = json!("Succeeded");
        let mut going = pod("going", None, true);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let pods = [
            pod("bare", None, true),
            pod("lost", Some(("ReplicaSet", "gone")), true),
            pod("agent", Some(("DaemonSet", "d")), true),
            done,
            going,
        ];
        let all = plan(&pods, &BTreeMap::new(), PLAIN);
        assert_eq!((ended(&all), all.waiting.len(), all.refused.len()), (vec!["a/done".to_owned()], 1, 3));
        assert!(all.refused[0].contains("a/bare has no controller"), "{:?}", all.refused);
        assert!(all.refused[1].contains("its ReplicaSet gone is gone"), "{:?}", all.refused);
        assert!(all.refused[2].contains("DaemonSet d"), "{:?}", all.refused);
        assert_eq!(refuse("m1", &all).unwrap_err().code, 4);
        let all = plan(&pods, &BTreeMap::new(), Options { force: true, ignore_daemonsets: true, ..PLAIN });
        assert_eq!((ended(&all).len(), all.left, all.refused.len()), (3, vec!["a/agent".to_owned()], 0));
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "5", "m", "-1m", "1d", "5\u{b5}", "99999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}

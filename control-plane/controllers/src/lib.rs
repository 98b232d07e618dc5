//! What should exist next: one pure planner per controller, from a snapshot and a time to commands.
//!
//! Every planner is level-triggered: it looks at the whole snapshot, remembers nothing, and proposes nothing when all is as
//! it should be. So it may be called at any time, after any event or none, and a proposal that was refused is simply made
//! again from the next snapshot. Time passes in some of them (`minReadySeconds`, deadlines, the age of events): whoever runs
//! them calls once a second as well as after changes.
#![forbid(unsafe_code)]

pub mod balancer;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod events;
pub mod gc;
mod history;
pub mod namespace;
pub mod nodehealth;
mod objects;
pub mod podgc;
mod pods;
pub mod replicaset;
pub mod schedule;
pub mod statefulset;

use coracle_base::Millis;
use coracle_store::{Transaction, View};

/// Randomness, injected: planners invent nothing themselves.
pub trait Ids {
    /// A fresh uid (a version 4 UUID).
    fn uid(&mut self) -> String;
    /// Five letters or digits for the end of a generated name, from upstream's alphabet `bcdfghjklmnpqrstvwxz2456789`.
    fn suffix(&mut self) -> String;
}

/// A planner.
pub type PlanFn = fn(&View, Millis, &mut dyn Ids) -> Vec<Transaction>;

/// One entry of the table of controllers.
#[derive(Debug, Clone, Copy)]
pub struct Controller {
    /// Its name, for logs and metrics.
    pub name: &'static str,
    /// The resources it reads: a change of another one cannot change its plan. Empty: every resource.
    pub reads: &'static [&'static str],
    /// Whether its plan changes as time passes, without any change of an object.
    pub timed: bool,
    /// The planner.
    pub plan: PlanFn,
}

/// Every controller, in the order in which their plans should be made. `nodehealth` is not among them: it needs the ages of
/// the nodes' beats as well.
#[must_use]
pub fn all() -> &'static [Controller] {
    &[
        Controller { name: "namespace", reads: &[], timed: false, plan: namespace::plan },
        Controller { name: "gc", reads: &[], timed: false, plan: gc::plan },
        Controller {
            name: "deployment",
            reads: &["deployments.apps", "replicasets.apps", "pods", "nodes"],
            timed: true,
            plan: deployment::plan,
        },
        Controller {
            name: "replicaset",
            reads: &["replicasets.apps", "pods", "nodes"],
            timed: true,
            plan: replicaset::plan,
        },
        Controller {
            name: "replicationcontroller",
            reads: &["replicationcontrollers", "pods", "nodes"],
            timed: true,
            plan: replicaset::plan_controllers,
        },
        Controller {
            name: "statefulset",
            reads: &["statefulsets.apps", "controllerrevisions.apps", "pods", "nodes"],
            timed: true,
            plan: statefulset::plan,
        },
        Controller {
            name: "daemonset",
            reads: &["daemonsets.apps", "controllerrevisions.apps", "pods", "nodes"],
            timed: true,
            plan: daemonset::plan,
        },
        Controller { name: "schedule", reads: &["pods", "nodes"], timed: true, plan: schedule::plan },
        Controller {
            name: "endpoints",
            reads: &["services", "pods", "nodes", "endpointslices.discovery.k8s.io"],
            timed: false,
            plan: endpoints::plan,
        },
        Controller {
            name: "balancer",
            reads: &["services", "nodes", "endpointslices.discovery.k8s.io"],
            timed: false,
            plan: balancer::plan,
        },
        Controller { name: "podgc", reads: &["pods", "nodes"], timed: false, plan: podgc::plan },
        Controller { name: "events", reads: &["events"], timed: true, plan: events::plan },
    ]
}

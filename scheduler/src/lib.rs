//! Which node a pod runs on: a table of nodes as columns, filters, scores, a plan, and the words that explain it.
//!
//! Pure: nodes and pods go in, bindings and reasons come out. The same input always gives the same plan. Whoever applies
//! the plan checks it again against the state of that moment.
#![forbid(unsafe_code)]

mod affinity;
mod explain;
mod node;
mod plan;
mod request;
mod table;

pub use affinity::{Affinity, NodeTest, NodeWhat, Term};
pub use explain::Explain;
pub use node::{Effect, NodeState, Taint};
pub use plan::{Binding, Plan, Unschedulable, plan};
pub use request::{Amounts, HostPort, PodRequest, Toleration, TolerationOperator, tolerated};

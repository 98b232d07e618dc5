//! From the old revision of daemon pods to the new one: so many nodes without a pod, or so many with two, at a time
//! (upstream: `rollingUpdate` of `pkg/controller/daemon/update.go`).
//!
//! Only nodes that should have a pod count. Upstream also counts nodes that are lost, so that one of them holds a rollout for ever.

use std::sync::Arc;

use coracle_store::Object;
use serde_json::Value;

use super::site::Site;
use crate::pods::share;

/// How many nodes may be without a pod, or with two.
pub(super) struct Bounds {
    pub unavailable: i64,
    pub surge: i64,
}

impl Bounds {
    /// Both rounded up, and not both nothing.
    pub fn of(set: &Value, sites: &[Site<'_>]) -> Self {
        let desired = i64::try_from(sites.iter().filter(|site| site.runs).count()).unwrap_or(i64::MAX);
        let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
        let (unavailable, surge) =
            (share(&rolling["maxUnavailable"], desired, true), share(&rolling["maxSurge"], desired, true));
        if set["spec"]["updateStrategy"]["type"] == "OnDelete" {
            return Self { unavailable: 1, surge: 0 };
        }
        if unavailable == 0 && surge == 0 { Self { unavailable: 1, surge } } else { Self { unavailable, surge } }
    }
}

/// Nodes that get a second pod, and pods that go.
pub(super) fn plan<'s, 'a>(
    sites: &'s [Site<'a>],
    bounds: &Bounds,
    is_available: &dyn Fn(&Object) -> bool,
) -> (Vec<&'s Arc<str>>, Vec<&'a Arc<Object>>) {
    let sites = || sites.iter().filter(|site| site.runs);
    let settled = |site: &Site<'_>| site.new.len() <= 1 && site.old.len() <= 1;
    if bounds.surge > 0 {
        return (surge(sites(), bounds, &settled, is_available), Vec::new());
    }
    let mut free = bounds.unavailable;
    let (mut ending, mut candidates) = (Vec::new(), Vec::new());
    for site in sites() {
        match (site.new.first(), site.old.first()) {
            (Some(new), None) if settled(site) => free -= i64::from(!is_available(new)),
            (None, Some(old)) if settled(site) && is_available(old) => candidates.push(*old),
            // Missing already: it goes whatever the bound says.
            (None, Some(old)) if settled(site) => {
                free -= 1;
                ending.push(*old);
            }
            // None, or too many, which is seen to elsewhere.
            _ => free -= 1,
        }
    }
    let going = usize::try_from(free).unwrap_or(0);
    ending.extend(candidates.into_iter().take(going));
    (Vec::new(), ending)
}

/// Nodes that get a new pod beside their old one. The old one goes as surplus when the new one is available.
fn surge<'s, 'a: 's>(
    sites: impl Iterator<Item = &'s Site<'a>>,
    bounds: &Bounds,
    settled: &dyn Fn(&Site<'_>) -> bool,
    is_available: &dyn Fn(&Object) -> bool,
) -> Vec<&'s Arc<str>> {
    let mut free = bounds.surge;
    let (mut making, mut candidates) = (Vec::new(), Vec::new());
    for site in sites {
        match (site.new.first(), site.old.first()) {
            _ if !settled(site) => free -= 1,
            (None, Some(old)) if is_available(old) => candidates.push(&site.node),
            // Nothing is lost by it.
            (None, Some(_)) => making.push(&site.node),
            (Some(new), Some(_)) => free -= i64::from(!is_available(new)),
            (_, None) => {}
        }
    }
    let more = usize::try_from(free).unwrap_or(0);
    making.extend(candidates.into_iter().take(more));
    making
}

//! The files every container of the pod gets: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`. Undoing removes all the
//! pod's directories: it comes after everything that uses them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use coracle_lifecycle::pod::Pod;

use super::{Job, Made, PodStep, Stage, blocking};
use crate::facilities::{Doing, Failure};
use crate::pods::node::{HostResolver, remove_tree, write_whole};

pub(super) const STEP: PodStep = PodStep { name: "files", stage: Stage::Sandbox, make, undo };

const REASON: &str = "FailedCreatePodSandBox";

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move {
        let ip = job.ip.ok_or_else(|| Failure::retry(REASON, "the pod has no address yet"))?;
        let domain = job.node.domain();
        let host_hosts = if job.pod.host_network { std::fs::read_to_string("/etc/hosts").ok() } else { None };
        let files = [
            ("hosts", hosts(&job.pod, ip, &domain, host_hosts.as_deref())),
            ("resolv.conf", resolv_conf(&job.pod, job.node.network.nameserver(), &domain, &job.node.resolver)),
            ("hostname", format!("{}\n", job.pod.hostname)),
        ];
        let etc = job.node.paths.etc(&job.pod.uid);
        blocking(
            move || {
                for (name, text) in files {
                    let path = etc.join(name);
                    write_whole(&path, text.as_bytes(), 0o644)
                        .map_err(|error| Failure::retry(REASON, format!("cannot write {}: {error}", path.display())))?;
                }
                Ok(Made::Nothing)
            },
            REASON,
        )
        .await
    })
}

fn undo(job: &Job) -> Doing<'_, Result<(), Failure>> {
    Box::pin(async move {
        let dir = job.node.paths.pod_data(&job.pod.uid);
        let work = move || {
            remove_tree(&dir)
                .map_err(|error| Failure::retry(REASON, format!("cannot remove {}: {error}", dir.display())))
        };
        blocking(work, REASON).await
    })
}

/// `/etc/hosts`. A pod in the node's network gets the node's.
fn hosts(pod: &Pod, ip: Ipv4Addr, domain: &str, host: Option<&str>) -> String {
    let mut text = match host {
        Some(host) => format!("# The node's own hosts file.\n{host}"),
        None => {
            let mut text = String::from(
                "# Written by the node.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let name = &pod.hostname;
            let _ = if pod.subdomain.is_empty() {
                writeln!(text, "{ip}\t{name}")
            } else {
                writeln!(text, "{ip}\t{name}.{}.{}.svc.{domain}\t{name}", pod.subdomain, pod.namespace)
            };
            text
        }
    };
    if !pod.host_aliases.is_empty() {
        text.push_str("\n# Entries of hostAliases.\n");
        for (address, names) in &pod.host_aliases {
            let _ = writeln!(text, "{address}\t{}", names.join("\t"));
        }
    }
    text
}

/// Upstream's limit of search domains.
const SEARCHES: usize = 32;

/// `/etc/resolv.conf`, by the pod's DNS policy.
fn resolv_conf(pod: &Pod, nameserver: Option<Ipv4Addr>, domain: &str, host: &HostResolver) -> String {
    let cluster = match pod.dns_policy.as_str() {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network,
        _ => false,
    };
    let (mut servers, mut searches, options) = match (pod.dns_policy.as_str(), cluster, nameserver) {
        ("None", ..) => (Vec::new(), Vec::new(), Vec::new()),
        (_, true, Some(server)) => {
            let mut searches =
                vec![format!("{}.svc.{domain}", pod.namespace), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(host.searches.iter().cloned());
            (vec![server.to_string()], searches, vec!["ndots:5".to_owned()])
        }
        _ => (host.nameservers.clone(), host.searches.clone(), host.options.clone()),
    };
    let strings = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(ToOwned::to_owned)).collect()
    };
    servers.extend(strings(&pod.dns_config["nameservers"]));
    searches.extend(strings(&pod.dns_config["searches"]));
    // The pod's word on an option wins over the policy's.
    let mut merged: BTreeMap<String, String> = BTreeMap::new();
    for option in options {
        let (name, value) = option.split_once(':').unwrap_or((&option, ""));
        merged.insert(name.to_owned(), value.to_owned());
    }
    for option in pod.dns_config["options"].as_array().into_iter().flatten() {
        let name = option["name"].as_str().unwrap_or_default();
        merged.insert(name.to_owned(), option["value"].as_str().unwrap_or_default().to_owned());
    }
    dedup(&mut servers);
    dedup(&mut searches);
    searches.truncate(SEARCHES);
    let mut text = String::new();
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !merged.is_empty() {
        let words: Vec<String> = merged
            .into_iter()
            .map(|(name, value)| if value.is_empty() { name } else { format!("{name}:{value}") })
            .collect();
        let _ = writeln!(text, "options {}", words.join(" "));
    }
    text
}

fn dedup(words: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    words.retain(|word| seen.insert(word.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(mut spec: Value) -> Pod {
        spec["containers"] = json!([{"name": "c"}]);
        Pod::parse(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn hosts_files() {
        let ip = Ipv4Addr::new(10, 42, 0, 5);
        let plain = hosts(&pod(json!({})), ip, "cluster.local", None);
        assert!(plain.contains("127.0.0.1\tlocalhost\n") && plain.ends_with("10.42.0.5\tp\n"), "{plain}");
        let named = hosts(
            &pod(
                json!({"subdomain": "s", "hostname": "h", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}),
            ),
            ip,
            "x.y",
            None,
        );
        assert!(named.contains("10.42.0.5\th.s.n.svc.x.y\th\n") && named.ends_with("192.0.2.9\ta\tb\n"), "{named}");
    }

    #[test]
    fn resolver_files() {
        let host = HostResolver {
            nameservers: vec!["192.0.2.1".into()],
            searches: vec!["lan".into()],
            options: vec!["rotate".into()],
        };
        let gateway = Some(Ipv4Addr::new(10, 42, 0, 1));
        let text = |spec: Value| resolv_conf(&pod(spec), gateway, "cluster.local", &host);
        let cluster =
            "search n.svc.cluster.local svc.cluster.local cluster.local lan\nnameserver 10.42.0.1\noptions ndots:5\n";
        assert_eq!(text(json!({})), cluster);
        assert_eq!(text(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), cluster);
        let default = "search lan\nnameserver 192.0.2.1\noptions rotate\n";
        assert_eq!(text(json!({"dnsPolicy": "Default"})), default);
        assert_eq!(text(json!({"hostNetwork": true})), default);
        let config = json!({"nameservers": ["198.51.100.1"], "searches": ["my.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        assert_eq!(
            text(json!({"dnsPolicy": "None", "dnsConfig": config})),
            "search my.example\nnameserver 198.51.100.1\noptions edns0 ndots:2\n"
        );
        assert!(
            text(json!({"dnsConfig": config}))
                .ends_with("nameserver 10.42.0.1\nnameserver 198.51.100.1\noptions edns0 ndots:2\n")
        );
    }
}

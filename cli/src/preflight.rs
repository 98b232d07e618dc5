//! What `coracle up` looks at before it makes anything: the machine's abilities, the data folder's owner, the ports.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use coracle_control_plane::server;
use coracle_daemon::ports::{Transport, holder};
use coracle_node_agent::preflight::{Finding, missing};

use crate::failure::Failure;

/// A place to listen: who does, and the flag that names another.
pub type Listener = (SocketAddr, &'static str, &'static str);

/// Only root may do what this program does to a machine.
///
/// # Errors
/// It is somebody else.
pub fn root(instead: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::failed(format!("coracle needs root: it makes namespaces, mounts and network links\nhint: {instead}")))
}

/// Everything that stands in the way, all at once.
///
/// # Errors
/// Something does.
pub fn check(data_dir: &Path, cgroup_name: &str, bridge: &str, listeners: &[Listener]) -> Result<(), Failure> {
    let findings = missing(cgroup_name, bridge);
    if !findings.is_empty() {
        return Err(failure("this machine cannot run pods", &findings));
    }
    // Before the ports: of a cluster that runs already these are taken too, and it is not the ports that are in the way.
    server::check_unused(data_dir).map_err(|error| Failure::from_error(&error))?;
    let findings = ports(listeners);
    if !findings.is_empty() {
        return Err(failure("not all ports can be had", &findings));
    }
    Ok(())
}

fn failure(summary: &str, findings: &[Finding]) -> Failure {
    let words = |finding: &Finding| format!("{}\nhint: {}", finding.problem, finding.hint);
    match findings {
        [one] => Failure::failed(words(one)),
        several => {
            let list: Vec<String> = several.iter().map(words).collect();
            Failure::failed(format!("{summary}:\n{}", list.join("\n")))
        }
    }
}

fn ports(listeners: &[Listener]) -> Vec<Finding> {
    // Kept to the end, so that two flags with one address are found as well.
    let mut held = Vec::new();
    let mut findings = Vec::new();
    for (address, what, flag) in listeners {
        let error = match TcpListener::bind(address) {
            Ok(listener) => {
                held.push(listener);
                continue;
            }
            Err(error) => error,
        };
        let port = address.port();
        let own = held.iter().filter_map(|held| held.local_addr().ok()).any(|other| other.port() == port);
        findings.push(match error.kind() {
            ErrorKind::AddrInUse if own => Finding {
                problem: format!("port {port} is given twice: {what} cannot listen on {address} too"),
                hint: format!("choose another port with {flag}"),
            },
            ErrorKind::AddrInUse => Finding {
                problem: format!(
                    "port {port} is taken by {}: {what} cannot listen on {address}",
                    holder(Transport::Tcp, port).unwrap_or_else(|| "another program".to_owned())
                ),
                hint: format!("stop that program, or choose another port with {flag}"),
            },
            _ => Finding {
                problem: format!("{what} cannot listen on {address}: {error}"),
                hint: format!("choose an address of this machine with {flag}"),
            },
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_that_cannot_be_had_is_told() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let findings = ports(&[
            (taken, "the API", "--api-listen"),
            (free, "the agents' port", "--peer-listen"),
            (free, "the status page", "--status-listen"),
            ("192.0.2.1:80".parse().unwrap(), "x", "--x"),
        ]);
        let told: Vec<&str> = findings.iter().map(|finding| finding.problem.as_str()).collect();
        let us = format!("port {} is taken by process {} (", taken.port(), std::process::id());
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with(&us), "{told:?}");
        assert!(told[1].contains("is given twice") && findings[1].hint.contains("--status-listen"), "{findings:?}");
        assert!(told[2].starts_with("x cannot listen on 192.0.2.1:80: "), "{told:?}");
    }
}

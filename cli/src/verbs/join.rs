//! `coracle join`: this machine becomes part of a cluster: a node, or a node and a server.

use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use coracle_base::level;
use coracle_control_plane::join::{JoinRequest, Joined, Token, pin};
use coracle_control_plane::pki::{self, write};
use coracle_control_plane::server::JoinedCluster;
use coracle_control_plane::sessions::NetworkPlan;
use coracle_daemon::{Drain, Drained};
use coracle_node_agent::{Agent, Identity, ServerEndpoint};
use http::Method;

use super::up::{self, MachineArgs, Stop};
use crate::client::{Client, JSON};
use crate::config::Membership;
use crate::failure::Failure;
use crate::output;

/// Make this machine part of a cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle join https://10.0.0.1:6443 --token coracle-node-...\n  coracle join https://10.0.0.1:6443 --token coracle-server-... --server\n\nThe token comes from `coracle token create` on a server (`--server` for another server). It says by itself whom to trust.\nOnce joined, the machine goes on with `coracle join` or `coracle up` without a token.\n\nExit codes: 0 stopped as asked, 1 could not join, start or failed, 2 wrong usage"
)]
pub struct Join {
    /// The API of a server of the cluster
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// What lets this machine in
    #[arg(long, env = "CORACLE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Become a server too: at first it only learns, then it may vote
    #[arg(long)]
    server: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// How long a session's tasks get to end.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Runs the verb until it is told to stop.
///
/// # Errors
/// The cluster does not let this machine in, or something could not be started; in words.
pub async fn run(data_dir: &Path, join: &Join) -> Result<(), Failure> {
    up::begin("sudo coracle join ...")?;
    let mut stop = Stop::listen().map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    let joined = match Membership::load(data_dir)? {
        Some(joined) => {
            if join.server && !joined.server {
                return Err(Failure::usage(
                    "this machine is a node of the cluster, not a server\nhint: `coracle leave` first, then join it as a server with an empty data folder",
                ));
            }
            joined
        }
        None => ask(data_dir, join).await?,
    };
    go_on(data_dir, &join.machine, joined, &mut stop).await
}

/// Runs a machine that has joined.
///
/// # Errors
/// What could not be started, in words.
pub async fn go_on(data_dir: &Path, machine: &MachineArgs, joined: Membership, stop: &mut Stop) -> Result<(), Failure> {
    up::check(data_dir, machine, joined.server)?;
    let cidr = |text: &str| text.parse().map_err(|_| Failure::failed(format!("`{text}` is no block of addresses")));
    let network = NetworkPlan {
        cluster_cidr: cidr(&joined.cluster_cidr)?,
        service_cidr: cidr(&joined.service_cidr)?,
        node_prefix: joined.node_prefix,
        domain: joined.domain.clone(),
    };
    if joined.server {
        let cluster = JoinedCluster { cluster: joined.cluster, servers: joined.servers };
        return up::serve(data_dir, machine, network, Some(cluster), stop).await;
    }
    let settings = up::settings(data_dir, machine, &network)?;
    let pki = settings.data_dir.join("pki");
    let read = |name: &str| {
        std::fs::read_to_string(pki.join(name))
            .map_err(|error| Failure::failed(format!("cannot read {}: {error}", pki.join(name).display())))
    };
    let identity = Identity { cert_pem: read("node.crt")?, key_pem: read("node.key")?, ca_pem: read("ca.crt")? };
    up::save(&settings)?;
    let servers = joined.servers.into_iter().map(|address| ServerEndpoint { address }).collect();
    let drain = Drain::new();
    let started = Agent::start(up::agent_config(&settings, servers, identity), drain.watch());
    let agent = tokio::select! {
        // Not cancel safe, and need not be: the next start takes over what there is.
        agent = started => agent,
        () = stop.asked() => {
            drain.finish(DRAIN).await;
            output::note("stopped before everything was up");
            return Ok(());
        }
    };
    let shown = match agent {
        Ok(agent) => crate::statuspage::start_node(&settings, &agent, drain.watch()).await,
        Err(error) => Err(Failure::from_error(&error)),
    };
    if let Err(failure) = shown {
        drain.finish(DRAIN).await;
        return Err(failure);
    }
    output::line(&format!("status:     http://{}/", settings.status_listen));
    output::line("ready");
    stop.asked().await;
    tracing::info!("stopping; the pods run on");
    if let Drained::Late(tasks) = drain.finish(DRAIN).await {
        tracing::warn!(tasks, "stopped without waiting for some tasks");
    }
    Ok(())
}

/// Asks the cluster to be let in, and writes down what it says.
async fn ask(data_dir: &Path, join: &Join) -> Result<Membership, Failure> {
    let (Some(url), Some(text)) = (&join.url, &join.token) else {
        return Err(Failure::usage(
            "say which cluster, and show a token: `coracle join https://SERVER:6443 --token TOKEN`\nhint: `coracle token create` on a server prints the whole command",
        ));
    };
    if data_dir.join("log").join("identity").exists() {
        return Err(Failure::failed(format!(
            "{} holds a cluster of its own: `coracle up` was run with it\nhint: to give that cluster up, stop it with `coracle down` and remove the folder; or join with another --data-dir",
            data_dir.display()
        )));
    }
    let token = Token::parse(text)
        .ok_or_else(|| Failure::usage("that is not a token\nhint: it looks like coracle-node-ID-SECRET-PIN"))?;
    if join.server && !token.server {
        return Err(Failure::usage(
            "this token lets nodes in, not servers\nhint: make one with `coracle token create --server`",
        ));
    }
    let node = up::node_name(&join.machine)?;
    let address = join.machine.node_ip.unwrap_or_else(up::own_address);
    if address.is_loopback() {
        return Err(Failure::usage(
            "this machine has no address that others could reach it at\nhint: give one with --node-ip",
        ));
    }
    // Whoever answers is believed nothing but this, and this only if its hash is in the token.
    let authority = Client::stranger(url)?.text("/coracle.dev/v1/authority").await?;
    if pin(&authority) != token.pin {
        return Err(Failure::failed(format!(
            "{url} is not the cluster of this token: its authority is another one\nhint: check the address; if it is right, somebody may be between this machine and the server"
        )));
    }
    let user = format!("system:node:{node}");
    let (request, key) = pki::request(&user).map_err(|error| Failure::from_error(&error))?;
    let asked = JoinRequest {
        token: token.text(),
        node,
        address: IpAddr::V4(address),
        server: join.server,
        request,
        level: level::LEVEL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let body = serde_json::to_value(&asked).map_err(|error| Failure::failed(error.to_string()))?;
    let answer =
        Client::guest(url, &authority)?.json(Method::POST, "/coracle.dev/v1/join", JSON, Some((JSON, &body))).await?;
    let joined: Joined = serde_json::from_value(answer)
        .map_err(|error| Failure::failed(format!("the answer of {url} cannot be read: {error}")))?;
    if let Some(reason) = joined.refusal() {
        return Err(Failure::failed(format!("{url} is not joined: {reason}")));
    }
    let bad = |error: pki::PkiError| Failure::from_error(&error);
    let folder = data_dir.join("pki");
    if let Some(ca_key) = &joined.ca_key {
        pki::adopt(&folder, &joined.ca, ca_key).map_err(bad)?;
    } else {
        pki::make_dir(&folder).map_err(bad)?;
        write(&folder.join("ca.crt"), &joined.ca).map_err(bad)?;
        write(&folder.join("node.key"), &key).map_err(bad)?;
        write(&folder.join("node.crt"), &joined.certificate).map_err(bad)?;
    }
    let membership = Membership {
        server: join.server,
        cluster: joined.cluster,
        servers: joined.servers,
        cluster_cidr: joined.cluster_cidr,
        service_cidr: joined.service_cidr,
        domain: joined.domain,
        node_prefix: joined.node_prefix,
    };
    // Last: with this file the machine has joined.
    membership.save(data_dir)?;
    Ok(membership)
}

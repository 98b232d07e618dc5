//! `coracle leave`: this machine belongs to the cluster no more. Or, from a living machine, a server that is dead does not.
//!
//! What concerns the others comes first and may fail without harm: pods move, the server goes out of the cluster's servers. Then the
//! machine stops, its Node is deleted through another server, and last the files go that make it a member.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use coracle_control_plane::kubeconfig;
use coracle_control_plane::pki::{self, Credential};
use coracle_control_plane::server;
use coracle_manifests::view::{is_true, list, text};
use http::Method;
use serde_json::{Value, json};

use super::{cordon, down, drain};
use crate::Access;
use crate::client::{Client, ClientError, JSON};
use crate::config::{Membership, Settings};
use crate::failure::Failure;
use crate::{output, preflight};

/// Where the cluster's servers are listed, and taken out below.
const SERVERS: &str = "/coracle.dev/v1/servers";
/// How long one server gets to answer: a question, and a change of the cluster's servers.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const REMOVE_WITHIN: Duration = Duration::from_secs(20);
/// How long is tried when nobody answers: an election, and some.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(300);
/// The port of an API unless somebody chose another.
const API_PORT: u16 = 6443;
/// What makes a machine a member, in the order it goes; images and logs stay.
const MEMBER_FILES: [&str; 6] = ["ledger.redb", "admin.kubeconfig", "log", "pki", "cluster.json", "up.json"];

/// Take this machine out of the cluster, or a dead server
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle leave\n  coracle leave --timeout 10m\n  coracle leave --kubeconfig admin.kubeconfig\n  coracle leave --server m3\n\nMoves the pods of this machine elsewhere (`coracle drain --force`; what does not move in time is ended), takes its server out of the cluster's servers, stops it as `coracle down` does, deletes its Node, and removes what makes it a member: keys, log, kubeconfig. Images stay. Afterwards `coracle join` takes it into a cluster anew.\n\nA machine that is a node only has no administrator's kubeconfig. It closes itself, ends its pods and deletes its own Node, but cannot move pods first: run `coracle drain NODE` elsewhere before, or give it a kubeconfig with --kubeconfig.\n\nA dead machine that was a node only goes with `coracle delete node NAME`, a dead server with `coracle leave --server NAME` on any living one. Should it come back, run `coracle leave --api https://HOST:6443` there, with the address of a living server, before it joins again.\n\nExit codes: 0 left, 1 failed, 2 wrong usage, 3 no such server, 4 refused: the server or its node lives"
)]
pub struct Leave {
    /// Not this machine, but the dead server of this name, with its Node
    #[arg(long, value_name = "NAME", conflicts_with_all = ["no_drain", "timeout", "grace", "api", "force"])]
    server: Option<String>,
    /// Do not move pods elsewhere first
    #[arg(long)]
    no_drain: bool,
    /// How long the pods get to move elsewhere: 90s, 5m, 1h
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = drain::duration)]
    timeout: Duration,
    /// Seconds that pods which are left get to end by themselves
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    grace: u64,
    /// An API of the cluster [default: this machine's own, then those of the servers it joined]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// Of a node that is no server: go on when the cluster cannot be asked; what it knows of this machine stays there
    #[arg(long)]
    force: bool,
    /// `json`: what was done, as an object
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(access: &Access, leave: &Leave) -> Result<(), Failure> {
    match &leave.server {
        Some(name) => dead_server(&access.client()?, name, leave.output).await,
        None => this_machine(access, leave).await,
    }
}

async fn this_machine(access: &Access, leave: &Leave) -> Result<(), Failure> {
    let data_dir = access.data_dir.as_path();
    let (settings, joined) = (Settings::load(data_dir)?, Membership::load(data_dir)?);
    let own = own_server(data_dir);
    if joined.is_none() && own.is_none() {
        output::note("this machine belongs to no cluster");
        return Ok(());
    }
    preflight::root("sudo coracle leave")?;
    let Some(settings) = settings else {
        // It was let in, and never started.
        forget(data_dir)?;
        output::line("this machine has left the cluster; it had not started yet");
        return Ok(());
    };
    let way = Way::of(access, data_dir);
    let cluster = match reach(&way, leave, &settings, joined.as_ref()).await {
        Ok(cluster) => Some(cluster),
        Err(failure) if !leave.force => return Err(failure),
        // Of a cluster that has lost most of its servers this may be the last copy.
        Err(_) if own.is_some() => {
            return Err(Failure::failed(format!(
                "no server of the cluster answers: what the cluster knows may be nowhere but in {}, and a server leaves only with the others' consent\nhint: name a living server with --api https://HOST:6443; who gives the cluster up runs `coracle down` and removes the folder",
                data_dir.display()
            )));
        }
        Err(failure) => {
            output::warn(&format!("the cluster is not told: {}", failure.message));
            None
        }
    };
    let mut drained = false;
    let mut others = Vec::new();
    if let Some(cluster) = &cluster {
        let me = cluster.own(own.as_deref(), &settings.node_name);
        check_others_vote(cluster, me.as_deref())?;
        drained = make_room(cluster, leave, &settings.node_name).await;
        others = cluster.others(&way, me.as_deref())?;
        if let Some(id) = &me {
            remove(cluster, &way, id).await.map_err(|failure| Failure {
                message: format!(
                    "{}\nhint: nothing was stopped; `coracle uncordon {}` opens the node again",
                    failure.message, settings.node_name
                ),
                ..failure
            })?;
        }
    }
    let left = down::stop(&settings, Duration::from_secs(leave.grace)).await?;
    let deleted = match &cluster {
        Some(_) => delete_node(&others, &settings.node_name).await?,
        None => false,
    };
    if !left.is_empty() {
        return Err(Failure::failed(format!(
            "the cluster has let this machine go, but some things could not be removed from it:\n  {}\nhint: `coracle leave` tries again",
            left.join("\n  ")
        )));
    }
    server::check_unused(data_dir).map_err(|error| Failure::from_error(&error))?;
    forget(data_dir)?;
    if leave.output == output::Format::Json {
        let value = json!({
            "node": settings.node_name, "server": own.is_some(), "drained": drained, "nodeDeleted": deleted,
        });
        output::line(&output::json(&value));
    } else {
        output::line(&format!("{} has left the cluster", settings.node_name));
        if cluster.is_none() {
            output::note(&format!(
                "the cluster does not know: an administrator runs `coracle delete node {}` there",
                settings.node_name
            ));
        }
    }
    Ok(())
}

/// The number of this machine's server, when it has one.
fn own_server(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("log").join("identity")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("server ")).map(|id| id.trim().to_owned())
}

/// As whom this machine speaks to the cluster.
enum Way {
    /// An administrator, with this kubeconfig.
    Admin { kubeconfig: PathBuf, folder: PathBuf },
    /// The node itself, with the keys in this folder.
    Node { folder: PathBuf },
}

impl Way {
    fn of(access: &Access, data_dir: &Path) -> Self {
        let folder = data_dir.join("pki");
        let own = data_dir.join("admin.kubeconfig");
        match &access.kubeconfig {
            Some(given) => Self::Admin { kubeconfig: given.clone(), folder },
            None if own.exists() => Self::Admin { kubeconfig: own, folder },
            None => Self::Node { folder },
        }
    }

    /// A client of the API at an address; `None`: where the kubeconfig says.
    fn client(&self, url: Option<&str>) -> Result<Client, Failure> {
        let (folder, text) = match (self, url) {
            (Self::Admin { kubeconfig, .. }, None) => return Ok(Client::open(kubeconfig)?),
            (Self::Admin { kubeconfig, folder }, Some(url)) => {
                let documents = coracle_manifests::decode::yaml(&read(kubeconfig)?);
                let mut config = documents
                    .ok()
                    .and_then(|documents| documents.into_iter().next())
                    .map(|document| document.value)
                    .ok_or_else(|| Failure::failed(format!("{} is no kubeconfig", kubeconfig.display())))?;
                for cluster in config["clusters"].as_array_mut().into_iter().flatten() {
                    cluster["cluster"]["server"] = json!(url);
                }
                (folder, output::yaml(&config))
            }
            (Self::Node { folder }, url) => {
                let credential =
                    Credential { cert_pem: read(&folder.join("node.crt"))?, key_pem: read(&folder.join("node.key"))? };
                let url = url.unwrap_or_default();
                (folder, kubeconfig::render(url, &read(&folder.join("ca.crt"))?, &credential))
            }
        };
        // A client is made from a file: this one lies beside the keys that are in it, for a moment.
        let file = folder.join("leave.kubeconfig");
        pki::write(&file, &text).map_err(|error| Failure::from_error(&error))?;
        let client = Client::open(&file);
        let _ = std::fs::remove_file(&file);
        Ok(client?)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))
}

/// The cluster, through an API that answers.
struct Cluster {
    api: Client,
    /// Other addresses of APIs, which may answer or not.
    addresses: Vec<String>,
    /// Its servers, as `/coracle.dev/v1/servers` gives them; `None` when only administrators may see them and this is none.
    servers: Option<Vec<Value>>,
}

/// Finds an API that answers. A node that is no administrator closes itself in passing: there is nothing else it may ask.
async fn reach(way: &Way, leave: &Leave, settings: &Settings, joined: Option<&Membership>) -> Result<Cluster, Failure> {
    let addresses = addresses(leave.api.as_deref(), settings, joined);
    let mut tries: Vec<Option<&str>> = addresses.iter().map(|address| Some(address.as_str())).collect();
    if leave.api.is_none() && matches!(way, Way::Admin { .. }) {
        tries.insert(0, None);
    }
    let mut last = Failure::failed("no server of the cluster is known");
    for url in tries {
        let api = match way.client(url) {
            Ok(api) => api,
            Err(failure) => {
                last = failure;
                continue;
            }
        };
        let answer = match way {
            Way::Admin { .. } => ask(&api, Method::GET, SERVERS, None, ANSWER_WITHIN).await,
            Way::Node { .. } => {
                let body = ("application/merge-patch+json", cordon::patch(true));
                ask(&api, Method::PATCH, &cordon::path(&settings.node_name), Some(body), ANSWER_WITHIN).await
            }
        };
        match answer {
            Ok(answer) => {
                let servers = match way {
                    Way::Admin { .. } => Some(list(&answer.unwrap_or_default()["servers"]).to_vec()),
                    Way::Node { .. } => None,
                };
                return Ok(Cluster { api, addresses, servers });
            }
            Err(Unanswered::Nobody(failure) | Unanswered::Refused(failure)) => last = failure,
        }
    }
    Err(Failure {
        message: format!(
            "{}\nhint: nothing was changed; name a living server with --api https://HOST:6443; a node that is no server may go without telling anybody: --force",
            without_hint(&last.message)
        ),
        ..last
    })
}

/// What went wrong, without what would help another verb.
fn without_hint(message: &str) -> &str {
    message.split("\nhint: ").next().unwrap_or(message)
}

/// Where APIs may be: as told, or on the servers that were there when this machine joined.
fn addresses(told: Option<&str>, settings: &Settings, joined: Option<&Membership>) -> Vec<String> {
    if let Some(told) = told {
        return vec![told.to_owned()];
    }
    let mut found = Vec::new();
    for server in joined.into_iter().flat_map(|joined| &joined.servers) {
        let Ok(address) = server.parse::<std::net::SocketAddr>() else { continue };
        // The servers most likely use the ports that this machine was told.
        for port in [settings.api_listen.port(), API_PORT] {
            let url = format!("https://{}", std::net::SocketAddr::new(address.ip(), port));
            if !found.contains(&url) {
                found.push(url);
            }
        }
    }
    found
}

impl Cluster {
    /// The number of this machine's server, as long as it belongs to the cluster.
    fn own(&self, id: Option<&str>, name: &str) -> Option<String> {
        let servers = self.servers.as_deref()?;
        let own = servers.iter().find(|server| id.is_some_and(|id| server["id"] == id) && server["name"] == name)?;
        Some(text(&own["id"]).to_owned())
    }

    /// Clients for when this machine's own server is gone, the leader's first.
    fn others(&self, way: &Way, own: Option<&str>) -> Result<Vec<Client>, Failure> {
        let mut servers: Vec<&Value> = self.servers.iter().flatten().collect();
        servers.retain(|server| own != Some(text(&server["id"])) && !text(&server["api"]).is_empty());
        servers.sort_by_key(|server| server["leader"] != true);
        let mut addresses: Vec<&str> = servers.into_iter().map(|server| text(&server["api"])).collect();
        addresses.extend(self.addresses.iter().map(String::as_str).filter(|_| self.servers.is_none()));
        let mut clients: Vec<Client> =
            addresses.into_iter().map(|url| way.client(Some(url))).collect::<Result<_, _>>()?;
        if own.is_none() {
            clients.insert(0, self.api.clone());
        }
        Ok(clients)
    }
}

/// Refuses before anything is done when there is no cluster without this machine's server.
fn check_others_vote(cluster: &Cluster, own: Option<&str>) -> Result<(), Failure> {
    let (Some(servers), Some(own)) = (&cluster.servers, own) else { return Ok(()) };
    if servers.iter().any(|server| server["voter"] == true && server["id"] != own) {
        return Ok(());
    }
    if !servers.iter().any(|server| server["voter"] == true) {
        return Ok(());
    }
    Err(Failure::failed(if servers.len() == 1 {
        "this machine is the cluster's only server: without it there is no cluster\nhint: `coracle down` stops it; who gives the cluster up removes the data folder too"
    } else {
        "this machine's server is the only one that votes, and cannot leave: of two servers one votes, and holds what the cluster knows\nhint: join a third server first, then all vote and each may leave"
    }))
}

/// Pods move elsewhere, as far as they do; whether all have.
async fn make_room(cluster: &Cluster, leave: &Leave, node: &str) -> bool {
    if cluster.servers.is_none() {
        output::warn(&format!(
            "this machine has no administrator's kubeconfig: its pods end here and are replaced afterwards\nhint: `coracle drain {node}` elsewhere moves them first"
        ));
        return false;
    }
    if leave.no_drain {
        if let Err(failure) = cordon::set(&cluster.api, node, true).await {
            output::warn(without_hint(&failure.message));
        }
        return false;
    }
    let options = drain::Options { timeout: leave.timeout, force: true, ignore_daemonsets: true };
    match drain::empty(&cluster.api, node, options).await {
        Ok(_) => true,
        Err(failure) => {
            // There is no such node: there is nothing to move.
            if failure.code != 3 {
                output::warn(&format!("{}; what is left is ended here", without_hint(&failure.message)));
            }
            false
        }
    }
}

/// Takes this machine's server out. The leader is asked, because it knows which others live.
async fn remove(cluster: &Cluster, way: &Way, id: &str) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let servers = match ask(&cluster.api, Method::GET, SERVERS, None, ANSWER_WITHIN).await {
            Ok(answer) => list(&answer.unwrap_or_default()["servers"]).to_vec(),
            Err(_) => Vec::new(),
        };
        let leader = servers.iter().find(|server| server["leader"] == true && server["here"] != true);
        let api = match leader.map(|leader| text(&leader["api"])).filter(|api| !api.is_empty()) {
            Some(url) => way.client(Some(url))?,
            None => cluster.api.clone(),
        };
        match ask(&api, Method::POST, &format!("{SERVERS}/{id}/remove"), None, REMOVE_WITHIN).await {
            // One that is not there has left already.
            Ok(_) => return Ok(()),
            Err(Unanswered::Nobody(_)) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
            Err(Unanswered::Nobody(failure) | Unanswered::Refused(failure)) => return Err(failure),
        }
    }
}

/// Deletes this machine's Node through whoever answers; whether there was one.
async fn delete_node(clients: &[Client], node: &str) -> Result<bool, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut last = "no other server is known".to_owned();
    loop {
        for client in clients {
            match ask(client, Method::DELETE, &cordon::path(node), None, ANSWER_WITHIN).await {
                Ok(answer) => return Ok(answer.is_some()),
                Err(Unanswered::Nobody(failure) | Unanswered::Refused(failure)) => last = failure.message,
            }
        }
        if clients.is_empty() || Instant::now() >= until {
            return Err(Failure::failed(format!(
                "this machine has stopped, but its Node could not be deleted: {}\nhint: `coracle leave --api https://HOST:6443`, with the address of a living server, goes on",
                without_hint(&last)
            )));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Removes what makes this machine a member.
fn forget(data_dir: &Path) -> Result<(), Failure> {
    for name in MEMBER_FILES {
        let path = data_dir.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::failed(format!(
                    "cannot remove {}: {error}\nhint: it is all that is left of the cluster; remove it by hand, with {}",
                    path.display(),
                    MEMBER_FILES.join(", ")
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes a server out whose machine is gone, with its Node.
async fn dead_server(client: &Client, name: &str, format: output::Format) -> Result<(), Failure> {
    let answer = client.get(SERVERS).await?;
    let servers = list(&answer["servers"]);
    let Some(server) = servers.iter().find(|server| server["name"] == name) else {
        let names: Vec<&str> = servers.iter().map(|server| text(&server["name"])).collect();
        let hint = match coracle_base::nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        return Err(Failure { code: 3, message: format!("there is no server `{name}`\nhint: {hint}") });
    };
    let node = match client.get(&cordon::path(name)).await {
        Ok(node) => node,
        Err(error) if error.is_not_found() => Value::Null,
        Err(error) => return Err(error.into()),
    };
    if server["here"] == true || is_true(&node, "Ready") {
        return Err(Failure {
            code: 4,
            message: format!("server {name} lives: it leaves from its own machine\nhint: run `coracle leave` there"),
        });
    }
    let path = format!("{SERVERS}/{}/remove", text(&server["id"]));
    client.json(Method::POST, &path, JSON, None).await?;
    let deleted = match client.json(Method::DELETE, &cordon::path(name), JSON, None).await {
        Ok(_) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error.into()),
    };
    if format == output::Format::Json {
        output::line(&output::json(&json!({"server": name, "removed": true, "nodeDeleted": deleted})));
    } else {
        output::line(&format!("server {name} removed from the cluster"));
    }
    Ok(())
}

/// Why there is no answer.
enum Unanswered {
    /// Nobody was there, in time; or whoever was cannot tell at the moment.
    Nobody(Failure),
    /// No.
    Refused(Failure),
}

/// One question; `None` when there is no such object.
async fn ask(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<(&str, Value)>,
    within: Duration,
) -> Result<Option<Value>, Unanswered> {
    let body = body.as_ref().map(|(media, value)| (*media, value));
    match tokio::time::timeout(within, client.json(method, path, JSON, body)).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) if error.is_not_found() => Ok(None),
        Ok(Err(error)) => Err(match error {
            ClientError::Refused { code: 429 | 503, .. } | ClientError::Unreachable { .. } => {
                Unanswered::Nobody(error.into())
            }
            error => Unanswered::Refused(error.into()),
        }),
        Err(_) => {
            Err(Unanswered::Nobody(Failure::failed(format!("a server did not answer within {} s", within.as_secs()))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: &str, name: &str, voter: bool) -> Value {
        json!({"id": id, "name": name, "voter": voter})
    }

    fn cluster(servers: Vec<Value>) -> Cluster {
        let api = Client::stranger("https://127.0.0.1:1").unwrap();
        Cluster { api, addresses: Vec::new(), servers: Some(servers) }
    }

    #[test]
    fn the_only_voter_is_refused_before_anything_is_done() {
        let alone = cluster(vec![server("0a", "m1", true)]);
        assert!(check_others_vote(&alone, Some("0a")).unwrap_err().message.contains("only server"));
        let two = cluster(vec![server("0a", "m1", true), server("0b", "m2", false)]);
        assert!(check_others_vote(&two, Some("0a")).unwrap_err().message.contains("only one that votes"));
        assert!(check_others_vote(&two, Some("0b")).is_ok());
        assert_eq!(two.own(Some("0b"), "m2"), Some("0b".to_owned()));
        // A server that has been taken out, and a machine that has none.
        assert_eq!(two.own(Some("0c"), "m2"), None);
        assert_eq!(two.own(None, "m2"), None);
    }

    #[test]
    fn membership_goes_and_images_stay() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "pki", "log"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("log/identity"), "format 1\nserver 00ff\ncluster 1\n").unwrap();
        std::fs::write(dir.path().join("cluster.json"), "{}").unwrap();
        assert_eq!(own_server(dir.path()).as_deref(), Some("00ff"));
        forget(dir.path()).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["images"]);
    }
}

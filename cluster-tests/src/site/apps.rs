//! What runs on the machines and what the servers hold of it: the demo app, clients that ask it all the time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::{Answered, Site, Where};
use crate::machine::workspace;

/// Asks the Service over and over until a file appears; prints how many answers came and how many did not.
const LOAD: &str = r#"ok=0; bad=0
while [ ! -e "$STOP" ]; do
  if { exec 3<>/dev/tcp/$HOST/$PORT; } 2>/dev/null && printf "GET $ASK HTTP/1.0\r\nHost: hello\r\n\r\n" >&3 && grep -q 'hello from' <&3; then ok=$((ok+1)); else bad=$((bad+1)); fi
  exec 3>&- 3<&-
  read -rt 0.01 <> <(:)
done
echo "$ok $bad""#;

/// The demo app with so many copies.
///
/// # Panics
/// The example is gone.
#[must_use]
pub fn hello(copies: usize) -> String {
    let text = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    text.replace("replicas: 3", &format!("replicas: {copies}"))
}

impl Site {
    /// Name -> node of the pods of the default namespace that are ready and not going, as one machine sees it.
    #[must_use]
    pub fn ready_pods(&self, seen_by: usize) -> BTreeMap<String, String> {
        let pods = self.at(seen_by).get(&["pods"]);
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
            ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = pods["items"].as_array().into_iter().flatten().filter(ready);
        items.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect()
    }

    /// The virtual address of a Service, as one machine sees it.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn service_address(&self, seen_by: usize, service: &str) -> String {
        let found = self.at(seen_by).get(&[&format!("svc/{service}")]);
        found["spec"]["clusterIP"].as_str().unwrap_or_else(|| panic!("no cluster address: {found}")).to_owned()
    }

    /// Waits until these servers hold the same, each by its own memory.
    ///
    /// # Panics
    /// They do not come to.
    pub fn await_same(&self, servers: &[usize]) {
        let kinds = ["configmaps", "nodes", "services", "namespaces", "secrets"];
        let held = |number: &usize| {
            let mut api = self.api(Where::At(*number), *number);
            let local = |kind: &&str| api.request("GET", &format!("/api/v1/{kind}?resourceVersion=0"), None);
            let lists: Vec<Answered> = kinds.iter().map(local).collect();
            lists.iter().map(|list| list.object().map(|list| list["items"].clone())).collect::<Option<Vec<Value>>>()
        };
        self.wait("all servers to hold the same", |_| {
            let all: Vec<_> = servers.iter().map(held).collect();
            all[0].is_some() && all.iter().all(|one| *one == all[0])
        });
    }

    /// Waits until the app answers on a machine, by its Service and, through a pod, by its name.
    ///
    /// # Panics
    /// It does not.
    pub fn await_hello(&self, number: usize, address: &str) {
        self.wait(&format!("the app to answer on m{number}"), |site| {
            let said = site.at(number).http(&format!("{address}:80"), "/ask?host=hello");
            said.is_some_and(|said| said.contains("hello from hello-"))
        });
    }
}

/// Clients on some machines, which ask the app all the time.
pub struct Load {
    stop: PathBuf,
    clients: Vec<(usize, Child)>,
}

impl Load {
    /// Clients of the demo app's Service.
    ///
    /// # Panics
    /// There is no such Service as the first machine sees it, or no bash.
    #[must_use]
    pub fn start(site: &Site, machines: &[usize], name: &str) -> Self {
        Self::asking(site, machines, name, &site.service_address(machines[0], "hello"), "/")
    }

    /// The same, of a known address and another path: `/ask?host=hello` makes the pod that is asked find the Service by its name.
    ///
    /// # Panics
    /// No bash.
    #[must_use]
    pub fn asking(site: &Site, machines: &[usize], name: &str, address: &str, path: &str) -> Self {
        let stop = site.at(machines[0]).folder().join(name);
        let clients = machines.iter().map(|number| {
            let mut load = site.at(*number).command("bash");
            load.args(["-c", LOAD]).env("STOP", &stop).env("HOST", address).env("PORT", "80").env("ASK", path);
            load.stdout(Stdio::piped());
            (*number, load.spawn().expect("bash"))
        });
        Self { clients: clients.collect(), stop }
    }

    /// Ends it; every request was answered.
    ///
    /// # Panics
    /// One was not, or hardly anything was asked.
    pub fn end(self) {
        std::fs::write(&self.stop, "").expect("the stop file");
        for (number, client) in self.clients {
            let output = client.wait_with_output().expect("the load ends");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let (ok, bad) = said.trim().split_once(' ').unwrap_or(("0", "?"));
            println!("m{number}: {ok} answers, {bad} lost");
            assert_eq!(bad, "0", "requests of m{number} were lost: {said}");
            assert!(ok.parse::<u64>().is_ok_and(|ok| ok > 20), "too little was asked: {said}");
        }
    }
}

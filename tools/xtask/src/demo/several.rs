//! The demo on several machines: a cluster from nothing to an application that answers on each of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::interrupt::Interrupt;
use super::site::{Machine, Site, enter, tail};
use super::{PATIENCE, fetch, relay};
use crate::root;

/// So many machines become servers, which is enough for one to be lost.
const SERVERS: usize = 3;
/// The replicas in examples/hello.yaml.
const REPLICAS: usize = 3;
/// Where the status page is on each machine, and on ours if it can be had.
const STATUS_PORT: u16 = 6480;
/// The lines of a log that are shown when something went wrong.
const TAIL: usize = 40;

const STOPPED: &str = "stopped before the application answered";

/// What did not work, and the machines whose logs may tell why (from 0).
struct Failure {
    words: String,
    machines: Vec<usize>,
}

impl From<String> for Failure {
    fn from(words: String) -> Self {
        Self { words, machines: Vec::new() }
    }
}

/// What is still missed: of which machine (from 0), and what.
type Missing = Vec<(usize, String)>;

/// Makes so many machines and a cluster of them, and takes all down after the answers, or at Ctrl-C.
///
/// # Errors
/// What did not work, in words. Everything is taken down then too.
pub fn run(programs: &Path, count: u8, parent: Option<PathBuf>, once: bool) -> Result<(), String> {
    let interrupt = Interrupt::listen()?;
    let started = Instant::now();
    let parent = parent.unwrap_or_else(|| root().join("target"));
    super::step(&format!("making {count} machines: network namespaces on one switch"));
    let site = Site::new(count, &programs.join("coracle"), &parent)?;
    let mut tour = Tour { site, interrupt, started };
    let outcome = tour.go(programs).map_err(|failure| tour.explain(&failure));
    let outcome = outcome.and_then(|()| if once { Ok(()) } else { tour.stay() });
    tour.step("taking everything down");
    let down = tour.site.take_down();
    outcome.and(down)
}

struct Tour {
    site: Site,
    interrupt: Interrupt,
    started: Instant,
}

impl Tour {
    fn step(&self, words: &str) {
        super::step(&format!("{:4.1} s  {words}", self.started.elapsed().as_secs_f64()));
    }

    fn first(&self) -> &Machine {
        &self.site.machines[0]
    }

    fn go(&mut self, programs: &Path) -> Result<(), Failure> {
        self.form(programs)?;
        let replicas = self.apply()?;
        self.await_copies(replicas)?;
        let answers = self.await_answers()?;
        let took = self.started.elapsed();
        println!();
        for (machine, answer) in self.site.machines.iter().zip(answers) {
            println!("on {}: {answer}", machine.name);
        }
        println!("\nfrom nothing to the last of these answers: {:.1} s (after the build)\n", took.as_secs_f64());
        print!("{}\n{}", said(&mut self.get(&["nodes", "-o", "wide"]))?, said(&mut self.get(&["pods", "-o", "wide"]))?);
        println!();
        Ok(())
    }

    /// A cluster of all machines, and the image on the first.
    fn form(&mut self, programs: &Path) -> Result<(), Failure> {
        self.step("m1: coracle up");
        self.site.machines[0].start(&["up"])?;
        // Beside the start of the machine.
        let image = self.first().folder().join("image");
        said(Command::new(programs.join("example-images")).arg("hello").arg(&image).current_dir(root()))?;
        self.wait("m1 to be ready", |machines| {
            if machines[0].is_ready() { Ok(()) } else { Err(vec![(0, "has not said that it is ready".to_owned())]) }
        })?;
        let count = self.site.machines.len();
        if count > 1 {
            let token = said(&mut self.first().coracle(&["token", "create", "--server"]))?;
            self.step(&format!("m2 to m{count}: coracle join"));
            let url = format!("https://{}:6443", self.first().address);
            for (index, machine) in self.site.machines.iter_mut().enumerate().skip(1) {
                let words = ["join", &url, "--token", token.trim(), "--server"];
                machine.start(if index < SERVERS { &words } else { &words[..4] })?;
            }
        }
        self.step("m1: coracle image import");
        said(self.first().coracle(&["image", "import"]).arg(&image))?;
        self.wait("all nodes to be ready", |machines| {
            let nodes = get(&machines[0], &["nodes"]);
            let ready = |name: &str| {
                list(&nodes["items"]).iter().any(|node| node["metadata"]["name"] == name && is_ready(node))
            };
            missing(machines, |machine| if ready(&machine.name) { Ok(()) } else { Err("is no ready node".to_owned()) })
        })?;
        Ok(())
    }

    /// The application, with a replica for each machine at least; tells how many.
    fn apply(&self) -> Result<usize, Failure> {
        self.step("m1: coracle apply -f examples/hello.yaml");
        said(self.first().coracle(&["apply", "-f", "examples/hello.yaml"]).current_dir(root()))?;
        let count = self.site.machines.len();
        if count > REPLICAS {
            self.step(&format!("m1: coracle scale deploy/hello --replicas {count}"));
            said(&mut self.first().coracle(&["scale", "deploy/hello", "--replicas", &count.to_string()]))?;
        }
        Ok(count.max(REPLICAS))
    }

    /// Waits until all replicas are ready and each machine has one.
    fn await_copies(&mut self, replicas: usize) -> Result<(), Failure> {
        let outcome = self.wait(&format!("{replicas} replicas to be ready, on every machine"), |machines| {
            let pods = get(&machines[0], &["pods"]);
            let ready: Vec<&Value> = list(&pods["items"]).iter().filter(|pod| is_ready(pod)).collect();
            missing(machines, |machine| {
                let here = ready.iter().any(|pod| pod["spec"]["nodeName"] == machine.name.as_str());
                if here { Ok(()) } else { Err("has no replica that is ready".to_owned()) }
            })?;
            if ready.len() == replicas { Ok(()) } else { Err(vec![(0, format!("knows of {} only", ready.len()))]) }
        });
        outcome.map_err(|mut failure| {
            let described = self.first().coracle(&["describe", "pods"]).output();
            if let Ok(described) = described {
                failure.words += &format!("\n{}", String::from_utf8_lossy(&described.stdout));
            }
            failure
        })
    }

    /// Asks from every machine, through the Service's address, for what a replica gets when it calls the Service by its name.
    fn await_answers(&mut self) -> Result<Vec<String>, Failure> {
        let service = get(self.first(), &["svc/hello"]);
        let address = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        let port = service["spec"]["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let (Some(address), Some(port)) = (address, port) else {
            return Err(format!("the service has no usable address: {}", service["spec"]).into());
        };
        let address = SocketAddr::from((address, port));
        self.step(&format!("asking {address} from every machine: a replica shall call `hello` by its DNS name"));
        self.wait("an answer through DNS on every machine", |machines| {
            let answers: Vec<Result<String, String>> = std::thread::scope(|scope| {
                let asked: Vec<_> =
                    machines.iter().map(|machine| scope.spawn(|| ask(&machine.namespace(), address))).collect();
                let panicked = |_| Err("the question was not asked".to_owned());
                asked.into_iter().map(|asked| asked.join().unwrap_or_else(panicked)).collect()
            });
            let mut missing = Missing::new();
            let mut good = Vec::new();
            for (index, answer) in answers.into_iter().enumerate() {
                match answer {
                    Ok(answer) => good.push(answer),
                    Err(error) => missing.push((index, error)),
                }
            }
            if missing.is_empty() { Ok(good) } else { Err(missing) }
        })
    }

    /// Leaves the cluster running until Ctrl-C, and says what to try.
    fn stay(&self) -> Result<(), String> {
        let first = self.first();
        let status = SocketAddr::from((Ipv4Addr::LOCALHOST, STATUS_PORT));
        let page = relay::start(STATUS_PORT, &first.namespace(), status)?;
        let programs = std::env::current_exe().map_err(|error| error.to_string())?;
        let programs = programs.parent().unwrap_or(Path::new("/"));
        println!("The cluster runs until Ctrl-C. Its status page: http://{page}/\n");
        println!("A shell on a machine, with root:\n");
        for (index, machine) in self.site.machines.iter().enumerate() {
            let role = if index < SERVERS { "server" } else { "node" };
            println!(
                "  # {} ({}, {role})\n  nsenter --net={} env PATH={}:$PATH CORACLE_DATA_DIR={} sh",
                machine.name,
                machine.address,
                machine.namespace().display(),
                programs.display(),
                machine.data().display()
            );
        }
        println!(
            "\nIn it, on a server:\n\n  coracle status --servers\n  coracle get pods -o wide\n  coracle logs -f deploy/hello\n  \
             coracle scale deploy/hello --replicas 6\n"
        );
        self.interrupt.wait();
        println!();
        Ok(())
    }

    fn get(&self, words: &[&str]) -> Command {
        self.first().coracle(&[&["get"], words].concat())
    }

    /// Polls until nothing is missed. Ends early when a machine's program ends, or at Ctrl-C.
    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&[Machine]) -> Result<T, Missing>) -> Result<T, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            for (index, machine) in self.site.machines.iter_mut().enumerate() {
                if let Some(how) = machine.ended() {
                    let words = format!("the program on {} ended ({how}) while we waited for {what}", machine.name);
                    return Err(Failure { words, machines: vec![index] });
                }
            }
            let missing = match look(&self.site.machines) {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            if Instant::now() > until {
                let mut words = format!("waited {} s for {what}, in vain", PATIENCE.as_secs());
                for (index, missed) in &missing {
                    words += &format!("\n  {}: {missed}", self.site.machines[*index].name);
                }
                return Err(Failure { words, machines: missing.into_iter().map(|(index, _)| index).collect() });
            }
            if self.interrupt.pause(Duration::from_millis(20)) {
                return Err(STOPPED.to_owned().into());
            }
        }
    }

    /// A failure with the ends of the logs that may tell why.
    fn explain(&self, failure: &Failure) -> String {
        if self.interrupt.pause(Duration::ZERO) {
            // Whatever ran in the foreground was interrupted too.
            return STOPPED.to_owned();
        }
        let mut words = failure.words.clone();
        for machine in failure.machines.iter().filter_map(|index| self.site.machines.get(*index)) {
            words += &format!("\n--- the end of the log of {} ---\n{}", machine.name, tail(&machine.log(), TAIL));
        }
        words
    }
}

/// What each machine misses, if any does.
fn missing(machines: &[Machine], look: impl Fn(&Machine) -> Result<(), String>) -> Result<(), Missing> {
    let missing: Missing =
        (0..).zip(machines).filter_map(|(index, machine)| Some((index, look(machine).err()?))).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// One question from inside a namespace, by a thread that lives for nothing else.
fn ask(namespace: &Path, address: SocketAddr) -> Result<String, String> {
    enter(namespace).map_err(|error| error.to_string())?;
    fetch(address, "/ask?host=hello")
}

/// `coracle get ... -o json` on a machine; null when it fails.
fn get(machine: &Machine, what: &[&str]) -> Value {
    let output = machine.coracle(&[&["get", "-o", "json"], what].concat()).output();
    output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok()).unwrap_or(Value::Null)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether a pod or a node has the condition `Ready`.
fn is_ready(object: &Value) -> bool {
    list(&object["status"]["conditions"]).iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Runs a command that must work, without showing it; its standard output.
fn said(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().map_err(|error| format!("cannot run {shown}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{shown} failed ({})\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

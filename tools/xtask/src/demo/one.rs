//! The demo on one machine: this one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, fetch, step};
use crate::{must, root};

/// Starts a cluster of this machine with its data in that folder, and leaves it running unless it is for once.
pub fn run(programs: &Path, data: Option<PathBuf>, once: bool) -> Result<(), String> {
    let data = data.unwrap_or_else(|| root().join("target/demo"));
    let coracle = programs.join("coracle");
    let started = Instant::now();

    step("packing examples/hello into an OCI image");
    let image = data.with_extension("image");
    must(Command::new(programs.join("example-images")).arg("hello").arg(&image).current_dir(root()))?;

    step("starting a one-machine cluster");
    std::fs::create_dir_all(&data).map_err(|error| format!("cannot create {}: {error}", data.display()))?;
    let log = data.with_extension("log");
    let mut up = up(&coracle, &data, &log)?;
    let outcome = tour(&coracle, &data, &image, &mut up, &log);
    if once || outcome.is_err() {
        step("taking everything down");
        must(Command::new(&coracle).arg("down").arg("--data-dir").arg(&data))?;
        let _ = up.wait();
    }
    let answer = outcome?;
    println!("\n{answer}\n");
    println!("from nothing to this answer: {:.1} s (after the build)", started.elapsed().as_secs_f64());
    if !once {
        next_steps(&coracle, &data);
    }
    Ok(())
}

/// Starts `coracle up` so that it outlives us; its log goes into a file.
fn up(coracle: &Path, data: &Path, log: &Path) -> Result<std::process::Child, String> {
    let file = std::fs::File::create(log).map_err(|error| format!("cannot create {}: {error}", log.display()))?;
    let errors = file.try_clone().map_err(|error| error.to_string())?;
    Command::new(coracle)
        .arg("up")
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot run {}: {error}", coracle.display()))
}

fn tour(coracle: &Path, data: &Path, image: &Path, up: &mut std::process::Child, log: &Path) -> Result<String, String> {
    let verb = |words: &[&str]| {
        let mut command = Command::new(coracle);
        command.args(words).arg("--data-dir").arg(data).current_dir(root());
        command
    };
    wait("the API to answer", || {
        if let Ok(Some(status)) = up.try_wait() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            return Err(format!("`coracle up` ended ({status}); it said:\n{said}"));
        }
        let ready = data.join("admin.kubeconfig").exists()
            && verb(&["get", "nodes", "-o", "json"]).stderr(Stdio::null()).output().is_ok_and(|output| {
                serde_json::from_slice::<Value>(&output.stdout)
                    .is_ok_and(|answer| answer["items"].as_array().is_some_and(|items| !items.is_empty()))
            });
        Ok(ready.then_some(()))
    })?;
    step("importing the image");
    must(verb(&["image", "import"]).arg(image))?;
    step("coracle apply -f examples/hello.yaml");
    must(&mut verb(&["apply", "-f", "examples/hello.yaml"]))?;
    wait("three replicas to be ready", || {
        let output = verb(&["get", "deploy/hello", "-o", "json"]).output().map_err(|error| error.to_string())?;
        let object: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Ok((object["status"]["readyReplicas"] == 3).then_some(()))
    })
    .inspect_err(|_| {
        let _ = verb(&["describe", "pods"]).status();
    })?;
    must(&mut verb(&["get", "pods", "-o", "wide"]))?;
    let output = verb(&["get", "svc/hello", "-o", "json"]).output().map_err(|error| error.to_string())?;
    let service: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let address = format!(
        "{}:{}",
        service["spec"]["clusterIP"].as_str().unwrap_or_default(),
        service["spec"]["ports"][0]["port"]
    );
    let address: SocketAddr = address.parse().map_err(|_| format!("the service has no usable address: {address}"))?;
    step("asking one replica to call `hello` by its DNS name");
    wait("an answer through DNS", || Ok(fetch(address, "/ask?host=hello").ok()))
}

/// Polls until `look` gives something; the error says what was waited for.
fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>, String>) -> Result<T, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(format!("waited {} s for {what}, in vain", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn next_steps(coracle: &Path, data: &Path) {
    println!(
        "\nThe cluster runs on. What to try next:\n\n  \
         alias coracle='{} --data-dir {}'\n  \
         coracle get pods -o wide\n  coracle logs -f deploy/hello\n  coracle scale deploy/hello --replicas 5\n  coracle status\n  \
         export KUBECONFIG={}/admin.kubeconfig && kubectl get pods -A -w\n\n  \
         status page: http://127.0.0.1:6480/\n  take it down: coracle down",
        coracle.display(),
        data.display(),
        data.display()
    );
}

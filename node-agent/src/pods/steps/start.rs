//! One run of one container: root, user, environment, mounts, specification, start.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use coracle_lifecycle::env;
use coracle_lifecycle::oci::{self, Bind};
use coracle_lifecycle::pod::{Container, Pod, VolumeMount};

use super::{Job, Made, PodStep, Stage};
use crate::facilities::{Doing, Failure, FoundImage, Launch, WAITING_FOR_LEASE};
use crate::pods::node::{Node, remove_tree, write_whole};
use crate::{logs, volumes};

pub(super) const STEP: PodStep = PodStep { name: "start", stage: Stage::Start, make, undo };

/// As upstream: what may come later keeps the container waiting.
const CONFIG: &str = "CreateContainerConfigError";
/// The same for what the node itself could not do.
const CREATE: &str = "CreateContainerError";

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move { start(job).await.map(Made::Started) })
}

async fn start(job: &Job) -> Result<crate::facilities::Started, Failure> {
    let (node, pod) = (&job.node, &job.pod);
    let container = job.container().ok_or_else(|| Failure::retry(CREATE, "no such container"))?;
    let image = image(job, container).await?;
    let ip = job.ip.ok_or_else(|| Failure::retry(CREATE, "the pod has no address"))?;
    prepare_files(node, pod, container, job.attempt)
        .map_err(|error| Failure::retry(CREATE, format!("cannot prepare the container's files: {error}")))?;
    let writable = node.paths.writable(&pod.uid, &container.name, job.attempt);
    let root = node.containers.root(image.layers.clone(), writable).await?;
    let wanted = oci::user_wanted(container, &image.config).unwrap_or_default();
    let user = node.containers.user(&root, &wanted)?;
    let facts = node.facts(ip);
    let config = |error: &(dyn std::error::Error + 'static)| Failure::retry(CONFIG, coracle_base::one_line(error));
    let env = env::environment(pod, container, &image.config.env, &job.state, facts).map_err(|error| config(&error))?;
    // The handles name what was resolved; they must live until the runtime has taken its own.
    let (binds, _handles) = binds(node, pod, container, job.attempt, &env)?;
    let launch = oci::Launch { image: &image.config, env: &env, user, binds, node: facts };
    let spec = oci::spec(pod, container, &launch).map_err(|error| config(&error))?;
    let process = serde_json::to_vec(spec.process()).unwrap_or_default();
    write_whole(&node.paths.process(&pod.uid, &container.name), &process, 0o600)
        .map_err(|error| Failure::retry(CREATE, format!("cannot note the container's process: {error}")))?;
    let log_dir = logs::dir(&node.paths.logs(), &pod.namespace, &pod.name, &pod.uid, &container.name);
    logs::prune(&log_dir, job.attempt);
    let launch = Launch {
        pod: pod.uid.clone(),
        container: container.name.clone(),
        attempt: job.attempt,
        spec,
        root,
        log: logs::path(&log_dir, job.attempt),
    };
    if job.fenced {
        // The pull of an image, the making of a root may have taken longer than the lease that was seen before.
        if !node.leased(&pod.uid) {
            return Err(Failure::retry(
                WAITING_FOR_LEASE,
                "this node's lease ends too soon to start a fenced pod under it",
            ));
        }
        node.containers.lease(&pod.uid, node.lease_until(&pod.uid)).await?;
    }
    node.containers.start(launch).await
}

async fn image(job: &Job, container: &Container) -> Result<FoundImage, Failure> {
    if let Some(digest) = &job.digest
        && let Some(image) = job.node.images.find(digest).await
    {
        return Ok(image);
    }
    // Somebody removed it since: it is fetched again.
    job.node.images.ensure(&container.image, &container.pull_policy).await
}

/// The run's own directories; those of runs before the last are removed.
fn prepare_files(node: &Node, pod: &Pod, container: &Container, attempt: u32) -> std::io::Result<()> {
    let uid = &pod.uid;
    for old in attempt.saturating_sub(2)..attempt {
        remove_tree(&node.paths.writable(uid, &container.name, old))?;
        if old + 1 < attempt {
            let _ = std::fs::remove_file(node.paths.message(uid, &container.name, old));
        }
    }
    let message = node.paths.message(uid, &container.name, attempt);
    write_whole(&message, b"", 0o666)?;
    // Whoever runs in the container writes it.
    std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666))
}

/// Where in a volume a mount begins.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, Failure> {
    let missing = std::cell::RefCell::new(None);
    let value = |name: &str| {
        let found = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if found.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        found
    };
    let path = match &*mount.sub_path_expr {
        "" => mount.sub_path.clone(),
        expression => env::expand(expression, &value),
    };
    match missing.into_inner() {
        None => Ok(path),
        // Upstream's words.
        Some(name) => Err(Failure::retry(
            CONFIG,
            format!("failed to expand subPathExpr `{}`: missing value for \"{name}\"", mount.sub_path_expr),
        )),
    }
}

fn binds(
    node: &Node,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: &[(String, String)],
) -> Result<(Vec<Bind>, Vec<OwnedFd>), Failure> {
    let etc = node.paths.etc(&pod.uid);
    let read_only = container.security.read_only_root;
    let mut binds: Vec<Bind> = ["hosts", "resolv.conf", "hostname"]
        .iter()
        .map(|name| Bind { source: etc.join(name), target: format!("/etc/{name}"), read_only })
        .collect();
    binds.push(Bind {
        source: node.paths.message(&pod.uid, &container.name, attempt),
        target: container.message_path.clone(),
        read_only: false,
    });
    let dirs = node.paths.volumes(&pod.uid);
    let mut handles = Vec::new();
    for mount in &container.mounts {
        let volume = pod.volumes.iter().find(|volume| volume.name == mount.volume).ok_or_else(|| {
            Failure::retry(CONFIG, format!("volumeMounts: the pod has no volume \"{}\"", mount.volume))
        })?;
        let path = dirs.path(volume);
        let below = sub_path(mount, env)?;
        let source = if below.is_empty() {
            path
        } else {
            let handle = volumes::open_sub_path(&path, &below).map_err(|error| {
                Failure::retry(CONFIG, format!("subPath `{below}` of volume \"{}\": {error}", volume.name))
            })?;
            let source = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
            handles.push(handle);
            source
        };
        let read_only = mount.read_only || volumes::is_read_only(volume);
        binds.push(Bind { source, target: mount.path.clone(), read_only });
    }
    Ok((binds, handles))
}

/// Ends whatever still runs: a pod that is taken down has nothing left to be asked politely.
fn undo(job: &Job) -> Doing<'_, Result<(), Failure>> {
    Box::pin(async move {
        let running = job.node.containers.states(&job.pod.uid).unwrap_or_default();
        for run in running.iter().filter(|run| run.ended.is_none()) {
            job.node.containers.kill(&job.pod.uid, &run.container, 9).await?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_worked_out_from_the_environment_or_not_at_all() {
        let mount = |path: &str, expression: &str| VolumeMount {
            volume: "v".to_owned(),
            path: "/v".to_owned(),
            read_only: false,
            sub_path: path.to_owned(),
            sub_path_expr: expression.to_owned(),
        };
        let env = [("POD".to_owned(), "web-0".to_owned()), ("UP".to_owned(), "../..".to_owned())];
        assert_eq!(sub_path(&mount("a/$(POD)", ""), &env).unwrap(), "a/$(POD)", "as it is written");
        assert_eq!(sub_path(&mount("", "logs/$(POD)/$$(x)"), &env).unwrap(), "logs/web-0/$(x)");
        assert_eq!(sub_path(&mount("", ""), &env).unwrap(), "");
        let missing = sub_path(&mount("", "$(NOT)"), &env).unwrap_err();
        assert!(missing.message.contains("missing value for \"NOT\""), "{}", missing.message);
        // What leaves the volume is refused where it is opened.
        let dir = tempfile::tempdir().unwrap();
        assert!(volumes::open_sub_path(dir.path(), &sub_path(&mount("", "$(UP)"), &env).unwrap()).is_err());
    }
}

//! Volumes of a pod on this node: made before its containers, kept up to date, taken down after them.

mod atomic;
mod subpath;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use coracle_images::tree;
use coracle_lifecycle::env::{self, EnvError, NodeFacts, Sources};
use coracle_lifecycle::pod::{Keys, Part, Pod, Volume, VolumeSource};
use serde_json::Value;

pub use subpath::open as open_sub_path;

/// Why a volume is not there yet.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The object it is made from is missing.
    #[error("volume \"{volume}\": {kind} \"{name}\" not found")]
    NotFound {
        /// Which volume.
        volume: String,
        /// `configmap`, `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key it names is missing.
    #[error("volume \"{volume}\": {kind} \"{name}\" has no key \"{key}\"")]
    NoKey {
        /// Which volume.
        volume: String,
        /// `configmap`, `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A key that cannot be a file name.
    #[error("volume \"{volume}\": `{path}` cannot be a file in it")]
    Path {
        /// Which volume.
        volume: String,
        /// What it says.
        path: String,
    },
    /// What a file is to say of the pod cannot be said.
    #[error("volume \"{volume}\": file {path}")]
    Field {
        /// Which volume.
        volume: String,
        /// The file's path in it.
        path: String,
        /// Why.
        #[source]
        source: Box<EnvError>,
    },
    /// A path of the node that is not what the pod says.
    #[error("volume \"{volume}\": hostPath {path} is not a {kind}{}", if *.missing { ": it does not exist" } else { "" })]
    Kind {
        /// Which volume.
        volume: String,
        /// The path.
        path: String,
        /// What it should be.
        kind: String,
        /// It is not there at all.
        missing: bool,
    },
    /// The file system's word.
    #[error("volume \"{volume}\": cannot {action} {path}")]
    Io {
        /// Which volume.
        volume: String,
        /// `create`, `mount`, ...
        action: &'static str,
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Where the volumes of one pod are.
#[derive(Debug, Clone)]
pub struct VolumeDirs {
    /// On disk: emptyDir, ConfigMaps.
    pub disk: PathBuf,
    /// In the run directory: Secrets, emptyDir in memory.
    pub memory: PathBuf,
}

impl VolumeDirs {
    /// The path of a volume on the node.
    #[must_use]
    pub fn path(&self, volume: &Volume) -> PathBuf {
        match &volume.source {
            VolumeSource::HostPath { path, .. } => PathBuf::from(path),
            VolumeSource::Files { memory: true, .. } | VolumeSource::EmptyDir { memory: true, .. } => {
                self.memory.join(&volume.name)
            }
            VolumeSource::Files { .. } | VolumeSource::EmptyDir { .. } => self.disk.join(&volume.name),
        }
    }
}

/// Whether containers may only read it, whatever they say.
#[must_use]
pub fn is_read_only(volume: &Volume) -> bool {
    matches!(volume.source, VolumeSource::Files { .. })
}

/// Makes every volume of the pod, or brings those made of objects up to date. Idempotent. Blocks on the file system.
///
/// # Errors
/// The first volume that cannot be had.
pub fn prepare(
    pod: &Pod,
    dirs: &VolumeDirs,
    sources: &dyn Sources,
    facts: NodeFacts,
    stamp: &str,
) -> Result<(), VolumeError> {
    for volume in &pod.volumes {
        match &volume.source {
            VolumeSource::EmptyDir { memory, size_limit } => empty_dir(pod, volume, dirs, *memory, *size_limit)?,
            VolumeSource::HostPath { path, kind } => host_path(volume, Path::new(path), kind)?,
            VolumeSource::Files { .. } => files(pod, volume, dirs, sources, facts, stamp)?,
        }
    }
    Ok(())
}

/// Brings the volumes made of objects up to date in a running pod: an object that is missing now leaves what is there.
pub fn refresh(pod: &Pod, dirs: &VolumeDirs, sources: &dyn Sources, facts: NodeFacts, stamp: &str) -> Vec<VolumeError> {
    let made = pod.volumes.iter().filter(|volume| is_read_only(volume));
    made.filter_map(|volume| files(pod, volume, dirs, sources, facts, stamp).err()).collect()
}

/// Takes every volume of the pod down; paths of the node stay as they are. Idempotent.
///
/// # Errors
/// What could not be unmounted or removed.
pub fn remove(pod: &Pod, dirs: &VolumeDirs) -> Result<(), VolumeError> {
    for volume in &pod.volumes {
        if matches!(volume.source, VolumeSource::EmptyDir { memory: true, .. }) {
            let path = dirs.path(volume);
            match rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(io_error(volume, "unmount", &path)(error.into())),
            }
        }
    }
    for dir in [&dirs.disk, &dirs.memory] {
        tree::remove(dir).map_err(|source| VolumeError::Io {
            volume: "*".to_owned(),
            action: "remove",
            path: dir.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Which volume on disk holds more than it may, in words. Walks through all of their files: for a thread that may block.
#[must_use]
pub fn over_limit(pod: &Pod, dirs: &VolumeDirs) -> Option<String> {
    pod.volumes.iter().find_map(|volume| {
        let VolumeSource::EmptyDir { memory: false, size_limit: Some(limit) } = volume.source else { return None };
        let used = tree::used_bytes(&dirs.path(volume));
        (used > limit)
            .then(|| format!("Usage of EmptyDir volume \"{}\" exceeds the limit: {used} of {limit} bytes", volume.name))
    })
}

/// Whether any volume on disk has a limit that has to be watched.
#[must_use]
pub fn has_limits(pod: &Pod) -> bool {
    pod.volumes
        .iter()
        .any(|volume| matches!(volume.source, VolumeSource::EmptyDir { memory: false, size_limit: Some(_) }))
}

fn io_error<'a>(
    volume: &'a Volume,
    action: &'static str,
    path: &'a Path,
) -> impl Fn(std::io::Error) -> VolumeError + 'a {
    move |source| VolumeError::Io { volume: volume.name.clone(), action, path: path.to_owned(), source }
}

fn empty_dir(
    pod: &Pod,
    volume: &Volume,
    dirs: &VolumeDirs,
    memory: bool,
    limit: Option<u64>,
) -> Result<(), VolumeError> {
    let path = dirs.path(volume);
    if path.is_dir() && (!memory || is_mount(&path)) {
        return Ok(());
    }
    atomic::make_dir(&path, 0o777).map_err(io_error(volume, "create", &path))?;
    if memory {
        let mut options = "mode=0777".to_owned();
        if let Some(limit) = limit {
            options.push_str(&format!(",size={limit}"));
        }
        let options = std::ffi::CString::new(options).unwrap_or_default();
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, options.as_c_str())
            .map_err(|error| io_error(volume, "mount", &path)(error.into()))?;
    }
    // The umask of the agent must not decide who may write.
    let mode = if pod.fs_group.is_some() { 0o2777 } else { 0o777 };
    if let Some(group) = pod.fs_group {
        std::os::unix::fs::chown(&path, None, Some(group)).map_err(io_error(volume, "chown", &path))?;
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(io_error(volume, "chmod", &path))
}

/// Whether something is mounted there: another device than its parent's.
fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

fn host_path(volume: &Volume, path: &Path, kind: &str) -> Result<(), VolumeError> {
    let found = std::fs::metadata(path);
    let bad = |missing| VolumeError::Kind {
        volume: volume.name.clone(),
        path: path.display().to_string(),
        kind: kind.to_owned(),
        missing,
    };
    let Ok(meta) = found else {
        return match kind {
            "DirectoryOrCreate" => atomic::make_dir(path, 0o755).map_err(io_error(volume, "create", path)),
            "FileOrCreate" => std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map(drop)
                .map_err(io_error(volume, "create", path)),
            _ => Err(bad(true)),
        };
    };
    let file_type = meta.file_type();
    let fits = match kind {
        "DirectoryOrCreate" | "Directory" => file_type.is_dir(),
        "FileOrCreate" | "File" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        _ => true,
    };
    if fits { Ok(()) } else { Err(bad(false)) }
}

fn files(
    pod: &Pod,
    volume: &Volume,
    dirs: &VolumeDirs,
    sources: &dyn Sources,
    facts: NodeFacts,
    stamp: &str,
) -> Result<(), VolumeError> {
    let VolumeSource::Files { parts, mode, .. } = &volume.source else { return Ok(()) };
    let mut files = BTreeMap::new();
    for part in parts {
        let (kind, keys, object) = match part {
            Part::ConfigMap(keys) => ("configmap", keys, sources.config_map(&pod.namespace, &keys.name)),
            Part::Secret(keys) => ("secret", keys, sources.secret(&pod.namespace, &keys.name)),
            Part::Fields(fields) => {
                for field in fields {
                    let (volume, path) = (volume.name.clone(), field.path.clone());
                    if !atomic::is_fit(&path) {
                        return Err(VolumeError::Path { volume, path });
                    }
                    let text = env::of_pod(pod, &field.from, facts).map_err(|source| VolumeError::Field {
                        volume,
                        path: path.clone(),
                        source: Box::new(source),
                    })?;
                    let content = atomic::Content { bytes: text.into_bytes(), mode: field.mode.unwrap_or(*mode) };
                    files.insert(path, content);
                }
                continue;
            }
        };
        match object {
            Some(object) => files.extend(files_of(volume, kind, keys, object, *mode)?),
            None if keys.optional => {}
            None => {
                let (volume, name) = (volume.name.clone(), keys.name.clone());
                return Err(VolumeError::NotFound { volume, kind, name });
            }
        }
    }
    let path = dirs.path(volume);
    atomic::write(&path, &files, pod.fs_group, stamp).map(drop).map_err(io_error(volume, "write", &path))
}

fn files_of(
    volume: &Volume,
    kind: &'static str,
    Keys { name, items, optional }: &Keys,
    object: &Value,
    mode: u32,
) -> Result<BTreeMap<String, atomic::Content>, VolumeError> {
    let decode = |value: &Value| base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok();
    let bytes = |key: &str| -> Option<Vec<u8>> {
        if kind == "secret" {
            return decode(&object["data"][key]);
        }
        match object["data"][key].as_str() {
            Some(text) => Some(text.as_bytes().to_vec()),
            None => decode(&object["binaryData"][key]),
        }
    };
    let mut files = BTreeMap::new();
    let mut put = |path: &str, bytes: Vec<u8>, mode: u32| {
        if !atomic::is_fit(path) {
            return Err(VolumeError::Path { volume: volume.name.clone(), path: path.to_owned() });
        }
        files.insert(path.to_owned(), atomic::Content { bytes, mode });
        Ok(())
    };
    if items.is_empty() {
        for field in ["data", "binaryData"] {
            for key in object[field].as_object().into_iter().flatten().map(|(key, _)| key) {
                if let Some(bytes) = bytes(key) {
                    put(key, bytes, mode)?;
                }
            }
        }
    }
    for item in items {
        match bytes(&item.key) {
            Some(bytes) => put(&item.path, bytes, item.mode.unwrap_or(mode))?,
            None if *optional => {}
            None => {
                return Err(VolumeError::NoKey {
                    volume: volume.name.clone(),
                    kind,
                    name: name.clone(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Held, Key, State};
    use serde_json::json;
    use std::sync::Arc;

    const FACTS: NodeFacts = NodeFacts {
        pod_ip: std::net::Ipv4Addr::UNSPECIFIED,
        host_ip: std::net::Ipv4Addr::LOCALHOST,
        cpu_milli: 4000,
        memory_bytes: 8 << 30,
    };

    fn state(objects: &[(&str, &str, Value)]) -> State {
        let mut state = State::default();
        for (resource, name, tree) in objects {
            let held = Held { uid: String::new(), revision: 1, tree: tree.clone() };
            state.objects.insert(Key::new(resource, "n", name), Arc::new(held));
        }
        state
    }

    fn pod(volumes: Value) -> Pod {
        Pod::parse(&json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}], "volumes": volumes},
        }))
        .unwrap()
    }

    fn dirs(dir: &Path) -> VolumeDirs {
        VolumeDirs { disk: dir.join("disk"), memory: dir.join("memory") }
    }

    #[test]
    fn keys_become_files_and_follow_their_object() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let pod = pod(json!([
            {"name": "conf", "configMap": {"name": "conf", "items": [{"key": "a", "path": "sub/a.txt", "mode": 256}]}},
            {"name": "key", "secret": {"secretName": "key", "defaultMode": 384}},
            {"name": "may", "configMap": {"name": "absent", "optional": true}},
            {"name": "empty"},
        ]));
        let first = state(&[
            ("configmaps", "conf", json!({"data": {"a": "one", "b": "unused"}})),
            ("secrets", "key", json!({"data": {"pw": "aGk="}})),
        ]);
        prepare(&pod, &dirs, &first, FACTS, "1").unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!((read("disk/conf/sub/a.txt").as_str(), read("memory/key/pw").as_str()), ("one", "hi"));
        let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("disk/conf/sub/a.txt"), mode("memory/key/pw"), mode("disk/empty")), (0o400, 0o600, 0o777));
        assert!(dir.path().join("disk/may").is_dir());
        let second = state(&[("configmaps", "conf", json!({"data": {"a": "two"}}))]);
        let problems = refresh(&pod, &dirs, &second, FACTS, "2");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((read("disk/conf/sub/a.txt").as_str(), read("memory/key/pw").as_str()), ("two", "hi"));
        remove(&pod, &dirs).unwrap();
        assert!(!dir.path().join("disk").exists() && !dir.path().join("memory").exists());
        remove(&pod, &dirs).unwrap();
    }

    #[test]
    fn one_directory_of_several_objects_and_of_what_the_pod_says() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let volumes = json!([
            {"name": "all", "projected": {"defaultMode": 288, "sources": [
                {"configMap": {"name": "conf"}},
                {"secret": {"name": "key", "items": [{"key": "pw", "path": "secret/pw", "mode": 256}]}},
                {"downwardAPI": {"items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
                ]}},
                {"configMap": {"name": "absent", "optional": true}},
            ]}},
            {"name": "me", "downwardAPI": {"items": [
                {"path": "a/name", "fieldRef": {"fieldPath": "metadata.name"}},
                {"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}},
            ]}},
        ]);
        let pod = |label: &str| {
            Pod::parse(&json!({
                "metadata": {
                    "name": "p", "namespace": "n", "uid": "u",
                    "labels": {"b": label, "a": "1"}, "annotations": {"note": "x"},
                },
                "spec": {"containers": [{"name": "c"}], "volumes": volumes},
            }))
            .unwrap()
        };
        let objects = state(&[
            ("configmaps", "conf", json!({"data": {"a": "one"}})),
            ("secrets", "key", json!({"data": {"pw": "aGk="}})),
        ]);
        prepare(&pod("2"), &dirs, &objects, FACTS, "1").unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        // With a Secret in it all of it is in memory.
        assert_eq!(read("memory/all/a"), "one");
        assert_eq!((read("memory/all/secret/pw").as_str(), read("memory/all/cpu").as_str()), ("hi", "4000"));
        assert_eq!(read("memory/all/labels"), "a=\"1\"\nb=\"2\"");
        assert_eq!((read("disk/me/a/name").as_str(), read("disk/me/note").as_str()), ("p", "x"));
        let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("memory/all/a"), mode("memory/all/secret/pw")), (0o440, 0o400));
        // Labels that change are said anew.
        assert!(refresh(&pod("3\"\n"), &dirs, &objects, FACTS, "2").is_empty());
        assert_eq!(read("memory/all/labels"), "a=\"1\"\nb=\"3\\\"\\n\"");
        // Whoever names a container that is not there is told.
        let bad = json!([{"name": "v", "downwardAPI": {"items": [
            {"path": "x", "resourceFieldRef": {"containerName": "d", "resource": "limits.cpu"}}]}}]);
        let error = prepare(&self::pod(bad), &dirs, &objects, FACTS, "3").unwrap_err();
        assert!(coracle_base::one_line(&error).contains("container `d`"), "{}", coracle_base::one_line(&error));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let words = |volume: Value, state: &State| {
            prepare(&pod(json!([volume])), &dirs(dir.path()), state, FACTS, "1").unwrap_err().to_string()
        };
        let empty = state(&[("configmaps", "conf", json!({"data": {}}))]);
        assert_eq!(
            words(json!({"name": "v", "configMap": {"name": "x"}}), &empty),
            "volume \"v\": configmap \"x\" not found"
        );
        assert_eq!(
            words(json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "k", "path": "k"}]}}), &empty),
            "volume \"v\": configmap \"conf\" has no key \"k\""
        );
        let missing = dir.path().join("nowhere").display().to_string();
        assert_eq!(
            words(json!({"name": "v", "hostPath": {"path": missing, "type": "Directory"}}), &empty),
            format!("volume \"v\": hostPath {missing} is not a Directory: it does not exist")
        );
        let escape = state(&[("configmaps", "conf", json!({"data": {"k": "v"}}))]);
        let item = json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "k", "path": "../../x"}]}});
        assert!(words(item, &escape).contains("cannot be a file"));
    }

    #[test]
    fn a_directory_that_holds_too_much_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let pod = pod(json!([{"name": "e", "emptyDir": {"sizeLimit": "64Ki"}}]));
        prepare(&pod, &dirs, &State::default(), FACTS, "1").unwrap();
        assert!(has_limits(&pod) && over_limit(&pod, &dirs).is_none());
        std::fs::create_dir(dirs.disk.join("e/sub")).unwrap();
        std::fs::write(dirs.disk.join("e/sub/big"), vec![1; 128 << 10]).unwrap();
        let words = over_limit(&pod, &dirs).unwrap();
        assert!(words.starts_with("Usage of EmptyDir volume \"e\" exceeds the limit"), "{words}");
    }

    #[test]
    fn no_depth_hides_what_a_directory_holds_or_keeps_it_here() {
        use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
        // In memory where possible: disks take minutes for that many directories.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let dirs = dirs(dir.path());
        let pod = pod(json!([{"name": "e", "emptyDir": {"sizeLimit": "64Ki"}}]));
        prepare(&pod, &dirs, &State::default(), FACTS, "1").unwrap();
        let mut at = openat(CWD, dirs.disk.join("e"), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = openat(&at, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(over_limit(&pod, &dirs).is_none());
        let file = openat(&at, "big", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        rustix::io::write(&file, &[1; 128 << 10]).unwrap();
        assert!(over_limit(&pod, &dirs).is_some());
        // On a thread as the agent's, with the 2 MiB of stack that Rust gives.
        std::thread::spawn(move || {
            remove(&pod, &dirs).unwrap();
            assert!(!dirs.disk.exists());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn host_paths_of_the_right_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let ok = |path: String, kind: &str| {
            prepare(
                &pod(json!([{"name": "v", "hostPath": {"path": path, "type": kind}}])),
                &dirs(dir.path()),
                &State::default(),
                FACTS,
                "1",
            )
            .is_ok()
        };
        assert!(ok(path("made"), "DirectoryOrCreate") && ok(path("made"), "Directory") && ok(path("made"), ""));
        assert!(ok(path("file"), "FileOrCreate") && ok(path("file"), "File"));
        assert!(
            !ok(path("file"), "Directory")
                && !ok(path("made"), "File")
                && !ok(path("file"), "Socket")
                && !ok(path("none"), "")
        );
        assert!(ok("/dev/null".into(), "CharDevice"));
    }

    #[test]
    fn memory_volumes_have_their_size_and_leave_no_mount() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: mounting a tmpfs needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let pod = pod(json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]));
        prepare(&pod, &dirs, &State::default(), FACTS, "1").unwrap();
        prepare(&pod, &dirs, &State::default(), FACTS, "1").unwrap();
        let big = vec![0_u8; 2 << 20];
        assert!(std::fs::write(dirs.memory.join("m/big"), &big).is_err());
        let mounts = || {
            std::fs::read_to_string("/proc/self/mounts").unwrap().matches(&dirs.memory.display().to_string()).count()
        };
        assert_eq!(mounts(), 1);
        remove(&pod, &dirs).unwrap();
        assert_eq!(mounts(), 0);
    }
}

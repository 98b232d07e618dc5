//! Where things are unless a flag or the environment says otherwise, and the one file that remembers what `up` was told.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The default data folder.
pub const DATA_DIR: &str = "/var/lib/coracle";
/// The default run folder: on a tmpfs, gone after a reboot.
pub const RUN_DIR: &str = "/run/coracle";

/// Everything `coracle up` can be told, from one source: flags, environment and defaults are merged by the argument
/// parser. It is kept in the data folder, so that `down` and `status` find what `up` started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// State that must survive.
    pub data_dir: PathBuf,
    /// State of this boot.
    pub run_dir: PathBuf,
    /// The API.
    pub api_listen: SocketAddr,
    /// Agents and servers.
    pub peer_listen: SocketAddr,
    /// The status page.
    pub status_listen: SocketAddr,
    /// Images, for other nodes.
    #[serde(default = "image_listen")]
    pub image_listen: SocketAddr,
    /// All pods.
    pub cluster_cidr: String,
    /// All services.
    pub service_cidr: String,
    /// The domain of service names.
    pub cluster_domain: String,
    /// This machine's name in the cluster.
    pub node_name: String,
    /// The address others reach this machine at.
    pub node_ip: IpAddr,
    /// The bridge of the pods.
    pub bridge: String,
    /// The nftables table.
    pub table: String,
    /// The subtree of all cgroups.
    pub cgroup: String,
    /// Pods this node takes at most.
    pub max_pods: u32,
    /// The process that runs with these settings, while it runs.
    pub pid: u32,
}

/// Where images are for other nodes, in files of a release that did not say.
fn image_listen() -> SocketAddr {
    coracle_node_agent::BLOB_LISTEN
}

/// The cluster this machine has joined, as `join` wrote it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Whether this machine is one of its servers.
    pub server: bool,
    /// Names the cluster, hexadecimal.
    pub cluster: String,
    /// Where its servers were when this machine joined.
    pub servers: Vec<String>,
    /// All pods.
    pub cluster_cidr: String,
    /// All services.
    pub service_cidr: String,
    /// The domain of service names.
    pub domain: String,
    /// The prefix length of a node's block.
    pub node_prefix: u8,
}

impl Membership {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("cluster.json")
    }

    /// What a machine has joined; `None` when it has not.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, Failure> {
        let path = Self::path(data_dir);
        let unusable = |why: String| Failure::failed(format!("cannot read {}: {why}", path.display()));
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| unusable(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// Writes it down, for good.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, data_dir: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Failure::failed(error.to_string()))?;
        coracle_control_plane::pki::write(&Self::path(data_dir), &text).map_err(|error| Failure::from_error(&error))
    }
}

impl Settings {
    /// The file of a data folder.
    #[must_use]
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("up.json")
    }

    /// What the last `up` in this data folder ran with; `None` when there was none.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, Failure> {
        let path = Self::path(data_dir);
        let unusable =
            |why: String, hint: &str| Failure::failed(format!("cannot read {}: {why}\nhint: {hint}", path.display()));
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| unusable(error.to_string(), "`coracle up` with the flags of before writes it anew")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(error.to_string(), "the data folder is root's: try with sudo")),
        }
    }

    /// Remembers them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self) -> std::io::Result<()> {
        let path = Self::path(&self.data_dir);
        let temp = path.with_extension("new");
        let mut text = serde_json::to_vec_pretty(self)?;
        match std::fs::write(&temp, &text).and_then(|()| std::fs::rename(&temp, &path)) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                // No room for a second file: into the one that is there, which at most another process id makes longer.
                let _ = std::fs::remove_file(&temp);
                let file = std::fs::OpenOptions::new().write(true).open(&path)?;
                let before = usize::try_from(file.metadata()?.len()).unwrap_or(0);
                text.resize(text.len().max(before), b' ');
                std::os::unix::fs::FileExt::write_all_at(&file, &text, 0)
            }
            other => other,
        }
    }
}

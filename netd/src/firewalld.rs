//! firewalld is told what our links are: a zone of its own for them, and a policy that lets in what is for pods. It refuses what
//! it does not know in chains of its own, and what our table accepts it still refuses.
//!
//! The two are files in firewalld's folder, as a package or an administrator would put them there: they hold over its reloads and
//! restarts and are there when it starts before us, or is installed and started later. One that runs already is asked once to
//! read them.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_net_model::nft::ChainInfo;

/// Where firewalld looks for what is this machine's own.
const FOLDER: &str = "/etc/firewalld";
/// Its table, in the family inet.
const TABLE: &str = "firewalld";
/// The longest name of a zone that leaves room for that of the policy: it takes 17 bytes, and not the same name for both.
const NAME_BYTES: usize = 14;

/// What firewalld is told, and whether it has been asked to hear it.
pub(crate) struct Firewalld {
    folder: PathBuf,
    zone: String,
    files: [(PathBuf, String); 2],
    asked: bool,
}

impl Firewalld {
    /// For links of these names. `None` in a network namespace other than the machine's: its firewalld has nothing to say there.
    pub(crate) fn here(zone: &str, links: &[&str]) -> Option<Self> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let machine = namespace("1").is_some_and(|machine| namespace("thread-self").as_ref() == Some(&machine));
        machine.then(|| Self::at(Path::new(FOLDER), zone, links))
    }

    fn at(folder: &Path, zone: &str, links: &[&str]) -> Self {
        let zone = zone.get(..NAME_BYTES).unwrap_or(zone).to_owned();
        let files = [
            (folder.join(format!("zones/{zone}.xml")), zone_file(&zone, links)),
            (folder.join(format!("policies/{zone}-in.xml")), policy_file(&zone)),
        ];
        Self { folder: folder.to_owned(), zone, files, asked: false }
    }

    /// Writes what is missing or different, where firewalld is installed. Says how many files that were.
    pub(crate) fn tell(&mut self) -> io::Result<usize> {
        if !self.folder.is_dir() {
            return Ok(0);
        }
        let mut written = 0;
        for (path, text) in &self.files {
            if fs::read_to_string(path).is_ok_and(|there| there == *text) {
                continue;
            }
            let folder = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder)?;
            // firewalld reads files that end in .xml, and never sees half of one.
            let new = path.with_extension("new");
            fs::File::create(&new).and_then(|mut file| file.write_all(text.as_bytes()))?;
            fs::rename(&new, path)?;
            written += 1;
        }
        self.asked &= written == 0;
        Ok(written)
    }

    /// Whether firewalld stands with these chains and does not know us.
    pub(crate) fn is_deaf(&self, chains: &[ChainInfo]) -> bool {
        let of = |chain: &&ChainInfo| chain.table == TABLE;
        let ours = format!("filter_IN_{}", self.zone);
        let stands = chains.iter().filter(of).any(|chain| chain.name.starts_with("filter_IN_"));
        stands && !chains.iter().filter(of).any(|chain| chain.name == ours)
    }

    /// Has it read its files, once for each change of them. What it knows of links and connections stays.
    pub(crate) fn ask(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        reload();
    }

    /// Takes the files away; one that knows us forgets us.
    pub(crate) fn forget(&self, chains: &[ChainInfo]) -> io::Result<()> {
        let mut removed = false;
        for (path, _) in &self.files {
            match fs::remove_file(path) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if removed && chains.iter().any(|chain| chain.table == TABLE) {
            reload();
        }
        Ok(())
    }

    /// The name of our zone.
    pub(crate) fn zone(&self) -> &str {
        &self.zone
    }
}

/// The way to ask it that every release has. It takes a second, which nobody here waits for.
fn reload() {
    tracing::info!("firewalld is asked to read what is new");
    let mut command = Command::new("firewall-cmd");
    command.args(["--quiet", "--reload"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let waiting = std::thread::Builder::new().name("netd-firewalld".to_owned()).spawn(move || match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(%status, "firewall-cmd --reload"),
        Err(error) => tracing::warn!(%error, "firewall-cmd cannot be run"),
    });
    if let Err(error) = waiting {
        tracing::warn!(%error, "starting a thread for firewall-cmd");
    }
}

fn zone_file(zone: &str, links: &[&str]) -> String {
    let links: String = links.iter().map(|link| format!("  <interface name=\"{link}\"/>\n")).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone target=\"ACCEPT\">\n  <short>{zone}</short>\n  \
         <description>Pods of Coracle. Written by its agent; `coracle down` takes it away.</description>\n{links}</zone>\n"
    )
}

fn policy_file(zone: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<policy target=\"ACCEPT\">\n  <short>{zone}-in</short>\n  \
         <description>To pods of Coracle. Written by its agent; `coracle down` takes it away.</description>\n  \
         <ingress-zone name=\"ANY\"/>\n  <egress-zone name=\"{zone}\"/>\n</policy>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str) -> ChainInfo {
        ChainInfo { table: table.to_owned(), name: name.to_owned(), hook: None, drops: false }
    }

    #[test]
    fn files_are_written_once_and_taken_away() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut firewalld = Firewalld::at(&folder.path().join("none"), "coracle", &["coracle0"]);
        assert_eq!(firewalld.tell().expect("nothing to do"), 0, "it is not installed");
        let mut firewalld = Firewalld::at(folder.path(), "coracle", &["coracle0", "coracle0.vx"]);
        assert_eq!(firewalld.tell().expect("written"), 2);
        assert_eq!(firewalld.tell().expect("looked at"), 0);
        let zone = fs::read_to_string(folder.path().join("zones/coracle.xml")).expect("a zone");
        assert!(zone.contains("<interface name=\"coracle0\"/>\n  <interface name=\"coracle0.vx\"/>"), "{zone}");
        fs::write(folder.path().join("policies/coracle-in.xml"), "<policy/>").expect("somebody changes it");
        assert_eq!(firewalld.tell().expect("written"), 1);
        firewalld.forget(&[]).expect("removed");
        firewalld.forget(&[]).expect("there is nothing");
        assert!(
            !folder.path().join("zones/coracle.xml").exists()
                && !folder.path().join("policies/coracle-in.xml").exists()
        );
    }

    #[test]
    fn one_that_runs_is_deaf_until_it_has_the_zone() {
        let firewalld = Firewalld::at(Path::new("/nowhere"), "coracle-of-the-north-sea", &[]);
        assert_eq!(firewalld.zone(), "coracle-of-the");
        assert!(!firewalld.is_deaf(&[chain("filter", "filter_IN_public")]), "it is not there");
        let mut chains = vec![chain("firewalld", "filter_IN_public"), chain("firewalld", "filter_INPUT")];
        assert!(firewalld.is_deaf(&chains));
        chains.push(chain("firewalld", "filter_IN_coracle-of-the"));
        assert!(!firewalld.is_deaf(&chains));
    }
}

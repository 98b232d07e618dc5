//! What the servers have told this node, kept so that it can go on without them: assignments and the last feeds on disk,
//! Secrets only in the run directory (a tmpfs).
//!
//! Readers see an immutable `State`. A change is published at once and written behind: a crash in between leaves an older
//! ledger, and the next full feed mends it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_base::Generation;
use coracle_daemon::DrainWatch;
use coracle_protocol::v1::{Feed, Item, Settings};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
/// First byte of every value: the encoding's number.
const FORMAT: u8 = 1;
/// Changes that wait for the disk; a session waits with the next feed when it is full.
const WRITES: usize = 64;
/// How often a disk that did not take the ledger is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// Parts of one feed are held until the last: what a broken server could make us hold, in items.
const MAX_PARTS_ITEMS: usize = 1_000_000;

/// What went wrong with the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file is in use or damaged.
    #[error(
        "the agent's ledger {path} cannot be opened\nhint: another agent on the same data directory? A damaged ledger may be deleted: the servers tell it all again"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// Reading or writing the database.
    #[error("the agent's ledger cannot be {0}")]
    Database(&'static str, #[source] Box<redb::Error>),
    /// A file or directory.
    #[error("cannot {action} {path}")]
    File {
        /// `create`, `read`, ...
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The writer has ended.
    #[error("the agent is stopping")]
    Stopped,
}

/// Why a feed was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is older than what the ledger holds.
    #[error("a feed of generation {offered:?} is older than the ledger's {held:?}")]
    Older {
        /// What came.
        offered: Generation,
        /// What is held.
        held: Generation,
    },
    /// A difference came before anything it could be a difference to.
    #[error("a difference came before the whole")]
    NothingToChange,
    /// An object should stay as it is held, and it is not held like that.
    #[error("{resource}/{name} should stay at revision {revision}, and is not held at that")]
    NotHeld {
        /// Its resource.
        resource: String,
        /// Its name.
        name: String,
        /// The revision.
        revision: u64,
    },
    /// More parts than anything real has.
    #[error("a feed of more than {MAX_PARTS_ITEMS} items")]
    TooLarge,
}

/// Where an object stands: resource, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `pods`, `configmaps`, `endpointslices.discovery.k8s.io`, ...
    pub resource: String,
    /// Empty for what has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn text(&self) -> String {
        format!("{}\n{}\n{}", self.resource, self.namespace, self.name)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '\n');
        Some(Self::new(parts.next()?, parts.next()?, parts.next()?))
    }
}

/// An object as the servers hold it.
#[derive(Debug, PartialEq)]
pub struct Held {
    /// Its uid.
    pub uid: String,
    /// The revision that wrote it.
    pub revision: u64,
    /// Its tree.
    pub tree: Value,
}

/// Everything known at one moment. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Of the last feed.
    pub generation: Generation,
    /// What the cluster decided for this node.
    pub settings: Option<Settings>,
    /// All objects.
    pub objects: imbl::OrdMap<Key, Arc<Held>>,
    /// A whole feed has come since this process began: what is not in it does not belong here.
    pub confirmed: bool,
    /// Pods of an older life of the cluster that the present one, begun anew from a backup, does not know: they run on until it has
    /// had time to take them over.
    pub orphans: imbl::OrdSet<Key>,
    /// What the server called the tables with the last feed; empty when what is held is not all that this feed said. Not kept across
    /// the process: the first feed of each is whole.
    pub tables: Arc<[u8]>,
}

impl State {
    /// One object.
    #[must_use]
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Arc<Held>> {
        self.objects.get(&Key::new(resource, namespace, name))
    }

    /// All of a resource.
    pub fn list<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = (&'a Key, &'a Arc<Held>)> {
        self.objects.range(Key::new(resource, "", "")..).take_while(move |(key, _)| key.resource == resource)
    }

    /// All of a resource in a namespace.
    pub fn list_in<'a>(
        &'a self,
        resource: &str,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Held>)> + use<'a> {
        let first = Key::new(resource, namespace, "");
        let (resource, namespace) = (first.resource.clone(), first.namespace.clone());
        self.objects.range(first..).take_while(move |(key, _)| key.resource == resource && key.namespace == namespace)
    }
}

impl coracle_lifecycle::env::Sources for State {
    fn config_map(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.get("configmaps", namespace, name).map(|held| &held.tree)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.get("secrets", namespace, name).map(|held| &held.tree)
    }

    fn services(&self, namespace: &str) -> Vec<&Value> {
        self.list_in("services", namespace).map(|(_, held)| &held.tree).collect()
    }
}

/// What goes to the disk.
#[derive(Debug)]
enum Write {
    Change { whole: bool, put: Vec<(Key, Vec<u8>)>, removed: Vec<Key>, generation: Generation },
    Settings(Settings),
    Flush(tokio::sync::oneshot::Sender<()>),
}

/// The ledger's one writer-side handle; the session holds it.
#[derive(Debug)]
pub struct Ledger {
    state: watch::Sender<State>,
    writes: mpsc::Sender<Write>,
    /// Parts of a feed that is not whole yet.
    parts: Vec<Feed>,
}

impl Ledger {
    /// Reads what an earlier agent left in `data_dir/ledger.redb` and `run_dir/secrets`, and starts the task that writes
    /// behind. The task ends with the drain.
    ///
    /// # Errors
    /// A database that is in use or damaged, directories that cannot be used.
    pub fn open(data_dir: &Path, run_dir: &Path, drain: &DrainWatch) -> Result<Self, LedgerError> {
        for dir in [data_dir, run_dir] {
            make_dir(dir)?;
        }
        let path = data_dir.join("ledger.redb");
        let secrets = run_dir.join("secrets");
        make_dir(&secrets)?;
        let database = open_database(&path)?;
        let mut state = load(&database)?;
        load_secrets(&secrets, &mut state)?;
        let state = watch::Sender::new(state);
        let (sender, receiver) = mpsc::channel(WRITES);
        let disk = Disk { path, secrets, database: Some(database), state: state.subscribe() };
        drain.spawn(write_behind(disk, receiver, drain.clone()));
        Ok(Self { state, writes: sender, parts: Vec::new() })
    }

    /// Keeps what is known there to be read after the session, which alone writes it, has ended.
    #[must_use]
    pub fn alive(&self) -> watch::Sender<State> {
        self.state.clone()
    }

    /// What is known now, and word of every change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// A new session: parts of a feed that the last one did not finish are void.
    pub fn begin_session(&mut self) {
        self.parts.clear();
    }

    /// Takes what the cluster decided for this node.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn settle(&mut self, settings: Settings) -> Result<(), LedgerError> {
        if self.state.borrow().settings.as_ref() == Some(&settings) {
            return Ok(());
        }
        self.state.send_modify(|state| state.settings = Some(settings.clone()));
        self.writes.send(Write::Settings(settings)).await.map_err(|_| LedgerError::Stopped)
    }

    /// Takes one part of a feed; the last part makes the whole visible at once.
    ///
    /// # Errors
    /// The agent is stopping. A feed that is refused is `Ok(Err)`.
    pub async fn apply(&mut self, feed: Feed) -> Result<Result<(), Refused>, LedgerError> {
        let more = feed.more;
        self.parts.push(feed);
        if self.parts.iter().map(|part| part.items.len() + part.removed.len()).sum::<usize>() > MAX_PARTS_ITEMS {
            self.parts.clear();
            return Ok(Err(Refused::TooLarge));
        }
        if more {
            return Ok(Ok(()));
        }
        let parts = std::mem::take(&mut self.parts);
        // The look at the state ends here: it is changed below.
        let merged = merge(&self.state.borrow(), parts);
        let change = match merged {
            Ok(change) => change,
            Err(refused) => {
                // The next session begins anew.
                self.state.send_modify(|state| state.tables = Arc::default());
                return Ok(Err(refused));
            }
        };
        self.state.send_modify(|state| *state = change.state);
        self.writes.send(change.write).await.map_err(|_| LedgerError::Stopped)?;
        Ok(Ok(()))
    }

    /// Lets go of the pods that the cluster's new life did not take over.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn drop_orphans(&mut self) -> Result<(), LedgerError> {
        let (removed, generation) = {
            let state = self.state.borrow();
            (state.orphans.iter().cloned().collect::<Vec<_>>(), state.generation)
        };
        if removed.is_empty() {
            return Ok(());
        }
        tracing::warn!(pods = removed.len(), "the cluster, begun anew, did not take over all pods of before: they end");
        self.state.send_modify(|state| {
            for key in &removed {
                state.objects.remove(key);
            }
            state.orphans = imbl::OrdSet::new();
        });
        let write = Write::Change { whole: false, put: Vec::new(), removed, generation };
        self.writes.send(write).await.map_err(|_| LedgerError::Stopped)
    }

    /// Waits until everything taken so far is on disk.
    pub async fn flush(&self) {
        let (done, is_done) = tokio::sync::oneshot::channel();
        if self.writes.send(Write::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

struct Change {
    state: State,
    write: Write,
}

/// Tables that a resumed feed says the changes of; of everything else it names all there is.
fn is_table(key: &Key) -> bool {
    ["services", "endpointslices.discovery.k8s.io", "nodes"].contains(&key.resource.as_str())
}

fn merge(held: &State, parts: Vec<Feed>) -> Result<Change, Refused> {
    let generation = parts.last().and_then(|part| part.generation).unwrap_or_default();
    let generation = Generation { epoch: generation.epoch, revision: generation.revision };
    let whole = parts.first().is_some_and(|part| part.full);
    let resumed = !whole && parts.first().is_some_and(|part| part.resumed);
    let mut tables: Arc<[u8]> = parts.last().map(|part| part.tables.clone().into()).unwrap_or_default();
    let mut named: std::collections::HashSet<Key> = std::collections::HashSet::new();
    if generation < held.generation {
        return Err(Refused::Older { offered: generation, held: held.generation });
    }
    if !whole && !held.confirmed {
        return Err(Refused::NothingToChange);
    }
    let mut objects = if whole { imbl::OrdMap::new() } else { held.objects.clone() };
    let (mut put, mut removed) = (Vec::new(), Vec::new());
    for part in parts {
        for reference in part.removed {
            let key = Key::new(&reference.resource, &reference.namespace, &reference.name);
            objects.remove(&key);
            removed.push(key);
        }
        for item in part.items {
            let key = Key::new(&item.resource, &item.namespace, &item.name);
            // The same bytes need not be read again: a whole feed after a reconnect is mostly known.
            let known = held.objects.get(&key).filter(|known| known.revision == item.revision && known.uid == item.uid);
            if resumed {
                named.insert(key.clone());
                if item.object.is_empty() && known.is_none() {
                    let (resource, name) = (item.resource, item.name);
                    return Err(Refused::NotHeld { resource, name, revision: item.revision });
                }
            }
            let object = match known {
                Some(known) => known.clone(),
                None => match serde_json::from_slice(&item.object) {
                    Ok(tree) => Arc::new(Held { uid: item.uid.clone(), revision: item.revision, tree }),
                    Err(error) => {
                        tracing::warn!(resource = item.resource, name = item.name, %error, "an object of a feed cannot be read");
                        tables = Arc::default();
                        continue;
                    }
                },
            };
            if whole || known.is_none() {
                put.push((key.clone(), encode(&item)));
            }
            objects.insert(key, object);
        }
    }
    if resumed {
        let stays = |key: &Key| is_table(key) || named.contains(key) || held.orphans.contains(key);
        let gone: Vec<Key> = objects.keys().filter(|key| !stays(key)).cloned().collect();
        for key in gone {
            objects.remove(&key);
            removed.push(key);
        }
    }
    let mut orphans = imbl::OrdSet::new();
    if whole {
        let new_life = generation.epoch > held.generation.epoch;
        let before: Vec<(&Key, &Arc<Held>)> = if new_life {
            held.list("pods").collect()
        } else {
            held.orphans.iter().filter_map(|key| Some((key, held.objects.get(key)?))).collect()
        };
        for (key, pod) in before {
            // One of the same name may be another pod.
            if !objects.contains_key(key) {
                let object = serde_json::to_vec(&pod.tree).unwrap_or_default();
                let item = Item { uid: pod.uid.clone(), revision: pod.revision, object, ..Item::default() };
                put.push((key.clone(), encode(&item)));
                objects.insert(key.clone(), pod.clone());
                orphans.insert(key.clone());
            }
        }
    } else {
        // Whatever was said of one in this feed has settled it.
        let said: std::collections::HashSet<&Key> = put.iter().map(|(key, _)| key).chain(&removed).collect();
        orphans = held.orphans.iter().filter(|key| !said.contains(key)).cloned().collect();
    }
    let state = State { generation, settings: held.settings.clone(), objects, confirmed: true, orphans, tables };
    Ok(Change { state, write: Write::Change { whole, put, removed, generation } })
}

/// Format, revision, length of the uid, uid, object.
fn encode(item: &Item) -> Vec<u8> {
    let uid = &item.uid.as_bytes()[..item.uid.len().min(255)];
    let mut bytes = Vec::with_capacity(10 + uid.len() + item.object.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&item.revision.to_le_bytes());
    bytes.push(u8::try_from(uid.len()).unwrap_or(0));
    bytes.extend_from_slice(uid);
    bytes.extend_from_slice(&item.object);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Held> {
    let (head, rest) = bytes.split_at_checked(10)?;
    if head[0] != FORMAT {
        return None;
    }
    let revision = u64::from_le_bytes(head[1..9].try_into().ok()?);
    let (uid, object) = rest.split_at_checked(usize::from(head[9]))?;
    Some(Held { uid: String::from_utf8(uid.to_vec()).ok()?, revision, tree: serde_json::from_slice(object).ok()? })
}

fn database_error(what: &'static str) -> impl Fn(redb::Error) -> LedgerError {
    move |source| LedgerError::Database(what, Box::new(source))
}

fn load(database: &Database) -> Result<State, LedgerError> {
    let bad = database_error("read");
    let mut state = State::default();
    let read = database.begin_read().map_err(|error| bad(error.into()))?;
    match read.open_table(OBJECTS) {
        Ok(table) => {
            for entry in table.iter().map_err(|error| bad(error.into()))? {
                let (key, value) = entry.map_err(|error| bad(error.into()))?;
                match (Key::parse(key.value()), decode(value.value())) {
                    (Some(key), Some(held)) => {
                        state.objects.insert(key, Arc::new(held));
                    }
                    _ => tracing::warn!(key = key.value(), "an entry of the ledger cannot be read"),
                }
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(state),
        Err(error) => return Err(bad(error.into())),
    }
    let facts = read.open_table(FACTS).map_err(|error| bad(error.into()))?;
    let fact = |name: &str| facts.get(name).map(|value| value.map(|value| value.value().to_vec()));
    if let Some(bytes) = fact("generation").map_err(|error| bad(error.into()))?
        && let (Ok(epoch), Ok(revision)) =
            (bytes[..bytes.len().min(8)].try_into(), bytes[bytes.len().min(8)..].try_into())
    {
        state.generation = Generation { epoch: u64::from_le_bytes(epoch), revision: u64::from_le_bytes(revision) };
    }
    if let Some(bytes) = fact("settings").map_err(|error| bad(error.into()))? {
        state.settings = prost::Message::decode(bytes.as_slice()).ok();
    }
    Ok(state)
}

fn open_database(path: &Path) -> Result<Database, LedgerError> {
    let opened = Database::builder().set_cache_size(1 << 20).create(path);
    opened.map_err(|source| LedgerError::Open { path: path.to_owned(), source: Box::new(source.into()) })
}

/// Where the ledger is kept.
struct Disk {
    path: PathBuf,
    secrets: PathBuf,
    /// `None` after a write that failed: it takes no more, and what it holds lags behind.
    database: Option<Database>,
    /// What it should hold.
    state: watch::Receiver<State>,
}

impl Disk {
    /// Writes a batch of changes. After one that failed: everything, into the database opened anew, so that none is missing.
    fn write(&mut self, batch: &[Write]) -> Result<(), LedgerError> {
        let outcome = match &self.database {
            Some(database) => write_batch(database, &self.secrets, batch),
            None => {
                let database = open_database(&self.path)?;
                let outcome = write_batch(&database, &self.secrets, &everything(&self.state.borrow()));
                self.database = Some(database);
                outcome
            }
        };
        if outcome.is_err() {
            self.database = None;
        }
        outcome
    }
}

fn everything(state: &State) -> Vec<Write> {
    let put = state.objects.iter().map(|(key, held)| {
        let object = serde_json::to_vec(&held.tree).unwrap_or_default();
        let item = Item { uid: held.uid.clone(), revision: held.revision, object, ..Item::default() };
        (key.clone(), encode(&item))
    });
    let change = Write::Change { whole: true, put: put.collect(), removed: Vec::new(), generation: state.generation };
    std::iter::once(change).chain(state.settings.clone().map(Write::Settings)).collect()
}

async fn write_behind(mut disk: Disk, mut writes: mpsc::Receiver<Write>, drain: DrainWatch) {
    loop {
        let behind = disk.database.is_none();
        let mut batch = tokio::select! {
            biased;
            // Cancel safe: a write is taken whole or not at all.
            write = writes.recv() => match write {
                Some(write) => vec![write],
                None => return,
            },
            // What was queued before the drain began still goes to disk: the branch above comes first.
            () = drain.signaled() => return,
            () = tokio::time::sleep(AGAIN), if behind => Vec::new(),
        };
        while let Ok(write) = writes.try_recv() {
            batch.push(write);
        }
        let done = tokio::task::spawn_blocking(move || {
            let outcome = disk.write(&batch);
            (disk, batch, outcome)
        });
        let Ok((moved, batch, outcome)) = done.await else { return };
        disk = moved;
        match outcome {
            // Memory holds it until the disk takes it; after a restart the servers tell it all again.
            Err(error) if !behind => {
                tracing::error!(
                    error = coracle_base::one_line(&error),
                    "the ledger is not written until the disk takes it"
                );
            }
            Ok(()) if behind => tracing::info!("the ledger is written again"),
            _ => {}
        }
        for write in batch {
            if let Write::Flush(done) = write {
                let _ = done.send(());
            }
        }
    }
}

fn write_batch(database: &Database, secrets: &Path, batch: &[Write]) -> Result<(), LedgerError> {
    let bad = database_error("written");
    let transaction = database.begin_write().map_err(|error| bad(error.into()))?;
    {
        let mut objects = transaction.open_table(OBJECTS).map_err(|error| bad(error.into()))?;
        let mut facts = transaction.open_table(FACTS).map_err(|error| bad(error.into()))?;
        for write in batch {
            match write {
                Write::Change { whole, put, removed, generation } => {
                    if *whole {
                        objects.retain(|_, _| false).map_err(|error| bad(error.into()))?;
                        forget_secrets(secrets, put);
                    }
                    for key in removed {
                        if key.resource == "secrets" {
                            let _ = std::fs::remove_file(secret_path(secrets, key));
                        } else {
                            objects.remove(key.text().as_str()).map_err(|error| bad(error.into()))?;
                        }
                    }
                    for (key, bytes) in put {
                        if key.resource == "secrets" {
                            write_secret(secrets, key, bytes)?;
                        } else {
                            objects.insert(key.text().as_str(), bytes.as_slice()).map_err(|error| bad(error.into()))?;
                        }
                    }
                    let mut bytes = generation.epoch.to_le_bytes().to_vec();
                    bytes.extend_from_slice(&generation.revision.to_le_bytes());
                    facts.insert("generation", bytes.as_slice()).map_err(|error| bad(error.into()))?;
                }
                Write::Settings(settings) => {
                    let bytes = prost::Message::encode_to_vec(settings);
                    facts.insert("settings", bytes.as_slice()).map_err(|error| bad(error.into()))?;
                }
                Write::Flush(_) => {}
            }
        }
    }
    transaction.commit().map_err(|error| bad(error.into()))
}

/// Names of Kubernetes objects cannot leave the directory, but a feed is foreign input: everything else is escaped.
fn secret_path(dir: &Path, key: &Key) -> PathBuf {
    let plain = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => char::from(byte).to_string(),
                other => format!("_{other:02x}"),
            })
            .collect()
    };
    dir.join(format!("{}~{}", plain(&key.namespace), plain(&key.name)))
}

fn write_secret(dir: &Path, key: &Key, bytes: &[u8]) -> Result<(), LedgerError> {
    let path = secret_path(dir, key);
    let bad = |source| LedgerError::File { action: "write", path: path.clone(), source };
    let temp = path.with_file_name(format!("{}~new", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut text = key.text().into_bytes();
    text.push(0);
    text.extend_from_slice(bytes);
    let _ = std::fs::remove_file(&temp);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(bad)?;
    file.write_all(&text).map_err(bad)?;
    std::fs::rename(&temp, &path).map_err(bad)
}

/// Removes the files of Secrets that a whole feed no longer has.
fn forget_secrets(dir: &Path, put: &[(Key, Vec<u8>)]) {
    let kept: std::collections::HashSet<PathBuf> =
        put.iter().filter(|(key, _)| key.resource == "secrets").map(|(key, _)| secret_path(dir, key)).collect();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !kept.contains(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn load_secrets(dir: &Path, state: &mut State) -> Result<(), LedgerError> {
    let entries =
        std::fs::read_dir(dir).map_err(|source| LedgerError::File { action: "read", path: dir.to_owned(), source })?;
    for entry in entries.flatten() {
        let Ok(bytes) = std::fs::read(entry.path()) else { continue };
        let Some(end) = bytes.iter().position(|byte| *byte == 0) else { continue };
        let key = std::str::from_utf8(&bytes[..end]).ok().and_then(Key::parse);
        if let (Some(key), Some(held)) = (key, decode(&bytes[end + 1..])) {
            state.objects.insert(key, Arc::new(held));
        }
    }
    Ok(())
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), LedgerError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| LedgerError::File { action: "create", path: dir.to_owned(), source })
}

/// Objects by resource, for the status page.
#[must_use]
pub fn counts(state: &State) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for key in state.objects.keys() {
        *counts.entry(key.resource.clone()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_daemon::Drain;
    use coracle_protocol::v1::{Generation as WireGeneration, Ref};

    fn item(resource: &str, name: &str, revision: u64) -> Item {
        Item {
            resource: resource.into(),
            namespace: "n".into(),
            name: name.into(),
            uid: format!("u-{name}"),
            revision,
            object: format!("{{\"data\":{{\"r\":\"{revision}\"}}}}").into_bytes(),
        }
    }

    fn feed(revision: u64, full: bool, items: Vec<Item>) -> Feed {
        Feed { generation: Some(WireGeneration { epoch: 1, revision }), full, items, ..Feed::default() }
    }

    fn names(state: &State) -> Vec<String> {
        state.objects.keys().map(|key| format!("{}/{}", key.resource, key.name)).collect()
    }

    #[tokio::test]
    async fn what_was_told_is_there_after_a_restart_and_secrets_are_not_on_disk() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        {
            let drain = Drain::new();
            let mut ledger = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
            ledger.settle(Settings { pod_cidr: "10.42.0.0/24".into(), ..Settings::default() }).await.unwrap();
            let items = vec![item("pods", "a", 3), item("secrets", "key", 4), item("configmaps", "conf", 5)];
            ledger.apply(feed(7, true, items)).await.unwrap().unwrap();
            let removed = vec![Ref { resource: "configmaps".into(), namespace: "n".into(), name: "conf".into() }];
            ledger.apply(Feed { removed, ..feed(8, false, vec![item("pods", "b", 8)]) }).await.unwrap().unwrap();
            ledger.flush().await;
            drop(ledger);
            drain.finish(std::time::Duration::from_secs(5)).await;
        }
        let on_disk = std::fs::read(data.path().join("ledger.redb")).unwrap();
        assert!(!on_disk.windows(5).any(|window| window == b"u-key"));
        {
            let drain = Drain::new();
            let ledger = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
            let state = ledger.state();
            assert_eq!(names(&state), ["pods/a", "pods/b", "secrets/key"]);
            assert_eq!(state.get("secrets", "n", "key").unwrap().tree["data"]["r"], "4");
            assert_eq!(state.generation, Generation { epoch: 1, revision: 8 });
            assert_eq!(state.settings.as_ref().unwrap().pod_cidr, "10.42.0.0/24");
            assert!(!state.confirmed);
            drop(ledger);
            drain.finish(std::time::Duration::from_secs(5)).await;
        }
        // A reboot empties the run directory: the Secret is gone, the rest stays.
        let drain = Drain::new();
        let ledger = Ledger::open(data.path(), &run.path().join("after-reboot"), &drain.watch()).unwrap();
        assert_eq!(names(&ledger.state()), ["pods/a", "pods/b"]);
    }

    #[tokio::test]
    async fn a_resumed_feed_names_what_stays_and_changes_the_tables() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let drain = Drain::new();
        let mut ledger = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
        let resumed = |revision, items| Feed { resumed: true, tables: vec![2], ..feed(revision, false, items) };
        let stays = |resource, name, revision| Item { object: Vec::new(), ..item(resource, name, revision) };
        let refused = ledger.apply(resumed(5, vec![])).await.unwrap();
        assert_eq!(refused, Err(Refused::NothingToChange), "what an earlier process left is not known to be all");
        let items = vec![
            item("pods", "a", 1),
            item("pods", "b", 2),
            item("secrets", "key", 3),
            item("services", "s", 4),
            item("services", "t", 4),
        ];
        ledger.apply(Feed { tables: vec![1], ..feed(5, true, items) }).await.unwrap().unwrap();
        assert_eq!(&*ledger.state().tables, [1]);
        // The first pod stays, the second is another by now, the Secret is not read any more, a Service has gone.
        let removed = vec![Ref { resource: "services".into(), namespace: "n".into(), name: "t".into() }];
        let items = vec![stays("pods", "a", 1), item("pods", "b", 7)];
        ledger.apply(Feed { removed, ..resumed(8, items) }).await.unwrap().unwrap();
        let state = ledger.state();
        assert_eq!(names(&state), ["pods/a", "pods/b", "services/s"]);
        assert_eq!(
            (state.get("pods", "n", "a").unwrap().revision, state.get("pods", "n", "b").unwrap().revision),
            (1, 7)
        );
        assert_eq!(&*state.tables, [2]);
        ledger.flush().await;
        // What is not held as it should be makes the next session begin anew.
        let refused = ledger.apply(resumed(9, vec![stays("pods", "a", 2)])).await.unwrap();
        assert!(matches!(refused, Err(Refused::NotHeld { revision: 2, .. })), "{refused:?}");
        assert!(ledger.state().tables.is_empty());
        assert_eq!(names(&ledger.state()), ["pods/a", "pods/b", "services/s"]);
        drop(ledger);
        drain.finish(std::time::Duration::from_secs(5)).await;
        let drain = Drain::new();
        let ledger = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
        assert_eq!(names(&ledger.state()), ["pods/a", "pods/b", "services/s"], "as it was on disk");
        assert!(ledger.state().tables.is_empty());
    }

    #[tokio::test]
    async fn parts_become_visible_together_and_older_feeds_are_refused() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let drain = Drain::new();
        let mut ledger = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
        assert_eq!(ledger.apply(feed(5, false, vec![])).await.unwrap(), Err(Refused::NothingToChange));
        ledger.apply(Feed { more: true, ..feed(5, true, vec![item("pods", "a", 1)]) }).await.unwrap().unwrap();
        assert!(names(&ledger.state()).is_empty());
        ledger.apply(feed(5, false, vec![item("pods", "b", 2)])).await.unwrap().unwrap();
        assert_eq!(names(&ledger.state()), ["pods/a", "pods/b"]);
        assert!(matches!(ledger.apply(feed(4, true, vec![])).await.unwrap(), Err(Refused::Older { .. })));
        // A part left over from a broken session does not leak into the next.
        ledger.apply(Feed { more: true, ..feed(6, true, vec![]) }).await.unwrap().unwrap();
        ledger.begin_session();
        ledger.apply(feed(6, true, vec![item("pods", "c", 6)])).await.unwrap().unwrap();
        assert_eq!(names(&ledger.state()), ["pods/c"]);
        // A newer epoch may have lower revisions.
        let restored =
            Feed { generation: Some(WireGeneration { epoch: 2, revision: 1 }), full: true, ..Feed::default() };
        ledger.apply(restored.clone()).await.unwrap().unwrap();
        // What ran before may belong to the new life too: it is kept until that is known, across sessions.
        assert_eq!(names(&ledger.state()), ["pods/c"]);
        assert_eq!(ledger.state().orphans.len(), 1);
        ledger.begin_session();
        ledger.apply(restored.clone()).await.unwrap().unwrap();
        assert_eq!(ledger.state().orphans.len(), 1);
        let next =
            |items| Feed { generation: Some(WireGeneration { epoch: 2, revision: 2 }), items, ..Feed::default() };
        ledger.apply(next(vec![item("pods", "c", 7)])).await.unwrap().unwrap();
        assert!(ledger.state().orphans.is_empty(), "it was taken over");
        let third = Feed { generation: Some(WireGeneration { epoch: 3, revision: 1 }), full: true, ..Feed::default() };
        ledger.apply(third).await.unwrap().unwrap();
        ledger.drop_orphans().await.unwrap();
        assert!(names(&ledger.state()).is_empty());
    }

    #[test]
    fn a_disk_that_did_not_take_it_gets_everything_once_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = dir.path().join("secrets");
        make_dir(&secrets).unwrap();
        let known =
            merge(&State::default(), vec![feed(7, true, vec![item("pods", "a", 3), item("secrets", "key", 4)])]);
        let state = State { settings: Some(Settings::default()), ..known.unwrap().state };
        let path = dir.path().join("away/ledger.redb");
        let (_sender, receiver) = watch::channel(state.clone());
        let mut disk = Disk { path: path.clone(), secrets, database: None, state: receiver };
        assert!(matches!(disk.write(&[]), Err(LedgerError::Open { .. })) && disk.database.is_none());
        make_dir(path.parent().unwrap()).unwrap();
        disk.write(&[]).unwrap();
        let later = merge(&state, vec![feed(8, false, vec![item("pods", "b", 8)])]).unwrap();
        disk.write(&[later.write]).unwrap();
        disk.database = None;
        let found = load(&open_database(&path).unwrap()).unwrap();
        assert_eq!(names(&found), ["pods/a", "pods/b"]);
        assert_eq!((found.generation.revision, found.settings.clone()), (8, Some(Settings::default())));
        assert_eq!(found.get("pods", "n", "a").unwrap().tree["data"]["r"], "3");
    }

    #[tokio::test]
    async fn a_second_agent_on_the_same_directory_is_told_so() {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let drain = Drain::new();
        let _first = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap();
        let second = Ledger::open(data.path(), run.path(), &drain.watch()).unwrap_err();
        assert!(second.to_string().contains("another agent"), "{second}");
    }

    #[test]
    fn names_of_secrets_stay_in_their_directory() {
        let dir = Path::new("/d");
        assert_eq!(secret_path(dir, &Key::new("secrets", "a", "../../etc/x")), dir.join("a~.._2f.._2fetc_2fx"));
        assert_ne!(
            secret_path(dir, &Key::new("secrets", "a", "b~c")),
            secret_path(dir, &Key::new("secrets", "a~b", "c"))
        );
    }
}

//! The rules of the house, each with its reason: crate graph, purity, unsafe fences, licences, files that say why they exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::words::{code_of, files, has_word, rust_files};
use crate::{cargo, root, unsupported};

/// Crates that decide and do nothing (design: pure rooms).
const PURE: &[(&str, &str)] = &[
    ("coracle-base", "base"),
    ("coracle-manifests", "manifests"),
    ("coracle-scheduler", "scheduler"),
    ("coracle-store", "control-plane/store"),
    ("coracle-controllers", "control-plane/controllers"),
    ("coracle-lifecycle", "node-agent/lifecycle"),
    ("coracle-plan", "runtime/plan"),
    ("coracle-layers", "images/layers"),
    ("coracle-net-model", "netd/model"),
    ("coracle-zone", "dns/zone"),
];

/// Direct dependencies a pure crate may not have.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "tokio-stream",
    "tokio-util",
    "mio",
    "rustix",
    "nix",
    "libc",
    "hyper",
    "hyper-util",
    "tonic",
    "axum",
    "rand",
    "getrandom",
    "rtnetlink",
    "netlink-sys",
    "redb",
    "openraft",
    "tracing",
    "arc-swap",
];

/// What pure source may not name.
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime",
    "Instant",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "HashMap::new_random",
];

/// Where `unsafe` may stand.
const UNSAFE_ROOMS: &[&str] = &["runtime/src/sys", "runtime/podmon", "scheduler/src/simd"];

/// Crates whose root cannot say `forbid(unsafe_code)` because of the fence above.
const UNSAFE_CRATES: &[&str] = &["runtime/src/lib.rs", "runtime/podmon/src/main.rs", "scheduler/src/lib.rs"];

/// No production file may be longer.
const FILE_LINES: usize = 1500;

/// Licences a dependency may carry (one of an `OR`, all of an `AND`).
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "MIT-0",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MPL-2.0",
    "MPL-2.0+",
];

/// Texts that must not appear anywhere: paths of one machine, hosts of package registries.
const FOREIGN: &[&str] =
    &["/work/", "index.crates.io", "static.crates.io", "pypi.org", "registry.npmjs.org", "deb.debian.org"];

pub fn run(arguments: &[String]) -> Result<(), String> {
    let bless = arguments.iter().any(|argument| argument == "--bless");
    let metadata = metadata()?;
    let mut problems = Vec::new();
    crate_graph(&metadata, bless, &mut problems)?;
    unsupported_fields(bless, &mut problems)?;
    purity(&metadata, &mut problems);
    sources(&mut problems);
    licences(&metadata, &mut problems);
    foreign_texts(&mut problems);
    if problems.is_empty() {
        let packages = metadata["packages"].as_array().map_or(0, Vec::len);
        println!("tidy: the house is in order ({packages} crates in the lock, with tests)");
        Ok(())
    } else {
        Err(format!("{} problems\n  {}", problems.len(), problems.join("\n  ")))
    }
}

fn metadata() -> Result<Value, String> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .map_err(|error| format!("cannot run cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata is not JSON: {error}"))
}

/// Packages of the workspace: name -> its entry.
fn members(metadata: &Value) -> BTreeMap<String, &Value> {
    let ids: BTreeSet<&str> = list(&metadata["workspace_members"]).iter().filter_map(Value::as_str).collect();
    list(&metadata["packages"])
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| ids.contains(id)))
        .map(|package| (text(&package["name"]).to_owned(), package))
        .collect()
}

/// The list of what is not supported is the table's.
fn unsupported_fields(bless: bool, problems: &mut Vec<String>) -> Result<(), String> {
    let table = std::fs::read_to_string(root().join(unsupported::TABLE))
        .map_err(|error| format!("cannot read {}: {error}", unsupported::TABLE))?;
    let (path, wanted) = (root().join(unsupported::FILE), unsupported::document(&table));
    if bless {
        let folder = path.parent().unwrap_or(Path::new("."));
        return std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, wanted))
            .map_err(|error| format!("cannot write {}: {error}", unsupported::FILE));
    }
    if std::fs::read_to_string(&path).unwrap_or_default() != wanted {
        problems.push(format!(
            "{} is not what {} says\n    hint: cargo xtask tidy --bless",
            unsupported::FILE,
            unsupported::TABLE
        ));
    }
    Ok(())
}

/// Who imports whom must be the golden file: a new arrow is a design change, reviewed like one.
fn crate_graph(metadata: &Value, bless: bool, problems: &mut Vec<String>) -> Result<(), String> {
    let members = members(metadata);
    let mut graph = String::from(
        "# Who imports whom. `cargo xtask tidy --bless` writes this file; a new arrow is a design change.\n",
    );
    for (name, package) in &members {
        let arrows: BTreeSet<&str> = list(&package["dependencies"])
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| text(&dependency["name"]))
            .filter(|dependency| members.contains_key(*dependency))
            .collect();
        let arrows = arrows.into_iter().collect::<Vec<_>>().join(" ");
        let _ = writeln!(graph, "{name}: {arrows}");
    }
    let path = root().join("tools/crate-graph.txt");
    if bless {
        return std::fs::write(&path, graph).map_err(|error| format!("cannot write {}: {error}", path.display()));
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    for line in graph.lines().filter(|line| !golden.lines().any(|old| old == *line)) {
        problems.push(format!("crate graph: `{}` is not in tools/crate-graph.txt", line.trim()));
    }
    for line in golden.lines().filter(|line| !graph.lines().any(|new| new == *line)) {
        problems.push(format!("crate graph: `{}` is no longer so", line.trim()));
    }
    Ok(())
}

fn purity(metadata: &Value, problems: &mut Vec<String>) {
    let members = members(metadata);
    for (name, dir) in PURE {
        let Some(package) = members.get(*name) else { continue };
        for dependency in list(&package["dependencies"]).iter().filter(|dependency| dependency["kind"].is_null()) {
            if IMPURE_CRATES.contains(&text(&dependency["name"])) {
                problems.push(format!("{name} is pure and may not use {}", text(&dependency["name"])));
            }
        }
        for path in rust_files(&root().join(dir).join("src")) {
            each_code_line(&path, &mut |number, code, in_tests| {
                if in_tests {
                    return;
                }
                for word in IMPURE_WORDS.iter().filter(|word| has_word(code, word)) {
                    problems.push(format!("{}:{number}: {name} is pure and may not name {word}", relative(&path)));
                }
            });
        }
    }
}

/// Calls `see` with each line's code and whether it is inside the file's test module (which stands last, by custom).
fn each_code_line(path: &Path, see: &mut dyn FnMut(usize, &str, bool)) {
    let source = std::fs::read_to_string(path).unwrap_or_default();
    // `examples` of a crate are tests in all but name; the workspace's own `examples` folder holds products.
    let own = relative(path);
    let mut in_tests = path.file_stem().is_some_and(|stem| stem == "tests")
        || own.split('/').skip(1).any(|part| part == "tests" || part == "examples");
    for (index, line) in source.lines().enumerate() {
        in_tests |= line.trim() == "#[cfg(test)]";
        see(index + 1, &code_of(line), in_tests);
    }
}

fn sources(problems: &mut Vec<String>) {
    for path in rust_files(&root()) {
        let shown = relative(&path);
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        if !source.starts_with("//!") && !source.starts_with("#![") {
            problems.push(format!("{shown}:1: a file starts with a `//!` line that says why it exists"));
        }
        let crate_root = shown.ends_with("/src/lib.rs") || shown.ends_with("/src/main.rs");
        if crate_root && !UNSAFE_CRATES.contains(&shown.as_str()) && !source.contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{shown}: a crate root says `#![forbid(unsafe_code)]`"));
        }
        let fenced = UNSAFE_ROOMS.iter().any(|room| shown.starts_with(room));
        let mut length = 0;
        each_code_line(&path, &mut |number, code, in_tests| {
            length += usize::from(!in_tests);
            if !fenced && has_word(code, "unsafe") && !code.contains("unsafe_code") {
                problems.push(format!("{shown}:{number}: `unsafe` only in {}", UNSAFE_ROOMS.join(", ")));
            }
            if code.contains("unbounded_channel") || code.contains("mpsc::channel()") {
                problems.push(format!("{shown}:{number}: every channel has a bound, and a reason for it"));
            }
            if in_tests
                && !shown.contains("/examples/")
                && (code.contains("thread::sleep(") || code.contains("time::sleep("))
                && !source
                    .lines()
                    .nth(number - 1)
                    .is_some_and(|line| line.contains("// poll") || line.contains("// random moment"))
            {
                problems.push(format!(
                    "{shown}:{number}: a test waits for a condition, it does not sleep (a poll loop says `// poll`, a fault `// random moment`)"
                ));
            }
        });
        if length > FILE_LINES {
            problems.push(format!("{shown}: {length} lines of production code, {FILE_LINES} are the limit"));
        }
    }
}

fn licences(metadata: &Value, problems: &mut Vec<String>) {
    for package in list(&metadata["packages"]) {
        let licence = text(&package["license"]).replace('/', " OR ");
        if licence.is_empty() && package["license_file"].is_string() {
            problems.push(format!("{} names a licence file only: read it and list it", text(&package["name"])));
        } else if !allowed(&licence) {
            problems.push(format!("{} is under `{licence}`, which is not on the list", text(&package["name"])));
        }
    }
}

/// Whether an SPDX expression of `AND`, `OR` and parentheses can be met from the list.
fn allowed(expression: &str) -> bool {
    let expression = expression.trim();
    if LICENCES.contains(&expression) {
        return true;
    }
    let split = |operator: &str| -> Option<(String, String)> {
        let mut depth = 0_i32;
        for (at, char) in expression.char_indices() {
            match char {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 && expression[at..].starts_with(operator) => {
                    return Some((expression[..at].to_owned(), expression[at + operator.len()..].to_owned()));
                }
                _ => {}
            }
        }
        None
    };
    if let Some((left, right)) = split(" OR ") {
        return allowed(&left) || allowed(&right);
    }
    if let Some((left, right)) = split(" AND ") {
        return allowed(&left) && allowed(&right);
    }
    expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).is_some_and(allowed)
}

fn foreign_texts(problems: &mut Vec<String>) {
    let wanted = |path: &Path| {
        path.file_name().is_some_and(|name| name != "Cargo.lock")
            && !path.ends_with("tools/xtask/src/tidy.rs")
            && path.extension().is_some_and(|ending| {
                ["rs", "toml", "md", "yaml", "yml", "sh", "txt", "proto", "json", "html", "css", "js"]
                    .iter()
                    .any(|known| ending == *known)
            })
    };
    for path in files(&root(), &wanted) {
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        for (index, line) in source.lines().enumerate() {
            for word in FOREIGN.iter().filter(|word| line.contains(**word)) {
                problems.push(format!(
                    "{}:{}: `{word}` belongs to one machine, not to the project",
                    relative(&path),
                    index + 1
                ));
            }
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions() {
        assert!(allowed("MIT OR Apache-2.0"));
        assert!(allowed("(MIT OR GPL-3.0-only) AND Unicode-3.0"));
        assert!(!allowed("GPL-3.0-only"));
        assert!(!allowed("MIT AND GPL-3.0-only"));
        assert!(!allowed(""));
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        assert!(!has_word(&code_of("let a = \"unsafe\"; // unsafe"), "unsafe"));
        assert!(has_word(&code_of("unsafe { x() }"), "unsafe"));
        assert!(!has_word(&code_of("forbid(unsafe_code)"), "unsafe"));
    }
}

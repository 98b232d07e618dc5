//! Reads what a person applies: files, folders, standard input; every document with its file, so that a problem can be
//! shown as file:line:col.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use coracle_manifests::decode::{self, Document};
use coracle_manifests::kinds::{self, Kind};
use coracle_manifests::{Problem, Reason};
use serde_json::Value;

use crate::failure::Failure;
use crate::output;

/// One object of one file.
#[derive(Debug)]
pub struct Source {
    /// The file, or `-`.
    pub file: String,
    /// What it is.
    pub kind: &'static Kind,
    /// The object and where its fields stand.
    pub document: Document,
}

impl Source {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.document.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// `metadata.namespace`, if it says one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.document.value["metadata"]["namespace"].as_str().filter(|name| !name.is_empty())
    }

    /// Prints a problem as `file:line:col: path: words`, with its hint.
    pub fn complain(&self, problem: &Problem) {
        let position = problem.position.or_else(|| self.document.positions.at(&problem.path));
        complain(&self.file, problem, position.map(|at| (at.line, at.column)));
    }
}

fn complain(file: &str, problem: &Problem, at: Option<(usize, usize)>) {
    let place = at.map_or_else(|| file.to_owned(), |(line, column)| format!("{file}:{line}:{column}"));
    let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
    output::error(&format!("{place}: {path}{}", problem.message));
    if let Some(hint) = &problem.hint {
        output::note(&format!("  hint: {hint}"));
    }
}

/// Reads all files; prints every problem of every file before it fails.
///
/// # Errors
/// A file that cannot be read, a document that is no object of ours.
pub fn load(files: &[String]) -> Result<Vec<Source>, Failure> {
    let mut sources = Vec::new();
    let mut problems = 0;
    for file in files {
        for (shown, text) in texts(file)? {
            match decode::yaml(&text) {
                Ok(documents) => {
                    for document in documents {
                        match kind_of(&document.value) {
                            Ok(kind) => sources.push(Source { file: shown.clone(), kind, document }),
                            Err(problem) => {
                                let at = document.positions.at(&problem.path).or_else(|| document.positions.at(""));
                                complain(&shown, &problem, at.map(|at| (at.line, at.column)));
                                problems += 1;
                            }
                        }
                    }
                }
                Err(found) => {
                    problems += found.len();
                    for problem in found {
                        complain(&shown, &problem, problem.position.map(|at| (at.line, at.column)));
                    }
                }
            }
        }
    }
    for source in &sources {
        let mut found = coracle_manifests::check::strict(source.kind, &source.document.value);
        if found.is_empty() {
            // What is well-formed must also make sense; the server would say the same, but could not say where.
            let mut whole = source.document.value.clone();
            coracle_manifests::default::apply(source.kind, &mut whole);
            found = coracle_manifests::validate::create(source.kind, &whole);
        }
        problems += found.len();
        for problem in &found {
            source.complain(problem);
        }
    }
    if problems > 0 {
        let things = if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") };
        return Err(Failure::invalid(format!("{things}; nothing was changed")));
    }
    if sources.is_empty() {
        return Err(Failure::usage("there is no object in what was given"));
    }
    Ok(sources)
}

/// The kind a document names, or why there is none.
fn kind_of(value: &Value) -> Result<&'static Kind, Problem> {
    let problem = |path: &str, message: String, hint: Option<String>| Problem {
        path: path.to_owned(),
        reason: Reason::Invalid,
        message,
        hint,
        position: None,
    };
    let Some(kind) = value["kind"].as_str() else {
        return Err(problem("kind", "every object says its `kind`, such as Deployment".into(), None));
    };
    let Some(api_version) = value["apiVersion"].as_str() else {
        return Err(problem(
            "apiVersion",
            format!("every object says its `apiVersion`; that of {kind} is missing"),
            None,
        ));
    };
    if let Some(found) = kinds::by_name(api_version, kind) {
        return Ok(found);
    }
    if let Some(same) = kinds::KINDS.iter().find(|entry| entry.kind == kind) {
        let message = format!("{kind} is not served as {api_version}");
        return Err(problem("apiVersion", message, Some(format!("write `apiVersion: {}`", same.api_version()))));
    }
    let all = kinds::KINDS.iter().map(|entry| entry.kind);
    let hint = coracle_base::nearest(kind, all.clone()).map_or_else(
        || format!("there are {}", all.collect::<Vec<_>>().join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    Err(problem("kind", format!("{api_version} {kind} is not supported yet"), Some(hint)))
}

/// The texts of a file, of a folder's YAML and JSON files in name order, or of standard input.
fn texts(file: &str) -> Result<Vec<(String, String)>, Failure> {
    if file == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::failed(format!("cannot read standard input: {error}")))?;
        return Ok(vec![("-".to_owned(), text)]);
    }
    let path = Path::new(file);
    let cannot =
        |path: &Path, error: &std::io::Error| Failure::failed(format!("cannot read {}: {error}", path.display()));
    if !path.is_dir() {
        let text = std::fs::read_to_string(path).map_err(|error| cannot(path, &error))?;
        return Ok(vec![(file.to_owned(), text)]);
    }
    let mut paths: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(|error| cannot(path, &error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.is_file()
                && path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json")
        })
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::usage(format!("there is no .yaml, .yml or .json file in {file}")));
    }
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).map_err(|error| cannot(&path, &error))?;
            Ok((path.display().to_string(), text))
        })
        .collect()
}

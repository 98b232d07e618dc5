//! `cargo xtask previous`: the program of the release before, built from the history of this repository, for tests of upgrades.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{must, root};

/// What the tests run: target/previous/COMMIT/coracle. Built once a commit.
pub fn run(_: &[String]) -> Result<(), String> {
    let text = std::fs::read_to_string(root().join("tools/previous-release.txt"))
        .map_err(|error| format!("tools/previous-release.txt: {error}"))?;
    let revision = text.lines().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    let revision = revision.split_whitespace().next().ok_or("tools/previous-release.txt names no commit")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let folder = target.join("previous").join(revision);
    let program = folder.join("coracle");
    if program.exists() {
        return Ok(());
    }
    if !git(&["cat-file", "-e", &format!("{revision}^{{commit}}")]).status().is_ok_and(|status| status.success()) {
        println!("the release before ({revision}) is not in the history of this clone: tests of upgrades are skipped");
        println!("hint: git fetch --unshallow");
        return Ok(());
    }
    let (source, build) = (folder.join("source"), folder.join("build"));
    let _ = std::fs::remove_dir_all(&source);
    std::fs::create_dir_all(&source).map_err(failed("make a folder"))?;
    let mut archive = git(&["archive", revision]).stdout(Stdio::piped()).spawn().map_err(failed("run git archive"))?;
    let out = archive.stdout.take().ok_or("git archive has no output")?;
    must(Command::new("tar").arg("-x").arg("-C").arg(&source).stdin(out))?;
    if !archive.wait().map_err(failed("wait for git archive"))?.success() {
        return Err(format!("git archive {revision} failed"));
    }
    let began = std::time::Instant::now();
    // A folder of its own: the two releases' programs have the same name. Nobody debugs this one.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "-p", "coracle"]).current_dir(&source);
    cargo.env("CARGO_TARGET_DIR", &build).env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    must(&mut cargo)?;
    let built = find(&build).ok_or("cargo built no program `coracle`")?;
    let whole = folder.join("coracle.new");
    std::fs::copy(&built, &whole).map_err(failed("copy the program"))?;
    std::fs::rename(&whole, &program).map_err(failed("rename the program"))?;
    for left in [source, build] {
        std::fs::remove_dir_all(&left).map_err(failed("remove what the build left"))?;
    }
    println!("{} built in {:.0} s", program.display(), began.elapsed().as_secs_f64());
    Ok(())
}

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

fn git(words: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.args(words).current_dir(root());
    git
}

/// With a target triple in the configuration there is a folder in between.
fn find(build: &std::path::Path) -> Option<PathBuf> {
    let plain = build.join("debug/coracle");
    if plain.is_file() {
        return Some(plain);
    }
    let entries = std::fs::read_dir(build).ok()?;
    entries.flatten().map(|entry| entry.path().join("debug/coracle")).find(|path| path.is_file())
}

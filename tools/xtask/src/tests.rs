//! `cargo xtask test`: formatting, lints, the rules of the house, then every test that needs no foreign program.
//!
//! `cargo xtask foreign`: the suites with the real programs of others.
//!
//! `cargo xtask sim`: the simulator, optimised and with every die in it thrown by the seed.
//!
//! A test that cannot run here prints `SKIP: <reason>` and passes; the skips are counted and listed, and in CI a skip whose
//! reason is not in `tools/allowed-skips.txt` fails the run.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::{cargo, must, previous, root, tidy};

pub fn run(arguments: &[String]) -> Result<(), String> {
    let fast = arguments.iter().any(|argument| argument == "--fast");
    let filter: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    if !fast {
        must(cargo().args(["fmt", "--all", "--check"]))?;
        must(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            FOREIGN,
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))?;
    }
    tidy::run(&[])?;
    suite(&["--workspace"], &filter)
}

/// Lets tokio take a seed for the order in which it wakes tasks and tries branches.
const SEEDED: &str = r#"target."cfg(target_env = \"gnu\")".rustflags=["--cfg","tokio_unstable"]"#;

/// So many seeds of the simulator, from that one on.
pub fn sim(arguments: &[String]) -> Result<(), String> {
    let mut command = cargo();
    command.args(["--config", SEEDED, "test", "--profile", "sim", "-p", "coracle-sim", "--", "--nocapture"]);
    command.env("CORACLE_SIM_SEEDS", arguments.first().map_or("1000", String::as_str));
    command.env("CORACLE_SIM_FIRST", arguments.get(1).map_or("0", String::as_str));
    must(&mut command)
}

/// The feature that builds the suites with programs of others.
const FOREIGN: &str = "coracle-cluster-tests/foreign";

/// The suites with real clients and real applications: kubectl, Debian's nginx and redis, virtual machines with systemd, and with
/// the release before this one.
pub fn foreign(arguments: &[String]) -> Result<(), String> {
    let package = ["-p", "coracle-cluster-tests", "--features", FOREIGN, "--test"];
    // Three emulated machines at once take minutes, and more than two cores to be on time: only when they are asked for.
    if arguments.first().is_some_and(|argument| argument == "vms") {
        return suite(&[&package[..], &["vms"]].concat(), &[]);
    }
    previous::run(&[])?;
    let filter: Vec<&String> = arguments.iter().collect();
    suite(&[&package[..], &["foreign_*"]].concat(), &filter)
}

/// Builds the programs, runs the tests of a selection, and says what came of them.
fn suite(selection: &[&str], filter: &[&String]) -> Result<(), String> {
    must(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    let mut command = cargo();
    command.arg("test").args(selection).args(["--no-fail-fast", "--"]);
    command.args(filter).arg("--show-output");
    let mut outcome = watch(&mut command)?;
    if !outcome.success && !outcome.failures.is_empty() && outcome.failures.len() <= 3 {
        second_look(selection, &mut outcome)?;
    }
    report(&outcome)
}

/// Runs the few tests that failed once more, alone. One that passes now is a flaky test, which is a bug to be found: it is
/// named at the end, where nobody overlooks it, but does not hide whether the rest is sound.
fn second_look(selection: &[&str], outcome: &mut Outcome) -> Result<(), String> {
    let names: Vec<String> = outcome
        .failures
        .iter()
        .filter_map(|line| line.strip_prefix("test ")?.split(' ').next().map(ToOwned::to_owned))
        .collect();
    println!("\n== a second look at {}", names.join(", "));
    let mut command = cargo();
    command.arg("test").args(selection).args(["--no-fail-fast", "--", "--exact", "--show-output"]).args(&names);
    let again = watch(&mut command)?;
    let passed = u64::try_from(names.len()).unwrap_or(u64::MAX);
    if again.success && again.passed == passed && outcome.failed == passed {
        outcome.success = true;
        outcome.failed = 0;
        outcome.passed += passed;
        outcome.failures =
            names.iter().map(|name| format!("FLAKY: {name} failed once and passed alone: find out why")).collect();
    }
    Ok(())
}

#[derive(Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    ignored: u64,
    success: bool,
    skips: Vec<String>,
    failures: Vec<String>,
}

/// Runs the tests, shows what they print but for the chatter of passing ones, and counts.
fn watch(command: &mut std::process::Command) -> Result<Outcome, String> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|error| format!("cannot run cargo test: {error}"))?;
    let mut outcome = Outcome::default();
    let mut in_successes = false;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(reason) = line.trim().strip_prefix("SKIP: ") {
                outcome.skips.push(reason.to_owned());
            }
            match line.trim() {
                "successes:" => in_successes = true,
                "failures:" => in_successes = false,
                _ => {}
            }
            if let Some(counts) = line.strip_prefix("test result: ") {
                in_successes = false;
                outcome.passed += number(counts, " passed");
                outcome.failed += number(counts, " failed");
                outcome.ignored += number(counts, " ignored");
            }
            if line.starts_with("test ") && line.ends_with("FAILED") {
                outcome.failures.push(line.clone());
            }
            if !in_successes {
                println!("{line}");
            }
        }
    }
    outcome.success = child.wait().map_err(|error| error.to_string())?.success();
    Ok(outcome)
}

fn number(text: &str, before: &str) -> u64 {
    text.find(before)
        .and_then(|at| text[..at].rsplit(|char: char| !char.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

fn report(outcome: &Outcome) -> Result<(), String> {
    for failure in &outcome.failures {
        println!("{failure}");
    }
    for reason in &outcome.skips {
        println!("skipped: {reason}");
    }
    let skipped = outcome.skips.len() as u64 + outcome.ignored;
    let passed = outcome.passed.saturating_sub(outcome.skips.len() as u64);
    println!("{passed} passed, {} failed, {skipped} skipped", outcome.failed);
    if !outcome.success || outcome.failed > 0 {
        return Err("tests failed".to_owned());
    }
    if std::env::var_os("CI").is_some() {
        let allowed = std::fs::read_to_string(root().join("tools/allowed-skips.txt")).unwrap_or_default();
        let strange: Vec<&String> = outcome
            .skips
            .iter()
            .filter(|skip| !allowed.lines().any(|line| !line.is_empty() && skip.contains(line)))
            .collect();
        if !strange.is_empty() {
            return Err(format!("skips that are not on the list: {strange:?}"));
        }
    }
    Ok(())
}

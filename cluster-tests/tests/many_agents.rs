//! Fake agents against a real server: a small run of what `simagents` measures with thousands.

use std::process::Command;

use serde_json::Value;

#[test]
fn fifty_agents_run_pods_rest_and_come_back_after_the_server_was_killed() {
    let out = Command::new(env!("CARGO_BIN_EXE_simagents"))
        .args(["--agents", "50", "--pods", "200", "--servers", "1", "--idle", "2"])
        .output()
        .expect("simagents");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures: Value = serde_json::from_slice(&out.stdout).expect("one line of JSON");
    println!("{figures}");
    assert_eq!(figures["nodes_used"], 50, "pods are spread");
    assert_eq!(figures["pods_started_by_restart"], 0, "what runs is left alone");
    assert_eq!(figures["sessions_broken_before_restart"], 0);
    let number = |name: &str| figures[name].as_f64().unwrap_or(f64::MAX);
    assert!(number("idle_frames_per_minute") < 60.0, "beats are no writes");
    assert!(number("reconnected_s") < 10.0);
    assert!(number("reconnect_bytes") < number("connect_bytes") / 10.0, "what agents hold already is not sent again");
}

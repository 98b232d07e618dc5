//! A rolling update under a constant load loses no request; nothing stays behind after many pods.

use std::process::Stdio;

use coracle_cluster_tests::machine::{Machine, have, workspace};

/// Asks the service over and over until a file appears; prints how many answers came and how many did not.
const LOAD: &str = r#"ok=0; bad=0
while [ ! -e "$STOP" ]; do
  if { exec 3<>/dev/tcp/$HOST/$PORT; } 2>/dev/null && printf 'GET / HTTP/1.0\r\nHost: hello\r\n\r\n' >&3 && grep -q 'hello from' <&3; then ok=$((ok+1)); else bad=$((bad+1)); fi
  exec 3>&- 3<&-
done
echo "$ok $bad""#;

#[test]
fn a_rolling_update_loses_no_request() {
    if !have("bash") {
        return;
    }
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let _ = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    machine.wait_ready("hello", 3);
    let service = machine.get(&["svc/hello"]);
    let stop = machine.run().join("stop");
    let mut load = machine.command("bash");
    load.args(["-c", LOAD]).env("STOP", &stop).stdout(Stdio::piped());
    load.env("HOST", service["spec"]["clusterIP"].as_str().unwrap_or_default())
        .env("PORT", service["spec"]["ports"][0]["port"].to_string());
    let load = load.spawn().expect("bash");

    let yaml = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    for round in 0..3 {
        let template = "    metadata:\n      labels:\n";
        let changed = yaml.replacen(
            template,
            &format!("    metadata:\n      annotations: {{round: r{round}}}\n      labels:\n"),
            1,
        );
        assert_ne!(changed, yaml, "the example has changed: this test must too");
        let said = machine.apply(&changed);
        assert!(said.contains("deployment.apps/hello configured"), "{said}");
        machine.wait_ready("hello", 3);
    }
    std::fs::write(&stop, "").expect("the stop file");
    let output = load.wait_with_output().expect("the load ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (ok, bad) = said.trim().split_once(' ').unwrap_or(("0", "?"));
    assert_eq!(bad, "0", "requests were lost: {said}");
    assert!(ok.parse::<u64>().is_ok_and(|ok| ok > 20), "too little was asked: {said}");
    machine.down();
}

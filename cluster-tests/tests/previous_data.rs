//! What the release before has written, kept with the tests, is read by this one. How it was made: `foreign_upgrade`.

use coracle_base::level::LEVEL;
use coracle_cluster_tests::machine::Machine;
use coracle_cluster_tests::previous::{expect_data, unpack_data};

#[test]
fn the_kept_data_of_the_release_before_is_read() {
    let mut machine = Machine::new().with(&["--log-segment-mb", "16"]);
    unpack_data(&machine.data());
    expect_data(&mut machine);
    machine.down();
}

#[test]
fn a_backup_of_a_newer_cluster_is_told_from_a_damaged_one() {
    let machine = Machine::new();
    let file = machine.folder().join("site.backup");
    let check = |level: &str| {
        let head = format!(
            r#"{{"cluster":"0","created":"","version":"9.0","revision":1,"objects":0,"snapshot":"1.snapshot","bytes":0,"sha256":"","ca":"","ca_key":""{level}}}"#
        );
        std::fs::write(&file, format!("coracle backup 1\n{head}\n")).expect("a file");
        let said = machine.try_coracle(&["restore", "--check", &file.display().to_string()]);
        assert_eq!(said.code, 1, "{}", said.err);
        said.err
    };
    let newer = check(&format!(r#","level":{}"#, LEVEL + 1));
    assert!(newer.contains(&format!("of a cluster of level {} (release 9.0)", LEVEL + 1)), "{newer}");
    assert!(newer.contains("hint: restore it with that release"), "{newer}");
    // One of the first release states no level.
    assert!(check("").contains("its checksum does not match"));
}

//! What the release before has written, kept with the tests, is read by this one. How it was made: `foreign_upgrade`.

use coracle_cluster_tests::machine::Machine;
use coracle_cluster_tests::previous::{expect_data, unpack_data};

#[test]
fn the_kept_data_of_the_release_before_is_read() {
    let mut machine = Machine::new().with(&["--log-segment-mb", "16"]);
    unpack_data(&machine.data());
    expect_data(&mut machine);
    machine.down();
}

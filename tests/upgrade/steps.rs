//! What is made before the tests, and what only the long ones want.

use crate::trees::Suite;

#[test]
#[ignore = "made before the tests"]
fn a_node_of_this_machines_release() {
    Suite::of_this_machine().node_tree();
}

mod long {
    use super::Suite;

    #[test]
    #[ignore = "made before the tests"]
    fn a_node_of_trixie() {
        Suite::trixie().node_tree();
    }

    #[test]
    #[ignore = "made before the tests"]
    fn a_guest_for_hooks_of_the_field() {
        Suite::of_this_machine().guest_tree_for_hooks();
    }
}

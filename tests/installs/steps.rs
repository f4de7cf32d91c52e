//! What is made before the tests of this and of other binaries.

use crate::common::{SUITE, bootable_cache, trees};

#[test]
#[ignore = "made before the tests"]
fn a_cache_with_a_debian_and_one_with_a_small_tree() {
    trees::small();
}

#[test]
#[ignore = "made before the tests"]
fn a_cache_with_a_debian_that_boots() {
    bootable_cache(SUITE);
}

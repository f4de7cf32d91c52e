//! Where this checkout's files lie. A test can run the runner inside of itself: then all that a run writes lies in the
//! directory of that test.

use std::path::{Path, PathBuf};

/// The project's directory.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's directory for what tests make; the target directory is above it.
pub fn target_tmp() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The target directory.
pub fn target() -> &'static Path {
    target_tmp().parent().unwrap_or(target_tmp())
}

/// The directory of the test that runs this runner.
fn of_a_test() -> Option<PathBuf> {
    std::env::var_os("TEST_DIR").map(PathBuf::from)
}

/// Whether a test runs this runner.
pub fn is_inside_a_test() -> bool {
    of_a_test().is_some()
}

/// Where tests get their directories.
pub fn scratch() -> PathBuf {
    of_a_test().unwrap_or_else(|| target_tmp().to_owned())
}

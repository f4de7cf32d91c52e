//! What the program is made of beside our own code: each crate's licence lets the whole be given on under GPL-2.0-or-later,
//! and each compiles with the Rust that we promise.

use std::process::Command;

use crate::common::project;

/// Licences as crates state them. One that can be had under Apache-2.0 alone is not here: it cannot be combined with version 2
/// of the GPL.
const LICENCES: &[&str] = &[
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "0BSD OR MIT OR Apache-2.0",
    "Apache-2.0 OR MIT",
    "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    "BSD-2-Clause OR Apache-2.0 OR MIT",
    "BSD-3-Clause",
    "CC0-1.0 OR Apache-2.0 OR Apache-2.0 WITH LLVM-exception",
    "CC0-1.0 OR MIT-0 OR Apache-2.0",
    "GPL-2.0-or-later",
    "MIT",
    "MIT OR Apache-2.0",
    "MIT OR Zlib OR Apache-2.0",
    "MIT/Apache-2.0",
    "Unlicense OR MIT",
    "Unlicense/MIT",
    "Zlib",
];

/// The crates of this machine's kind, the project itself among them.
fn packages() -> Vec<serde_json::Value> {
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", host])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 50, "{}", packages.len());
    packages
}

/// `1.85` or `1.85.1`
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap()).collect()
}

#[test]
fn every_licence_fits_and_is_named_here() {
    let packages = packages();
    let licence = |package: &serde_json::Value| package["license"].as_str().unwrap_or("none").to_owned();
    let unknown: Vec<String> = packages
        .iter()
        .filter(|package| !LICENCES.contains(&licence(package).as_str()))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], licence(package)))
        .collect();
    assert!(unknown.is_empty(), "is this licence right for a program under GPL-2.0-or-later? {unknown:#?}");
    for known in LICENCES {
        assert!(packages.iter().any(|package| licence(package) == *known), "no crate has {known} any more");
    }
}

#[test]
fn every_crate_compiles_with_the_rust_that_we_promise() {
    let packages = packages();
    let own = packages.iter().find(|package| package["name"] == env!("CARGO_PKG_NAME")).unwrap();
    let promised = version(own["rust_version"].as_str().unwrap());
    for package in &packages {
        let Some(needed) = package["rust_version"].as_str() else { continue };
        assert!(
            version(needed) <= [promised.clone(), vec![u32::MAX]].concat(),
            "{}: {needed}",
            package["name"]
        );
    }
}

//! `make test-full`, in parts: what takes long, by what it is about.

/// A part of `make test-full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    /// Its tests: long ones whose names begin like this, and that are in no part before it.
    prefixes: &'static [&'static str],
    /// What runs beside them, and is no test of Rust's.
    pub command: Option<&'static [&'static str]>,
}

const fn part(name: &'static str, prefixes: &'static [&'static str]) -> Part {
    Part { name, prefixes, command: None }
}

/// Every long test is in exactly one of these.
const PARTS: [Part; 7] = [
    part("machines", &["machines::xen::", "machines::ganeti::"]),
    part(
        "boots",
        &[
            "machines::boot::",
            "machines::devices::",
            "installs::source::",
            "installs::examples::",
            "upgrade::backup::",
        ],
    ),
    part("upgrades", &["upgrade::"]),
    part("kills", &["faults::kill::", "backups::stream_faults::", "installs::templates::faults::"]),
    part("installs", &["installs::"]),
    part("disks", &["backups::", "hostile::"]),
    Part { name: "fuzz", prefixes: &[], command: Some(&["tests/fuzz", "20"]) },
];

/// `.ci/run` begins no part that ends after this many seconds, but for the one whose turn it is.
pub const HOUR: u64 = 60 * 60;
/// A part that never fits has its turn in one of so many runs.
const ROUNDS: usize = 4;

pub fn all() -> &'static [Part] {
    &PARTS
}

/// A test that belongs to no part.
pub fn lost<'a>(mut long_tests: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    long_tests.find(|name| of(name).is_none())
}

fn of(test: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.prefixes.iter().any(|prefix| test.starts_with(prefix)))
}

/// All of them, beginning with another quarter each time: of four runs with seeds that follow each other, each part comes
/// first, or among the first, in one.
pub fn in_order_of(seed: u64) -> impl Iterator<Item = &'static Part> {
    let quarter = PARTS.len().div_ceil(ROUNDS);
    PARTS.iter().cycle().skip(round(seed) * quarter).take(PARTS.len())
}

/// The part that runs first, whatever the clock says: one that never fits into what is left of the hour, but into an empty one.
/// Of four runs with seeds that follow each other it is the turn of each in one, if there are no more than four.
pub fn whose_turn(seed: u64, rest: u64, takes: impl Fn(&Part) -> u64) -> Option<&'static Part> {
    let large: Vec<&Part> = PARTS.iter().filter(|part| (rest + 1..=HOUR).contains(&takes(part))).collect();
    let in_a_round = large.len().div_ceil(ROUNDS).max(1);
    let of_the_round = usize::try_from(seed).unwrap_or_default() / ROUNDS % in_a_round;
    large.get(round(seed) * in_a_round + of_the_round).copied()
}

fn round(seed: u64) -> usize {
    usize::try_from(seed).unwrap_or_default() % ROUNDS
}

impl Part {
    pub fn named(name: &str) -> Option<&'static Part> {
        PARTS.iter().find(|part| part.name == name)
    }

    pub fn has(&self, test: &str) -> bool {
        of(test).is_some_and(|part| part.name == self.name)
    }

    /// How its time is recorded.
    pub fn key(&self) -> String {
        format!("part {}", self.name)
    }
}

//! Trees with traps, handed to the program: each on a disk of its own, and all that must hold afterwards.

use std::fs;

use super::canary::Canary;
use super::traps::{PLACES, Place, Trap};
use super::tree::Tree;
use crate::common::Node;
use crate::common::small_guest::{Flavour, SmallDisk};

/// A node, an honest guest of each flavour, and what must not notice anything.
pub struct Bench {
    pub node: Node,
    pub canary: Canary,
    honest: Vec<(Flavour, SmallDisk)>,
}

impl Bench {
    pub fn new() -> Bench {
        let node = Node::bare();
        let flavours = [Flavour::Ifupdown, Flavour::Netplan, Flavour::Networkd];
        let honest =
            flavours.map(|flavour| (flavour, SmallDisk::make(&node, &format!("{flavour:?}"), flavour)));
        Bench { honest: honest.into(), node, canary: Canary::new() }
    }

    /// A disk with an honest guest.
    pub fn disk(&self, flavour: Flavour) -> SmallDisk {
        let (_, honest) = self.honest.iter().find(|(of, _)| *of == flavour).unwrap();
        honest.copy("case")
    }

    /// Renames a guest for each of the traps at each place where there is such a thing.
    pub fn rename_all(&self, traps: &[Trap]) {
        for trap in traps {
            for place in PLACES.iter().filter(|place| trap.fits(place.kind)) {
                self.rename(*trap, place);
            }
        }
    }

    fn rename(&self, trap: Trap, place: &Place) {
        let disk = self.disk(place.flavour);
        let before = {
            let mounted = disk.mount_writable();
            trap.set(mounted.path(), place, &self.canary);
            Tree::of(mounted.path())
        };
        let look = self.canary.look();
        let answer = disk.rename(&self.node);
        let log = format!("{trap:?} at {}\n{}", place.path, answer.log);
        self.canary.assert_untouched(&look, &log);
        self.node.assert_nothing_left();
        let after = Tree::of(disk.mount().path());
        after.assert_rest_unchanged(&before, &log);
        if answer.done {
            after.assert_renamed(&before, &log);
        } else {
            assert!(answer.last_lines().contains(&format!("/{}", place.path)), "{log}");
        }
        if let Some(done) = must_succeed(trap, place) {
            assert_eq!(answer.done, done, "{log}");
        }
        fs::remove_file(&disk.path).unwrap();
    }
}

/// Where there is but one right answer.
fn must_succeed(trap: Trap, place: &Place) -> Option<bool> {
    let is_name = ["etc/hostname", "etc/hosts", "etc/mailname"].contains(&place.path);
    match trap {
        _ if !place.concerned => Some(true),
        Trap::InnerLink | Trap::NoMode | Trap::ManyNames => Some(true),
        // Without an /etc there is no guest.
        Trap::Absent => Some(place.path != "etc"),
        Trap::Immutable | Trap::AppendOnly | Trap::WrongKind if is_name => Some(false),
        Trap::Fifo | Trap::BlockDevice | Trap::CharDevice | Trap::Socket if is_name => Some(false),
        // That is not what it was called.
        Trap::Nuls | Trap::NotUtf8 | Trap::LongLine if place.path == "etc/hostname" => Some(false),
        _ => None,
    }
}

//! A writer on a filesystem that is going to be stopped dead, and what it was promised.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ganeti_instance_debootstrap::sys;
use sha2::{Digest, Sha256};

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a writer was promised: content by name.
pub type Promises = BTreeMap<String, String>;

/// A disk that others keep busy gets so many promises at least, however long they take: fewer would show nothing.
const PROMISES_MIN: usize = 20;

/// Writes, fsyncs, changes and deletes until `until`, or until the filesystem fails.
pub fn write_until(root: &Path, dice: &mut Dice, until: Instant) -> Promises {
    write_while(root, dice, |promises| Instant::now() < until || promises < PROMISES_MIN)
}

/// Writes as long as `goes_on`, which gets the number of promises, and the filesystem does not fail.
fn write_while(root: &Path, dice: &mut Dice, goes_on: impl Fn(usize) -> bool) -> Promises {
    let mut promises = Promises::new();
    while goes_on(promises.len()) && write_one(root, dice, &mut promises).is_ok() {}
    promises
}

fn write_one(root: &Path, dice: &mut Dice, promises: &mut Promises) -> io::Result<()> {
    let name = format!("live{}/{}", dice.below(20), dice.below(3000));
    // From here on it may be there or not.
    promises.remove(&name);
    let path = root.join(&name);
    fs::create_dir_all(path.parent().unwrap())?;
    if dice.below(4) == 0 {
        return fs::remove_file(&path)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
    }
    let size_bound = if dice.below(8) == 0 { 400 << 10 } else { 20 << 10 };
    let length = dice.below(size_bound) as usize;
    let bytes = dice.bytes(length);
    let mut file = File::create(&path)?;
    // In pieces with holes, backwards: many small extents.
    for start in (0..bytes.len()).step_by(12 << 10).rev() {
        file.write_all_at(&bytes[start..bytes.len().min(start + (12 << 10))], start as u64)?;
    }
    file.flush()?;
    if dice.below(150) == 0 {
        // A commit of all that there is.
        nix::unistd::syncfs(&file)?;
    }
    if dice.below(3) == 0 {
        file.sync_all()?;
        // An fsync that the end of the filesystem overtook can say yes; no change that comes after it can.
        file.set_permissions(file.metadata()?.permissions())?;
        promises.insert(name, hash(&bytes));
    }
    Ok(())
}

/// Wants all that was promised.
pub fn assert_kept(root: &Path, promises: &Promises, what: &str) {
    for (name, wanted) in promises {
        let found = fs::read(root.join(name)).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert_eq!(&hash(&found), wanted, "{what}: {name}");
    }
}

/// Writes until the filesystem is shut down under it, after a while: what is not on the disk then is lost.
pub fn write_until_shut_down(root: &Path, dice: &mut Dice, after: Duration) -> Promises {
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let made = &made;
        let note = move |promises| {
            made.store(promises, Ordering::Relaxed);
            true
        };
        let writer = scope.spawn(move || write_while(root, dice, note));
        std::thread::sleep(after);
        while made.load(Ordering::Relaxed) < PROMISES_MIN && !writer.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        sys::shut_down_fs(&File::open(root).unwrap()).unwrap();
        writer.join().unwrap()
    })
}

//! Whether a btrfs lies on its one device alone. The kernel finds the devices of a btrfs by its UUID, among all that the node
//! has: what is not refused here would be another disk. Offsets are those of the published on-disk format.

use super::chunks::Chunks;
use super::key::Key;
use super::superblock::{self, Superblock};
use super::tree::Forest;
use crate::reader::integers::{le16, le64};
use crate::reader::{Parsed, Region, give_up};

const DEVICE_ITEMS: u64 = 1;
const DEVICE_ITEM: u8 = 216;
const CHUNK_ITEM: u8 = 228;
/// Of a device's item, which the superblock has as well.
const DEVICE_ITEM_BYTES: usize = 98;
const DEVICE_ITEM_AT: usize = 0xc9;
/// A chunk's item without stripes, and each stripe.
const CHUNK_BYTES: usize = 48;
const STRIPE_BYTES: usize = 32;

/// A device, as its own item and each stripe on it name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    number: u64,
    uuid: [u8; 16],
}

/// Gives up unless every device item and every stripe of the filesystem in the region is of the device that the region is.
pub fn refuse_others(region: &Region<'_>) -> Parsed<()> {
    let superblock = Superblock::read(region)?;
    let own_item = region.read(superblock::AT + DEVICE_ITEM_AT as u64, DEVICE_ITEM_BYTES)?;
    let own = device_of(&own_item, &superblock)?;
    let system = Chunks::of_superblock(&superblock)?;
    let forest = Forest { region, superblock: &superblock, chunks: &system };
    let mut devices = 0;
    forest.walk(superblock.chunk_root, &mut |key: Key, item| match key.kind {
        DEVICE_ITEM => {
            devices += 1;
            let named = (key.object, key.offset) == (DEVICE_ITEMS, own.number);
            if devices > 1 || !named || device_of(item, &superblock)? != own {
                return give_up("it names another device than its own");
            }
            Ok(())
        }
        CHUNK_ITEM => refuse_stripes_elsewhere(item, own),
        _ => Ok(()),
    })?;
    if devices == 1 { Ok(()) } else { give_up("it does not name its device") }
}

/// The device of an item, which must be of this filesystem.
fn device_of(item: &[u8], superblock: &Superblock) -> Parsed<Device> {
    let Some(item) = item.get(..DEVICE_ITEM_BYTES) else {
        return give_up("a device's item is too short");
    };
    let id = |at: usize| -> [u8; 16] { std::array::from_fn(|index| item[at + index]) };
    if id(82) != superblock.metadata_uuid {
        return give_up("a device's item is of another filesystem");
    }
    Ok(Device { number: le64(item, 0), uuid: id(66) })
}

fn refuse_stripes_elsewhere(item: &[u8], own: Device) -> Parsed<()> {
    let Some((head, stripes)) = item.split_at_checked(CHUNK_BYTES) else {
        return give_up("a chunk's item is too short");
    };
    let count = usize::from(le16(head, 44));
    let Some(stripes) = stripes.get(..count * STRIPE_BYTES).filter(|_| count > 0) else {
        return give_up("a chunk's item is too short");
    };
    let here = |stripe: &[u8]| le64(stripe, 0) == own.number && stripe[16..32] == own.uuid;
    if stripes.chunks_exact(STRIPE_BYTES).all(here) {
        Ok(())
    } else {
        give_up("a part of it lies on another device")
    }
}

//! Settings whose text says more than one thing, parsed.

use super::syntax::number;
use crate::admin_file::SealedFile;

/// Which firmware is to start the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootSetting {
    /// Whatever the layout and the hypervisor have.
    Auto,
    Bios,
    Uefi,
    No,
}

impl BootSetting {
    pub const ALL: [BootSetting; 4] =
        [BootSetting::Auto, BootSetting::Bios, BootSetting::Uefi, BootSetting::No];

    /// The setting's value.
    pub fn name(self) -> &'static str {
        match self {
            BootSetting::Auto => "auto",
            BootSetting::Bios => "bios",
            BootSetting::Uefi => "uefi",
            BootSetting::No => "no",
        }
    }
}

/// Where swap is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapSetting {
    No,
    /// A disk that Ganeti calls swap, if there is one.
    Auto,
    /// A whole disk, by its index.
    Disk(usize),
    /// Bytes on the root disk.
    Size(u64),
}

impl SwapSetting {
    /// None where the text says nothing of this kind.
    pub fn parse(text: &str) -> Option<SwapSetting> {
        if let Some(index) = text.strip_prefix("disk") {
            let index = number(index).filter(|index| (1..64).contains(index))?;
            return usize::try_from(index).ok().map(SwapSetting::Disk);
        }
        match text {
            "no" => return Some(SwapSetting::No),
            "auto" => return Some(SwapSetting::Auto),
            _ => {}
        }
        let (number, shift) = match text.as_bytes().last()? {
            b'M' => (&text[..text.len() - 1], 20),
            b'G' => (&text[..text.len() - 1], 30),
            _ => return None,
        };
        let number = self::number(number)?;
        // Less than 1 MiB is no swap; more than 1 TiB is a typing error.
        let bytes = number.checked_mul(1 << shift)?;
        ((1 << 20)..=(1 << 40)).contains(&bytes).then_some(SwapSetting::Size(bytes))
    }
}

/// What a new disk is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A tree that is bootstrapped, or comes from the cache.
    Bootstrap,
    /// Nothing: the guest is installed otherwise.
    Empty,
    /// A root tar or a disk image; what it holds tells which.
    File(SealedFile),
}

impl Source {
    /// None where the text says nothing of this kind.
    pub fn parse(text: &str) -> Option<Source> {
        match text {
            "bootstrap" => Some(Source::Bootstrap),
            "empty" => Some(Source::Empty),
            file => SealedFile::parse(file).map(Source::File),
        }
    }
}

/// Whether what is restored is the guest that was backed up, or another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Keep,
    New,
}

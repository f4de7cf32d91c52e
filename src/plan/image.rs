//! The plan for a disk image as the source: what is on the disk is the image's affair.

use std::path::PathBuf;

use anyhow::Result;

use super::{DiskFacts, HookPlan, disk_path, personality, root_disk};
use crate::guest::Personality;
use crate::request::Instance;
use crate::settings::{Identity, Settings};

/// Everything that create will do with an image.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    /// The image, for messages.
    pub source: String,
    pub personality: Personality,
    pub hooks: HookPlan,
    /// Whether table and filesystems get other identifiers than the image's.
    pub new_identifiers: bool,
    pub keep_failed: bool,
    pub reinstall: bool,
}

impl ImagePlan {
    /// Decides. Errors are refusals: nothing has been touched.
    pub fn new(instance: &Instance, settings: &Settings, disk: DiskFacts, source: &str) -> Result<ImagePlan> {
        Ok(ImagePlan {
            disk_path: disk_path(&root_disk(instance)?.address)?,
            disk,
            source: source.to_owned(),
            personality: personality(instance, settings, false)?,
            hooks: HookPlan::of(settings),
            new_identifiers: settings.import_identity == Identity::New,
            keep_failed: settings.keep_failed,
            reinstall: instance.reinstall,
        })
    }
}

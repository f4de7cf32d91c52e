//! The plan for a disk image as the source: layout, filesystems and loader are the image's own.

use std::path::PathBuf;

use anyhow::Result;

use super::{DiskFacts, HookPlan, Inputs, OnFailure, disk_path, guest_config, root_disk};
use crate::guest::GuestConfig;
use crate::settings::Identity;

/// Everything that create will do with an image.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    pub disk_path: PathBuf,
    pub disk: DiskFacts,
    /// The image, for messages.
    pub source: String,
    pub guest_config: GuestConfig,
    pub hooks: HookPlan,
    /// Whether table and filesystems get other identifiers than the image's.
    pub new_identity: bool,
    /// The instance has other disks, whose UUIDs its fstab may name.
    pub many_disks: bool,
    pub on_failure: OnFailure,
    pub reinstall: bool,
}

impl ImagePlan {
    /// Decides. Errors are refusals: nothing has been touched.
    pub fn new(inputs: Inputs<'_>, disk: DiskFacts, source: &str) -> Result<ImagePlan> {
        let Inputs { instance, settings, .. } = inputs;
        Ok(ImagePlan {
            disk_path: disk_path(&root_disk(instance)?.address)?,
            disk,
            source: source.to_owned(),
            guest_config: guest_config(instance, settings, settings.network, false)?,
            hooks: HookPlan::new(inputs),
            new_identity: settings.import_identity == Identity::New,
            many_disks: instance.disks.len() > 1,
            on_failure: OnFailure::of(settings),
            reinstall: instance.reinstall,
        })
    }
}

//! How the base tree is had: the recipe that the settings describe, and the cache that may have it.

use std::path::PathBuf;

use crate::bootstrap::{Kernel, Recipe, credentials};
use crate::cache::{Compression, Judgement};
use crate::request::Context;
use crate::settings::{Settings, conflicts};

/// How the base tar is had.
#[derive(Debug, Clone)]
pub struct BasePlan {
    pub recipe: Recipe,
    pub cache_dir: PathBuf,
    /// Of what is in the cache.
    pub judgement: Judgement,
    pub generate_cache: bool,
    pub compression: Compression,
    /// None: cache files never expire.
    pub clean_days: Option<u32>,
    /// How many root filesystems the cache keeps to be copied; 0: none is made or used.
    pub templates: usize,
}

impl BasePlan {
    /// Decides for a tree with this kernel, or without one.
    pub fn new(context: &Context, settings: &Settings, kernel: Option<Kernel>) -> BasePlan {
        BasePlan {
            recipe: recipe(settings, kernel),
            cache_dir: settings.cache_dir(&context.places).to_owned(),
            judgement: Judgement::strict_if(settings.is_strict()),
            generate_cache: settings.generate_cache,
            compression: settings.cache_compression,
            clean_days: settings.clean_cache_days,
            templates: settings.templates,
        }
    }
}

fn recipe(settings: &Settings, boot: Option<Kernel>) -> Recipe {
    // The order of components is the admin's preference; the order of packages means nothing.
    let mut extra_pkgs = settings.extra_pkgs.clone();
    extra_pkgs.sort();
    extra_pkgs.dedup();
    let mut mirror = settings.mirror.clone();
    let credentials = mirror.first_mut().and_then(|url| {
        let (plain, credentials) = credentials::split(url);
        *url = plain;
        credentials
    });
    Recipe {
        suite: settings.suite.clone(),
        arch: settings.arch.clone(),
        mirror,
        credentials,
        components: settings.components.clone(),
        extra_pkgs,
        apt_files: settings.apt_files.clone(),
        bootstrapper: settings.bootstrapper,
        boot,
        proxy: settings.proxy.clone(),
        keys: settings.keys.clone(),
        allow_unsigned: settings.unsigned_is_allowed(),
        refusal: conflicts::against_bootstrap(settings).into_iter().map(|conflict| conflict.sentence).next(),
        scripts: settings.scripts.clone(),
        exports: settings.layers.exports.clone(),
    }
}

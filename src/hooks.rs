//! The admin's hooks: which, in which order, with which environment, and what their failure means.
//!
//! They are root code of the node and keep its capabilities, /tmp and /dev; a PID and a mount namespace of their
//! own end what they leave behind.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::admin_file::AdminFiles;
use crate::command::init::{Job, SIGNALLED};
use crate::command::{self, Ended, Tool};
use crate::guest::{HookResolver, Resolver};
use crate::plan::{HookPlan, assignment};
use crate::report::{self, WithHint};
use crate::rootdir::RootDir;

/// Where the disk and the tree are while hooks run.
pub struct Stage<'a> {
    /// The mounted root.
    pub target: &'a Path,
    /// The whole disk, with its partitions as nodes.
    pub disk: &'a Path,
    /// The root's device.
    pub root_device: &'a Path,
    /// A directory of this run that hooks may read.
    pub workspace: &'a Path,
}

/// The hooks of a directory in run-parts' order: executable files whose names are letters, digits, `_` and `-`.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading the hooks in {}", dir.display())),
    };
    let is_hook = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let good_name = !name.is_empty() && name.chars().all(plain);
        let meta = std::fs::metadata(path);
        good_name && meta.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let mut hooks: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_hook).collect();
    hooks.sort();
    Ok(hooks)
}

/// Whether there is a hook to run.
pub fn any(plan: &HookPlan) -> Result<bool> {
    plan.dir.as_ref().map_or(Ok(false), |dir| Ok(!list(dir)?.is_empty()))
}

/// Runs all hooks in a tree that has a resolver while they run; all run even after one fails, unless the plan says otherwise,
/// then it is an error.
pub fn run(plan: &HookPlan, tree: &RootDir, resolver: &Resolver, stage: &Stage) -> Result<()> {
    let lent = HookResolver::lend(tree, resolver)?;
    run_all(plan, stage)?;
    lent.take_back(tree)
}

fn run_all(plan: &HookPlan, stage: &Stage) -> Result<()> {
    let Some(dir) = &plan.dir else { return Ok(()) };
    let hooks = list(dir)?;
    if hooks.is_empty() {
        return Ok(());
    }
    refuse_exposed(plan, dir)?;
    let root_device = stage.root_device.display().to_string();
    let shell = [&*plan.shell_settings, assignment("filesystem_dev", &root_device).as_bytes()].concat();
    std::fs::write(stage.workspace.join("settings.sh"), shell)
        .context("writing settings.sh for the hooks")?;
    let mut env = plan.environment.clone();
    let stage_vars = [("TARGET", stage.target), ("BLOCKDEV", stage.disk), ("FSYSDEV", stage.root_device)];
    env.extend(stage_vars.map(|(name, path)| (name.into(), path.into())));
    report::long_step(&format!("running {} hooks of {}", hooks.len(), dir.display()), || {
        let ended = if plan.namespace {
            let commands = hooks.iter().map(|hook| vec![hook.clone().into_os_string()]).collect();
            let job = Job { commands, fail_fast: plan.fail_fast, ..Job::default() };
            command::run_sequence(job, &env, &plan.cwd)?
        } else {
            run_in_the_open(&hooks, plan.fail_fast, &env, &plan.cwd)?
        };
        judge(&hooks, &ended)
    })
}

/// Looks again, after the list was made: a bootstrap takes minutes, and another user may have made meanwhile what a link names.
fn refuse_exposed(plan: &HookPlan, dir: &Path) -> Result<()> {
    let mut files = AdminFiles::new(plan.strict);
    let problems = files.look_at_tree(dir);
    files
        .tolerated()
        .iter()
        .filter(|fault| !plan.exposed.contains(fault))
        .for_each(|fault| report::warning(fault));
    if problems.is_empty() {
        return Ok(());
    }
    Err(anyhow!("{}", problems.join("\n  ")).context("looking at the hooks once more"))
        .hint("no hook ran; hooks and what they read are root's alone, and so is every directory on the way to them")
}

/// Without namespaces, as it was before there were any: what a hook starts may live on.
fn run_in_the_open(
    hooks: &[PathBuf],
    fail_fast: bool,
    env: &[(OsString, OsString)],
    cwd: &Path,
) -> Result<Vec<Ended>> {
    let mut ended = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        let result = Tool::new(hook).bare_env().envs(env.iter().map(|(n, v)| (n, v))).cwd(cwd).run();
        let (status, tail) = match result {
            Ok(()) => (0, String::new()),
            Err(error) => match report::cause::<command::ToolError>(&error) {
                Some(command::ToolError::Status(_, status, tail)) => (*status, tail.clone()),
                Some(command::ToolError::Signal(_, signal, tail)) => (SIGNALLED + signal, tail.clone()),
                Some(command::ToolError::Missing(_)) => (127, String::new()),
                None => return Err(error),
            },
        };
        ended.push(Ended { index, status, tail });
        if status != 0 && fail_fast {
            break;
        }
    }
    Ok(ended)
}

fn judge(hooks: &[PathBuf], ended: &[Ended]) -> Result<()> {
    let name = |index: usize| hooks.get(index).map_or(String::new(), |hook| hook.display().to_string());
    let failed: Vec<String> = ended
        .iter()
        .filter(|ended| ended.status != 0)
        .map(|Ended { index, status, tail }| match status {
            127 => format!("the hook {} could not be started{tail}", name(*index)),
            SIGNALLED.. => {
                format!("the hook {} was ended by signal {}{tail}", name(*index), status - SIGNALLED)
            }
            _ => format!("the hook {} ended with exit status {status}{tail}", name(*index)),
        })
        .collect();
    if failed.is_empty() {
        if ended.len() < hooks.len() {
            bail!("only {} of {} hooks ran", ended.len(), hooks.len());
        }
        return Ok(());
    }
    Err(anyhow!("{}", failed.join("\n  ")))
        .hint("all that a hook printed stands in the log; `keep_failed = true` leaves the disk to look at")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_chosen_and_ordered_as_run_parts_does() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (name, mode) in
            [("b", 0o755), ("A", 0o755), ("10-x_y", 0o700), ("c.sh", 0o755), ("d~", 0o755), ("e", 0o644)]
        {
            make(name, mode);
        }
        std::fs::create_dir(dir.path().join("confdata")).unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("link")).unwrap();
        let names: Vec<_> =
            list(dir.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["10-x_y", "A", "b", "link"]);
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn each_failed_hook_is_named() {
        let hooks = [PathBuf::from("/h/a"), "/h/b".into(), "/h/c".into()];
        let ended = |index, status| Ended { index, status, tail: String::new() };
        let error = judge(&hooks, &[ended(0, 3), ended(1, 0), ended(2, SIGNALLED + 9)]).unwrap_err();
        let text = format!("{:?}", error.root_cause().to_string());
        assert!(text.contains("/h/a ended with exit status 3"), "{text}");
        assert!(text.contains("/h/c was ended by signal 9"), "{text}");
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm image`: an image for container engines that runs guests and stress without building or
//! fetching anything. Its lower layers are the toolbox itself, as `images/toolbox` defines it, its
//! upper one is a commit of the project and what was built from it. A change of the project makes
//! another upper layer and no other lower one.

mod check;
mod contents;
mod layout;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

pub use self::contents::WRITTEN;
use self::layout::Layout;
use crate::build::{BuildKind, KernelChoice};
use crate::cache;
use crate::context::Context;
use crate::git::Commit;

const HELP: &str = "\
Examples:
  just image /tmp/cdm-image
  just image --kernel public --build plain --build debug /tmp/cdm-image
  just image --check /tmp/cdm-image

DIR becomes an OCI image layout with one image, called cdm. Engines take it from there:
  podman pull oci:/tmp/cdm-image:cdm
  skopeo copy oci:/tmp/cdm-image:cdm docker://registry.example/cdm:latest

The image's entry point is ci/just: its arguments are those of just. It holds the commit that is
checked out, and for each --kernel and each --build what a guest needs. With --check the image is
unpacked (4 GiB in the cache, for as long as it takes) and a soak of some seconds is started from it
for each index of an Indexed Job of three: by a plain user, without a network, on a file system
that cannot be written to but for logs and results.";

/// Arguments of `cdm image`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ImageArgs {
    /// Where the image goes: a folder that is not there yet
    #[arg(value_name = "DIR")]
    output: PathBuf,

    /// Kernel in the image: 'public' or 'vanilla'; once for each [default: public]
    #[arg(long = "kernel", value_name = "KERNEL", value_parser = named_kernel)]
    kernels: Vec<KernelChoice>,

    /// Checkers in the kernel; once for each kind that the image has [default: plain]
    #[arg(long = "build", value_name = "KIND", value_enum)]
    builds: Vec<BuildKind>,

    /// Unpack the image and run it, too
    #[arg(long)]
    check: bool,
}

/// A tree of somebody's own is no part of a commit.
fn named_kernel(text: &str) -> Result<KernelChoice, String> {
    match text.parse()? {
        KernelChoice::Tree(_) => Err("an image holds 'public', 'vanilla' or both".to_owned()),
        named => Ok(named),
    }
}

/// `cdm image`.
pub fn run(ctx: &Context, args: &ImageArgs) -> Result<ExitCode> {
    ensure!(
        !args.output.exists(),
        "{} is there already; remove it, or name another folder",
        args.output.display()
    );
    let kernels = or_default(&args.kernels, KernelChoice::Public);
    let builds = or_default(&args.builds, BuildKind::Plain);
    let commit = Commit::current(ctx)?;
    contents::ensure_committed(ctx)?;
    let toolbox = layout::of_toolbox(ctx)?;
    let products = contents::products(ctx, &kernels, &builds)?;

    let stage = tempfile::tempdir_in(&ctx.cache).context("cannot make a folder in the cache")?;
    contents::stage(ctx, &products, stage.path())?;
    let absolute = std::path::absolute(&args.output)?;
    if let Some(parent) = absolute.parent() {
        cache::create_folder(parent)?;
    }
    let mut done = None;
    cache::publish(&absolute, |folder| {
        done = Some(layout::add_project(
            ctx,
            &toolbox,
            stage.path(),
            &commit,
            folder,
        )?);
        Ok(())
    })?;
    drop(stage);
    for layer in done.context("the image has no layers")? {
        println!("{:>6} MiB  {}", layer.bytes >> 20, layer.digest);
    }
    println!("{}:{}", absolute.display(), layout::TAG);
    if args.check {
        return check::run(ctx, &Layout::at(&absolute), &kernels[0], builds[0]);
    }
    Ok(ExitCode::SUCCESS)
}

fn or_default<T: Clone>(given: &[T], default: T) -> Vec<T> {
    match given {
        [] => vec![default],
        given => given.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_of_an_image_is_one_of_ours() {
        assert_eq!(named_kernel("vanilla"), Ok(KernelChoice::Vanilla));
        let error = named_kernel("./linux").expect_err("a tree");
        assert!(error.contains("'vanilla'"), "{error}");
    }
}

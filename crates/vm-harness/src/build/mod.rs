// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Everything that is built, each in a file of its own: the guest kernel, the
//! driver for it, the backend, the guest's programs, and the initramfs.
//!
//! A result lives in the cache under a hash of what went into it. Asking for it
//! again costs the hash and nothing more.

mod backend;
mod cargo;
pub mod cpio;
mod fuzz;
mod guest_tools;
mod initramfs;
pub mod kernel;
mod module;
mod own_module;
pub mod rootfs;
mod selftests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::context::Context;

pub use backend::backend;
pub use cargo::set_environment;
pub use fuzz::{FOLDER as FUZZ_FOLDER, Instrumentation, fuzz_programs};
pub use guest_tools::guest_tools;
pub use initramfs::initramfs;
pub use kernel::{
    Kernel, WorkingTree, kernel, modules as kernel_modules, series, source_of as kernel_source,
};
pub use module::{SOURCES as MODULE_SOURCES, mirror, mirror_file, module, rust_analyzer};
pub use own_module::{ModuleArgs, own_modules, run_module};
pub use selftests::{HMM_TESTS_SOURCE, hmm_tests, mm_selftests};

/// Which kernel source the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelChoice {
    /// The distribution's source with the series in `images/kernel/patches`.
    Public,
    /// The same source without the series.
    Vanilla,
    /// A kernel tree of the user's own, built as it is and never written into.
    Tree(PathBuf),
}

impl FromStr for KernelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "public" => Ok(Self::Public),
            "vanilla" => Ok(Self::Vanilla),
            path if path.contains('/') || path == "." || path == ".." => {
                Ok(Self::Tree(PathBuf::from(path)))
            }
            other => Err(format!(
                "'{other}' is neither 'public' nor 'vanilla' nor the path of a kernel tree \
                 (write ./{other} for a folder here)"
            )),
        }
    }
}

impl std::fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Vanilla => f.write_str("vanilla"),
            Self::Tree(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How much the kernel checks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BuildKind {
    /// The cheap checkers only
    Plain,
    /// KASAN, lockdep and other slow checkers too
    Debug,
}

impl std::fmt::Display for BuildKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Debug => "debug",
        })
    }
}

/// The two options that choose a kernel, for every command that needs one.
#[derive(Clone, Debug, Args)]
pub struct KernelOptions {
    /// Kernel to use: 'public' (patched), 'vanilla', or the path of a kernel tree of your own
    #[arg(long, value_name = "public|vanilla|PATH", default_value = "public")]
    pub kernel: KernelChoice,

    /// Checkers in the kernel
    #[arg(long, value_name = "KIND", value_enum, default_value_t = BuildKind::Plain)]
    pub build: BuildKind,
}

/// Arguments of `cdm build`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just build\n  just build --kernel vanilla --build debug")]
pub struct BuildArgs {
    #[command(flatten)]
    kernel: KernelOptions,
}

/// Arguments of `cdm kernel`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  just kernel --kernel ~/src/linux --build debug")]
pub struct KernelArgs {
    #[command(flatten)]
    kernel: KernelOptions,
}

/// `cdm build`: builds everything a guest needs, and prints where it is.
pub fn run(ctx: &Context, args: &BuildArgs) -> Result<ExitCode> {
    let kernel = kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    println!("kernel     {}", kernel.image.display());
    println!("module     {}", module(ctx, &kernel)?.display());
    println!("backend    {}", backend(ctx)?.display());
    println!("tools      {}", guest_tools(ctx)?.display());
    println!("initramfs  {}", initramfs(ctx, &kernel)?.display());
    Ok(ExitCode::SUCCESS)
}

/// `cdm kernel`: builds a kernel, and prints where it is.
pub fn run_kernel(ctx: &Context, args: &KernelArgs) -> Result<ExitCode> {
    let kernel = kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    println!("image    {}", kernel.image.display());
    println!("config   {}", kernel.config.display());
    println!("objects  {}", kernel.objects.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_chosen_by_name_or_by_path() {
        assert_eq!("public".parse(), Ok(KernelChoice::Public));
        assert_eq!("vanilla".parse(), Ok(KernelChoice::Vanilla));
        assert_eq!("./linux".parse(), Ok(KernelChoice::Tree("./linux".into())));
    }

    #[test]
    fn a_misspelt_kernel_name_is_refused_and_not_taken_for_a_folder() {
        let error = "publik"
            .parse::<KernelChoice>()
            .expect_err("no such kernel");
        assert!(
            error.contains("'publik'") && error.contains("./publik"),
            "{error}"
        );
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm book`: the documents as HTML, by mdBook.
//!
//! The pages are read where they lie on GitHub, too, so their links are those of files. What the
//! book does not have (sources, the README) it has to find there; a copy of the pages, in which
//! such links are changed, is what mdBook gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::build::mirror;
use crate::cache;
use crate::command::run_logged;
use crate::context::Context;
use crate::markdown::{self, Target};

/// The pages, in the repository.
const PAGES: &str = "docs";
/// What each page of Debian's mdBook names and Debian leaves out of it: fonts, for their licence,
/// and the script of the buttons that change colours and hide the contents.
const LACKING: [&str; 2] = ["fonts/fonts.css", "book.js"];
/// The order of the pages.
const CONTENTS: &str = "SUMMARY.md";
/// Where the repository can be read.
const ELSEWHERE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main");

/// Arguments of `cdm book`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just book
  just book --to /tmp/book

Prints the path of the first page.")]
pub struct BookArgs {
    /// Write the book into DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// `cdm book`.
pub fn run(ctx: &Context, args: &BookArgs) -> Result<ExitCode> {
    let to = match &args.to {
        Some(to) => std::path::absolute(to)
            .with_context(|| format!("cannot tell where {} is", to.display()))?,
        None => ctx.cache.join("book/html"),
    };
    if args.to.is_some() && to.is_dir() {
        let mut inside =
            fs::read_dir(&to).with_context(|| format!("cannot read {}", to.display()))?;
        // mdBook empties the folder first.
        ensure!(
            inside.next().is_none() || to.join("index.html").is_file(),
            "{} has something else in it; name a folder that is empty or not there",
            to.display()
        );
    }
    let _lock = cache::lock(ctx, "book", "making the book")?;
    make(ctx, &to, &ctx.logs().join("book.log"))?;
    println!("{}", to.join("index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// Writes the book into a folder, and looks whether its links lead to what is there.
pub fn make(ctx: &Context, to: &Path, log: &Path) -> Result<()> {
    let copy = tempfile::tempdir().context("cannot make a folder for the pages")?;
    stage(&ctx.repo, copy.path())?;
    let mut mdbook = Command::new("mdbook");
    mdbook
        .arg("build")
        .arg("--dest-dir")
        .arg(to)
        .arg(copy.path());
    run_logged(&mut mdbook, "mdbook build", log, |_| {})?;
    links_lead_somewhere(to)
}

/// Copies the pages, with links that lead out of the book changed to where its files can be read.
fn stage(repo: &Path, to: &Path) -> Result<()> {
    let pages = repo.join(PAGES);
    mirror(&pages, to)?;
    for path in cache::files_below(to)? {
        // mdBook wants the contents to name files as they are called.
        if path.extension().is_none_or(|end| end != "md") || path.ends_with(CONTENTS) {
            continue;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let text = read(&path)?;
        let inside = path.strip_prefix(to)?;
        fs::write(&path, for_the_book(&text, inside))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A page of the book, of one that is at `place` below the pages.
fn for_the_book(text: &str, place: &Path) -> String {
    let mut out = text.to_owned();
    // From the last to the first, so that places of those before it stay.
    for link in markdown::links(text).into_iter().rev() {
        let Target::Inside { path, anchor } = link.target() else {
            continue;
        };
        let Some(new) = moved(place, &path) else {
            continue;
        };
        let anchor = anchor
            .map(|anchor| format!("#{anchor}"))
            .unwrap_or_default();
        let old = format!("]({})", link.to);
        let whole = &out[link.place.clone()];
        let changed = whole.replacen(&old, &format!("]({new}{anchor})"), 1);
        out.replace_range(link.place, &changed);
    }
    out
}

/// What a link becomes in the book; none if it stays.
fn moved(place: &Path, path: &str) -> Option<String> {
    if path.is_empty() {
        return None;
    }
    // As seen from the top of the repository.
    let mut whole = PathBuf::from(PAGES);
    for part in place
        .parent()
        .unwrap_or(Path::new(""))
        .join(path)
        .components()
    {
        match part {
            std::path::Component::ParentDir => _ = whole.pop(),
            part => whole.push(part),
        }
    }
    if !whole.starts_with(PAGES) || path.ends_with('/') || whole.extension().is_none() {
        return Some(format!("{ELSEWHERE}/{}", whole.display()));
    }
    // mdBook calls the page of a folder index, and does not tell the links.
    path.strip_suffix("README.md")
        .map(|folder| format!("{folder}index.md"))
}

/// Each `href` and `src` of the pages to a file of the book.
fn links_lead_somewhere(book: &Path) -> Result<()> {
    let mut pages = 0;
    let mut broken = Vec::new();
    for path in cache::files_below(book)? {
        // The page of a web server for what is not there has the server's root as its place.
        if path.extension().is_none_or(|end| end != "html") || path.ends_with("404.html") {
            continue;
        }
        pages += 1;
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let folder = path.parent().unwrap_or(book);
        for to in ["href=\"", "src=\""]
            .iter()
            .flat_map(|kind| text.split(kind).skip(1))
        {
            let to = to.split(['"', '#', '?']).next().unwrap_or_default();
            if LACKING.contains(&to.trim_start_matches("../")) {
                continue;
            }
            if !to.is_empty() && !to.contains(':') && !folder.join(to).exists() {
                broken.push(format!("{}: {to}", path.display()));
            }
        }
    }
    if pages == 0 {
        bail!("mdBook left no page in {}", book.display());
    }
    ensure!(
        broken.is_empty(),
        "links of the book that lead nowhere:\n{}",
        broken.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_book_lead_to_the_repository_and_others_stay() {
        let text = "[a](../../crates/x.rs) [b](b.md#c) [c](#d) [e](../results/README.md#f) \
                    `[g](../../h)` [i](https://j.k/) [l](../../README.md) [m](schemas)\n";
        let expected = format!(
            "[a]({ELSEWHERE}/crates/x.rs) [b](b.md#c) [c](#d) [e](../results/index.md#f) \
             `[g](../../h)` [i](https://j.k/) [l]({ELSEWHERE}/README.md) \
             [m]({ELSEWHERE}/docs/how-to/schemas)\n"
        );
        assert_eq!(for_the_book(text, Path::new("how-to/a.md")), expected);
    }

    #[test]
    fn link_of_a_page_to_none_is_named() {
        let book = tempfile::tempdir().expect("a folder");
        fs::write(
            book.path().join("a.html"),
            "<a href=\"a.html#x\"> <a href=\"b.html\">",
        )
        .expect("written");
        let error = links_lead_somewhere(book.path()).expect_err("no such page");
        let told = error.to_string();
        assert!(
            told.contains("a.html: b.html") && !told.contains("a.html: a.html"),
            "{told}"
        );
    }

    #[test]
    fn book_without_pages_is_none() {
        let book = tempfile::tempdir().expect("a folder");
        assert!(links_lead_somewhere(book.path()).is_err());
    }
}

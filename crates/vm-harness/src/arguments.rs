// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments of one recipe from its command line, for the tests of what is
//! done with them.

use clap::{Args, Command};

/// What `words`, those behind the recipe's name, say.
///
/// # Errors
///
/// Those of clap: an unknown word, or options that exclude each other.
pub fn parse<'a, A: Args>(words: impl IntoIterator<Item = &'a str>) -> Result<A, clap::Error> {
    let command = A::augment_args(Command::new("recipe").no_binary_name(true));
    A::from_arg_matches(&command.try_get_matches_from(words)?)
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Settings of an editor: ours among whatever the user has.

use std::path::Path;

use serde_json::{Value, json};

use super::PROJECT;

/// What rust-analyzer is to know: both projects, and that the toolbox has the tools.
pub fn wanted(just: &Path) -> Value {
    let check = json!([just.display().to_string(), "ide", "--check"]);
    json!({
        "rust-analyzer.linkedProjects": ["Cargo.toml", PROJECT],
        "rust-analyzer.cargo.buildScripts.overrideCommand": check,
        "rust-analyzer.check.overrideCommand": check,
    })
}

/// The settings with ours in them; none where they cannot be understood, as with comments.
pub fn merged(old: Option<&str>, wanted: &Value) -> Option<String> {
    let mut settings = match old {
        None => json!({}),
        Some(text) => serde_json::from_str(text).ok()?,
    };
    let own = settings.as_object_mut()?;
    for (name, value) in wanted.as_object()? {
        own.insert(name.clone(), value.clone());
    }
    serde_json::to_string_pretty(&settings).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_user_stay_and_ours_are_there_once() {
        let wanted = wanted(Path::new("/repo/ci/just"));
        let old = r#"{"editor.rulers": [100], "rust-analyzer.linkedProjects": ["old"]}"#;
        let merged = merged(Some(old), &wanted).expect("merged");
        let read: Value = serde_json::from_str(&merged).expect("JSON");
        assert_eq!(read["editor.rulers"], json!([100]));
        assert_eq!(
            read["rust-analyzer.linkedProjects"],
            json!(["Cargo.toml", PROJECT])
        );
        assert_eq!(
            read["rust-analyzer.check.overrideCommand"],
            json!(["/repo/ci/just", "ide", "--check"])
        );
    }

    #[test]
    fn settings_with_comments_are_left_alone() {
        assert_eq!(merged(Some("// mine\n{}"), &wanted(Path::new("x"))), None);
        assert_eq!(merged(Some("[]"), &wanted(Path::new("x"))), None);
        assert!(merged(None, &wanted(Path::new("x"))).is_some());
    }
}

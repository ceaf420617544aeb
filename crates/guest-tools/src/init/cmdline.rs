// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's part of the kernel command line: `cdm.NAME=VALUE`.

/// Prefix of the driver's parameters; the kernel's rule for built-in modules.
const PREFIX: &str = "cdm.";
/// Not a parameter of the module: 0 leaves it unloaded.
const LOAD: &str = "load";

/// What the kernel command line says about the driver.
#[derive(Debug, PartialEq, Eq)]
pub struct ModuleRequest {
    /// Whether to load the module.
    pub load: bool,
    /// Its parameters as finit_module(2) wants them: `NAME=VALUE`, one space between.
    pub parameters: String,
}

/// Reads a kernel command line.
pub fn parse(cmdline: &str) -> ModuleRequest {
    let mut load = true;
    let mut parameters = Vec::new();
    for word in words(cmdline) {
        let Some(parameter) = strip_prefix(word) else {
            continue;
        };
        match parameter.split_once('=') {
            Some((LOAD, value)) => load = value != "0",
            _ => parameters.push(parameter),
        }
    }
    ModuleRequest {
        load,
        parameters: parameters.join(" "),
    }
}

/// Cuts the line at spaces outside double quotes. Quotes stay: the kernel reads
/// module parameters by the same rule.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    })
    .filter(|word| !word.is_empty())
}

/// `cdm.a=b` gives `a=b`. The kernel also takes quotes around the whole word.
fn strip_prefix(word: &str) -> Option<String> {
    match word.strip_prefix('"') {
        Some(rest) => rest.strip_prefix(PREFIX).map(|rest| format!("\"{rest}")),
        None => word.strip_prefix(PREFIX).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(cmdline: &str) -> String {
        parse(cmdline).parameters
    }

    #[test]
    fn parameters_of_the_module_lose_their_prefix() {
        assert_eq!(
            parameters("console=ttyS0 cdm.memory_type=public quiet cdm.altmap=0\n"),
            "memory_type=public altmap=0"
        );
    }

    #[test]
    fn words_of_others_are_left_alone() {
        assert_eq!(parameters("cdmx.a=1 acdm.b=2 cdm=3"), "");
    }

    #[test]
    fn a_quoted_value_keeps_its_spaces() {
        assert_eq!(parameters(r#"cdm.a="b c" d"#), r#"a="b c""#);
        assert_eq!(parameters(r#""cdm.a=b c" d"#), r#""a=b c""#);
    }

    #[test]
    fn the_module_is_loaded_unless_the_line_says_otherwise() {
        assert!(parse("").load);
        assert!(parse("cdm.load=1").load);
        let request = parse("cdm.load=0 cdm.altmap=0");
        assert!(!request.load);
        assert_eq!(request.parameters, "altmap=0", "load is not the module's");
    }
}

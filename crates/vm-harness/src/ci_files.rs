// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `ci/` holds for CI systems that are not here: each command in it must be one that `cdm`
//! takes, each script one that shellcheck has nothing to say of, and the shards that machines are
//! given must be the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::Cli;

fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = fs::read_to_string(path).expect("readable");
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Has the real parser of command lines take these arguments of `ci/just`. Returns the recipe.
fn parse(words: &[String]) -> String {
    let line = std::iter::once("cdm").chain(words.iter().map(String::as_str));
    if let Err(error) = Cli::try_parse_from(line) {
        panic!("ci/just {}: {error}", words.join(" "));
    }
    words[0].clone()
}

mod github {
    use super::*;

    #[derive(Deserialize)]
    struct Workflow {
        jobs: BTreeMap<String, Job>,
    }

    #[derive(Deserialize)]
    struct Job {
        #[serde(default)]
        strategy: Strategy,
        steps: Vec<Step>,
    }

    #[derive(Default, Deserialize)]
    struct Strategy {
        #[serde(default)]
        matrix: BTreeMap<String, Value>,
    }

    #[derive(Deserialize)]
    struct Step {
        run: Option<String>,
        uses: Option<String>,
    }

    #[derive(Deserialize)]
    struct Action {
        runs: Runs,
    }

    #[derive(Deserialize)]
    struct Runs {
        steps: Vec<Step>,
    }

    fn workflow() -> Workflow {
        read(&repo().join("ci/github/cdm.yml"))
    }

    fn actions() -> Vec<Action> {
        ["setup", "kernel"]
            .map(|name| read(&repo().join("ci/github").join(name).join("action.yml")))
            .into()
    }

    /// Values of a key of a matrix: a list, or an expression that chooses one of several lists.
    fn values(given: &Value) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match given {
            Value::Array(list) => list.iter().map(text).collect(),
            Value::String(expression) => expression
                .split("fromJSON('")
                .skip(1)
                .filter_map(|rest| rest.split("')").next())
                .flat_map(|json| {
                    let list: Vec<String> = serde_json::from_str(json).expect("a list");
                    list
                })
                .collect(),
            other => panic!("no values of a matrix: {other}"),
        }
    }

    /// A script as it is with each combination of the matrix.
    fn expanded(script: &str, matrix: &BTreeMap<String, Value>) -> BTreeSet<String> {
        let mut scripts = BTreeSet::from([script.to_owned()]);
        for (key, given) in matrix {
            // `include` and `exclude` are no keys, and change which combinations there are.
            if key == "exclude" {
                continue;
            }
            let pattern = format!("${{{{ matrix.{key} }}}}");
            scripts = scripts
                .iter()
                .flat_map(|script| {
                    let values = values(given).into_iter();
                    values.map(|value| script.replace(&pattern, &value))
                })
                .collect();
        }
        scripts
            .iter()
            .map(|script| script.replace("${{ github.run_number }}", "7"))
            .collect()
    }

    /// All scripts, with the name of the job.
    fn scripts() -> Vec<(String, String)> {
        let mut scripts = Vec::new();
        for (name, job) in workflow().jobs {
            for step in job.steps.iter().filter_map(|step| step.run.as_deref()) {
                let all = expanded(step, &job.strategy.matrix).into_iter();
                scripts.extend(all.map(|script| (name.clone(), script)));
            }
        }
        for action in actions() {
            let runs = action.runs.steps.into_iter().filter_map(|step| step.run);
            scripts.extend(runs.map(|script| ("action".to_owned(), script)));
        }
        scripts
    }

    /// The arguments of `ci/just` in a script, without what the shell makes of its output.
    fn recipes(script: &str) -> Vec<Vec<String>> {
        script
            .lines()
            .filter_map(|line| line.trim().strip_prefix("ci/just "))
            .map(|rest| {
                let words = shlex::split(rest).expect("closed quotes");
                let end = words.iter().position(|word| word == ">>" || word == "|");
                words[..end.unwrap_or(words.len())].to_vec()
            })
            .collect()
    }

    #[test]
    fn every_command_of_a_workflow_is_understood() {
        let mut seen = BTreeSet::new();
        for (_, script) in scripts() {
            seen.extend(recipes(&script).iter().map(|words| parse(words)));
        }
        let wanted = ["deny", "results", "run-vm", "soak", "stress", "test"];
        assert_eq!(seen, wanted.map(str::to_owned).into());
    }

    #[test]
    fn shards_of_a_job_are_the_whole() {
        let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (job, script) in scripts() {
            for words in recipes(&script) {
                let at = words.iter().position(|word| word == "--shard");
                if let Some(at) = at {
                    let of_job = shards.entry(job.clone()).or_default();
                    of_job.insert(words[at + 1].clone());
                }
            }
        }
        let jobs: Vec<&String> = shards.keys().collect();
        assert_eq!(jobs, ["soak", "stress"]);
        for (job, shards) in &shards {
            let count = shards.len();
            let whole = (1..=count).map(|index| format!("{index}/{count}"));
            assert_eq!(*shards, whole.collect(), "{job}");
        }
    }

    #[test]
    fn every_script_of_a_workflow_passes_shellcheck() {
        let scripts = scripts();
        assert!(scripts.len() > 10, "only {} were found", scripts.len());
        for (job, script) in scripts {
            assert!(!script.contains("${{"), "not expanded, in {job}: {script}");
            // -e is how GitHub starts bash.
            let mut child = Command::new("shellcheck")
                .args(["--shell=bash", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("shellcheck is part of the toolbox");
            let mut stdin = child.stdin.take().expect("piped");
            stdin
                .write_all(format!("set -e\n{script}\n").as_bytes())
                .expect("written");
            drop(stdin);
            let output = child.wait_with_output().expect("ends");
            assert!(
                output.status.success(),
                "in {job}: {script}\n{}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
    }

    #[test]
    fn actions_are_github_s_own_or_lie_in_this_repository() {
        let jobs = workflow().jobs.into_values().flat_map(|job| job.steps);
        let steps = jobs.chain(actions().into_iter().flat_map(|action| action.runs.steps));
        let mut seen = 0;
        for action in steps.filter_map(|step| step.uses) {
            seen += 1;
            match action.strip_prefix("./") {
                Some(path) => assert!(repo().join(path).join("action.yml").is_file(), "{path}"),
                None => assert!(action.starts_with("actions/"), "{action}"),
            }
        }
        assert!(seen > 10, "only {seen} were found");
    }

    #[test]
    fn matrix_is_put_in_for_each_combination() {
        let matrix = BTreeMap::from([
            ("kernel".to_owned(), serde_json::json!(["a", "b"])),
            (
                "build".to_owned(),
                serde_json::json!("${{ x && fromJSON('[\"c\", \"d\"]') || fromJSON('[\"c\"]') }}"),
            ),
            ("exclude".to_owned(), serde_json::json!([{"kernel": "b"}])),
        ]);
        let scripts = expanded("${{ matrix.kernel }}-${{ matrix.build }}", &matrix);
        let wanted = ["a-c", "a-d", "b-c", "b-d"].map(str::to_owned);
        assert_eq!(scripts, wanted.into());
    }
}

/// The Job, with all fields that it has and no others: a field that is misspelt, or in the wrong
/// place, is refused here as by a cluster.
mod kubernetes {
    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Job {
        api_version: String,
        kind: String,
        #[serde(rename = "metadata")]
        _metadata: BTreeMap<String, String>,
        spec: JobSpec,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct JobSpec {
        completion_mode: String,
        completions: usize,
        parallelism: usize,
        #[serde(rename = "backoffLimitPerIndex")]
        _backoff_limit_per_index: usize,
        #[serde(rename = "maxFailedIndexes")]
        max_failed_indexes: usize,
        pod_failure_policy: PodFailurePolicy,
        template: Template,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct PodFailurePolicy {
        rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Rule {
        action: String,
        #[serde(default)]
        on_exit_codes: Option<OnExitCodes>,
        #[serde(default, rename = "onPodConditions")]
        _on_pod_conditions: Vec<Condition>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct OnExitCodes {
        container_name: String,
        operator: String,
        values: Vec<u8>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Condition {
        #[serde(rename = "type")]
        _kind: String,
        #[serde(rename = "status")]
        _status: String,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Template {
        spec: PodSpec,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct PodSpec {
        restart_policy: String,
        #[serde(rename = "automountServiceAccountToken")]
        _automount: bool,
        #[serde(rename = "enableServiceLinks")]
        _links: bool,
        #[serde(rename = "securityContext")]
        _security_context: PodSecurity,
        containers: Vec<Container>,
        volumes: Vec<Volume>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only their names and types are looked at")]
    struct PodSecurity {
        run_as_non_root: bool,
        run_as_user: u32,
        run_as_group: u32,
        fs_group: u32,
        seccomp_profile: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Container {
        name: String,
        #[serde(rename = "image")]
        _image: String,
        command: Vec<String>,
        args: Vec<String>,
        #[serde(rename = "resources")]
        _resources: BTreeMap<String, BTreeMap<String, String>>,
        security_context: Security,
        volume_mounts: Vec<Mount>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only their names and types are looked at")]
    struct Security {
        allow_privilege_escalation: bool,
        read_only_root_filesystem: bool,
        capabilities: BTreeMap<String, Vec<String>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Mount {
        name: String,
        mount_path: String,
        #[serde(rename = "subPath")]
        _sub_path: Option<String>,
        #[serde(rename = "subPathExpr")]
        _sub_path_expr: Option<String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only their names and types are looked at")]
    struct Volume {
        name: String,
        persistent_volume_claim: Option<BTreeMap<String, String>>,
        empty_dir: Option<BTreeMap<String, String>>,
    }

    fn job() -> Job {
        read(&repo().join("ci/kubernetes/soak.yaml"))
    }

    fn container(job: &Job) -> &Container {
        match &job.spec.template.spec.containers[..] {
            [container] => container,
            others => panic!("{} containers", others.len()),
        }
    }

    /// What the pod of an index has `ci/just` do, as its own script says.
    fn words_of(container: &Container, index: usize) -> Vec<String> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let folder = dir.path().join("ci/kubernetes");
        fs::create_dir_all(&folder).expect("made");
        let script = repo().join("ci/kubernetes/shard");
        fs::copy(&script, folder.join("shard")).expect("copied");
        // Stands for the real one, and says what it was asked for.
        let just = dir.path().join("ci/just");
        fs::write(&just, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").expect("written");
        let mode = fs::metadata(&script).expect("there").permissions();
        fs::set_permissions(&just, mode).expect("executable");
        let program = container.command[0].strip_prefix("/cdm/").expect("in it");
        let output = Command::new(dir.path().join(program))
            .args(&container.command[1..])
            .args(&container.args)
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .output()
            .expect("starts");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn job_is_one_that_shares_a_soak_between_its_indices() {
        let job = job();
        assert_eq!(
            (job.api_version.as_str(), job.kind.as_str()),
            ("batch/v1", "Job")
        );
        let spec = &job.spec;
        assert_eq!(spec.completion_mode, "Indexed");
        assert!((1..=spec.completions).contains(&spec.parallelism));
        assert!(spec.max_failed_indexes <= spec.completions);
        let shards: BTreeSet<String> = (0..spec.completions)
            .map(|index| {
                let words = words_of(container(&job), index);
                assert_eq!(parse(&words), "soak");
                let at = words.iter().position(|word| word == "--shard");
                words[at.expect("a shard") + 1].clone()
            })
            .collect();
        let whole = 1..=spec.completions;
        let whole = whole.map(|index| format!("{index}/{}", spec.completions));
        assert_eq!(shards, whole.collect());
    }

    #[test]
    fn pod_that_found_something_is_not_started_again_and_others_are() {
        let job = job();
        // The rules below hold for no other policy.
        assert_eq!(job.spec.template.spec.restart_policy, "Never");
        let rules = &job.spec.pod_failure_policy.rules;
        let codes = rules.iter().find_map(|rule| {
            let codes = rule.on_exit_codes.as_ref()?;
            (rule.action == "FailIndex").then_some(codes)
        });
        let codes = codes.expect("a rule for what was found");
        assert_eq!(codes.container_name, container(&job).name);
        assert_eq!(
            (codes.operator.as_str(), &codes.values[..]),
            ("In", &[1][..])
        );
        assert!(container(&job).args.contains(&"--resume".to_owned()));
    }

    #[test]
    fn what_a_pod_writes_to_is_mounted() {
        let job = job();
        let container = container(&job);
        assert!(container.security_context.read_only_root_filesystem);
        let volumes = &job.spec.template.spec.volumes;
        let mounted: BTreeSet<&str> = container
            .volume_mounts
            .iter()
            .map(|mount| {
                assert!(volumes.iter().any(|volume| volume.name == mount.name));
                mount.mount_path.as_str()
            })
            .collect();
        let written = cdm_harness::image::WRITTEN.map(|name| format!("/var/cache/cdm/{name}"));
        let wanted = written.iter().map(String::as_str);
        assert_eq!(mounted, wanted.chain(["/results", "/tmp"]).collect());
    }

    #[test]
    fn script_of_the_job_passes_shellcheck_and_wants_an_index() {
        let output = Command::new("shellcheck")
            .arg(repo().join("ci/kubernetes/shard"))
            .output()
            .expect("shellcheck is part of the toolbox");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        let output = Command::new(repo().join("ci/kubernetes/shard"))
            .args(["8", "soak"])
            .env_remove("JOB_COMPLETION_INDEX")
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("JOB_COMPLETION_INDEX"),
            "{said}"
        );
    }
}

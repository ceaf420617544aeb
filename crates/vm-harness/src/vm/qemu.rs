// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the machine as data (`qemu/machine.toml`) to one QEMU command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::accel::Accel;
use super::disk::Disk;
use super::spec::{ByteSize, Gdb, VmSpec};

/// The program. The toolbox brings a release that is known to have the device.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Where the machine as data is, in the repository.
const MACHINE_FILE: &str = "qemu/machine.toml";

/// First slot of the root ports on the root complex; one port a device follows.
const FIRST_PORT_SLOT: u8 = 8;

/// First slot of the disks.
const FIRST_DISK_SLOT: usize = 5;

/// Fewest CPUs that may come to exist. With one, TCG emits read-modify-write that
/// is not atomic towards the backend.
const POSSIBLE_CPUS_MIN: u8 = 2;

/// The machine as data.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineData {
    kernel_words: Vec<String>,
    part: Vec<Part>,
}

/// Some arguments of QEMU.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Part {
    why: String,
    args: Vec<String>,
    #[serde(rename = "if")]
    condition: Option<String>,
    for_each: Option<Each>,
    /// It comes and goes with a device while the machine runs.
    #[serde(default)]
    hot_plug: bool,
}

/// What a part is repeated for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Each {
    Device,
    Disk,
}

/// Everything that one run adds to the data.
#[derive(Debug)]
pub struct Run<'a> {
    /// The machine that somebody wants.
    pub spec: &'a VmSpec,
    /// Who runs the guest.
    pub accel: Accel,
    /// Ticks of the guest's time stamp counter in a millisecond, where the guest cannot be trusted
    /// to find out.
    pub tsc_khz: Option<u64>,
    /// The first file system.
    pub initramfs: &'a Path,
    /// A disk with a userland, if the guest is to go on from the first one.
    pub rootfs: Option<&'a Path>,
    /// Folder of the sockets.
    pub run: &'a Path,
    /// Folder of the logs.
    pub logs: &'a Path,
    /// Socket of each device's backend.
    pub backend_sockets: &'a [PathBuf],
}

impl MachineData {
    /// Reads the repository's machine.
    pub fn read(repo: &Path) -> Result<Self> {
        let path = repo.join(MACHINE_FILE);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// The arguments of QEMU for one run.
    pub fn arguments(&self, run: &Run<'_>) -> Result<Vec<String>> {
        let values = self.values(run);
        let mut arguments = Vec::new();
        for part in &self.part {
            if let Some(condition) = &part.condition
                && !values.contains_key(condition.as_str())
            {
                continue;
            }
            let expanded = match part.for_each {
                None => expand(part, &values),
                Some(Each::Device) => (0..usize::from(run.spec.devices))
                    .map(|index| {
                        let mut values = values.clone();
                        values.extend(device_values(run, index)?);
                        expand(part, &values)
                    })
                    .collect::<Result<Vec<_>>>()
                    .map(|devices| devices.concat()),
                Some(Each::Disk) => (0..run.spec.disks.len())
                    .map(|index| {
                        let mut values = values.clone();
                        values.extend(disk_values(run, index));
                        expand(part, &values)
                    })
                    .collect::<Result<Vec<_>>>()
                    .map(|disks| disks.concat()),
            };
            arguments
                .extend(expanded.with_context(|| format!("in the machine's part '{}'", part.why))?);
        }
        Ok(arguments)
    }

    /// What QMP is told to plug device `index` while the machine runs: arguments of
    /// `chardev-add` and of `device_add`.
    pub fn plug_requests(&self, run: &Run<'_>, index: usize) -> Result<(Value, Value)> {
        let mut values = self.values(run);
        values.extend(device_values(run, index)?);
        let mut options = BTreeMap::new();
        for part in self.part.iter().filter(|part| part.hot_plug) {
            for pair in expand(part, &values)?.chunks(2) {
                if let [option, value] = pair {
                    options.insert(option.clone(), value.clone());
                }
            }
        }
        let get = |option: &str| {
            let given = options.get(option).map(|value| properties(value));
            given.with_context(|| format!("no part that is plugged has {option}"))?
        };
        let (kind, chardev) = get("-chardev")?;
        let (driver, mut device) = get("-device")?;
        let text = |name: &str| {
            let value = chardev.get(name);
            value.with_context(|| format!("the chardev of a device has no {name}"))
        };
        if kind != "socket" {
            bail!("a device that is plugged has a chardev of type '{kind}', not a socket");
        }
        let address = json!({ "type": "unix", "data": { "path": text("path")? } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        device.insert("driver".to_owned(), driver.into());
        Ok((
            json!({ "id": text("id")?, "backend": backend }),
            device.into(),
        ))
    }

    fn values(&self, run: &Run<'_>) -> BTreeMap<&'static str, String> {
        let spec = run.spec;
        let mut values = BTreeMap::from([
            ("accel", accel_argument(run.accel)),
            ("cpu", cpu_argument(run.accel).to_owned()),
            ("smp", spec.smp.to_string()),
            ("maxcpus", spec.smp.max(POSSIBLE_CPUS_MIN).to_string()),
            ("memory", spec.memory.to_string()),
            ("first-node", spec.first_node().to_string()),
            ("kernel", text(&spec.kernel.image)),
            ("initramfs", text(run.initramfs)),
            ("append", self.append(run)),
            ("run", text(run.run)),
            ("logs", text(run.logs)),
            ("agent-port", cdm_agent_protocol::PORT_NAME.to_owned()),
        ]);
        if let Some(share) = &spec.share {
            values.insert("share", text(share));
        }
        if let Some(rootfs) = run.rootfs {
            values.insert("rootfs", text(rootfs));
        }
        if let Some(size) = spec.plain_memory {
            values.insert("plain-memory", size.to_string());
        }
        if let Some(size) = spec.second_node {
            values.insert("second-node", size.to_string());
        }
        if spec.null_disk {
            values.insert("null-disk", "yes".to_owned());
        }
        if let Some(gdb) = spec.gdb {
            values.insert("gdb", "yes".to_owned());
            if gdb == Gdb::Wait {
                values.insert("gdb-wait", "yes".to_owned());
            }
        }
        values
    }

    /// The kernel command line.
    fn append(&self, run: &Run<'_>) -> String {
        let spec = run.spec;
        let mut words = self.kernel_words.clone();
        words.extend(run.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        words.extend(spec.kernel_words.iter().cloned());
        if !spec.load_module {
            words.push("cdm.load=0".to_owned());
        }
        if !spec.memory_types.is_empty() {
            let types: Vec<_> = spec.memory_types.iter().map(ToString::to_string).collect();
            words.push(format!("cdm.memory_type={}", types.join(",")));
        }
        words.extend(
            spec.module_params
                .iter()
                .map(|param| format!("cdm.{param}")),
        );
        words.join(" ")
    }
}

fn accel_argument(accel: Accel) -> String {
    match accel {
        Accel::Kvm => "kvm".to_owned(),
        // One host thread for each virtual CPU: guest atomics are host atomics then.
        Accel::Tcg => "tcg,thread=multi".to_owned(),
    }
}

/// The processor, with all that the accelerator has.
fn cpu_argument(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "max",
        // TCG goes through a string instruction element by element, and these three have Linux take
        // bytes for elements where it copies and sets memory, instead of eight at a time.
        Accel::Tcg => "max,-erms,-fsrm,-fsrs",
    }
}

/// Values that differ from device to device.
fn device_values(run: &Run<'_>, index: usize) -> Result<Vec<(&'static str, String)>> {
    let number = u8::try_from(index)?;
    let socket = run
        .backend_sockets
        .get(index)
        .with_context(|| format!("device {index} has no backend"))?;
    Ok(vec![
        ("index", index.to_string()),
        ("chassis", (index + 1).to_string()),
        ("port-addr", format!("{:#x}", FIRST_PORT_SLOT + number)),
        // Room for a second device of the same size, and for what else a device
        // has in prefetchable memory.
        (
            "port-reserve",
            ByteSize(run.spec.device_memory.0 * 2).to_string(),
        ),
        ("backend-socket", text(socket)),
        ("virtio-id", cdm_protocol::VIRTIO_ID.to_string()),
        (
            "num-vqs",
            (cdm_protocol::QUEUE_FIRST_COMMAND + run.spec.command_queues()).to_string(),
        ),
        ("vq-size", cdm_protocol::QUEUE_SIZE.to_string()),
        ("config-size", size_of::<cdm_protocol::Config>().to_string()),
    ])
}

/// Values that differ from disk to disk.
fn disk_values(run: &Run<'_>, index: usize) -> Vec<(&'static str, String)> {
    vec![
        ("index", index.to_string()),
        ("disk-addr", format!("{:#x}", FIRST_DISK_SLOT + index)),
        ("disk-file", text(&Disk::path(run.run, index))),
    ]
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Splits what stands behind an option: a type, and properties of it. A comma in a value is
/// doubled, and a value that is a number is one for QMP, too.
fn properties(option: &str) -> Result<(String, Map<String, Value>)> {
    let mut words = vec![String::new()];
    let mut rest = option;
    while let Some((before, after)) = rest.split_once(',') {
        let word = words.last_mut().expect("there is always one");
        *word += before;
        match after.strip_prefix(',') {
            Some(after) => {
                word.push(',');
                rest = after;
            }
            None => {
                words.push(String::new());
                rest = after;
            }
        }
    }
    *words.last_mut().expect("there is always one") += rest;
    let kind = words.remove(0);
    let properties = words.into_iter().map(|word| {
        let (name, value) = word
            .split_once('=')
            .with_context(|| format!("'{word}' in '{option}' is no property"))?;
        let value = value
            .parse::<u64>()
            .map_or_else(|_| Value::from(value), Value::from);
        Ok((name.to_owned(), value))
    });
    Ok((kind, properties.collect::<Result<_>>()?))
}

/// Fills the values into the arguments of a part.
fn expand(part: &Part, values: &BTreeMap<&'static str, String>) -> Result<Vec<String>> {
    part.args
        .iter()
        .map(|argument| expand_one(argument, values))
        .collect()
}

fn expand_one(argument: &str, values: &BTreeMap<&'static str, String>) -> Result<String> {
    let lookup = |name: &str| {
        values.get(name).with_context(|| {
            let known: Vec<_> = values.keys().copied().collect();
            format!(
                "'{argument}' asks for {{{name}}}; there is {}",
                known.join(", ")
            )
        })
    };
    let whole = argument
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .filter(|name| !name.contains(['{', '}']));
    if let Some(name) = whole {
        return Ok(lookup(name)?.clone());
    }
    let mut out = String::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            bail!("'{argument}' opens a brace and does not close it");
        };
        out += before;
        out += &lookup(name)?.replace(',', ",,");
        rest = after;
    }
    Ok(out + rest)
}

/// Quotes a word for a POSIX shell, where it needs it.
pub fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A command as one line that a shell takes.
pub fn shell_line(program: &str, arguments: &[String]) -> String {
    std::iter::once(program)
        .chain(arguments.iter().map(String::as_str))
        .map(shell_quote)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::spec::{MemoryType, Rootfs};
    use crate::vm::testing;

    fn arguments(spec: &VmSpec) -> Vec<String> {
        let sockets: Vec<PathBuf> = (0..spec.devices)
            .map(|index| PathBuf::from(format!("/run/cdm/cdm{index}.sock")))
            .collect();
        let run = Run {
            spec,
            accel: Accel::Tcg,
            tsc_khz: None,
            initramfs: Path::new("/cache/initramfs.cpio"),
            rootfs: (spec.rootfs == Rootfs::Debian).then_some(Path::new("/cache/debian/disk.img")),
            run: Path::new("/run/cdm"),
            logs: Path::new("/logs"),
            backend_sockets: &sockets,
        };
        MachineData::read(&testing::repo())
            .expect("the repository has a machine")
            .arguments(&run)
            .expect("complete")
    }

    /// One option a line, as a person would read it.
    fn by_option(arguments: &[String]) -> String {
        let mut lines: Vec<String> = Vec::new();
        for argument in arguments {
            match lines.last_mut() {
                Some(line) if !argument.starts_with('-') => {
                    line.push(' ');
                    line.push_str(&shell_quote(argument));
                }
                _ => lines.push(argument.clone()),
            }
        }
        lines.join("\n") + "\n"
    }

    fn assert_golden(name: &str, actual: &str) {
        let path = testing::repo()
            .join("crates/vm-harness/src/vm/golden")
            .join(name);
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            expected,
            actual,
            "{} differs; if the change is meant, put the right side there",
            path.display()
        );
    }

    #[test]
    fn the_default_machine_has_this_command_line() {
        assert_golden("one-device.txt", &by_option(&arguments(&testing::spec())));
    }

    #[test]
    fn a_machine_with_everything_has_this_command_line() {
        let mut spec = testing::spec();
        spec.devices = 4;
        spec.device_memory = ByteSize(64 << 30);
        spec.memory = ByteSize(4 << 30);
        spec.smp = 12;
        spec.memory_types = vec![
            MemoryType::Private,
            MemoryType::Private,
            MemoryType::Public,
            MemoryType::Coherent,
        ];
        spec.module_params = vec!["altmap=0".into()];
        spec.kernel_words = vec!["nokaslr".into()];
        spec.share = Some("/home/a,b".into());
        spec.disks = vec![Disk::Xfs];
        spec.rootfs = Rootfs::Debian;
        spec.gdb = Some(Gdb::Wait);
        assert_golden("everything.txt", &by_option(&arguments(&spec)));
    }

    #[test]
    fn a_device_that_is_plugged_is_told_to_qmp_as_on_the_command_line() {
        let spec = testing::spec();
        let run = Run {
            spec: &spec,
            accel: Accel::Tcg,
            tsc_khz: None,
            initramfs: Path::new("/cache/initramfs.cpio"),
            rootfs: None,
            run: Path::new("/run/cdm"),
            logs: Path::new("/logs"),
            backend_sockets: &[PathBuf::from("/run/a,b.sock")],
        };
        let machine = MachineData::read(&testing::repo()).expect("the repository has a machine");
        let (chardev, device) = machine.plug_requests(&run, 0).expect("complete");
        assert_eq!(chardev["id"], "cdm0");
        assert_eq!(chardev["backend"]["type"], "socket");
        let data = &chardev["backend"]["data"];
        assert_eq!(data["server"], false);
        assert_eq!(data["addr"]["data"]["path"], "/run/a,b.sock");
        assert_eq!(device["driver"], "vhost-user-test-device-pci");
        assert_eq!(device["bus"], "port0");
        assert_eq!(device["chardev"], "cdm0");
        // Numbers must be numbers: QMP takes no string for one.
        assert_eq!(device["virtio-id"], u64::from(cdm_protocol::VIRTIO_ID));
        assert!(machine.plug_requests(&run, 1).is_err(), "no such backend");
    }

    #[test]
    fn plain_memory_takes_the_place_of_devices() {
        let mut spec = testing::spec();
        spec.devices = 0;
        spec.plain_memory = Some(ByteSize(512 << 20));
        let line = by_option(&arguments(&spec));
        assert!(
            line.contains("-object memory-backend-memfd,id=plain,size=512M,share=on\n"),
            "{line}"
        );
        assert!(!line.contains("vhost-user"), "{line}");
    }

    #[test]
    fn disk_that_holds_nothing_is_there_on_request() {
        let mut spec = testing::spec();
        assert!(!by_option(&arguments(&spec)).contains("null-co"));
        spec.null_disk = true;
        let line = by_option(&arguments(&spec));
        assert!(
            line.contains("driver=null-co") && line.contains("serial=cdm-null"),
            "{line}"
        );
    }

    #[test]
    fn second_node_has_its_part_of_the_memory() {
        let mut spec = testing::spec();
        spec.memory = ByteSize(2 << 30);
        spec.second_node = Some(ByteSize(512 << 20));
        spec.check().expect("possible");
        let line = by_option(&arguments(&spec));
        for part in [
            "-m 2G\n",
            "id=ram,size=1536M,share=on\n",
            "-object memory-backend-memfd,id=ram1,size=512M,share=on\n",
            "-numa node,nodeid=1,memdev=ram1\n",
        ] {
            assert!(line.contains(part), "{part} is not in:\n{line}");
        }
        spec.second_node = Some(spec.memory);
        assert!(spec.check().is_err(), "nothing is left for the first one");
    }

    #[test]
    fn one_cpu_still_means_two_possible_ones() {
        let mut spec = testing::spec();
        spec.smp = 1;
        assert!(arguments(&spec).contains(&"cpus=1,maxcpus=2".to_owned()));
    }

    #[test]
    fn a_driver_that_is_not_wanted_is_not_loaded() {
        let mut spec = testing::spec();
        spec.load_module = false;
        let append = arguments(&spec)
            .into_iter()
            .find(|argument| argument.contains("console="))
            .expect("a kernel command line");
        assert!(append.ends_with(" cdm.load=0"), "{append}");
    }

    #[test]
    fn a_value_inside_an_option_has_its_commas_doubled() {
        let values = BTreeMap::from([("path", "/a,b".to_owned())]);
        assert_eq!(
            expand_one("file,path={path},x=1", &values).expect("known"),
            "file,path=/a,,b,x=1"
        );
        assert_eq!(expand_one("{path}", &values).expect("known"), "/a,b");
    }

    #[test]
    fn an_unknown_value_is_an_error_that_names_the_known_ones() {
        let values = BTreeMap::from([("path", String::new())]);
        let error = expand_one("x={paht}", &values).expect_err("unknown");
        assert!(
            error.to_string().contains("{paht}") && error.to_string().contains("path"),
            "{error}"
        );
        assert!(expand_one("x={path", &values).is_err());
    }

    #[test]
    fn a_misspelt_key_of_the_machine_is_refused() {
        let data = "kernel-words = []\n[[part]]\nwhy = 'x'\nargs = []\nfor-eahc = 'device'\n";
        assert!(MachineData::parse(data).is_err());
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let words = ["plain=1,x", "", "a b", "it's", "$HOME", "*"];
        let line = shell_line(
            "printf",
            &std::iter::once("%s\\n")
                .chain(words)
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .expect("sh runs");
        assert_eq!(
            String::from_utf8(output.stdout).expect("text"),
            words.join("\n") + "\n"
        );
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What cdmctl prints for programs: versioned JSON, documented in
//! docs/reference/cdmctl.md and by schemas in docs/reference/schemas/.

use cdm_guest_tools::device::{Migration, Residency, memory_type_name};
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::uapi::{
    CDM_CAN_BATCH, CDM_CAN_BIND, CDM_CAN_CPU_ACCESS, CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_HOT,
    CDM_CAN_MOVE_LARGE, CDM_CAN_RELIEVE, CDM_CAN_RETURN_HOT, cdm_query,
};
use cdm_protocol::{
    FEATURE_ACCESS_COUNTERS, FEATURE_ATOMICS, FEATURE_CANCEL, FEATURE_COMPUTE,
    FEATURE_EXCLUSIVE_ATOMICS, FEATURE_MEMORY_ERROR, FEATURE_METADATA_GUARD, FEATURE_PROGRAM,
    FEATURE_SVA, FEATURE_UNORDERED,
};
use serde::Serialize;

/// Version of every report; grows when a field goes or changes its meaning.
pub const VERSION: u32 = 1;

/// `cdmctl info --json`.
#[derive(Serialize)]
pub struct Info {
    pub version: u32,
    pub devices: Vec<DeviceInfo>,
}

/// One device of `cdmctl info`.
#[derive(Serialize)]
pub struct DeviceInfo {
    pub device: u32,
    pub memory_type: String,
    pub base: String,
    pub bytes_total: u64,
    pub bytes_free: u64,
    pub bytes_metadata: u64,
    pub numa_node: i32,
    pub pages_to_device: u64,
    pub pages_to_system: u64,
    pub pages_evicted: u64,
    pub pages_poisoned: u64,
    pub pages_hot_to_device: u64,
    pub pages_hot_to_system: u64,
    pub bytes_copied_by_cpu: u64,
    pub bytes_copied_by_engine: u64,
    pub capabilities: Vec<String>,
    pub protocol: String,
    pub features: Vec<String>,
    pub command_queues: u16,
    pub pools: u16,
    pub link: Link,
    pub agents: Agents,
}

/// Pages that moved by themselves for being used much.
#[derive(Clone, Copy, Default)]
pub struct HotPages {
    pub to_device: u64,
    pub to_system: u64,
}

/// Bytes of pages on the move, by who copied them where both could.
#[derive(Clone, Copy, Default)]
pub struct Copied {
    pub by_cpu: u64,
    pub by_engine: u64,
}

/// The coherent link of a device.
#[derive(Serialize)]
pub struct Link {
    pub width_lanes: u16,
    pub speed_mts: u32,
}

/// Coherence agents of a device by kind.
#[derive(Serialize)]
pub struct Agents {
    pub home: u16,
    pub request: u16,
    pub slave: u16,
}

impl DeviceInfo {
    pub fn new(query: &cdm_query, hot: HotPages, copied: Copied) -> Self {
        Self {
            device: query.device,
            memory_type: memory_type_name(query.memory_type),
            base: format!("{:#x}", query.base),
            bytes_total: query.bytes_total,
            bytes_free: query.bytes_free,
            bytes_metadata: query.bytes_metadata,
            numa_node: query.numa_node,
            pages_to_device: query.pages_to_device,
            pages_to_system: query.pages_to_system,
            pages_evicted: query.pages_evicted,
            pages_poisoned: query.pages_poisoned,
            pages_hot_to_device: hot.to_device,
            pages_hot_to_system: hot.to_system,
            bytes_copied_by_cpu: copied.by_cpu,
            bytes_copied_by_engine: copied.by_engine,
            capabilities: capabilities(query.capabilities),
            protocol: format!("{}.{}", query.protocol_major, query.protocol_minor),
            features: features(query.device_features),
            command_queues: query.num_command_queues,
            pools: query.num_pools,
            link: Link {
                width_lanes: query.link_width_lanes,
                speed_mts: query.link_speed_mts,
            },
            agents: Agents {
                home: query.num_home_agents,
                request: query.num_request_agents,
                slave: query.num_slave_agents,
            },
        }
    }
}

/// Names of the feature bits; a bit without a name is given by its number.
fn features(bits: u64) -> Vec<String> {
    (0..u64::BITS)
        .map(|bit| (bit, 1u64 << bit))
        .filter(|(_, mask)| bits & mask != 0)
        .map(|(bit, mask)| match mask {
            FEATURE_METADATA_GUARD => "metadata-guard".into(),
            FEATURE_ATOMICS => "atomics".into(),
            FEATURE_COMPUTE => "compute".into(),
            FEATURE_PROGRAM => "program".into(),
            FEATURE_UNORDERED => "unordered".into(),
            FEATURE_CANCEL => "cancel".into(),
            FEATURE_SVA => "sva".into(),
            FEATURE_MEMORY_ERROR => "memory-error".into(),
            FEATURE_EXCLUSIVE_ATOMICS => "exclusive-atomics".into(),
            FEATURE_ACCESS_COUNTERS => "access-counters".into(),
            _ => format!("bit-{bit}"),
        })
        .collect()
}

/// Names of what driver and kernel can do; a bit without a name is given by its number.
fn capabilities(bits: u32) -> Vec<String> {
    (0..u32::BITS)
        .map(|bit| (bit, 1u32 << bit))
        .filter(|(_, mask)| bits & mask != 0)
        .map(|(bit, mask)| match mask {
            CDM_CAN_MOVE_LARGE => "move-large".into(),
            CDM_CAN_MOVE_FILES => "move-files".into(),
            CDM_CAN_RELIEVE => "relieve".into(),
            CDM_CAN_CPU_ACCESS => "cpu-access".into(),
            CDM_CAN_BIND => "bind".into(),
            CDM_CAN_BATCH => "batch".into(),
            CDM_CAN_MOVE_HOT => "move-hot".into(),
            CDM_CAN_RETURN_HOT => "return-hot".into(),
            _ => format!("bit-{bit}"),
        })
        .collect()
}

/// `cdmctl migrate --json`.
#[derive(Serialize)]
pub struct MigrateReport {
    pub version: u32,
    pub device: u32,
    pub pid: i32,
    pub to: &'static str,
    pub pages_asked: u64,
    pub pages_moved: u64,
    pub pages_there: u64,
    pub pages_large: u64,
    pub pages_evicted: u64,
    pub failed: Failed,
}

/// `cdmctl evict --json`.
#[derive(Serialize)]
pub struct EvictReport {
    pub version: u32,
    pub device: u32,
    pub pages_asked: u64,
    pub pages_moved: u64,
    pub pages_large: u64,
    pub failed: Failed,
}

/// Pages that did not move, by reason.
#[derive(Serialize)]
pub struct Failed {
    pub not_present: u64,
    pub no_memory: u64,
    pub busy: u64,
    pub pinned: u64,
    pub writeback: u64,
    pub private_data: u64,
    pub mapping: u64,
    pub split: u64,
    pub unsupported: u64,
}

impl From<&Migration> for Failed {
    fn from(migration: &Migration) -> Self {
        Self {
            not_present: migration.not_present,
            no_memory: migration.no_memory,
            busy: migration.busy,
            pinned: migration.pinned,
            writeback: migration.writeback,
            private_data: migration.private_data,
            mapping: migration.mapping,
            split: migration.split,
            unsupported: migration.unsupported,
        }
    }
}

/// `cdmctl hot --json`.
#[derive(Serialize)]
pub struct HotReport {
    pub version: u32,
    pub device: u32,
    pub reports: u64,
    pub reports_lost: u64,
    pub accesses: u64,
    pub pages_moved: u64,
    pub pages_there: u64,
    pub pages_over_rate: u64,
    pub pages_recent: u64,
    pub pages_evicted: u64,
    pub failed: Failed,
    pub pages_in_device: u64,
}

/// `cdmctl residency --json`.
#[derive(Serialize)]
pub struct ResidencyReport {
    pub version: u32,
    pub device: u32,
    pub pid: i32,
    pub ranges: Vec<RangeResidency>,
}

/// One range of `cdmctl residency`.
#[derive(Serialize)]
pub struct RangeResidency {
    pub start: String,
    pub end: String,
    pub pages_absent: u64,
    pub pages_system: u64,
    pub pages_this_device: u64,
    pub pages_other_device: u64,
    pub pages_large: u64,
}

impl RangeResidency {
    pub fn new(range: AddressRange, residency: &Residency) -> Self {
        Self {
            start: format!("{:#x}", range.start()),
            end: format!("{:#x}", range.end()),
            pages_absent: residency.absent,
            pages_system: residency.system,
            pages_this_device: residency.this_device,
            pages_other_device: residency.other_device,
            pages_large: residency.large,
        }
    }
}

/// `cdmctl run … --json`.
#[derive(Serialize)]
pub struct RunReport {
    pub version: u32,
    pub device: u32,
    pub operation: &'static str,
    pub status: String,
    pub bytes_done: u64,
    #[serde(flatten)]
    pub result: RunResult,
}

/// What an operation found; one of these by operation.
#[derive(Serialize)]
#[serde(untagged)]
pub enum RunResult {
    Checksum {
        crc32c: String,
    },
    Compare {
        equal: bool,
        differs_at: Option<u64>,
    },
    Atomic {
        before: u64,
        after: u64,
    },
    Number {
        result: u64,
    },
    Histogram {
        outside: u64,
        counters: Vec<u64>,
    },
    Batch {
        commands: Vec<BatchCommand>,
    },
    Nothing {},
}

/// A command of `cdmctl run batch`.
#[derive(Serialize)]
pub struct BatchCommand {
    pub operation: &'static str,
    pub status: String,
    pub range_index: u32,
    pub result: u64,
    pub bytes_done: u64,
}

/// Prints a report as one JSON document.
pub fn print(report: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Checks `value` against a schema of docs/reference/schemas/.
    pub fn validate(schema: &str, value: &Value) -> Result<(), String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/schemas");
        let mut schemas = boon::Schemas::new();
        let index = boon::Compiler::new()
            .compile(&format!("{folder}/{schema}"), &mut schemas)
            .map_err(|error| format!("{error:#}"))?;
        schemas
            .validate(value, index)
            .map_err(|error| error.to_string())
    }

    fn query() -> cdm_query {
        cdm_query {
            memory_type: cdm_guest_tools::uapi::CDM_MEMORY_PUBLIC,
            base: 0x38_0000_0000,
            bytes_total: 252 << 20,
            bytes_free: 251 << 20,
            bytes_metadata: 4 << 20,
            numa_node: -1,
            device: 1,
            protocol_major: 1,
            device_features: 3,
            capabilities: CDM_CAN_MOVE_LARGE | CDM_CAN_CPU_ACCESS,
            link_width_lanes: 16,
            link_speed_mts: 25_000,
            num_command_queues: 2,
            num_pools: 1,
            ..Default::default()
        }
    }

    fn info() -> Value {
        let hot = HotPages {
            to_device: 5,
            to_system: 4,
        };
        let copied = Copied {
            by_cpu: 4096,
            by_engine: 2 << 20,
        };
        let devices = vec![DeviceInfo::new(&query(), hot, copied)];
        serde_json::to_value(Info {
            version: VERSION,
            devices,
        })
        .unwrap()
    }

    #[test]
    fn info_holds_the_fields_that_programs_rely_on() {
        let info = info();
        assert_eq!(info["version"], 1);
        let device = &info["devices"][0];
        assert_eq!(device["device"], 1);
        assert_eq!(device["memory_type"], "public");
        assert_eq!(device["base"], "0x3800000000");
        assert_eq!(device["numa_node"], -1);
        assert_eq!(device["bytes_metadata"], 4 << 20);
        assert_eq!(device["bytes_copied_by_cpu"], 4096);
        assert_eq!(device["bytes_copied_by_engine"], 2 << 20);
        assert_eq!(device["features"], json!(["metadata-guard", "atomics"]));
        assert_eq!(device["capabilities"], json!(["move-large", "cpu-access"]));
    }

    #[test]
    fn info_is_what_its_schema_says() {
        validate("cdmctl-info.schema.json", &info()).unwrap();
    }

    #[test]
    fn info_without_a_field_or_with_an_unknown_one_is_not_what_its_schema_says() {
        let fields: Vec<String> = info()["devices"][0]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        for field in fields {
            let mut info = info();
            info["devices"][0].as_object_mut().unwrap().remove(&field);
            assert!(
                validate("cdmctl-info.schema.json", &info).is_err(),
                "without {field}"
            );
        }
        let mut info = info();
        info["devices"][0]["surprise"] = json!(1);
        assert!(validate("cdmctl-info.schema.json", &info).is_err());
    }

    #[test]
    fn no_device_is_an_empty_list() {
        let value = serde_json::to_value(Info {
            version: VERSION,
            devices: vec![],
        })
        .unwrap();
        assert_eq!(value, json!({"version": 1, "devices": []}));
        validate("cdmctl-info.schema.json", &value).unwrap();
    }

    #[test]
    fn every_feature_and_capability_has_a_name_that_the_schema_knows() {
        /// As `cdm.h` has them.
        const CAPABILITIES: u32 = 0xff;
        let mut info = info();
        let names = [
            features(cdm_protocol::FEATURES_ALL),
            capabilities(CAPABILITIES),
        ];
        let is_named = |name: &String| !name.starts_with("bit-");
        assert!(names.iter().flatten().all(is_named), "{names:?}");
        let [features, capabilities] = names;
        info["devices"][0]["features"] = json!(features);
        info["devices"][0]["capabilities"] = json!(capabilities);
        validate("cdmctl-info.schema.json", &info).unwrap();
    }

    #[test]
    fn feature_without_a_name_is_given_by_its_bit() {
        assert_eq!(features(FEATURE_ATOMICS | 1 << 63), ["atomics", "bit-63"]);
        assert_eq!(
            capabilities(CDM_CAN_MOVE_FILES | CDM_CAN_RELIEVE | 1 << 31),
            ["move-files", "relieve", "bit-31"]
        );
    }

    #[test]
    fn migrate_report_is_what_its_schema_says() {
        let migration = Migration {
            asked: 4,
            moved: 3,
            busy: 1,
            ..Default::default()
        };
        let report = MigrateReport {
            version: VERSION,
            device: 0,
            pid: 12,
            to: "device",
            pages_asked: migration.asked,
            pages_moved: migration.moved,
            pages_there: migration.there,
            pages_large: migration.large,
            pages_evicted: migration.evicted,
            failed: Failed::from(&migration),
        };
        validate(
            "cdmctl-migrate.schema.json",
            &serde_json::to_value(report).unwrap(),
        )
        .unwrap();
    }

    #[test]
    fn hot_report_is_what_its_schema_says() {
        let report = HotReport {
            version: VERSION,
            device: 0,
            reports: 3,
            reports_lost: 0,
            accesses: 3072,
            pages_moved: 40,
            pages_there: 1,
            pages_over_rate: 2,
            pages_recent: 3,
            pages_evicted: 0,
            failed: Failed::from(&Migration {
                no_memory: 2,
                ..Default::default()
            }),
            pages_in_device: 41,
        };
        validate(
            "cdmctl-hot.schema.json",
            &serde_json::to_value(report).unwrap(),
        )
        .unwrap();
    }

    #[test]
    fn evict_report_is_what_its_schema_says() {
        let migration = Migration {
            asked: 513,
            moved: 512,
            large: 512,
            pinned: 1,
            ..Default::default()
        };
        let report = EvictReport {
            version: VERSION,
            device: 0,
            pages_asked: migration.asked,
            pages_moved: migration.moved,
            pages_large: migration.large,
            failed: Failed::from(&migration),
        };
        validate(
            "cdmctl-evict.schema.json",
            &serde_json::to_value(report).unwrap(),
        )
        .unwrap();
    }

    #[test]
    fn residency_report_is_what_its_schema_says() {
        let range = AddressRange::new(0x1000, 0x3000).unwrap();
        let residency = Residency {
            system: 1,
            this_device: 1,
            ..Default::default()
        };
        let ranges = vec![RangeResidency::new(range, &residency)];
        let report = ResidencyReport {
            version: VERSION,
            device: 0,
            pid: 12,
            ranges,
        };
        validate(
            "cdmctl-residency.schema.json",
            &serde_json::to_value(report).unwrap(),
        )
        .unwrap();
    }

    #[test]
    fn run_reports_are_what_their_schema_says() {
        let results = [
            (
                "checksum",
                RunResult::Checksum {
                    crc32c: "0xe3069283".into(),
                },
            ),
            (
                "compare",
                RunResult::Compare {
                    equal: false,
                    differs_at: Some(7),
                },
            ),
            (
                "compare",
                RunResult::Compare {
                    equal: true,
                    differs_at: None,
                },
            ),
            (
                "fetch-add",
                RunResult::Atomic {
                    before: 1,
                    after: 2,
                },
            ),
            ("fill", RunResult::Nothing {}),
            ("axpy", RunResult::Nothing {}),
            ("sum", RunResult::Number { result: 7 }),
            ("chase", RunResult::Number { result: 8 }),
            ("program", RunResult::Number { result: 0 }),
            (
                "histogram",
                RunResult::Histogram {
                    outside: 1,
                    counters: vec![2, 0],
                },
            ),
            (
                "batch",
                RunResult::Batch {
                    commands: vec![BatchCommand {
                        operation: "COPY",
                        status: "LENGTH_MISMATCH".into(),
                        range_index: 0,
                        result: 0,
                        bytes_done: 0,
                    }],
                },
            ),
        ];
        for (operation, result) in results {
            let report = RunReport {
                version: VERSION,
                device: 0,
                operation,
                status: "OK".into(),
                bytes_done: 4096,
                result,
            };
            validate(
                "cdmctl-run.schema.json",
                &serde_json::to_value(report).unwrap(),
            )
            .unwrap();
        }
    }
}

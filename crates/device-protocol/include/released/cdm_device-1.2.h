/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT */
/*
 * Wire contract of the coherent device memory (cdm) device: what its specification,
 * docs/reference/device.md, has in tables. Written from there by 'just reference --record';
 * not by hand. Everything is little-endian. Needs a linux/types.h, and static_assert().
 */
#ifndef _CDM_DEVICE_H
#define _CDM_DEVICE_H

#include <linux/types.h>

/* The magic of struct cdm_dev_config, with the zero at its end. */
#define CDM_DEV_MAGIC "cdm-dev"

#define CDM_DEV_VIRTIO_ID		38
#define CDM_DEV_SHMEM_REGION_ID		0
#define CDM_DEV_VERSION_MAJOR		1
#define CDM_DEV_VERSION_MINOR		2

#define CDM_DEV_FEATURE_METADATA_GUARD	(1ULL << 0)
#define CDM_DEV_FEATURE_ATOMICS		(1ULL << 1)
#define CDM_DEV_FEATURE_COMPUTE		(1ULL << 2)
#define CDM_DEV_FEATURE_PROGRAM		(1ULL << 3)
#define CDM_DEV_FEATURE_UNORDERED	(1ULL << 4)
#define CDM_DEV_FEATURE_CANCEL		(1ULL << 5)
#define CDM_DEV_FEATURE_SVA		(1ULL << 6)

#define CDM_DEV_MEMORY_BYTES_MIN	268435456
#define CDM_DEV_MEMORY_BYTES_MAX	68719476736ULL
#define CDM_DEV_COMMAND_QUEUES_MAX	8
#define CDM_DEV_QUEUE_SIZE		256
#define CDM_DEV_RANGES_MAX		512
#define CDM_DEV_TRANSFER_BYTES_MAX	1073741824
#define CDM_DEV_REPEAT_MAX		1048576
#define CDM_DEV_BINS_MAX		65536
#define CDM_DEV_PROGRAM_INSTRUCTIONS_MAX	256
#define CDM_DEV_PROGRAM_STEPS_MAX	68719476736ULL
#define CDM_DEV_PROGRAM_REGISTERS	16
#define CDM_DEV_PASID_MAX		1048575
#define CDM_DEV_ADDRESS_SPACES_MAX	4096
#define CDM_DEV_PAGE_REQUEST_PAGES_MAX	512
#define CDM_DEV_PAGE_BYTES_SMALL	4096
#define CDM_DEV_PAGE_BYTES_LARGE	2097152
#define CDM_DEV_POOLS_MAX		4
#define CDM_DEV_AGENTS_MAX		8

/* PoolKind */
#define CDM_DEV_POOL_KIND_GENERAL	1

/* AgentKind */
#define CDM_DEV_AGENT_KIND_HOME		1
#define CDM_DEV_AGENT_KIND_REQUEST	2
#define CDM_DEV_AGENT_KIND_SLAVE	3

#define CDM_DEV_QUEUE_CONTROL		0
#define CDM_DEV_QUEUE_EVENT		1
#define CDM_DEV_QUEUE_FIRST_COMMAND	2

/* ControlOpcode */
#define CDM_DEV_CONTROL_OPCODE_MAP_MEMORY	1
#define CDM_DEV_CONTROL_OPCODE_SET_METADATA	2
#define CDM_DEV_CONTROL_OPCODE_RESET	3
#define CDM_DEV_CONTROL_OPCODE_CANCEL	4
#define CDM_DEV_CONTROL_OPCODE_BIND	5
#define CDM_DEV_CONTROL_OPCODE_UNBIND	6
#define CDM_DEV_CONTROL_OPCODE_PAGE_RESPONSE	7
#define CDM_DEV_CONTROL_OPCODE_INVALIDATE	8

#define CDM_DEV_WRITABLE		(1ULL << 0)
#define CDM_DEV_DEVICE			(1ULL << 1)
#define CDM_DEV_LARGE			(1ULL << 2)
#define CDM_DEV_REFUSED			(1ULL << 3)

#define CDM_DEV_FLAG_FLOAT		(1ULL << 0)
#define CDM_DEV_FLAG_UNORDERED		(1ULL << 1)
#define CDM_DEV_FLAG_TAGGED		(1ULL << 2)

/* Space */
#define CDM_DEV_SPACE_DEVICE		1
#define CDM_DEV_SPACE_GUEST		2
#define CDM_DEV_SPACE_PROCESS		3

/* Opcode */
#define CDM_DEV_OPCODE_NOP		1
#define CDM_DEV_OPCODE_FILL		2
#define CDM_DEV_OPCODE_COPY		3
#define CDM_DEV_OPCODE_CHECKSUM		4
#define CDM_DEV_OPCODE_COMPARE		5
#define CDM_DEV_OPCODE_FETCH_ADD	6
#define CDM_DEV_OPCODE_COMPARE_SWAP	7
#define CDM_DEV_OPCODE_SUM		8
#define CDM_DEV_OPCODE_AXPY		9
#define CDM_DEV_OPCODE_POINTER_CHASE	10
#define CDM_DEV_OPCODE_HISTOGRAM	11
#define CDM_DEV_OPCODE_PROGRAM		12
#define CDM_DEV_OPCODE_FENCE		13

/* Operator */
#define CDM_DEV_OPERATOR_END		1
#define CDM_DEV_OPERATOR_SET		2
#define CDM_DEV_OPERATOR_MOVE		3
#define CDM_DEV_OPERATOR_ADD		4
#define CDM_DEV_OPERATOR_SUBTRACT	5
#define CDM_DEV_OPERATOR_AND		6
#define CDM_DEV_OPERATOR_SHIFT_LEFT	7
#define CDM_DEV_OPERATOR_LOAD		8
#define CDM_DEV_OPERATOR_STORE		9
#define CDM_DEV_OPERATOR_ATOMIC_ADD	10
#define CDM_DEV_OPERATOR_ATOMIC_SWAP	11
#define CDM_DEV_OPERATOR_ATOMIC_COMPARE_SWAP	12
#define CDM_DEV_OPERATOR_BARRIER	13
#define CDM_DEV_OPERATOR_PAUSE		14
#define CDM_DEV_OPERATOR_JUMP_EQUAL	15
#define CDM_DEV_OPERATOR_JUMP_NOT_EQUAL	16
#define CDM_DEV_OPERATOR_JUMP_LESS	17

/* MemoryOrder */
#define CDM_DEV_MEMORY_ORDER_RELAXED	1
#define CDM_DEV_MEMORY_ORDER_ACQUIRE	2
#define CDM_DEV_MEMORY_ORDER_RELEASE	3
#define CDM_DEV_MEMORY_ORDER_ACQUIRE_RELEASE	4
#define CDM_DEV_MEMORY_ORDER_SEQ_CST	5

/* Status */
#define CDM_DEV_STATUS_OK		0
#define CDM_DEV_STATUS_MALFORMED	1
#define CDM_DEV_STATUS_UNKNOWN_OPCODE	2
#define CDM_DEV_STATUS_RESERVED_FIELD	3
#define CDM_DEV_STATUS_BAD_RANGE_COUNT	4
#define CDM_DEV_STATUS_BAD_SPACE	5
#define CDM_DEV_STATUS_BAD_ADDRESS	6
#define CDM_DEV_STATUS_PROTECTED	7
#define CDM_DEV_STATUS_MISALIGNED	8
#define CDM_DEV_STATUS_ZERO_LENGTH	9
#define CDM_DEV_STATUS_TOO_LONG		10
#define CDM_DEV_STATUS_LENGTH_MISMATCH	11
#define CDM_DEV_STATUS_BAD_WIDTH	12
#define CDM_DEV_STATUS_BAD_REPEAT	13
#define CDM_DEV_STATUS_NOT_MAPPED	14
#define CDM_DEV_STATUS_CANCELLED	15
#define CDM_DEV_STATUS_HOST_ERROR	16
#define CDM_DEV_STATUS_BAD_ARGUMENT	17
#define CDM_DEV_STATUS_BAD_POINTER	18
#define CDM_DEV_STATUS_BAD_PROGRAM	19
#define CDM_DEV_STATUS_STEP_LIMIT	20
#define CDM_DEV_STATUS_BAD_PASID	21
#define CDM_DEV_STATUS_TOO_MANY_SPACES	22
#define CDM_DEV_STATUS_UNMAPPED		23
#define CDM_DEV_STATUS_NO_ACCESS	24
#define CDM_DEV_STATUS_UNBOUND		25
#define CDM_DEV_STATUS_PAGE_QUEUE_FULL	26
#define CDM_DEV_STATUS_PAGE_ERROR	27

/* EventKind */
#define CDM_DEV_EVENT_KIND_QUEUE_ERROR	1
#define CDM_DEV_EVENT_KIND_PAGE_REQUEST	2

#define CDM_DEV_PAGE_REQUEST_WRITE	(1ULL << 0)

struct cdm_dev_pool {
	__le64 base;
	__le64 bytes;
	__le16 kind;
	__u8 reserved[6];
};
static_assert(sizeof(struct cdm_dev_pool) == 24, "cdm_dev_pool");

struct cdm_dev_agent {
	__le16 id;
	__le16 kind;
	__le16 pool;
	__le16 reserved;
};
static_assert(sizeof(struct cdm_dev_agent) == 8, "cdm_dev_agent");

struct cdm_dev_completion {
	__le16 status;
	__le16 reserved;
	__le32 range_index;
	__le64 result;
	__le64 bytes_done;
};
static_assert(sizeof(struct cdm_dev_completion) == 24, "cdm_dev_completion");

struct cdm_dev_control_request {
	__le16 opcode;
	__le16 flags;
	__le32 pasid;
	__le64 arg0;
	__le64 arg1;
};
static_assert(sizeof(struct cdm_dev_control_request) == 24, "cdm_dev_control_request");

struct cdm_dev_command_header {
	__le16 opcode;
	__le16 flags;
	__le16 num_src;
	__le16 num_dst;
	__le16 width;
	__le16 reserved;
	__le32 repeat;
	__le64 arg0;
	__le64 arg1;
};
static_assert(sizeof(struct cdm_dev_command_header) == 32, "cdm_dev_command_header");

struct cdm_dev_command_tag {
	__le64 tag;
};
static_assert(sizeof(struct cdm_dev_command_tag) == 8, "cdm_dev_command_tag");

struct cdm_dev_range {
	__le16 space;
	__le16 reserved;
	__le32 pasid;
	__le64 address;
	__le64 bytes;
};
static_assert(sizeof(struct cdm_dev_range) == 24, "cdm_dev_range");

struct cdm_dev_instruction {
	__le16 operator;
	__le16 order;
	__u8 width;
	__u8 d;
	__u8 a;
	__u8 b;
	__le64 immediate;
};
static_assert(sizeof(struct cdm_dev_instruction) == 16, "cdm_dev_instruction");

struct cdm_dev_event {
	__le16 kind;
	__le16 queue;
	__le32 reserved;
	__le64 lost;
};
static_assert(sizeof(struct cdm_dev_event) == 16, "cdm_dev_event");

struct cdm_dev_page_request {
	__le16 kind;
	__le16 queue;
	__le32 pasid;
	__le64 address;
	__le32 id;
	__le16 pages;
	__le16 flags;
	__le64 reserved;
};
static_assert(sizeof(struct cdm_dev_page_request) == 32, "cdm_dev_page_request");

struct cdm_dev_config {
	__u8 magic[8];
	__le16 version_major;
	__le16 version_minor;
	__le32 config_bytes;
	__le64 features;
	__le64 memory_bytes;
	__le16 num_command_queues;
	__le16 num_pools;
	__le16 num_agents;
	__le16 link_width_lanes;
	__le32 link_speed_mts;
	__le32 reserved;
	struct cdm_dev_pool pools[4];
	struct cdm_dev_agent agents[8];
};
static_assert(sizeof(struct cdm_dev_config) == 208, "cdm_dev_config");

#endif /* _CDM_DEVICE_H */

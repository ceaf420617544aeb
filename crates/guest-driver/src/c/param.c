// SPDX-License-Identifier: GPL-2.0-only
/* Module parameters. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/numa.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "helpers.h"

/*
 * The variables have names of their own: the kernel has a per-CPU numa_node, and
 * tentative definitions of the two would be one variable.
 */

/*
 * Zero is the best type that the kernel has. One entry is for all devices, more are for
 * one device each, by its number.
 */
#define PARAM_DEVICES_MAX 64
static u32 param_memory_types[PARAM_DEVICES_MAX];
static u32 param_memory_types_num = 1;

static const struct {
	const char *name;
	u32 type;
} memory_type_names[] = {
	{ "auto", 0 },
	{ "private", CDM_MEMORY_PRIVATE },
	{ "coherent", CDM_MEMORY_COHERENT },
	{ "public", CDM_MEMORY_PUBLIC },
};

const char *cdm_memory_type_name(u32 type)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(memory_type_names); i++)
		if (memory_type_names[i].type == type)
			return memory_type_names[i].name;
	return "unknown";
}

/* The type of that name, which is @length bytes long; -EINVAL if there is none. */
static int memory_type_find(const char *name, size_t length)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(memory_type_names); i++)
		if (strlen(memory_type_names[i].name) == length &&
		    !memcmp(memory_type_names[i].name, name, length))
			return memory_type_names[i].type;
	return -EINVAL;
}

static int memory_type_set(const char *val, const struct kernel_param *kp)
{
	u32 num = 0;

	while (num < PARAM_DEVICES_MAX) {
		size_t length = strcspn(val, ",\n");
		int type = memory_type_find(val, length);

		if (type < 0) {
			pr_err("memory_type=%.*s is unknown; it is auto, public, coherent or private, for all devices or, with commas, for each\n",
			       (int)length, val);
			return type;
		}
		param_memory_types[num++] = type;
		val += length;
		if (*val != ',') {
			param_memory_types_num = num;
			return 0;
		}
		val++;
	}
	pr_err("memory_type names more than %u devices\n", PARAM_DEVICES_MAX);
	return -EINVAL;
}

static int memory_type_get(char *buf, const struct kernel_param *kp)
{
	int at = 0;
	u32 i;

	for (i = 0; i < param_memory_types_num; i++)
		at += sysfs_emit_at(buf, at, "%s%s", i ? "," : "",
				    cdm_memory_type_name(param_memory_types[i]));
	return at + sysfs_emit_at(buf, at, "\n");
}

static const struct kernel_param_ops memory_type_ops = {
	.set = memory_type_set,
	.get = memory_type_get,
};

module_param_cb(memory_type, &memory_type_ops, NULL, 0444);
MODULE_PARM_DESC(memory_type,
		 "type of the device memory: public, coherent, private, or auto, the best that the kernel has (default auto); one for all devices, or, with commas, one for each");

static bool param_altmap = true;
module_param_named(altmap, param_altmap, bool, 0444);
MODULE_PARM_DESC(altmap,
		 "keep the struct pages of the device memory in the device memory itself (default Y)");

static int param_numa_node = NUMA_NO_NODE;
module_param_named(numa_node, param_numa_node, int, 0444);
MODULE_PARM_DESC(numa_node,
		 "NUMA node of the device memory; -1: that of the device, else the nearest with memory (default -1)");

static int param_max_order = -1;

static int max_order_set(const char *val, const struct kernel_param *kp)
{
	int order, err;

	err = kstrtoint(val, 0, &order);
	if (err)
		return err;
	if (order != -1 && order != 0 && order != HPAGE_PMD_ORDER) {
		pr_err("max_order=%d is none; it is 0, %d, or -1 for what the kernel can\n",
		       order, HPAGE_PMD_ORDER);
		return -EINVAL;
	}
	return param_set_int(val, kp);
}

static const struct kernel_param_ops max_order_ops = {
	.set = max_order_set,
	.get = param_get_int,
};

module_param_cb(max_order, &max_order_ops, &param_max_order, 0644);
MODULE_PARM_DESC(max_order,
		 "largest folios that move whole: 0 for 4 KiB, 9 for 2 MiB; -1: 9 where the kernel can, else 0 (default -1)");

static uint param_evacuate_ms = 30000;
module_param_named(evacuate_ms, param_evacuate_ms, uint, 0644);
MODULE_PARM_DESC(evacuate_ms,
		 "how long the end of a device waits without progress for pages to leave, in milliseconds (default 30000)");

static uint param_command_ms = 30000;
module_param_named(command_ms, param_command_ms, uint, 0644);
MODULE_PARM_DESC(command_ms,
		 "how long a queue of commands may go without an answer before the device is reset, in milliseconds; 0 for no limit (default 30000)");

static bool param_pressure_help = true;
module_param_named(pressure_help, param_pressure_help, bool, 0644);
MODULE_PARM_DESC(pressure_help,
		 "bring pages of a memory cgroup that is at its limit back to system memory, where they can be reclaimed (default Y)");

static bool param_dmirror;
module_param_named(dmirror, param_dmirror, bool, 0444);
MODULE_PARM_DESC(dmirror,
		 "serve the kernel's HMM test suite on /dev/hmm_dmirror0 and so on (default N)");

static u32 param_copy = CDM_COPY_AUTO;

static const char *const copy_names[] = {
	[CDM_COPY_AUTO] = "auto",
	[CDM_COPY_CPU] = "cpu",
	[CDM_COPY_ENGINE] = "engine",
};

static int copy_set(const char *val, const struct kernel_param *kp)
{
	int copy = __sysfs_match_string(copy_names, ARRAY_SIZE(copy_names), val);

	if (copy < 0) {
		pr_err("copy=%.*s is unknown; it is cpu, engine, or auto, whichever is found to be faster\n",
		       (int)strcspn(val, "\n"), val);
		return copy;
	}
	WRITE_ONCE(param_copy, copy);
	return 0;
}

static int copy_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", copy_names[READ_ONCE(param_copy)]);
}

static const struct kernel_param_ops copy_ops = {
	.set = copy_set,
	.get = copy_get,
};

module_param_cb(copy, &copy_ops, NULL, 0644);
MODULE_PARM_DESC(copy,
		 "who copies anonymous memory that moves by MIGRATE: cpu, engine of the device, or auto, whichever is found to be faster (default auto)");

u32 cdm_param_copy(void)
{
	return READ_ONCE(param_copy);
}

u32 cdm_param_memory_type(u32 device)
{
	if (param_memory_types_num == 1)
		device = 0;
	if (device >= param_memory_types_num)
		return CDM_PARAM_NO_MEMORY_TYPE;
	return param_memory_types[device];
}

u32 cdm_param_memory_types(void)
{
	return param_memory_types_num;
}

bool cdm_param_dmirror(void)
{
	return param_dmirror;
}

bool cdm_param_altmap(void)
{
	return param_altmap;
}

int cdm_param_numa_node(void)
{
	return param_numa_node;
}

int cdm_param_max_order(void)
{
	return READ_ONCE(param_max_order);
}

bool cdm_param_pressure_help(void)
{
	return READ_ONCE(param_pressure_help);
}

u32 cdm_param_command_ms(void)
{
	return READ_ONCE(param_command_ms);
}

u32 cdm_param_evacuate_ms(void)
{
	return READ_ONCE(param_evacuate_ms);
}

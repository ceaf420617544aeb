// SPDX-License-Identifier: GPL-2.0-only
/* Attributes of /dev/cdmN's class device. */

#include <linux/device.h>
#include <linux/kstrtox.h>
#include <linux/sysfs.h>

#include "helpers.h"

/* The class device's drvdata is its struct miscdevice; see misc_register(). */
#define CDM_ATTRIBUTE(_name, _id, _format, _type)					\
static ssize_t _name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
{											\
	return sysfs_emit(buf, _format "\n",						\
			  (_type)cdm_attribute(dev_get_drvdata(dev), _id));		\
}											\
static DEVICE_ATTR_RO(_name)

static ssize_t memory_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	s64 type = cdm_attribute(dev_get_drvdata(dev), CDM_ATTRIBUTE_MEMORY_TYPE);

	return sysfs_emit(buf, "%s\n", cdm_memory_type_name(type));
}
static DEVICE_ATTR_RO(memory_type);

CDM_ATTRIBUTE(base, CDM_ATTRIBUTE_BASE, "0x%llx", u64);
CDM_ATTRIBUTE(bytes_total, CDM_ATTRIBUTE_BYTES_TOTAL, "%llu", u64);
CDM_ATTRIBUTE(bytes_free, CDM_ATTRIBUTE_BYTES_FREE, "%llu", u64);
CDM_ATTRIBUTE(bytes_metadata, CDM_ATTRIBUTE_BYTES_METADATA, "%llu", u64);
CDM_ATTRIBUTE(numa_node, CDM_ATTRIBUTE_NUMA_NODE, "%lld", s64);
CDM_ATTRIBUTE(link_width_lanes, CDM_ATTRIBUTE_LINK_WIDTH_LANES, "%llu", u64);
CDM_ATTRIBUTE(link_speed_mts, CDM_ATTRIBUTE_LINK_SPEED_MTS, "%llu", u64);
CDM_ATTRIBUTE(max_order, CDM_ATTRIBUTE_MAX_ORDER, "%llu", u64);
CDM_ATTRIBUTE(pages_hot_to_device, CDM_ATTRIBUTE_PAGES_HOT_TO_DEVICE, "%llu", u64);
CDM_ATTRIBUTE(pages_hot_to_system, CDM_ATTRIBUTE_PAGES_HOT_TO_SYSTEM, "%llu", u64);
CDM_ATTRIBUTE(bytes_copied_by_cpu, CDM_ATTRIBUTE_BYTES_COPIED_BY_CPU, "%llu", u64);
CDM_ATTRIBUTE(bytes_copied_by_engine, CDM_ATTRIBUTE_BYTES_COPIED_BY_ENGINE, "%llu", u64);

/* The same for what an administrator may set, a number. */
#define CDM_SETTING(_name, _id)								\
static ssize_t _name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
{											\
	return sysfs_emit(buf, "%llu\n",						\
			  (u64)cdm_attribute(dev_get_drvdata(dev), _id));		\
}											\
static ssize_t _name##_store(struct device *dev, struct device_attribute *attr,	\
			     const char *buf, size_t count)				\
{											\
	u32 value;									\
	int err = kstrtou32(buf, 0, &value);						\
											\
	if (!err)									\
		err = cdm_attribute_set(dev_get_drvdata(dev), _id, value);		\
	return err ? err : count;							\
}											\
static DEVICE_ATTR_RW(_name)

CDM_SETTING(cpu_scan_ms, CDM_ATTRIBUTE_CPU_SCAN_MS);
CDM_SETTING(cpu_scan_folios, CDM_ATTRIBUTE_CPU_SCAN_FOLIOS);
CDM_SETTING(cpu_pages_per_second, CDM_ATTRIBUTE_CPU_PAGES_PER_SECOND);

static struct attribute *cdm_attrs[] = {
	&dev_attr_memory_type.attr,
	&dev_attr_base.attr,
	&dev_attr_bytes_total.attr,
	&dev_attr_bytes_free.attr,
	&dev_attr_bytes_metadata.attr,
	&dev_attr_numa_node.attr,
	&dev_attr_link_width_lanes.attr,
	&dev_attr_link_speed_mts.attr,
	&dev_attr_max_order.attr,
	&dev_attr_pages_hot_to_device.attr,
	&dev_attr_pages_hot_to_system.attr,
	&dev_attr_bytes_copied_by_cpu.attr,
	&dev_attr_bytes_copied_by_engine.attr,
	&dev_attr_cpu_scan_ms.attr,
	&dev_attr_cpu_scan_folios.attr,
	&dev_attr_cpu_pages_per_second.attr,
	NULL,
};
ATTRIBUTE_GROUPS(cdm);

const struct attribute_group **cdm_attribute_groups(void)
{
	return cdm_groups;
}

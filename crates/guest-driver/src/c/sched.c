// SPDX-License-Identifier: GPL-2.0-only
/* Work, time, CPUs, and the current process. */

#include <linux/capability.h>
#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/workqueue.h>

#include "helpers.h"

/*
 * Page faults wait for a device that is reset in the one that is urgent, so that must not need
 * memory. Nobody waits for what is in the other.
 */
struct workqueue_struct *cdm_workqueue_alloc(bool is_urgent)
{
	if (is_urgent)
		return alloc_workqueue("cdm", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return alloc_workqueue("cdm_background", WQ_UNBOUND, 0);
}

/* A clock that counts only while the guest runs. */
u64 cdm_now_ns(void)
{
	return ktime_get_ns();
}

u32 cdm_cpu(void)
{
	return raw_smp_processor_id();
}

bool cdm_may_manage(void)
{
	return capable(CAP_SYS_ADMIN);
}

unsigned long cdm_jiffies_of_ms(u32 ms)
{
	return msecs_to_jiffies(ms);
}

/* Whether the current process was killed; lets others run, too. */
bool cdm_dying(void)
{
	cond_resched();
	return fatal_signal_pending(current);
}

void cdm_completion_rearm(struct completion *done)
{
	reinit_completion(done);
}

/* A cheap clock, for short times; another CPU's may be a little ahead or behind. */
u64 cdm_local_ns(void)
{
	return local_clock();
}

/*
 * A look for something that comes soon: the CPU is kept from its beginning to its end, unless
 * others want it, so the clock is that of one CPU.
 */
u64 cdm_look_begin(void)
{
	preempt_disable();
	return local_clock();
}

/* Whether to look once more. */
bool cdm_look_on(u64 since_ns, u64 window_ns)
{
	cpu_relax();
	return !need_resched() && local_clock() - since_ns < window_ns;
}

void cdm_look_end(void)
{
	preempt_enable();
}

struct task_struct *cdm_current(void)
{
	return current;
}

/*
 * Whether the current worker gives up a wait in a page fault when it is told to, as a
 * process does that is killed. When it ends to heed, it was never told.
 */
void cdm_heed_kill(bool heed)
{
	if (heed)
		allow_kernel_signal(SIGKILL);
	else
		disallow_signal(SIGKILL);
}

/* Tells a worker that heeds it to give up. */
void cdm_kill(struct task_struct *task)
{
	send_sig(SIGKILL, task, 1);
}

/* False once the module is being unloaded, which nothing stops any more. */
bool cdm_module_is_live(void)
{
	return module_is_live(THIS_MODULE);
}

// SPDX-License-Identifier: GPL-2.0-only
/* Processes, and whose memory may be moved by whom. */

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/rcupdate.h>
#include <linux/sched/exec_state.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "helpers.h"

/*
 * Whether current may move the memory of @task: the rule of cdm.h. It is the rule
 * of ptrace_may_access(PTRACE_MODE_ATTACH_FSCREDS), which no module may call,
 * without the security modules.
 */
static int cdm_may_move(struct task_struct *task)
{
	const struct task_exec_state *exec_state;
	const struct cred *cred = current_cred(), *tcred;
	struct user_namespace *ns;
	bool is_dumpable;
	int err = 0;

	if (same_thread_group(task, current))
		return 0;

	rcu_read_lock();
	tcred = __task_cred(task);
	if (!(uid_eq(cred->fsuid, tcred->euid) && uid_eq(cred->fsuid, tcred->suid) &&
	      uid_eq(cred->fsuid, tcred->uid) && gid_eq(cred->fsgid, tcred->egid) &&
	      gid_eq(cred->fsgid, tcred->sgid) && gid_eq(cred->fsgid, tcred->gid)) &&
	    !ns_capable(tcred->user_ns, CAP_SYS_PTRACE)) {
		rcu_read_unlock();
		return -EPERM;
	}
	/* Dumpable is read after the credentials: pairs with commit_creds(). */
	smp_rmb();
	exec_state = rcu_dereference(task->exec_state);
	is_dumpable = READ_ONCE(exec_state->dumpable) == TASK_DUMPABLE_OWNER;
	ns = exec_state->user_ns;
	if (!is_dumpable && !ns_capable(ns, CAP_SYS_PTRACE))
		err = -EPERM;
	rcu_read_unlock();
	return err;
}

/*
 * The address space of the process @pid, as current sees pids, with a reference for
 * mmput(). Credentials and address space belong together: an execve() in between
 * is kept out by exec_update_lock, as in mm_access().
 */
int cdm_mm_of(pid_t pid, struct mm_struct **mm)
{
	struct task_struct *task;
	int err;

	rcu_read_lock();
	task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	rcu_read_unlock();
	if (!task)
		return -ESRCH;

	err = down_read_killable(&task->signal->exec_update_lock);
	if (err)
		goto out_task;
	err = cdm_may_move(task);
	if (!err) {
		*mm = get_task_mm(task);
		if (!*mm)
			err = -ESRCH;
	}
	up_read(&task->signal->exec_update_lock);
out_task:
	put_task_struct(task);
	return err;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Make a file with the ids of somebody else: those of a container's root.
 *
 * In a file system that belongs to the container, or is mounted with its ids, the caller's own id
 * 0 does not exist, and what is made with it fails with EOVERFLOW. So a thread is made that takes
 * the ids for the one call, and ends: no thread of the program ever has them. The launcher looks at
 * the rights of the main one, and takes them for lost when it meets others there (rights.c).
 * A change of ids drops capabilities, and makes the whole process non-dumpable: both are put back.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { STACK_SIZE = 262144 };

struct job {
    int directory;
    const char *name;
    enum creation kind;
    const char *link;
    uint32_t uid, gid;
    int result; /* or -errno */
};

static int make(int directory, const char *name, enum creation kind, const char *link)
{
    if (kind == CREATE_DIRECTORY)
        return mkdirat(directory, name, 0700);
    if (kind == CREATE_LINK)
        return symlinkat(link, directory, name);
    return openat(directory, name, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
}

/* With the capabilities that the thread had before. */
static int take_ids(uint32_t uid, uint32_t gid)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct capabilities[2];
    if (syscall(SYS_capget, &header, capabilities) < 0)
        return -1;
    (void)syscall(SYS_setfsgid, gid); /* these tell what was, and of no failure */
    (void)syscall(SYS_setfsuid, uid);
    errno = EPERM;
    if (syscall(SYS_setfsuid, -1) != (long)uid || syscall(SYS_setfsgid, -1) != (long)gid)
        return -1;
    return (int)syscall(SYS_capset, &header, capabilities);
}

static void *run_job(void *argument)
{
    struct job *job = argument;
    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    int result = take_ids(job->uid, job->gid);
    if (dumpable == 1 && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
        result = -1;
    if (result == 0)
        result = make(job->directory, job->name, job->kind, job->link);
    job->result = result < 0 ? -errno : result;
    return NULL;
}

/* A positive errno, or 0. */
static int run_in_thread(struct job *job)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t every_signal, old;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    (void)pthread_attr_setstacksize(&attributes, STACK_SIZE); /* else it has a larger one */
    sigfillset(&every_signal);
    /* No handler of the program may run with these ids. */
    error = pthread_sigmask(SIG_SETMASK, &every_signal, &old);
    if (error == 0) {
        error = pthread_create(&thread, &attributes, run_job, job);
        (void)pthread_sigmask(SIG_SETMASK, &old, NULL); /* it worked a moment ago */
    }
    if (error == 0)
        error = pthread_join(thread, NULL);
    (void)pthread_attr_destroy(&attributes);
    return error;
}

int create_as(int directory, const char *name, enum creation kind, const char *link, uint32_t uid,
              uint32_t gid)
{
    struct job job = {directory, name, kind, link, uid, gid, -1};
    int result;
    if (uid == geteuid() && gid == getegid()) {
        result = make(directory, name, kind, link);
        return result < 0 ? -errno : result;
    }
    result = run_in_thread(&job);
    return result != 0 ? -result : job.result;
}

int64_t file_system_type(int fd)
{
    struct statfs record;
    return fstatfs(fd, &record) < 0 ? -errno : (int64_t)record.f_type & 0xffffffff;
}

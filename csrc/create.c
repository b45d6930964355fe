/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Make a file with the ids of somebody else: those of a container's root.
 *
 * In a file system that belongs to the container, or is mounted with its ids, the caller's own id
 * 0 does not exist, and what is made with it fails with EOVERFLOW. So this thread, and no other,
 * takes the ids for the one call. A change of them drops capabilities and the parent's death
 * signal of the thread, and makes the whole process non-dumpable: each is put back.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* What a change of the thread's ids changes beside them. */
struct side_effects {
    struct __user_cap_header_struct header;
    struct __user_cap_data_struct capabilities[2];
    int dumpable, death_signal;
};

static int remember(struct side_effects *effects)
{
    effects->header.version = _LINUX_CAPABILITY_VERSION_3;
    effects->header.pid = 0;
    effects->dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    if (effects->dumpable < 0 || prctl(PR_GET_PDEATHSIG, &effects->death_signal, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_capget, &effects->header, effects->capabilities);
}

static int put_back(struct side_effects *effects)
{
    if (syscall(SYS_capset, &effects->header, effects->capabilities) < 0)
        return -1;
    if (prctl(PR_SET_PDEATHSIG, effects->death_signal, 0, 0, 0) < 0)
        return -1;
    return effects->dumpable == 1 ? prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) : 0;
}

static int make(int directory, const char *name, enum creation kind, const char *link)
{
    if (kind == CREATE_DIRECTORY)
        return mkdirat(directory, name, 0700);
    if (kind == CREATE_LINK)
        return symlinkat(link, directory, name);
    return openat(directory, name, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600);
}

int create_as(int directory, const char *name, enum creation kind, const char *link, uint32_t uid,
              uint32_t gid)
{
    struct side_effects effects;
    long old_gid, old_uid;
    int result = -1, error;
    if (remember(&effects) < 0)
        return -errno;
    old_gid = syscall(SYS_setfsgid, gid); /* these tell what was, and of no failure */
    old_uid = syscall(SYS_setfsuid, uid);
    errno = EPERM;
    if (syscall(SYS_setfsuid, -1) == (long)uid && syscall(SYS_setfsgid, -1) == (long)gid &&
        put_back(&effects) == 0)
        result = make(directory, name, kind, link);
    error = errno;
    (void)syscall(SYS_setfsuid, old_uid); /* nobody needs a right to take its own ids */
    (void)syscall(SYS_setfsgid, old_gid);
    (void)put_back(&effects); /* it worked a moment ago, or nothing was made */
    return result < 0 ? -error : result;
}

int64_t file_system_type(int fd)
{
    struct statfs record;
    return fstatfs(fd, &record) < 0 ? -errno : (int64_t)record.f_type & 0xffffffff;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock, landlock(7): what the program may do below which path, beside all that its ids allow.
 *
 * The last but one of the walls: after no_new_privs, without which nobody may set one up, and
 * before the filter of system calls, which may forbid it. Paths are the container's own.
 */
#include "internal.h"

enum {
    NR_LANDLOCK_CREATE_RULESET = 444,
    NR_LANDLOCK_ADD_RULE = 445,
    NR_LANDLOCK_RESTRICT_SELF = 446
};
enum { CREATE_RULESET_VERSION = 1, RULE_PATH_BENEATH = 1, LEAST_VERSION = 3 };
/* Rights that a file has; a rule for one may name no other. */
enum { OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15, IOCTL_DEVICE = 1 << 15 };

struct path_rule {
    uint64_t access;
    int32_t parent;
} __attribute__((packed));

/* A kernel that knows fewer rights than were promised to be taken is refused: before version 3 a
 * file that may not be written could be cut. Those on ioctl come with version 5. */
static long known_access(uint64_t asked)
{
    long version = sys(NR_LANDLOCK_CREATE_RULESET, 0, 0, CREATE_RULESET_VERSION);
    if (version >= 0 && version < LEAST_VERSION)
        return -EOPNOTSUPP;
    if (version < 0)
        return version;
    return (long)(version < 5 ? asked & ~(uint64_t)IOCTL_DEVICE : asked);
}

static long find_mount(int fd, uint64_t *ret_mount)
{
    struct statx_record file;
    long result = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &file);
    if (result == 0)
        *ret_mount = file.mount_id;
    return result;
}

/* As much of an absolute path as has no link in it. */
static long open_unlinked(char *path)
{
    size_t end = 0;
    long fd = -ELOOP;
    while (path[end] != 0)
        end++;
    while (fd == -ELOOP && end > 1) {
        char saved;
        end = component_start(path, end);
        while (end > 1 && path[end - 1] == '/')
            end--;
        saved = path[end];
        path[end] = 0;
        fd = open_below(AT_FDCWD, path, O_PATH, RESOLVE_NO_SYMLINKS);
        path[end] = saved;
    }
    return fd;
}

/* An image may have a link anywhere. But what is mounted beside it is not its own: no link of the
 * image's opens that, when the rule does not name it. */
static long open_linked(char *path)
{
    uint64_t named = 0, found = 0;
    long result, fd = open_unlinked(path);
    if (fd < 0)
        return fd;
    result = find_mount((int)fd, &named);
    (void)close_fd((int)fd);
    fd = result < 0 ? result : open_below(AT_FDCWD, path, O_PATH, 0);
    if (fd < 0)
        return fd;
    result = find_mount((int)fd, &found);
    if (result == 0 && named != found)
        result = -EXDEV;
    if (result < 0)
        (void)close_fd((int)fd);
    return result < 0 ? result : fd;
}

static long add_rule(int ruleset, char *path, uint64_t access)
{
    struct statx_record file;
    struct path_rule rule;
    long result;
    long fd = open_below(AT_FDCWD, path, O_PATH, RESOLVE_NO_SYMLINKS);
    if (fd == -ELOOP)
        fd = open_linked(path);
    if (fd < 0)
        return fd;
    result = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &file);
    if (result == 0) {
        rule.access = (file.mode & S_IFMT) == S_IFDIR ? access : access & OF_FILES;
        rule.parent = (int32_t)fd;
        result = sys(NR_LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, &rule, 0);
    }
    (void)close_fd((int)fd);
    return result;
}

static long add_rules(const struct request *request, struct progress *progress, int ruleset,
                      uint64_t access)
{
    const struct rule *rules = span_at(request->bytes, request->start->rules);
    for (uint32_t i = 0; i < request->start->rules.count; i++) {
        char *path = (char *)(request->bytes + rules[i].path);
        long result = add_rule(ruleset, path, rules[i].access & access);
        if (result < 0) {
            progress->row = (int32_t)i;
            return result;
        }
    }
    return 0;
}

long confine(const struct request *request, struct progress *progress)
{
    uint64_t handled = request->start->handled_access;
    long ruleset, result;
    if (handled == 0)
        return 0;
    result = known_access(handled);
    if (result < 0)
        return result;
    handled = (uint64_t)result;
    ruleset = sys(NR_LANDLOCK_CREATE_RULESET, &handled, sizeof handled, 0);
    if (ruleset < 0)
        return ruleset;
    result = add_rules(request, progress, (int)ruleset, handled);
    if (result == 0)
        result = sys(NR_LANDLOCK_RESTRICT_SELF, ruleset, 0);
    (void)close_fd((int)ruleset);
    return result;
}

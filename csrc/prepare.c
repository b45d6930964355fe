/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launcher's part of a start: what needs the rights or the mount namespace of the caller.
 * While the child waits at STEP_SYNC its ids are mapped; while it waits at STEP_HANDOVER copies of
 * the mount sources are made, of which the idmapped ones need the finished user namespace. The
 * copies go to the child with its standard streams, and their arrival is its go-ahead.
 */
#include "internal.h"

enum { RANGE_SIZE = 65536 };

/* Note the step in the page that Python's error is made from. A test can make any step fail. */
long begin_step(struct progress *progress, const struct start *start, enum step step)
{
    progress->step = step;
    return start->fail_step == (uint32_t)step ? -EIO : 0;
}

static long write_leased_maps(int pid, int32_t slot)
{
    char map[PROC_PATH_SIZE];
    char *end = append_number(append(map, "0 "), (uint32_t)slot * RANGE_SIZE);
    size_t size = (size_t)(append(end, " 65536\n") - map);
    long result = write_proc(pid, "uid_map", map, size);
    return result < 0 ? result : write_proc(pid, "gid_map", map, size);
}

static long write_maps(const struct request *request, int pid, int32_t slot)
{
    const struct start *start = request->start;
    long result = 0;
    if ((start->flags & START_FRESH_USER) == 0 || (start->clone_flags & CLONE_NEWUSER) == 0)
        return 0; /* or it is another's, and has them */
    if (start->flags & START_LEASE)
        return write_leased_maps(pid, slot);
    if (start->flags & START_DENY_SETGROUPS) /* without CAP_SETGID: before gid_map, or EPERM */
        result = write_proc(pid, "setgroups", "deny", 4);
    if (result == 0 && start->uid_program.count == 0)
        result = write_proc(pid, "uid_map", span_at(request->bytes, start->uid_map),
                            start->uid_map.count);
    if (result == 0 && start->gid_program.count == 0)
        result = write_proc(pid, "gid_map", span_at(request->bytes, start->gid_map),
                            start->gid_map.count);
    return result;
}

/* With the row's attributes, and ids as in the user namespace. */
static long map_copy(int tree, const struct row *row, int user_fd)
{
    struct mount_attr attr = {.attr_set = row->attributes | MOUNT_ATTR_IDMAP,
                              .userns_fd = (uint64_t)user_fd};
    long result = set_mount(tree, row, &attr);
    if (result != -EINVAL || (row->flags & ROW_IDMAP_OPTIONAL) == 0)
        return result;
    attr = (struct mount_attr){.attr_set = row->attributes};
    return set_mount(tree, row, &attr);
}

static long map_copy_by_data(int tree, const struct request *request, const struct row *row,
                             uint8_t *stack)
{
    long user_fd = open_mapped_namespace(span_at(request->bytes, row->data), stack);
    long result = user_fd < 0 ? user_fd : map_copy(tree, row, (int)user_fd);
    if (user_fd >= 0)
        (void)close_fd((int)user_fd);
    return result;
}

/* Replace a source fd by a detached copy of its mount, or by what is wanted instead. */
static long copy_source(struct request *request, const struct row *row, int user_fd, uint8_t *stack)
{
    uint32_t recursive = row->flags & ROW_RECURSIVE ? AT_RECURSIVE : 0;
    struct mount_attr attr = {.attr_set = row->attributes};
    int *source = &request->sources[row->source_fd];
    long tree = row->flags & ROW_PROCFS
                    ? mount_shared_procfs(request, row, stack)
                    : sys(NR_OPEN_TREE, *source, "",
                          OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | recursive);
    if (tree < 0)
        return tree;
    (void)close_fd(*source);
    *source = (int)tree;
    if (row->flags & ROW_OWN_MAPS)
        return map_copy_by_data((int)tree, request, row, stack);
    return row->flags & ROW_IDMAP ? map_copy((int)tree, row, user_fd)
                                  : set_mount((int)tree, row, &attr);
}

static int wants_idmap(const struct request *request)
{
    const struct row *rows = span_at(request->bytes, request->start->rows);
    for (uint32_t i = 0; i < request->start->rows.count; i++)
        if (rows[i].op == ROW_BIND && rows[i].source_fd >= 0 && rows[i].flags & ROW_IDMAP)
            return 1;
    return 0;
}

static long copy_sources(struct request *request, struct progress *progress, int pid,
                         uint8_t *helper_stack)
{
    const struct row *rows = span_at(request->bytes, request->start->rows);
    long user_fd = -1, result = 0;
    if (wants_idmap(request) && (user_fd = open_proc(pid, "ns/user", O_RDONLY)) < 0)
        return user_fd;
    for (uint32_t i = 0; i < request->start->rows.count && result == 0; i++) {
        if (rows[i].op != ROW_BIND || rows[i].source_fd < 0)
            continue;
        progress->row = (int32_t)i;
        result = copy_source(request, &rows[i], (int)user_fd, helper_stack);
    }
    if (result == 0)
        progress->row = -1;
    if (user_fd >= 0)
        (void)close_fd((int)user_fd);
    return result;
}

/* The process has to own its streams, or it could not open its /dev/stdout. */
void give_pipes(const struct request *request, int32_t slot)
{
    const struct start *start = request->start;
    uint32_t first = slot >= 0 ? (uint32_t)slot * RANGE_SIZE : 0;
    for (int i = 0; i < STDIO_COUNT; i++)
        if (start->pipes >> i & 1) /* fails for a root caller without CAP_CHOWN: as it is, then */
            (void)sys(__NR_fchown, request->stdio[i], first + start->pipe_uid,
                      first + start->pipe_gid);
}

/* The go-ahead: standard streams and copies, in as many messages as they need. */
static long release_child(const struct request *request, int sync)
{
    int fds[MAX_FDS];
    uint32_t sent = 0, count = STDIO_COUNT;
    long result;
    memcpy(fds, request->stdio, sizeof request->stdio);
    if (request->status >= 0) {
        fds[count++] = request->status;
        fds[count++] = request->program;
    }
    memcpy(fds + count, request->passed, request->passed_count * sizeof fds[0]);
    count += request->passed_count;
    do {
        while (count < MAX_FDS && sent < request->source_count)
            fds[count++] = request->sources[sent++];
        result = send_message(sync, "", 1, fds, count);
        count = 0;
    } while (result == 0 && sent < request->source_count);
    return result;
}

long map_ids(struct progress *progress, const struct request *request, int pid, int32_t slot)
{
    long result = begin_step(progress, request->start, STEP_ID_MAPS);
    if (result == 0)
        result = write_maps(request, pid, slot);
    if (result == 0)
        result = begin_step(progress, request->start, STEP_OOM_SCORE);
    /* Now, while the child of a launcher without root is dumpable. */
    return result < 0 ? result : write_oom_score(request->start, pid);
}

long hand_over(struct progress *progress, struct request *request, int pid, int32_t slot, int sync,
               uint8_t *helper_stack)
{
    long result = begin_step(progress, request->start, STEP_SOURCES);
    if (result == 0)
        result = copy_sources(request, progress, pid, helper_stack);
    if (result == 0)
        result = begin_step(progress, request->start, STEP_SCHEDULING);
    if (result == 0)
        result = set_scheduling(request, progress, pid);
    if (result == 0)
        result = raise_limits(request, progress, pid);
    if (result < 0)
        return result;
    give_pipes(request, request->start->flags & START_LEASE ? slot : -1);
    return release_child(request, sync);
}

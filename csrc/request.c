/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Check a request before anything in it is used. Pure: bytes in, verdict out, so that a fuzzer
 * can drive it. After check_start() every offset, count and row index of the request is in range
 * and every string ends inside it.
 */
#include "internal.h"

static int span_fits(struct span span, size_t item, size_t align, size_t size)
{
    return span.offset <= size && span.offset % align == 0 &&
           span.count <= (size - span.offset) / item;
}

static int string_fits(uint32_t offset, size_t size)
{
    return offset < size; /* the last byte of the request is NUL */
}

static int strings_fit(const uint8_t *bytes, struct span span, size_t size)
{
    const uint32_t *offsets = span_at(bytes, span);
    if (!span_fits(span, sizeof *offsets, sizeof *offsets, size))
        return 0;
    for (uint32_t i = 0; i < span.count; i++)
        if (!string_fits(offsets[i], size))
            return 0;
    return 1;
}

/* What execve takes: room for pointers, and an end. */
static int vector_fits(const uint8_t *bytes, struct span span, size_t size)
{
    const uint64_t *offsets = span_at(bytes, span);
    struct span whole = {span.offset, span.count + 1};
    if (whole.count == 0 || !span_fits(whole, sizeof *offsets, sizeof *offsets, size))
        return 0;
    for (uint32_t i = 0; i < span.count; i++)
        if (offsets[i] >= size)
            return 0;
    return offsets[span.count] == 0;
}

/* They are rewritten one after the other. */
static int vectors_overlap(struct span a, struct span b)
{
    return a.offset < b.offset + 8 * ((size_t)b.count + 1) &&
           b.offset < a.offset + 8 * ((size_t)a.count + 1);
}

static int any_overlap(const struct start *start)
{
    const struct span vectors[] = {start->args, start->env, start->uid_program, start->gid_program};
    for (int i = 1; i < 4; i++)
        for (int j = 0; j < i && (i < 2 || vectors[i].count > 0); j++)
            if ((j < 2 || vectors[j].count > 0) && vectors_overlap(vectors[i], vectors[j]))
                return 1;
    return 0;
}

/* Of fds that are passed on: above the standard streams, and such that one more can be above. */
static int numbers_fit(const uint8_t *bytes, struct span span, size_t size)
{
    const uint32_t *numbers = span_at(bytes, span);
    if (!span_fits(span, sizeof *numbers, sizeof *numbers, size) || span.count > MAX_PASSED)
        return 0;
    for (uint32_t i = 0; i < span.count; i++)
        if (numbers[i] < STDIO_COUNT || numbers[i] >= INT32_MAX)
            return 0;
    return 1;
}

/* One of each kind at most, none that is made as well, and none whose mounts would be another's. */
static int kinds_fit(const uint8_t *bytes, const struct start *start, size_t size)
{
    const uint32_t *kinds = span_at(bytes, start->joined);
    uint64_t left = CLONE_NEW_ANY & ~(uint64_t)CLONE_NEWNS & ~start->clone_flags;
    if (!span_fits(start->joined, sizeof *kinds, sizeof *kinds, size) ||
        start->joined.count > MAX_JOINED)
        return 0;
    for (uint32_t i = 0; i < start->joined.count; i++) {
        if (kinds[i] == 0 || kinds[i] & (kinds[i] - 1) || (left & kinds[i]) == 0)
            return 0;
        left &= ~(uint64_t)kinds[i];
    }
    return 1;
}

static int joins_user(const uint8_t *bytes, const struct start *start)
{
    const uint32_t *kinds = span_at(bytes, start->joined);
    for (uint32_t i = 0; i < start->joined.count; i++)
        if (kinds[i] == CLONE_NEWUSER)
            return 1;
    return 0;
}

/* Its child becomes root of a user namespace, and of one only, whose maps are there or written. */
static int user_fits(const uint8_t *bytes, const struct start *start)
{
    const uint32_t maps = START_LEASE | START_MAP_BY_PROGRAM | START_DENY_SETGROUPS;
    if (joins_user(bytes, start))
        return start->flags & START_FRESH_USER && (start->flags & maps) == 0;
    return start->shared_slot == 0;
}

/* The program and the pid at least; or none. */
static int program_fits(const uint8_t *bytes, struct span span, size_t size)
{
    return span.count == 0 || (span.count >= 2 && vector_fits(bytes, span, size));
}

static int makes_mount(uint32_t op)
{
    return op == ROW_BIND || op == ROW_MOUNT || op == ROW_OVERLAY;
}

/* How many strings data is; -1 when the last one has no end. */
static int64_t count_strings(const uint8_t *bytes, struct span data)
{
    int64_t ends = 0;
    for (uint32_t i = 0; i < data.count; i++)
        ends += bytes[data.offset + i] == 0;
    return data.count > 0 && bytes[data.offset + data.count - 1] != 0 ? -1 : ends;
}

static int data_fits(const uint8_t *bytes, const struct row *row)
{
    int64_t strings = count_strings(bytes, row->data);
    if (row->op == ROW_MOUNT) /* key NUL value NUL ... */
        return strings >= 0 && strings % 2 == 0;
    if (row->op == ROW_OVERLAY)
        return strings == 1;
    if (row->op != ROW_BIND || (row->flags & (ROW_OWN_MAPS | ROW_PROCFS)) == 0)
        return 1;
    if (row->flags & ROW_PROCFS) /* nothing that would be for a copy */
        return strings >= 0 && strings % 2 == 0 && row->source_fd >= 0 &&
               (row->flags & (ROW_OWN_MAPS | ROW_IDMAP | ROW_RECURSIVE)) == 0;
    return strings == 2 && row->source_fd >= 0;
}

/* Nothing but the root itself lies beside the stage's rows, and nothing of theirs outside it. */
static int base_fits(const struct row *rows, uint32_t index, uint32_t root)
{
    uint32_t base = rows[index].base;
    if (index == 0 || index == root)
        return base == 0 && makes_mount(rows[index].op);
    return base < index && makes_mount(rows[base].op) && (index < root || base >= root);
}

static long check_row(const struct row *rows, uint32_t index, const struct start *start,
                      const uint8_t *bytes, size_t size)
{
    const struct row *row = &rows[index];
    if (row->op < ROW_BIND || row->op > ROW_CONSOLE)
        return -EINVAL;
    if (row->op >= ROW_TERMINAL && (start->flags & START_TERMINAL) == 0)
        return -EINVAL;
    if (!base_fits(rows, index, start->root) || (row->op == ROW_OVERLAY && index != start->root) ||
        (row->op == ROW_HANDLE && index >= start->root))
        return -EINVAL;
    if (!string_fits(row->target, size) || !string_fits(row->source, size))
        return -EINVAL;
    if (!span_fits(row->data, 1, 1, size))
        return -EINVAL;
    if (!data_fits(bytes, row))
        return -EINVAL;
    if ((index == 0 || index == start->root) &&
        row->flags & ROW_DETACHED) /* there would be no root */
        return -EINVAL;
    if (row->source_fd < -1 || row->source_fd >= (int64_t)start->source_count)
        return -EINVAL;
    return 0;
}

static long check_rows(const struct start *start, const uint8_t *bytes, size_t size)
{
    const struct row *rows = span_at(bytes, start->rows);
    if (!span_fits(start->rows, sizeof *rows, 8, size))
        return -EINVAL;
    if (start->root >= start->rows.count || start->rows.count > MAX_ROWS)
        return -EINVAL;
    for (uint32_t i = 0; i < start->rows.count; i++) {
        long result = check_row(rows, i, start, bytes, size);
        if (result < 0)
            return result;
    }
    return 0;
}

static int has_end(const uint8_t *bytes, size_t size)
{
    return size <= MAX_REQUEST && bytes[size - 1] == 0;
}

/* Namespaces and nothing else; and never without a mount namespace: the rows would be the host's.
 */
static int flags_fit(uint64_t flags)
{
    return (flags & ~(uint64_t)CLONE_NEW_ANY) == 0 && (flags & CLONE_NEWNS) != 0;
}

/* Who asks for silence would never hear that the container waits at the gate, nor get its terminal.
 */
static int can_be_answered(uint32_t flags)
{
    if (flags & (START_STREAMS | START_FILTER_AHEAD)) /* of an exec */
        return 0;
    return (flags & START_QUIET) == 0 || (flags & (START_GATE | START_TERMINAL | START_HOOKS)) == 0;
}

static int rules_fit(const uint8_t *bytes, struct span span, size_t size)
{
    const struct rule *rules = span_at(bytes, span);
    if (!span_fits(span, sizeof *rules, 8, size))
        return 0;
    for (uint32_t i = 0; i < span.count; i++)
        if (!string_fits(rules[i].path, size))
            return 0;
    return 1;
}

static int settings_fit(const struct start *start, const uint8_t *bytes, size_t size)
{
    const struct setting *settings = span_at(bytes, start->settings);
    if (!span_fits(start->settings, sizeof *settings, sizeof(uint32_t), size))
        return 0;
    for (uint32_t i = 0; i < start->settings.count; i++)
        if (!string_fits(settings[i].file, size) || !string_fits(settings[i].value, size))
            return 0;
    if (start->devices.count > MAX_FILTER || !span_fits(start->devices, FILTER_SIZE, 8, size))
        return 0;
    return (start->settings.count == 0 && start->devices.count == 0) || start->flags & START_CGROUP;
}

/* Shared memory is ended as a whole when one of those who share it is out of memory; and who runs
 * hooks would be seen in the memory of the launcher. */
static int memory_fits(uint32_t flags)
{
    return (flags & START_SHARE_MEMORY) == 0 || (flags & (START_CGROUP | START_HOOKS)) == 0;
}

/* What ends all that a container leaves: its own PID namespace, else its control group. */
static int has_end_of_all(const struct start *start)
{
    return start->clone_flags & CLONE_NEWPID || start->flags & START_CGROUP;
}

/* What a start and an exec have in common: the process. */
static long check_process(const struct start *start, const uint8_t *bytes, size_t size)
{
    if (size < sizeof *start || start->size != size || !has_end(bytes, size))
        return -EINVAL;
    if (start->source_count > MAX_SOURCES || start->args.count == 0 || start->programs.count == 0)
        return -EINVAL;
    if (!span_fits(start->uid_map, 1, 1, size) || !span_fits(start->gid_map, 1, 1, size))
        return -EINVAL;
    if (!span_fits(start->cpus, 1, 1, size))
        return -EINVAL;
    if (!numbers_fit(bytes, start->passed, size) || !kinds_fit(bytes, start, size))
        return -EINVAL;
    if (!span_fits(start->clocks, 1, 1, size))
        return -EINVAL;
    if (!program_fits(bytes, start->uid_program, size) ||
        !program_fits(bytes, start->gid_program, size))
        return -EINVAL;
    if (!span_fits(start->groups, sizeof(uint32_t), sizeof(uint32_t), size))
        return -EINVAL;
    if (!span_fits(start->rlimits, sizeof(struct limit), 8, size))
        return -EINVAL;
    if (start->filter.count > MAX_FILTER ||
        !span_fits(start->filter, FILTER_SIZE, sizeof(uint32_t), size))
        return -EINVAL;
    if (!string_fits(start->hostname, size) || !string_fits(start->domainname, size) ||
        !string_fits(start->cwd, size))
        return -EINVAL;
    if (!strings_fit(bytes, start->programs, size) || !vector_fits(bytes, start->args, size) ||
        !vector_fits(bytes, start->env, size) || any_overlap(start))
        return -EINVAL;
    if (!rules_fit(bytes, start->rules, size))
        return -EINVAL;
    if (!settings_fit(start, bytes, size) || !memory_fits(start->flags))
        return -EINVAL;
    return 0;
}

long check_start(const struct start *start, const uint8_t *bytes, size_t size)
{
    long result = check_process(start, bytes, size);
    if (result == 0 && (!flags_fit(start->clone_flags) || !can_be_answered(start->flags) ||
                        !user_fits(bytes, start) || !has_end_of_all(start)))
        result = -EINVAL;
    return result < 0 ? result : check_rows(start, bytes, size);
}

/* A filter that is loaded before the last steps is the last of them all the same. */
static int filter_fits(const struct start *start)
{
    return (start->flags & START_FILTER_AHEAD) == 0 ||
           (start->flags & START_NO_NEW_PRIVS && start->handled_access == 0 &&
            (start->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) == 0);
}

/* Namespaces to join, at least one: else it would be a process of the host's. */
long check_exec(const struct start *start, const uint8_t *bytes, size_t size)
{
    long result = check_process(start, bytes, size);
    if (result < 0)
        return result;
    if ((start->clone_flags & ~(uint64_t)CLONE_NEW_ANY) != 0 || start->clone_flags == 0)
        return -EINVAL;
    if (!(start->flags & START_FRESH_USER) != !(start->clone_flags & CLONE_NEWUSER))
        return -EINVAL;
    if (start->flags & (START_GATE | START_QUIET | START_CGROUP | START_HOOKS)) /* its target's */
        return -EINVAL;
    if (start->flags & START_TERMINAL && (start->clone_flags & CLONE_NEWNS) == 0)
        return -EINVAL; /* the devpts that it would find is the host's */
    if (start->flags & START_STREAMS && (start->flags & START_TERMINAL || start->target == 0))
        return -EINVAL;
    if (!filter_fits(start))
        return -EINVAL;
    if (start->rows.count != 0 || start->passed.count != 0 || start->joined.count != 0 ||
        start->source_count != (start->target == 0))
        return -EINVAL;
    return string_fits(start->new_root, size) ? 0 : -EINVAL;
}

/* A program where its maker is: nothing to join, nothing to build, nobody to answer its filter. */
long check_hook(const struct start *start, const uint8_t *bytes, size_t size)
{
    const uint32_t known = START_IN_MEMFD | START_SET_GROUPS | START_NO_NEW_PRIVS;
    long result = check_process(start, bytes, size);
    if (result < 0)
        return result;
    if (start->flags & ~known || start->clone_flags != 0 || start->target != 0)
        return -EINVAL;
    if (start->rows.count != 0 || start->passed.count != 0 || start->joined.count != 0 ||
        start->source_count != 0 || start->pipes != 0)
        return -EINVAL;
    if (start->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER)
        return -EINVAL;
    return string_fits(start->new_root, size) && string_at(bytes, start->new_root)[0] == 0
               ? 0
               : -EINVAL;
}

long check_lease(const struct lease *lease, const uint8_t *bytes, size_t size)
{
    if (size < sizeof *lease || lease->size != size || !has_end(bytes, size))
        return -EINVAL;
    if (!string_fits(lease->path, size) || lease->count == 0)
        return -EINVAL;
    if (lease->first > MAX_SLOT || lease->count > MAX_SLOT + 1 - lease->first)
        return -EINVAL;
    if (lease->start < lease->first || lease->start - lease->first >= lease->count)
        return -EINVAL;
    return 0;
}

long check_place(const struct place *place, const uint8_t *bytes, size_t size)
{
    if (size < sizeof *place || place->size != size || !has_end(bytes, size))
        return -EINVAL;
    return string_fits(place->path, size) && string_fits(place->above, size) ? 0 : -EINVAL;
}

long check_detach(const struct detach *detach, const uint8_t *bytes, size_t size)
{
    if (size < sizeof *detach || size > MAX_DETACH || detach->size != size || !has_end(bytes, size))
        return -EINVAL;
    if (!string_fits(detach->name, size) || !vector_fits(bytes, detach->args, size) ||
        !vector_fits(bytes, detach->env, size) || vectors_overlap(detach->args, detach->env))
        return -EINVAL;
    return 0;
}

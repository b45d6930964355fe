/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows that take something away from what the container has: masks, read-only paths, and values
 * written into its own procfs.
 *
 * Nothing of the image is used for any of it. A mask is a copy of a mount of ours, an empty
 * read-only tmpfs with a file in it, never the image's /dev/null (CVE-2025-31133); a target is
 * opened once, below the mount that it lies in, and covered by that fd; a value is written
 * through the procfs that this child mounted, before anything else could be mounted in it, and that
 * is asked whether it really is one (CVE-2019-16884, CVE-2025-52881).
 */
#include "internal.h"

static const char EMPTY_DIRECTORY[] = "directory", EMPTY_FILE[] = "file";

static const char *text(const struct filesystem *fs, uint32_t offset)
{
    return string_at(fs->request->bytes, offset);
}

static long make_empty_entries(int mount)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    long result = sys(__NR_mkdirat, mount, EMPTY_DIRECTORY, 0555);
    if (result == 0)
        result = sys(__NR_mknodat, mount, EMPTY_FILE, S_IFREG | 0444, 0);
    if (result == 0)
        result = sys(NR_MOUNT_SETATTR, mount, "", AT_EMPTY_PATH, &attr, sizeof attr);
    return result;
}

/* One for all masks of a container. It must be attached somewhere, or it could not be copied before
 * Linux 6.15: over the old root's /proc, which goes with the old root. */
static long make_mask(struct filesystem *fs)
{
    long mount, result;
    long context = sys(NR_FSOPEN, "tmpfs", FSOPEN_CLOEXEC);
    if (context < 0)
        return context;
    result = sys(NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    mount = result < 0 ? result
                       : sys(NR_FSMOUNT, context, FSMOUNT_CLOEXEC,
                             MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    (void)close_fd((int)context);
    if (mount < 0)
        return mount;
    result = make_empty_entries((int)mount);
    if (result == 0)
        result = sys(NR_MOVE_MOUNT, mount, "", AT_FDCWD, "/proc", MOVE_MOUNT_FROM_EMPTY);
    if (result == 0)
        fs->mask = (int)mount;
    return result;
}

static long cover(int mount, int target)
{
    return sys(NR_MOVE_MOUNT, mount, "", target, "", MOVE_MOUNT_FROM_EMPTY | MOVE_MOUNT_TO_EMPTY);
}

static long mask_target(struct filesystem *fs, int target)
{
    struct statx_record file;
    const char *empty;
    long mount;
    long result = sys(__NR_statx, target, "", AT_EMPTY_PATH, STATX_TYPE, &file);
    if (result == 0 && fs->mask == 0)
        result = make_mask(fs);
    if (result < 0)
        return result;
    empty = (file.mode & S_IFMT) == S_IFDIR ? EMPTY_DIRECTORY : EMPTY_FILE;
    mount = sys(NR_OPEN_TREE, fs->mask, empty, OPEN_TREE_CLONE | O_CLOEXEC);
    if (mount < 0)
        return mount;
    result = cover((int)mount, target);
    (void)close_fd((int)mount);
    return result;
}

static long make_read_only(int target)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    long result;
    long mount =
        sys(NR_OPEN_TREE, target, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    if (mount < 0)
        return mount;
    result = sys(NR_MOUNT_SETATTR, mount, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr);
    if (result == 0)
        result = cover((int)mount, target);
    (void)close_fd((int)mount);
    return result;
}

/* What is there, resolved as the container would; -ENOENT also where a file stands in the way. */
static long open_existing(struct filesystem *fs, const struct row *row)
{
    long result;
    long fd = open_below(fs->mounts[row->base], text(fs, row->target), O_PATH, RESOLVE_IN_ROOT);
    if (fd < 0)
        return fd == -ENOTDIR ? -ENOENT : fd;
    result = row->base == fs->request->start->root ? refuse_root(fs, (int)fd) : 0;
    if (result < 0)
        (void)close_fd((int)fd);
    return result < 0 ? result : fd;
}

static int left_out(const struct row *row, long fd)
{
    return fd == -ENOENT && row->flags & ROW_OPTIONAL;
}

long mask_row(struct filesystem *fs, const struct row *row)
{
    long result;
    long target = open_existing(fs, row);
    if (target < 0)
        return left_out(row, target) ? 0 : target;
    result = mask_target(fs, (int)target);
    (void)close_fd((int)target);
    return result;
}

long read_only_row(struct filesystem *fs, const struct row *row)
{
    long result;
    long target = open_existing(fs, row);
    if (target < 0)
        return left_out(row, target) ? 0 : target;
    result = make_read_only((int)target);
    (void)close_fd((int)target);
    return result;
}

/* A file of the procfs that a row made. No other mount is crossed on the way, so what is true of
 * the base is true of the file: nobody can have made one by now, and none would be used. */
static long open_proc_file(struct filesystem *fs, const struct row *row)
{
    struct statfs_record statfs;
    int base = fs->mounts[row->base];
    long result = sys(__NR_fstatfs, base, &statfs);
    if (result == 0 && statfs.type != PROC_SUPER_MAGIC)
        result = -EXDEV;
    if (result < 0)
        return result;
    return open_below(base, text(fs, row->target), O_WRONLY, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
}

static long write_value(struct filesystem *fs, const struct row *row, int fd)
{
    long result = sys(__NR_write, fd, span_at(fs->request->bytes, row->data), row->data.count);
    (void)close_fd(fd);
    if (result >= 0 && (size_t)result != row->data.count)
        return -EIO;
    return result < 0 ? result : 0;
}

long write_row(struct filesystem *fs, const struct row *row)
{
    long fd = open_proc_file(fs, row);
    if (fd < 0)
        return left_out(row, fd) ? 0 : fd;
    if ((row->flags & ROW_LATE) == 0)
        return write_value(fs, row, (int)fd);
    if (fs->late > 0) /* there is room for one */
        (void)close_fd(fs->late);
    fs->late = (int)fd;
    fs->late_row = row;
    return 0;
}

long write_late(struct filesystem *fs)
{
    int fd = fs->late;
    if (fd == 0)
        return 0;
    fs->late = 0;
    return write_value(fs, fs->late_row, fd);
}

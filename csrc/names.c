/* SPDX-License-Identifier: Apache-2.0 */
/* Rows that make one new name: a file with its content, a link, a device node. */
#include "internal.h"

/* The directory that a new name goes into, and that name. */
static long open_parent(struct filesystem *fs, const struct row *row, const char **ret_name)
{
    char *path = row_target(fs, row);
    size_t end = 0, start;
    long fd;
    while (path[end] != 0)
        end++;
    start = component_start(path, end);
    *ret_name = path + start;
    if (start == 0)
        return fs->mounts[row->base];
    path[start - 1] = 0;
    fd = open_below(fs->mounts[row->base], path, O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT);
    path[start - 1] = '/';
    return fd;
}

static long write_file(int parent, const char *name, const struct row *row, const uint8_t *data)
{
    long fd = sys(__NR_openat, parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC,
                  row->mode);
    long result = fd;
    if (fd < 0)
        return fd;
    if (row->data.count > 0) {
        result = sys(__NR_write, fd, data, row->data.count);
        result = result >= 0 && (size_t)result != row->data.count ? -EIO : result;
    }
    (void)close_fd((int)fd);
    return result < 0 ? result : 0;
}

/* As the kernel takes it from user space: 12 bits of major in the middle of 20 of minor. */
static uint32_t device_number(const struct row *row)
{
    return (row->device_minor & 0xff) | row->device_major << 8 | (row->device_minor & ~0xffu) << 12;
}

static long make_node(int parent, const char *name, const struct row *row)
{
    long result = sys(__NR_mknodat, parent, name, row->mode, device_number(row));
    if (result == 0 && (row->uid | row->gid) != 0)
        result = sys(__NR_fchownat, parent, name, row->uid, row->gid, AT_SYMLINK_NOFOLLOW);
    return result;
}

long name_row(struct filesystem *fs, const struct row *row)
{
    const char *name;
    long result;
    long parent = open_parent(fs, row, &name);
    if (parent < 0)
        return parent;
    if (row->op == ROW_SYMLINK)
        result = sys(__NR_symlinkat, string_at(fs->request->bytes, row->source), parent, name);
    else if (row->op == ROW_DEVICE)
        result = make_node((int)parent, name, row);
    else
        result = write_file((int)parent, name, row, span_at(fs->request->bytes, row->data));
    if (parent != fs->mounts[row->base])
        (void)close_fd((int)parent);
    return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A root that is an overlay of several directories.
 *
 * overlayfs takes its layers as paths in one text of limited size (256 bytes by fsconfig, a page
 * by mount(2)), in which commas, colons and backslashes mean something, and before Linux 6.15 only
 * such as are mounted in this namespace. So there is a stage: a tmpfs over the old root and our
 * working directory, in which each layer is mounted under a short name of Python's choice.
 */
#include "internal.h"

static long open_directory(const struct filesystem *fs, const struct row *row)
{
    return open_below(fs->mounts[row->base], string_at(fs->request->bytes, row->target),
                      O_PATH | O_DIRECTORY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

/* Upper and work directory must lie in one mount, which is mounted whole in the stage; their own
 * paths in it are walked here, once and not through links, and overlayfs gets what was found. */
long handle_row(struct filesystem *fs, const struct row *row)
{
    char text[PROC_PATH_SIZE];
    const char *name = string_at(fs->request->bytes, row->source);
    long fd = open_directory(fs, row);
    if (fd == -ENOENT && row->flags & ROW_MAKE_DIRECTORY) {
        fd = sys(__NR_mkdirat, fs->mounts[row->base], string_at(fs->request->bytes, row->target),
                 row->mode);
        fd = fd < 0 ? fd : open_directory(fs, row);
    }
    if (fd < 0)
        return fd;
    fs->mounts[fs->row] = (int)fd; /* open until the root is entered */
    (void)append_number(append(text, "/proc/self/fd/"), (uint32_t)fd); /* the end is of no use */
    return sys(__NR_symlinkat, text, fs->mounts[0], name);
}

long overlay_row(struct filesystem *fs, const struct row *row)
{
    const char *name = string_at(fs->request->bytes, row->source);
    long mount, result = sys(__NR_fchdir, fs->mounts[0]);
    if (result == 0) /* MS_NOSUID and its kin have the numbers of MOUNT_ATTR_* */
        result = sys(__NR_mount, "overlay", name, "overlay", row->attributes,
                     span_at(fs->request->bytes, row->data));
    if (result < 0)
        return result;
    mount = sys(NR_OPEN_TREE, fs->mounts[0], name, OPEN_TREE_CLONE | O_CLOEXEC);
    if (mount < 0)
        return mount;
    /* With every layer in it: the overlay holds what it needs. Left there it would be what the
     * pivot takes away in the place of the old root. */
    result = sys(__NR_umount2, ".", MNT_DETACH);
    return result < 0 ? result : attach_mount(fs, row, (int)mount);
}

long attributes_row(const struct filesystem *fs, const struct row *row)
{
    struct mount_attr attr = {.attr_set = row->attributes, .attr_clr = row->mode};
    uint32_t recursive = row->flags & ROW_RECURSIVE ? AT_RECURSIVE : 0;
    long result = sys(NR_MOUNT_SETATTR, fs->mounts[row->base], "", AT_EMPTY_PATH | recursive, &attr,
                      sizeof attr);
    return row->flags & ROW_MAY_FAIL ? 0 : result;
}

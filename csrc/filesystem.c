/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file system of a container, row by row, in the child.
 *
 * A target is opened once, with openat2 under the fd of the mount that it lies in
 * (RESOLVE_IN_ROOT: neither "..", an absolute link nor a magic link leads out), and what is
 * mounted there is moved onto that fd. No path of the image is ever walked twice, and none is
 * walked from the host's root.
 */
#include "internal.h"

enum { OPENAT2_TRIES = 128 };

/* EAGAIN: somebody renamed or mounted while ".." was being resolved. Bounded, so that an image
 * that keeps doing that gets an error, not our time. */
long open_below(int base, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve | RESOLVE_NO_MAGICLINKS};
    long fd = -EAGAIN;
    for (int i = 0; i < OPENAT2_TRIES && fd == -EAGAIN; i++)
        fd = sys(NR_OPENAT2, base, path, &how, sizeof how);
    return fd;
}

/* The length of path up to the end of its component that begins at or after `from`. */
static size_t component_end(const char *path, size_t from)
{
    while (path[from] == '/')
        from++;
    while (path[from] != 0 && path[from] != '/')
        from++;
    return from;
}

size_t component_start(const char *path, size_t end)
{
    while (end > 0 && path[end - 1] != '/')
        end--;
    return end;
}

/* Make one name in a directory and open what was made. A link that a racing process puts there
 * instead is refused, not followed. */
static long make_entry(int parent, const char *name, int directory, uint32_t mode)
{
    long made = directory ? sys(__NR_mkdirat, parent, name, mode)
                          : sys(__NR_mknodat, parent, name, S_IFREG | mode, 0);
    if (made < 0 && made != -EEXIST)
        return made;
    return open_below(parent, name, O_PATH | O_NOFOLLOW | (directory ? O_DIRECTORY : 0),
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

/* Walk to path below base, making what is missing: directories, and at the end a directory or an
 * empty file. What exists is resolved as the container would. */
static long make_path(int base, char *path, int directory, uint32_t mode, uint64_t resolve)
{
    int parent = base;
    long fd = -ENOENT;
    for (size_t end = component_end(path, 0);; end = component_end(path, end)) {
        char saved = path[end];
        int last = saved == 0;
        path[end] = 0; /* the request is this process's own copy */
        fd = open_below(base, path, O_PATH, resolve);
        if (fd == -ENOENT)
            fd = make_entry(parent, path + component_start(path, end), directory || !last,
                            last ? mode : 0755);
        path[end] = saved;
        if (parent != base)
            (void)close_fd(parent);
        if (last || fd < 0)
            return fd;
        parent = (int)fd;
    }
}

/* A link of the image may lead to its root. What is mounted there would cover nothing: the root is
 * entered by its fd, below that. */
long refuse_root(const struct filesystem *fs, int target)
{
    enum { WANTED = STATX_INO | STATX_MNT_ID };
    struct statx_record found, root;
    long result = sys(__NR_statx, target, "", AT_EMPTY_PATH, WANTED, &found);
    if (result == 0)
        result =
            sys(__NR_statx, fs->mounts[fs->request->start->root], "", AT_EMPTY_PATH, WANTED, &root);
    if (result < 0)
        return result;
    return found.inode == root.inode && found.mount_id == root.mount_id ? -EBUSY : 0;
}

char *row_target(struct filesystem *fs, const struct row *row)
{
    return (char *)(fs->request->bytes + row->target);
}

static uint64_t resolve_flags(const struct row *row)
{
    return row->flags & ROW_NO_SYMLINKS ? RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS : RESOLVE_IN_ROOT;
}

static long open_target(struct filesystem *fs, const struct row *row)
{
    int base = fs->mounts[row->base];
    int directory = (row->flags & ROW_MAKE_DIRECTORY) != 0;
    char *path = row_target(fs, row);
    long fd = open_below(base, path, O_PATH, resolve_flags(row));
    if (fd == -ENOENT && row->flags & (ROW_MAKE_DIRECTORY | ROW_MAKE_FILE))
        fd = make_path(base, path, directory, directory ? 0755 : 0644, resolve_flags(row));
    return fd;
}

/* In a file system that was made a moment ago nobody else has been: no need to look first. */
static long attach_to_new(struct filesystem *fs, const struct row *row, int mount)
{
    int base = fs->mounts[row->base];
    const char *name = row_target(fs, row);
    long result = row->flags & ROW_MAKE_DIRECTORY
                      ? sys(__NR_mkdirat, base, name, 0755)
                      : sys(__NR_mknodat, base, name, S_IFREG | 0644, 0);
    if (result < 0)
        return result;
    return sys(NR_MOVE_MOUNT, mount, "", base, name, MOVE_MOUNT_FROM_EMPTY);
}

/* The root goes over "/", onto the stage where there is one; every other mount onto its target's
 * fd. */
long attach_mount(struct filesystem *fs, const struct row *row, int mount)
{
    long target, result;
    fs->mounts[fs->row] = mount;
    if (row->flags & ROW_DETACHED)
        return 0;
    if (fs->row == 0 || (uint32_t)fs->row == fs->request->start->root)
        return sys(NR_MOVE_MOUNT, mount, "", AT_FDCWD, "/", MOVE_MOUNT_FROM_EMPTY);
    if (row->flags & ROW_NEW_TARGET)
        return attach_to_new(fs, row, mount);
    target = open_target(fs, row);
    if (target < 0)
        return target;
    result = row->flags & ROW_NO_SYMLINKS ? 0 : refuse_root(fs, (int)target);
    if (result == 0)
        result =
            sys(NR_MOVE_MOUNT, mount, "", target, "", MOVE_MOUNT_FROM_EMPTY | MOVE_MOUNT_TO_EMPTY);
    (void)close_fd((int)target);
    return result;
}

/* The caller opened this path; is it still the same thing? Or: is it really that device? */
static long check_source(const struct row *row, int fd)
{
    struct statx_record file;
    long result = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC, &file);
    if (result < 0)
        return result;
    if (row->flags & ROW_CHECK_INODE &&
        (file.inode != row->inode || file.dev_major != row->device_major ||
         file.dev_minor != row->device_minor))
        return -ESTALE;
    if (row->flags & ROW_CHECK_DEVICE &&
        ((file.mode & S_IFMT) != (row->mode & S_IFMT) || file.rdev_major != row->device_major ||
         file.rdev_minor != row->device_minor))
        return -ENODEV;
    return 0;
}

/* Attributes and propagation of a mount. A copy of a shared mount is its peer: unless it leaves
 * the group, what is mounted below it in the container is mounted on the host as well. */
long set_mount(int mount, const struct row *row, struct mount_attr *attr)
{
    uint32_t flags = AT_EMPTY_PATH | (row->flags & ROW_RECURSIVE ? AT_RECURSIVE : 0);
    long result;
    attr->propagation = row->flags & ROW_SLAVE ? MS_SLAVE : MS_PRIVATE;
    result = sys(NR_MOUNT_SETATTR, mount, "", flags, attr, sizeof *attr);
    if (result < 0 || (row->flags & ROW_SHARED) == 0)
        return result;
    *attr = (struct mount_attr){.propagation = MS_SHARED};
    return sys(NR_MOUNT_SETATTR, mount, "", flags, attr, sizeof *attr);
}

/* A copy of a mount of this namespace's own copy of the caller's tree: the way without root. */
static long open_source(struct filesystem *fs, const struct row *row)
{
    uint32_t recursive = row->flags & ROW_RECURSIVE ? AT_RECURSIVE : 0;
    struct mount_attr attr = {.attr_set = row->attributes};
    long result;
    long tree = sys(NR_OPEN_TREE, AT_FDCWD, string_at(fs->request->bytes, row->source),
                    OPEN_TREE_CLONE | O_CLOEXEC | recursive);
    if (tree < 0)
        return tree;
    result = row->flags & (ROW_CHECK_INODE | ROW_CHECK_DEVICE) ? check_source(row, (int)tree) : 0;
    if (result == 0)
        result = set_mount((int)tree, row, &attr);
    if (result < 0)
        (void)close_fd((int)tree);
    return result < 0 ? result : tree;
}

static long bind_row(struct filesystem *fs, const struct row *row)
{
    long tree = row->source_fd >= 0 ? fs->trees[row->source_fd] : open_source(fs, row);
    return tree < 0 ? tree : attach_mount(fs, row, (int)tree);
}

const char *next_string(const char *at)
{
    while (*at != 0)
        at++;
    return at + 1;
}

static long configure(const struct request *request, const struct row *row, int context)
{
    const char *at = span_at(request->bytes, row->data);
    const char *end = at + row->data.count;
    long result = 0;
    while (at < end && result == 0) {
        const char *key = at, *value = next_string(key);
        at = next_string(value);
        result = *value == 0 ? sys(NR_FSCONFIG, context, FSCONFIG_SET_FLAG, key, 0, 0)
                             : sys(NR_FSCONFIG, context, FSCONFIG_SET_STRING, key, value, 0);
    }
    return result < 0 ? result : sys(NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
}

/* A new file system with the row's options and attributes, attached nowhere. */
long make_mount(const struct request *request, const struct row *row, const char *type)
{
    long mount;
    long context = sys(NR_FSOPEN, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return context;
    mount = configure(request, row, (int)context);
    if (mount == 0)
        mount = sys(NR_FSMOUNT, context, FSMOUNT_CLOEXEC, row->attributes);
    (void)close_fd((int)context);
    return mount;
}

static long mount_row(struct filesystem *fs, const struct row *row)
{
    long result = 0;
    long mount = make_mount(fs->request, row, string_at(fs->request->bytes, row->source));
    if (mount >= 0 && row->flags & ROW_SHARED)
        result = set_mount((int)mount, row, &(struct mount_attr){0});
    return mount < 0 ? mount : result < 0 ? result : attach_mount(fs, row, (int)mount);
}

static long directory_row(struct filesystem *fs, const struct row *row)
{
    long fd = make_path(fs->mounts[row->base], row_target(fs, row), 1, row->mode, RESOLVE_IN_ROOT);
    if (fd < 0)
        return fd;
    (void)close_fd((int)fd);
    return 0;
}

static long device_row(struct filesystem *fs, const struct row *row)
{
    int has_source = *string_at(fs->request->bytes, row->source) != 0;
    long result = -EPERM; /* as always, in a user namespace that is not the first */
    if (!has_source || (fs->request->start->flags & START_FRESH_USER) == 0)
        result = name_row(fs, row);
    return result == -EPERM && has_source ? bind_row(fs, row) : result;
}

static long do_row(struct filesystem *fs, const struct row *row)
{
    switch (row->op) {
    case ROW_BIND:
        return bind_row(fs, row);
    case ROW_MOUNT:
        return mount_row(fs, row);
    case ROW_DIRECTORY:
        return directory_row(fs, row);
    case ROW_DEVICE:
        return device_row(fs, row);
    case ROW_MASK:
        return mask_row(fs, row);
    case ROW_READ_ONLY:
        return read_only_row(fs, row);
    case ROW_WRITE:
        return write_row(fs, row);
    case ROW_OVERLAY:
        return overlay_row(fs, row);
    case ROW_HANDLE:
        return handle_row(fs, row);
    case ROW_ATTRIBUTES:
        return attributes_row(fs, row);
    case ROW_TERMINAL:
        return terminal_row(fs, row);
    case ROW_CONSOLE:
        return console_row(fs, row);
    default:
        return name_row(fs, row);
    }
}

long build_filesystem(struct filesystem *fs)
{
    const struct row *rows = span_at(fs->request->bytes, fs->request->start->rows);
    for (uint32_t i = 0; i < fs->request->start->rows.count; i++) {
        long result;
        fs->row = (int32_t)i;
        result = do_row(fs, &rows[i]);
        if (result < 0)
            return result;
    }
    fs->row = -1;
    return 0;
}

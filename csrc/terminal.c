/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A terminal of the container's own: the controlling terminal of its first process, or of an
 * exec's, and that process's standard streams.
 *
 * One end is "ptmx" below the fd of a devpts, the other is had from the first by TIOCGPTPEER: no
 * name of a terminal is ever looked up, so nothing else can be put in its place (CVE-2025-52565).
 * The end that commands the terminal leaves the container before its program runs.
 */
#include "internal.h"

static long set_size(const struct start *start, int terminal)
{
    struct window_size size = {.rows = (uint16_t)start->terminal_rows,
                               .columns = (uint16_t)start->terminal_columns};
    return size.rows == 0 && size.columns == 0 ? 0 : sys(__NR_ioctl, terminal, TIOCSWINSZ, &size);
}

/* It belongs to who will use it, as after grantpt(3); its group is the one that devpts gives. */
static long prepare_terminal(const struct filesystem *fs)
{
    const struct start *start = fs->request->start;
    long result = sys(__NR_fchown, fs->terminal, start->uid, -1);
    return result < 0 ? result : set_size(start, fs->terminal);
}

long open_terminal(struct filesystem *fs, int directory)
{
    struct statfs_record found;
    int unlocked = 0;
    long result = sys(__NR_fstatfs, directory, &found);
    if (result == 0 && found.type != DEVPTS_SUPER_MAGIC)
        result = -ENODEV;
    if (result == 0) /* not what is mounted over it */
        result = open_below(directory, "ptmx", O_RDWR | O_NOCTTY,
                            RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS);
    if (result < 0)
        return result;
    fs->master = (int)result;
    result = sys(__NR_ioctl, fs->master, TIOCSPTLCK, &unlocked);
    if (result == 0)
        result = sys(__NR_ioctl, fs->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (result < 0)
        return result;
    fs->terminal = (int)result;
    return prepare_terminal(fs);
}

long terminal_row(struct filesystem *fs, const struct row *row)
{
    return fs->master == 0 ? open_terminal(fs, fs->mounts[row->base]) : -EINVAL;
}

long console_row(struct filesystem *fs, const struct row *row)
{
    long mount;
    if (fs->terminal == 0)
        return -EINVAL;
    mount = sys(NR_OPEN_TREE, fs->terminal, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
    return mount < 0 ? mount : attach_mount(fs, row, (int)mount);
}

long take_terminal(struct child *child)
{
    const uint8_t kind = CHILD_TERMINAL;
    struct filesystem *fs = &child->filesystem;
    long result = 0;
    if ((child->start->flags & START_TERMINAL) == 0)
        return 0;
    if (fs->terminal == 0)
        return -EINVAL;
    if ((child->start->flags & START_INIT) == 0)
        result = sys(__NR_ioctl, fs->terminal, TIOCSCTTY, 0);
    if (result == 0)
        result = send_message(child->sync, &kind, 1, &fs->master, 1);
    (void)close_fd(fs->master);
    for (int i = 0; i < STDIO_COUNT; i++)
        child->stdio[i] = fs->terminal; /* what was there is close-on-exec */
    return result;
}

/* Under an init the session of the terminal is the payload's: what is typed is for that alone. */
long control_terminal(const struct child *child)
{
    long result;
    if ((child->start->flags & START_TERMINAL) == 0)
        return 0;
    result = sys(__NR_setsid, 0);
    return result < 0 ? result : sys(__NR_ioctl, child->filesystem.terminal, TIOCSCTTY, 0);
}

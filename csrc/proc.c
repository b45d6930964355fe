/* SPDX-License-Identifier: Apache-2.0 */
/* Files of processes in /proc, by pid. */
#include "internal.h"

char *append(char *at, const char *text)
{
    while (*text != 0)
        *at++ = *text++;
    *at = 0;
    return at;
}

char *append_number(char *at, uint32_t number)
{
    char digits[11];
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return append(at, first);
}

long open_proc(int pid, const char *name, int flags)
{
    char path[PROC_PATH_SIZE];
    char *at = append_number(append(path, "/proc/"), (uint32_t)pid);
    (void)append(append(at, "/"), name); /* the end is of no use */
    return sys(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC);
}

long write_proc(int pid, const char *name, const void *data, size_t size)
{
    long fd = open_proc(pid, name, O_WRONLY);
    long result;
    if (fd < 0)
        return fd;
    result = sys(__NR_write, fd, data, size);
    (void)close_fd((int)fd);
    if (result >= 0 && (size_t)result != size)
        return -EIO;
    return result < 0 ? result : 0;
}

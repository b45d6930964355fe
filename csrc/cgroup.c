/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control groups of containers. Python finds the place, a directory whose children have the
 * controllers that are asked for; it is this launcher's alone, and locked. In there a container's
 * is made before its first process, which is born in it (CLONE_INTO_CGROUP), and limited while that
 * waits for its ids or its request. What runs in it can neither leave it nor make others below.
 *
 * It is removed once the first process is reaped: with that ends its PID namespace. Should anything
 * else still live in it (it shared the PID namespace of others, or of an exec into other namespaces
 * alone), that is killed, and the kernel tells of the end of it. What a dead launcher leaves its
 * guard ends and removes.
 */
#include "state.h"

enum { NAME_SIZE = 12, TEXT_SIZE = 512, PLACE_SIZE = 4096 };

static struct {
    int directory; /* 0: not told yet */
    char path[PLACE_SIZE], above[PLACE_SIZE];
} place;

static size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length] != 0)
        length++;
    return length;
}

static long write_file(int directory, const char *file, const char *value)
{
    size_t size = length_of(value);
    long fd = open_below(directory, file, O_WRONLY, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    long result;
    if (fd < 0)
        return fd;
    result = sys(__NR_write, fd, value, size);
    (void)close_fd((int)fd);
    return result < 0 ? result : (size_t)result == size ? 0 : -EIO;
}

/* Its length; the text ends with a NUL. */
static long read_fd(int fd, char *text)
{
    long size = sys(__NR_pread64, fd, text, TEXT_SIZE - 1, 0);
    text[size < 0 ? 0 : size] = 0;
    return size;
}

static int begins_with(const char *text, const char *key)
{
    while (*key != 0)
        if (*text++ != *key++)
            return 0;
    return 1;
}

/* The number behind the key at the beginning of a line; ~0: there is none. */
static uint64_t find_number(const char *text, const char *key)
{
    uint64_t number = 0;
    while (*text != 0 && !begins_with(text, key)) {
        while (*text != 0 && *text++ != '\n')
            ;
    }
    while (*text != 0 && *key != 0)
        text++, key++;
    if (*text < '0' || *text > '9')
        return ~0ull;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (uint64_t)(*text++ - '0');
    return number;
}

/* Empty where there is no such file. */
static void read_file(int directory, const char *file, char *text)
{
    long fd = sys(__NR_openat, directory, file, O_RDONLY | O_CLOEXEC);
    text[0] = 0;
    if (fd < 0)
        return;
    (void)read_fd((int)fd, text); /* nothing is no number */
    (void)close_fd((int)fd);
}

static uint64_t read_number(int directory, const char *file)
{
    char text[TEXT_SIZE];
    read_file(directory, file, text);
    return find_number(text, "");
}

static long take_place(const struct place *request, const uint8_t *bytes)
{
    const char *path = string_at(bytes, request->path), *above = string_at(bytes, request->above);
    if (place.directory > 0 || launcher.message.fd_count != 2)
        return -EINVAL;
    if (length_of(path) >= PLACE_SIZE || length_of(above) >= PLACE_SIZE)
        return -E2BIG;
    (void)append(place.path, path); /* the ends are of no use */
    (void)append(place.above, above);
    place.directory = launcher.message.fds[1];
    launcher.message.fds[1] = -1;
    return 0;
}

void handle_place(size_t size)
{
    const struct place *request = (const struct place *)launcher.buffer;
    struct report report = {.kind = REPORT_PLACED, .row = -1};
    long result = check_place(request, launcher.buffer, size);
    if (result == 0)
        result = take_place(request, launcher.buffer);
    if (result < 0)
        report_failure(launcher.message.fds[0], STEP_CGROUP, result);
    else
        send_report(launcher.message.fds[0], &report, -1);
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

static long remove_directory(uint32_t serial)
{
    char name[NAME_SIZE];
    (void)append_number(name, serial); /* the end is of no use */
    return sys(__NR_unlinkat, place.directory, name, AT_REMOVEDIR);
}

long make_cgroup(struct container *container)
{
    char name[NAME_SIZE];
    long result;
    if (place.directory <= 0)
        return -EINVAL;
    (void)append_number(name, container->serial); /* the end is of no use */
    result = sys(__NR_mkdirat, place.directory, name, 0755);
    if (result < 0)
        return result;
    result = sys(__NR_openat, place.directory, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (result < 0) {
        (void)remove_directory(container->serial); /* the first error is the one to tell */
        return result;
    }
    container->cgroup = (int)result;
    /* What it could make below would be in the way of its removal. */
    result = write_file(container->cgroup, "cgroup.max.descendants", "0");
    if (result < 0)
        (void)remove_cgroup(container); /* it is empty */
    return result;
}

/* Attached, it goes with the control group. */
static long limit_devices(const struct container *container)
{
    const struct request *request = &container->arena->request;
    const struct span code = request->start->devices;
    struct bpf_load load = {.type = BPF_PROG_TYPE_CGROUP_DEVICE,
                            .count = code.count,
                            .code = (uint64_t)(uintptr_t)span_at(request->bytes, code),
                            .license = (uint64_t)(uintptr_t) "Apache-2.0"};
    struct bpf_attach attach = {.target = (uint32_t)container->cgroup,
                                .type = BPF_CGROUP_DEVICE,
                                .flags = BPF_F_ALLOW_MULTI};
    long program, result;
    if (code.count == 0)
        return 0;
    program = sys(__NR_bpf, BPF_PROG_LOAD, &load, sizeof load);
    if (program < 0)
        return program;
    attach.program = (uint32_t)program;
    result = sys(__NR_bpf, BPF_PROG_ATTACH, &attach, sizeof attach);
    (void)close_fd((int)program);
    return result < 0 ? result : 0;
}

long limit_cgroup(struct container *container, struct progress *progress)
{
    const struct request *request = &container->arena->request;
    const struct setting *settings = span_at(request->bytes, request->start->settings);
    long result = 0;
    progress->step = STEP_CGROUP;
    for (uint32_t i = 0; i < request->start->settings.count; i++) {
        result = write_file(container->cgroup, string_at(request->bytes, settings[i].file),
                            string_at(request->bytes, settings[i].value));
        if (result == -ENOENT && settings[i].optional)
            continue;
        progress->row = (int32_t)i;
        if (result < 0)
            return result;
    }
    progress->row = (int32_t)request->start->settings.count;
    result = limit_devices(container);
    if (result == 0)
        progress->row = -1;
    return result;
}

/* Those of the container that it is or, an exec, was brought into. */
static int find_cgroup(const struct container *container)
{
    const struct container *owner =
        container->target == 0 ? container : find_container(container->target);
    return owner == NULL ? 0 : owner->cgroup;
}

/* There is nothing below it, whose events the other file would count too. */
struct oom read_oom(const struct container *container)
{
    char text[TEXT_SIZE];
    int directory = container == NULL ? 0 : find_cgroup(container);
    if (directory <= 0)
        return (struct oom){~0ull, ~0ull};
    read_file(directory, "memory.events.local", text);
    return (struct oom){find_number(text, "oom "), find_number(text, "oom_kill ")};
}

/* ~0 stays what it is: nobody knows. */
static uint64_t difference(uint64_t now, uint64_t before)
{
    return now == ~0ull || before == ~0ull ? now : now - before;
}

void read_cgroup(const struct container *container, struct report *report)
{
    int directory = find_cgroup(container);
    struct oom oom = read_oom(container);
    report->memory_peak = report->pids_peak = ~0ull;
    report->ooms = difference(oom.limits, container->before.limits);
    report->oom_kills = difference(oom.kills, container->before.kills);
    if (directory <= 0)
        return;
    report->memory_peak = read_number(directory, "memory.peak");
    report->pids_peak = read_number(directory, "pids.peak");
}

/* Whether there is none (any more). */
int remove_cgroup(struct container *container)
{
    if (container->cgroup <= 0)
        return 1;
    if (remove_directory(container->serial) == -EBUSY)
        return 0;
    (void)close_fd(container->cgroup);
    container->cgroup = 0;
    return 1;
}

/* It is not empty: have it emptied, and be told. Whether that will be. */
int await_empty_cgroup(struct container *container)
{
    struct epoll_record record = {EPOLLPRI, (uint64_t)EVENT_CGROUP << 32 |
                                                (uint32_t)(container - launcher.containers)};
    long events;
    (void)write_file(container->cgroup, "cgroup.kill", "1"); /* or it is empty already */
    events = sys(__NR_openat, container->cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
    if (events < 0)
        return 0;
    container->sync = (int)events; /* one that was not read yet tells at once */
    return sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_ADD, (int)events, &record) == 0;
}

/* After the kernel has told of a change. */
int has_emptied(struct container *container)
{
    char text[TEXT_SIZE];
    (void)read_fd(container->sync, text); /* or the same change would be told again */
    return remove_cgroup(container);
}

void remove_place(void)
{
    if (place.directory <= 0)
        return;
    (void)sys(__NR_unlinkat, AT_FDCWD, place.path, AT_REMOVEDIR);  /* whoever comes next tries it */
    (void)sys(__NR_unlinkat, AT_FDCWD, place.above, AT_REMOVEDIR); /* others may be in there */
}

/* The guard's part, when the launcher has died: end what it has left, and remove that. */
void clear_place(void)
{
    char text[TEXT_SIZE];
    struct pollfd_record poll = {.events = POLLPRI};
    struct {
        int64_t seconds, nanoseconds;
    } patience = {10, 0}; /* only a stuck kernel needs more */
    long events;
    if (place.directory <= 0)
        return;
    (void)write_file(place.directory, "cgroup.kill", "1"); /* everything else was killed already */
    events = sys(__NR_openat, place.directory, "cgroup.events", O_RDONLY | O_CLOEXEC);
    poll.fd = (int)events;
    while (events >= 0 && read_fd((int)events, text) > 0 && find_number(text, "populated ") == 1)
        if (sys(__NR_ppoll, &poll, 1, &patience, 0, 0) != 1)
            break;
    (void)remove_directory(launcher.serial); /* if it died between making and noting it */
    for (uint32_t i = 0; i < launcher.highest; i++)
        if (launcher.containers[i].cgroup > 0)
            (void)remove_directory(launcher.containers[i].serial); /* as remove_place() */
    remove_place();
}

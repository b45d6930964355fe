/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A launcher never has more rights than its caller has now: it takes the caller's effective
 * rights when it starts, and refuses to work once the caller's have changed.
 */
#include "state.h"

static int is_right(const uint8_t *line, size_t size)
{
    static const char *const KEYS[] = {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp"};
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        size_t length = 0;
        while (KEYS[i][length] != 0)
            length++;
        if (size >= length && memcmp(line, KEYS[i], length) == 0)
            return 1;
    }
    return 0;
}

/* Keep the lines of a /proc/PID/status that say what the process may do; return their size. */
static size_t extract_rights(uint8_t *status, size_t size)
{
    size_t kept = 0, start = 0;
    for (size_t i = 0; i < size; i++) {
        if (status[i] != '\n')
            continue;
        if (is_right(status + start, i - start)) {
            memmove(status + kept, status + start, i + 1 - start);
            kept += i + 1 - start;
        }
        start = i + 1;
    }
    return kept;
}

/* Whoever got hold of a copy of the socket is not the caller. And SCM_CREDENTIALS tells real ids
 * only, and says nothing of capabilities: so the caller's status must read as it did when it
 * started us. */
long check_rights(int sender)
{
    long size;
    if (launcher.retired || sender != launcher.caller)
        return -EPERM;
    size = sys(__NR_pread64, FD_CALLER_STATUS, launcher.status, STATUS_SIZE, 0);
    if (size < 0)
        return size;
    if (size == STATUS_SIZE) /* cut: its end would not be compared */
        return -E2BIG;
    size = (long)extract_rights(launcher.status, (size_t)size);
    if ((size_t)size == launcher.rights_size &&
        memcmp(launcher.status, launcher.rights, launcher.rights_size) == 0)
        return 0;
    launcher.retired = 1;
    return -EPERM;
}

/* Out of the bounding set as well, or a child's exec as root would bring them back. Without
 * CAP_SETPCAP nothing can be dropped, nor is there much to bring back. */
static void bound_capabilities(const struct capability_data *data)
{
    for (int capability = 0; capability < 64; capability++)
        if ((data[capability / 32].permitted >> capability % 32 & 1) == 0)
            (void)sys(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0); /* EPERM: see above */
}

/* Clients of a detached container
 * ----------------------------------------------------------------*/

/* The value of a line; "" where there is none. `text` ends with a newline or is empty. */
static const uint8_t *find_value(const uint8_t *text, size_t size, const char *key,
                                 size_t *ret_size)
{
    size_t start = 0, length = 0;
    while (key[length] != 0)
        length++;
    for (size_t i = 0; i < size; i++) {
        if (text[i] != '\n')
            continue;
        if (i - start >= length && memcmp(text + start, key, length) == 0) {
            *ret_size = i - start - length;
            return text + start + length;
        }
        start = i + 1;
    }
    *ret_size = 0;
    return text;
}

static int is_same(const uint8_t *theirs, size_t size, const char *key)
{
    size_t own_size, their_size;
    const uint8_t *own = find_value(launcher.rights, launcher.rights_size, key, &own_size);
    const uint8_t *their = find_value(theirs, size, key, &their_size);
    return own_size > 0 && own_size == their_size && memcmp(own, their, own_size) == 0;
}

/* 0 where there is none. */
static uint64_t find_hex(const uint8_t *text, size_t size, const char *key)
{
    uint64_t number = 0;
    size_t digits;
    const uint8_t *value = find_value(text, size, key, &digits);
    for (size_t i = 0; i < digits; i++) {
        uint8_t digit = value[i];
        if (digit >= '0' && digit <= '9')
            number = number << 4 | (uint64_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            number = number << 4 | (uint64_t)(digit - 'a' + 10);
    }
    return number;
}

/* As an order of what processes may do: is what `theirs` says at least what we may? */
static int has_as_much(const uint8_t *theirs, size_t size)
{
    enum { CAP_SETGID = 6 };
    uint64_t own = find_hex(launcher.rights, launcher.rights_size, "CapEff:");
    uint64_t their = find_hex(theirs, size, "CapEff:");
    if (!is_same(theirs, size, "Uid:") || !is_same(theirs, size, "Gid:"))
        return 0;
    if (!is_same(theirs, size, "Groups:") && (their >> CAP_SETGID & 1) == 0)
        return 0;
    if (own & ~their)
        return 0;
    if (find_hex(theirs, size, "NoNewPrivs:") >
        find_hex(launcher.rights, launcher.rights_size, "NoNewPrivs:"))
        return 0;
    return find_hex(theirs, size, "Seccomp:") == 0 ||
           (is_same(theirs, size, "Seccomp:") && is_same(theirs, size, "Seccomp_filters:"));
}

/* In another user namespace the same numbers are fewer rights. */
static int is_in_our_user_namespace(int process)
{
    struct statx_record own, their;
    const uint32_t mask = STATX_INO;
    if (sys(__NR_statx, AT_FDCWD, "/proc/self/ns/user", 0, mask, &own) < 0 ||
        sys(__NR_statx, process, "ns/user", 0, mask, &their) < 0)
        return 0;
    return own.inode == their.inode && own.dev_major == their.dev_major &&
           own.dev_minor == their.dev_minor;
}

/* `process` is the directory of one in /proc. */
int has_our_rights(int process)
{
    long fd = sys(__NR_openat, process, "status", O_RDONLY | O_CLOEXEC);
    long size;
    if (fd < 0)
        return 0;
    size = sys(__NR_pread64, fd, launcher.status, STATUS_SIZE, 0);
    (void)close_fd((int)fd);
    if (size <= 0 || size == STATUS_SIZE) /* cut: its end would not be compared */
        return 0;
    size = (long)extract_rights(launcher.status, (size_t)size);
    return has_as_much(launcher.status, (size_t)size) && is_in_our_user_namespace(process);
}

/* Its caller's ----------------------------------------------------------------------------------*/

/* An exec as root gives back every capability, a real id of root likewise: take the rights that
 * the caller's effective ids and capabilities have, for good. */
static long take_rights_of_caller(void)
{
    struct capability_header header = {CAPABILITY_VERSION_3, launcher.caller};
    struct capability_data data[2], own[2];
    long uid = sys(__NR_geteuid, 0), gid = sys(__NR_getegid, 0);
    long result = sys(__NR_capget, &header, data);
    header.pid = 0;
    if (result == 0)
        result = sys(__NR_capget, &header, own);
    if (result < 0)
        return result;
    for (int half = 0; half < 2; half++) {
        data[half].effective &= own[half].permitted; /* its bounding set may have less */
        data[half].permitted = data[half].effective;
        data[half].inheritable = 0;
    }
    bound_capabilities(data);
    result = sys(__NR_setresgid, gid, gid, gid);
    if (result == 0)
        result = sys(__NR_setresuid, uid, uid, uid);
    if (result == 0)
        result = sys(__NR_capset, &header, data);
    /* A change of ids makes the process dumpable again, by the sysctl. */
    return result < 0 ? result : sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* Who made the socket pair; no later owner of a copy can change that. */
static long identify_caller(void)
{
    struct ucred peer = {0, 0, 0};
    uint32_t size = sizeof peer;
    long result = sys(__NR_getsockopt, FD_CALLER, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    if (result < 0)
        return result;
    launcher.caller = peer.pid;
    return peer.pid > 0 ? 0 : -ESRCH;
}

/* The first message is the caller's status as it was before it started us. */
long remember_rights(void)
{
    long result = identify_caller();
    if (result == 0)
        result = receive_message(FD_CALLER, launcher.rights, STATUS_SIZE, 0, &launcher.message);
    if (result == 0 && launcher.message.sender != launcher.caller)
        result = -EPERM; /* SO_PASSCRED was set before it was sent */
    if (result == 0 && launcher.message.size == STATUS_SIZE)
        result = -E2BIG; /* cut: its end would not be compared */
    if (result < 0)
        return result;
    launcher.rights_size = extract_rights(launcher.rights, launcher.message.size);
    return take_rights_of_caller();
}

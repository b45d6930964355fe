/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges of 65536 host ids, numbered by their slot (host id >> 16), which no two containers of the
 * machine have at once: a slot is a byte of a file that every launcher of root locks. The lock
 * belongs to the open file, and only the launcher ever has that file open: it ends with the
 * launcher, however that ends. What a container gives back stays locked for the next one.
 */
#include "state.h"

/* What REQUEST_LEASE said, and what is locked. */
static struct {
    int file; /* kept open: closing it would give every range back */
    uint32_t first, count, next;
    uint32_t free_count;
    uint16_t free[MAX_CONTAINERS];
    uint8_t locked[(MAX_SLOT + 1) / 8];
} leases = {.file = -1};

static long lock_slot(uint32_t slot)
{
    struct flock_record lock = {.type = F_WRLCK, .start = slot, .length = 1};
    return sys(__NR_fcntl, leases.file, F_OFD_SETLK, &lock);
}

static long lock_another(void)
{
    for (uint32_t i = 0; i < leases.count; i++) {
        uint32_t slot = leases.first + (leases.next - leases.first + i) % leases.count;
        long result;
        if (leases.locked[slot / 8] >> slot % 8 & 1)
            continue;
        result = lock_slot(slot);
        if (result == -EAGAIN || result == -EACCES)
            continue;
        if (result < 0)
            return result;
        leases.locked[slot / 8] |= (uint8_t)(1u << slot % 8);
        leases.next = slot;
        return slot;
    }
    return -EAGAIN;
}

long take_slot(void)
{
    if (leases.file < 0)
        return -EINVAL;
    return leases.free_count > 0 ? leases.free[--leases.free_count] : lock_another();
}

/* As many as there are containers, so there is room. */
void give_slot(int32_t slot)
{
    if (slot >= 0 && leases.free_count < MAX_CONTAINERS)
        leases.free[leases.free_count++] = (uint16_t)slot;
}

static long open_leases(const struct lease *lease, const uint8_t *bytes)
{
    long slot;
    if (leases.file < 0) {
        long fd = sys(__NR_openat, AT_FDCWD, string_at(bytes, lease->path),
                      O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
            return fd;
        leases.file = (int)fd;
    }
    leases.first = lease->first;
    leases.count = lease->count;
    leases.next = lease->start;
    slot = take_slot();
    if (slot >= 0)
        give_slot((int32_t)slot);
    return slot;
}

void handle_lease(size_t size)
{
    const struct lease *lease = (const struct lease *)launcher.buffer;
    struct report report = {.kind = REPORT_LEASED, .row = -1};
    long result = check_lease(lease, launcher.buffer, size);
    if (result == 0)
        result = open_leases(lease, launcher.buffer);
    report.value = (int32_t)result;
    if (result < 0)
        report_failure(launcher.message.fds[0], STEP_LEASE, result);
    else
        send_report(launcher.message.fds[0], &report, -1);
    close_fds(launcher.message.fds, launcher.message.fd_count);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* SOCK_SEQPACKET messages with file descriptors, both ways. */
#include "internal.h"

/* Exactly what the kernel can pass in one message (SCM_MAX_FD), and the credentials. */
#define ALIGNED(size) (((size) + sizeof(size_t) - 1) / sizeof(size_t) * sizeof(size_t))
enum {
    RIGHTS_SIZE = ALIGNED(sizeof(struct cmsghdr) + MOST_FDS * sizeof(int)),
    CONTROL_SIZE = RIGHTS_SIZE + ALIGNED(sizeof(struct cmsghdr) + sizeof(struct ucred))
};

void close_fds(int *fds, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (fds[i] >= 0)
            (void)close_fd(fds[i]); /* nothing can be done about an fd that will not close */
        fds[i] = -1;
    }
}

/* The kernel writes the control data; a length that cannot be its ends it all the same. */
static void read_control(const uint8_t *control, size_t size, struct message *message)
{
    size_t at = 0;
    while (at + sizeof(struct cmsghdr) <= size) {
        const struct cmsghdr *header = (const struct cmsghdr *)(control + at);
        size_t length = header->length - sizeof *header;
        if (header->length < sizeof *header || header->length > size - at)
            return;
        if (header->level == SOL_SOCKET && header->type == SCM_RIGHTS &&
            length <= sizeof message->fds) {
            message->fd_count = (uint32_t)(length / sizeof(int));
            memcpy(message->fds, header + 1, message->fd_count * sizeof(int));
        } else if (header->level == SOL_SOCKET && header->type == SCM_CREDENTIALS &&
                   length >= sizeof(struct ucred)) {
            message->sender = ((const struct ucred *)(header + 1))->pid;
        }
        at += ALIGNED(header->length);
    }
}

/* Returns 0, or -EPIPE at the end of the other side. Anything cut short is -E2BIG with its fds
 * already closed, but for the first, which tells whom to answer. */
long receive_message(int socket, void *buffer, size_t size, int flags, struct message *message)
{
    _Alignas(8) uint8_t control[CONTROL_SIZE];
    struct iovec iov = {buffer, size};
    struct msghdr header = {
        .iov = &iov, .iov_count = 1, .control = control, .control_length = sizeof control};
    long result;
    message->fd_count = 0;
    message->sender = 0;
    message->size = 0;
    do
        result = sys(__NR_recvmsg, socket, &header, flags | MSG_CMSG_CLOEXEC);
    while (result == -EINTR);
    if (result < 0)
        return result;
    read_control(control, header.control_length, message);
    if (result == 0 && message->fd_count == 0)
        return -EPIPE;
    message->size = (size_t)result;
    if ((header.flags & (MSG_CTRUNC | MSG_TRUNC)) == 0)
        return 0;
    if (message->fd_count > 1)
        close_fds(message->fds + 1, message->fd_count - 1);
    message->fd_count = message->fd_count > 0;
    return -E2BIG;
}

long send_message(int socket, const void *data, size_t size, const int *fds, uint32_t fd_count)
{
    _Alignas(8) uint8_t control[CONTROL_SIZE];
    struct iovec iov = {(void *)(uintptr_t)data, size};
    struct msghdr header = {.iov = &iov, .iov_count = 1};
    long result;
    if (fd_count > MAX_FDS)
        return -E2BIG;
    if (fd_count > 0) {
        struct cmsghdr *rights = (struct cmsghdr *)control;
        rights->length = sizeof *rights + fd_count * sizeof(int);
        rights->level = SOL_SOCKET;
        rights->type = SCM_RIGHTS;
        memcpy(rights + 1, fds, fd_count * sizeof(int));
        header.control = control;
        header.control_length = ALIGNED(rights->length);
    }
    do
        result = sys(__NR_sendmsg, socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (result == -EINTR);
    return result < 0 ? result : 0;
}

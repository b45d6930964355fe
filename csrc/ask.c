/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the extension module says to the launcher in the hot path, and hears of it: a call each, as
 * what goes back and forth between interpreter and kernel costs more than what the kernel does.
 */
#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* In a program that closed its fds 0 to 2 ours would get these numbers. */
static int move_above_stdio(int fd)
{
    int copy;
    if (fd > 2)
        return fd;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    return copy; /* or -1 */
}

static void take_fds(struct msghdr *message, struct answer *answer)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    answer->fd_count = 0;
    if (header == NULL || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        return;
    answer->fd_count = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int32_t));
    memcpy(answer->fds, CMSG_DATA(header), answer->fd_count * sizeof(int32_t));
    for (uint32_t i = 0; i < answer->fd_count; i++)
        answer->fds[i] = move_above_stdio(answer->fds[i]);
}

static int receive(int channel, int flags, struct answer *answer)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(ANSWER_FDS * sizeof(int32_t))];
    } control;
    struct iovec iov = {&answer->report, sizeof answer->report};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(channel, &message, flags | MSG_CMSG_CLOEXEC);
    if (size < 0)
        return -errno;
    take_fds(&message, answer);
    answer->word = -EAGAIN;
    return size == sizeof answer->report ? 0 : -EPIPE;
}

int hear(int channel, int timeout, struct answer *ret_answer)
{
    struct pollfd poller = {.fd = channel, .events = POLLIN};
    if (timeout > 0 && poll(&poller, 1, timeout) < 0)
        return -errno;
    return receive(channel, timeout >= 0 ? MSG_DONTWAIT : 0, ret_answer);
}

int await_word(int pipe)
{
    char byte;
    ssize_t size = read(pipe, &byte, 1);
    return size < 0 ? -errno : (int)size;
}

int ask(int channel, const void *request, uint64_t size, struct answer *ret_answer)
{
    ssize_t sent;
    int result;
    do
        sent = send(channel, request, size, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == ECONNRESET ? -EPIPE : -errno;
    result = receive(channel, 0, ret_answer);
    if (result == 0 && ret_answer->fd_count == ANSWER_FDS)
        ret_answer->word = await_word(ret_answer->fds[ANSWER_FDS - 1]);
    return result;
}

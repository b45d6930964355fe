/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines: what makes one command after the other cheap (START_STREAMS). A pipe, a socket pair and
 * what passes their ends from process to process cost as much as a third of a command. So the
 * launcher makes the streams, which a spare child has before it is asked for; and the channel of a
 * command that has ended stays: a request on it needs no fds at all. A line belongs to a container
 * and goes with it; what is asked on it is checked like any other request.
 *
 * Where the filter lets it (START_FILTER_AHEAD), such a command tells by itself that it runs, and
 * nobody waits until the launcher has heard of that and has its turn: one more pipe has its other
 * end in the child only and is closed by execve, or by death; of a failure it says so first, and
 * then the caller waits for the launcher's report. One that is killed before execve is as good as
 * one that is killed behind it.
 */
#include "state.h"

static long make_pipe(int *ret_ours, int *ret_childs)
{
    int ends[2];
    long result = sys(__NR_pipe2, ends, O_CLOEXEC);
    if (result < 0)
        return result;
    *ret_ours = ends[0];
    *ret_childs = ends[1];
    return 0;
}

/* What was made before a failure, close_request() closes. */
long make_streams(struct request *request)
{
    long result;
    if ((request->start->flags & START_STREAMS) == 0)
        return 0;
    result = sys(__NR_openat, AT_FDCWD, "/dev/null", O_RDONLY | O_CLOEXEC);
    if (result < 0)
        return result;
    request->stdio[0] = (int)result;
    result = make_pipe(&request->streams[0], &request->stdio[1]);
    if (result == 0)
        result = make_pipe(&request->streams[1], &request->stdio[2]);
    if (result == 0 && request->start->flags & START_FILTER_AHEAD)
        result = make_pipe(&request->streams[2], &request->word);
    return result;
}

void take_streams(struct container *container, struct request *request)
{
    for (int i = 0; i < STREAM_COUNT; i++) {
        container->streams[i] = request->streams[i];
        request->streams[i] = -1;
    }
    container->tells_itself = container->streams[STREAM_COUNT - 1] >= 0;
}

/* From now on the kernel notes who sends on it: see check_rights(). */
long open_line(const struct request *request)
{
    int on = 1;
    if ((request->start->flags & START_STREAMS) == 0)
        return 0;
    return sys(__NR_setsockopt, request->channel, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
}

/* A command that has ended, while its container has not. */
int become_line(struct container *container)
{
    if (is_claimed() || /* its clients are looked at on sockets of their own: clients.c */
        (container->flags & START_STREAMS) == 0 || container->channel < 0 || launcher.ending ||
        launcher.retired || find_container(container->target) == NULL)
        return 0;
    container->phase = PHASE_LINE;
    container->pid = 0;
    launcher.alive--;
    return 1;
}

static void drop_line(struct container *line)
{
    close_watched(&line->channel);
    line->phase = PHASE_FREE;
}

/* The line becomes the channel of the new command. */
void handle_line(struct container *line)
{
    struct message *message = &launcher.message;
    uint32_t op = 0;
    long result = receive_message(line->channel, launcher.buffer, sizeof launcher.buffer,
                                  MSG_DONTWAIT, message);
    if (result == -EAGAIN)
        return;
    if (result == 0)
        result = check_rights(message->sender); /* before anything else is looked at */
    if (result == 0 && message->size >= sizeof(struct start) && message->fd_count == 0)
        memcpy(&op, launcher.buffer, sizeof op);
    if (op != REQUEST_EXEC) {
        close_fds(message->fds, message->fd_count);
        if (result != -EPIPE) /* its other end is there */
            report_failure(line->channel, result < 0 ? STEP_RIGHTS : STEP_REQUEST,
                           result < 0 ? result : -EINVAL);
        drop_line(line);
        return;
    }
    (void)sys(__NR_epoll_ctl, launcher.epoll, EPOLL_CTL_DEL, line->channel, 0); /* it is there */
    message->fds[0] = line->channel;
    message->fd_count = 1;
    line->channel = -1;
    line->phase = PHASE_FREE;
    handle_start(message, REQUEST_EXEC);
}

/* Their container has ended. */
void drop_lines(uint32_t target)
{
    for (uint32_t i = 0; i < launcher.highest; i++)
        if (launcher.containers[i].phase == PHASE_LINE && launcher.containers[i].target == target)
            drop_line(&launcher.containers[i]);
}

/* Commands that run on: give back what was theirs before they did. */
void watch_late(void)
{
    for (uint32_t i = 0; i < launcher.highest && launcher.unwatched > 0; i++) {
        struct container *container = &launcher.containers[i];
        if (container->phase == PHASE_FREE || !container->unwatched)
            continue;
        container->unwatched = 0;
        launcher.unwatched--;
        (void)watch(container->sync, EVENT_SYNC, i); /* else at its end */
    }
}

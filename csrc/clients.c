/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who connects to a detached container. A client's socket takes requests (REQUEST_EXEC) and
 * commands, and reports the end.
 *
 * Nobody gets more rights by it than it has. The socket says which pid connected; of that process
 * the directory in /proc is opened, which never is another's, and only then the client is told to
 * speak. Each message says which pid has sent it: while the directory can still be read, that is
 * the very process, whose rights are then compared with ours, for every message. A process that
 * said something before is refused: who had its pid then is not known.
 */
#include "state.h"

enum { MOST_CLIENTS = 64 };

struct client {
    int socket; /* 0: free */
    int process;
    int pid;
    int follows;
    int starts; /* the program that was run after an end */
};

static struct client clients[MOST_CLIENTS];
static int listener;

long open_clients(int socket)
{
    long result = sys(__NR_listen, socket, MOST_CLIENTS);
    listener = socket;
    return result < 0 ? result : watch(listener, EVENT_LISTENER, 0);
}

static void drop_client(struct client *client)
{
    close_watched(&client->socket);
    if (client->process > 0)
        (void)close_fd(client->process);
    *client = (struct client){0};
}

static long say_hello(const struct client *client, int error)
{
    struct hello hello = {.error = error};
    int fds[2];
    uint32_t count = 0;
    if (error == 0)
        describe_main(&hello, fds, &count);
    return send_message(client->socket, &hello, sizeof hello, fds, count);
}

static int has_spoken(const struct client *client)
{
    struct pollfd_record poll = {.fd = client->socket, .events = POLLIN};
    struct timespec_pair now = {0, 0};
    return sys(__NR_ppoll, &poll, 1, &now, 0, 0) != 0;
}

static long meet(struct client *client)
{
    char path[PROC_PATH_SIZE];
    int on = 1;
    long result = sys(__NR_setsockopt, client->socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    if (result < 0)
        return result;
    (void)append_number(append(path, "/proc/"), (uint32_t)client->pid); /* the end is of no use */
    result = sys(__NR_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (result < 0)
        return result;
    client->process = (int)result;
    if (has_spoken(client) || !has_our_rights(client->process))
        return -EPERM;
    return watch(client->socket, EVENT_CLIENT, (uint32_t)(client - clients));
}

/* The socket is ours from here on. */
long add_client(int socket, int pid, int starts)
{
    struct client *client = NULL;
    long result;
    for (uint32_t i = 0; i < MOST_CLIENTS && client == NULL; i++)
        if (clients[i].socket == 0)
            client = &clients[i];
    if (client == NULL) {
        (void)close_fd(socket);
        return -EAGAIN;
    }
    *client = (struct client){.socket = socket, .pid = pid, .starts = starts};
    result = meet(client);
    if (result == 0)
        result = say_hello(client, 0);
    else
        (void)say_hello(client, (int)-result); /* then it has to guess */
    if (result < 0)
        drop_client(client);
    return result;
}

void handle_listener(void)
{
    struct ucred peer = {0, 0, 0};
    uint32_t size = sizeof peer;
    long socket = sys(__NR_accept4, listener, 0, 0, SOCK_CLOEXEC);
    if (socket < 0)
        return; /* it went, or we are out of fds: it waits until we have one */
    if (sys(__NR_getsockopt, socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid <= 0)
        (void)close_fd((int)socket); /* of another PID namespace */
    else
        (void)add_client((int)socket, peer.pid, 0); /* what is wrong is told there */
}

static void take_command(struct client *client)
{
    struct command command;
    if (launcher.message.size != sizeof command)
        return;
    memcpy(&command, launcher.buffer, sizeof command);
    if (command.op == COMMAND_SIGNAL || command.op == COMMAND_STOP)
        command_main(command.op, command.value);
    else if (command.op == COMMAND_FOLLOW)
        client->follows = 1;
}

/* Into this container only, and another one by who is to start it again. */
static void take_request(const struct client *client)
{
    struct message *message = &launcher.message;
    const struct start *start = (const struct start *)launcher.buffer;
    uint32_t op = 0;
    if (message->size >= sizeof op)
        memcpy(&op, launcher.buffer, sizeof op);
    if (op == REQUEST_EXEC && message->size >= sizeof *start && start->target != 0) {
        handle_start(message, op);
    } else if (op == REQUEST_START && client->starts) {
        handle_start(message, op);
    } else if (op == REQUEST_DETACH && client->starts) {
        handle_detach(message->size);
    } else {
        report_failure(message->fds[0], STEP_REQUEST, -EPERM);
        close_fds(message->fds, message->fd_count);
    }
}

void handle_client(uint32_t slot)
{
    struct client *client = &clients[slot];
    struct message *message = &launcher.message;
    long result;
    if (client->socket <= 0)
        return;
    result = receive_message(client->socket, launcher.buffer, sizeof launcher.buffer, MSG_DONTWAIT,
                             message);
    if (result == -EAGAIN)
        return;
    if (result < 0 || message->sender != client->pid || !has_our_rights(client->process)) {
        if (message->fd_count > 0)
            report_failure(message->fds[0], STEP_RIGHTS, result < 0 ? result : -EPERM);
        close_fds(message->fds, message->fd_count);
        drop_client(client);
    } else if (message->fd_count > 0) {
        take_request(client);
    } else {
        take_command(client);
    }
}

void tell_clients(const struct report *report, int fd)
{
    for (uint32_t i = 0; i < MOST_CLIENTS; i++)
        if (clients[i].socket > 0)
            send_report(clients[i].socket, report, fd);
}

void tell_followers(void)
{
    const struct report report = {.kind = REPORT_LOGGED, .row = -1};
    for (uint32_t i = 0; i < MOST_CLIENTS; i++) {
        if (!clients[i].follows)
            continue;
        clients[i].follows = 0;
        send_report(clients[i].socket, &report, -1);
    }
}

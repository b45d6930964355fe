/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spares: blank children for REQUEST_EXEC. Half of an exec is to make a process in the namespaces
 * of a container with the rights that it is to have, and none of that depends on the program. So in
 * idle moments after an exec one is made ahead for the next of its kind. It waits at STEP_HANDOVER,
 * with every right of ours given up, serves once, and goes when nothing is run for a while.
 *
 * The container sees it wait: like every other newcomer it is in no namespace of the host's and not
 * dumpable, and holds no fd but the socket on which it waits and the streams of the command. Where
 * the filter allows all that is left to do, it waits under that. It can be stopped or killed from
 * inside, as what is to be run can be. Signals that were sent to it meanwhile are not the
 * program's.
 */
#include "state.h"

enum { MOST_SPARES = 4, MOST_DATA = 8192 };

/* What the steps up to STEP_HANDOVER look at: a request without a program. */
struct description {
    size_t size;
    _Alignas(8) uint8_t bytes[sizeof(struct start) + MOST_DATA];
};

struct spare {
    struct description kind;
    struct container *container;
    uint32_t last_use;
    int wanted;
};

static struct spare spares[MOST_SPARES];
static uint32_t uses;

/* Of the filter that a spare waits under. */
static size_t filter_size(const struct start *start)
{
    return start->flags & START_FILTER_AHEAD ? start->filter.count * FILTER_SIZE : 0;
}

/* What it gets only with the request it could not make its own any more (see take_pipes()). Where
 * the launcher has the rights for it, that does. */
static int takes_pipes(const struct start *start)
{
    return start->pipes != 0 &&
           (start->flags & (START_MAP_BY_PROGRAM | START_STREAMS)) == START_MAP_BY_PROGRAM;
}

/* Only what has a user namespace, where no right of the launcher's counts, and dies with a PID
 * namespace. Not in a control group, where it would count. Not what is done before a child joins
 * the container, and not a filter that is loaded before the ids change, or has a listener. */
static int may_be_spare(const struct request *request)
{
    enum {
        NEEDED = START_FRESH_USER | START_NO_NEW_PRIVS,
        UNFIT = START_CHROOT | START_NICE | START_OOM_SCORE | START_TERMINAL
    };
    const struct start *start = request->start;
    const struct container *target = find_container(start->target);
    size_t data = start->rlimits.count * sizeof(struct limit) +
                  start->groups.count * sizeof(uint32_t) + filter_size(start);
    return target != NULL && target->cgroup <= 0 && request->mapped == 0 && start->fail_step == 0 &&
           !takes_pipes(start) && (start->flags & (NEEDED | UNFIT)) == NEEDED &&
           start->cpus.count == 0 &&
           (start->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) == 0 &&
           start->clone_flags & CLONE_NEWPID && data < MOST_DATA &&
           *string_at(request->bytes, start->new_root) == 0;
}

static void copy_span(struct description *kind, struct span *to, const struct request *request,
                      struct span from, size_t item)
{
    *to = (struct span){(uint32_t)kind->size, from.count};
    memcpy(kind->bytes + kind->size, span_at(request->bytes, from), from.count * item);
    kind->size += from.count * item;
}

/* Equal for requests of a kind, byte by byte: what is not set is 0. */
static void describe(const struct request *request, struct description *kind)
{
    const struct start *from = request->start;
    struct start *to = (struct start *)kind->bytes;
    memset(kind, 0, sizeof *kind);
    kind->size = sizeof *to;
    to->op = REQUEST_EXEC;
    to->flags = from->flags;
    to->clone_flags = from->clone_flags;
    to->target = from->target;
    to->uid = from->uid;
    to->gid = from->gid;
    to->umask = from->umask;
    to->bounding = from->bounding;
    to->effective = from->effective;
    to->permitted = from->permitted;
    to->inheritable = from->inheritable;
    to->ambient = from->ambient;
    copy_span(kind, &to->rlimits, request, from->rlimits, sizeof(struct limit));
    copy_span(kind, &to->groups, request, from->groups, sizeof(uint32_t));
    if (from->flags & START_FILTER_AHEAD) {
        to->filter_flags = from->filter_flags;
        copy_span(kind, &to->filter, request, from->filter, FILTER_SIZE);
    }
    if (from->flags & START_STREAMS) {
        to->pipes = from->pipes;
        to->pipe_uid = from->pipe_uid;
        to->pipe_gid = from->pipe_gid;
    }
    to->new_root = (uint32_t)kind->size++; /* "": there is room, and it is 0 */
    to->size = (uint32_t)kind->size;
}

static struct spare *find_spare(const struct description *kind)
{
    for (int i = 0; i < MOST_SPARES; i++)
        if (spares[i].kind.size == kind->size &&
            memcmp(spares[i].kind.bytes, kind->bytes, kind->size) == 0)
            return &spares[i];
    return NULL;
}

/* The place of a new kind: the one that was not used for the longest time. */
static struct spare *replace_spare(const struct description *kind)
{
    struct spare *oldest = &spares[0];
    for (int i = 1; i < MOST_SPARES; i++)
        if (spares[i].last_use < oldest->last_use)
            oldest = &spares[i];
    if (oldest->container != NULL)
        drop_child(oldest->container);
    oldest->container = NULL;
    memcpy(&oldest->kind, kind, sizeof *kind);
    return oldest;
}

/* One that waits for such a request, if there is one; and a wish for the next. */
struct container *take_spare(const struct request *request)
{
    struct description kind;
    struct container *container;
    struct spare *spare;
    if (!may_be_spare(request))
        return NULL;
    describe(request, &kind);
    spare = find_spare(&kind);
    if (spare == NULL)
        spare = replace_spare(&kind);
    spare->last_use = ++uses;
    spare->wanted = 1;
    container = spare->container;
    /* One that is not there yet will be; one that was killed does not take what it is sent. */
    if (container == NULL || container->arena->progress.error != 0)
        return NULL;
    spare->container = NULL;
    return container;
}

/* As forget_blank() has it. */
void forget_spare(const struct container *container)
{
    for (int i = 0; i < MOST_SPARES; i++) {
        if (spares[i].container != container)
            continue;
        spares[i].container = NULL;
        spares[i].wanted = 0;
    }
}

void drop_spares(void)
{
    for (int i = 0; i < MOST_SPARES; i++) {
        struct container *container = spares[i].container;
        spares[i].container = NULL;
        spares[i].wanted = 0;
        if (container != NULL)
            drop_child(container);
    }
}

int has_spare(void)
{
    for (int i = 0; i < MOST_SPARES; i++)
        if (spares[i].container != NULL)
            return 1;
    return 0;
}

static struct spare *find_lack(void)
{
    for (int i = 0; i < MOST_SPARES; i++)
        if (spares[i].wanted && spares[i].container == NULL)
            return &spares[i];
    return NULL;
}

int lacks_spare(void)
{
    return find_lack() != NULL;
}

void make_spare(void)
{
    struct spare *spare = find_lack();
    struct progress progress = {.row = -1};
    struct arena *arena = take_arena();
    struct container *container;
    spare->wanted = 0; /* until it is there */
    if (arena == NULL)
        return;
    memcpy(arena->bytes, spare->kind.bytes, spare->kind.size);
    prepare_request(&arena->request, arena->bytes);
    if (clone_spare(arena, &progress, &container) < 0) {
        release_arena(arena);
        return;
    }
    spare->container = container;
    spare->wanted = 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blank children. A third of a start is the making of namespaces, above all of the network
 * namespace, and none of it depends on the container. So in idle moments a child is made ahead for
 * each kind of container that was asked for lately: namespaces, ids, session, loopback, up to
 * STEP_HANDOVER, where it waits for a request of its kind and goes on as any other child does. It
 * serves once. A launcher that has had nothing to do for a while lets them go.
 */
#include "state.h"

enum { MOST_KINDS = 4, MAPS_SIZE = 256 };

/* In milliseconds: while something starts, so as not to be in its way; without any event. */
enum { REFILL_PATIENCE = 2, IDLE_PATIENCE = 250 };

/* What a child's steps up to STEP_HANDOVER look at. */
enum {
    BLANK_FLAGS = START_FRESH_USER | START_DENY_SETGROUPS | START_LOOPBACK | START_SHARE_MEMORY |
                  START_LEASE | START_CGROUP
};

struct kind {
    uint64_t clone_flags;
    uint32_t flags;
    uint32_t uid_size, gid_size;
    uint8_t maps[MAPS_SIZE]; /* of uids, then of gids */
    struct container *blank;
    uint32_t last_use;
    int wanted;
};

static struct kind kinds[MOST_KINDS];
static uint32_t uses;

/* Only with a user namespace of its own: without one a blank child would be a process with the
 * rights of the launcher. Only with a PID namespace of its own, where nobody else sees it wait.
 * Clocks are set before the first process of a time namespace. */
static int may_be_blank(const struct request *request)
{
    const struct start *start = request->start;
    return request->mapped == 0 && start->fail_step == 0 && start->flags & START_FRESH_USER &&
           (start->flags & (START_MAP_BY_PROGRAM | START_OOM_SCORE)) == 0 &&
           start->joined.count == 0 && start->clone_flags & CLONE_NEWUSER &&
           start->clone_flags & CLONE_NEWPID && (start->clone_flags & CLONE_NEWTIME) == 0 &&
           (size_t)start->uid_map.count + start->gid_map.count <= MAPS_SIZE;
}

static int is_of_kind(const struct request *request, const struct kind *kind)
{
    const struct start *start = request->start;
    return kind->clone_flags == start->clone_flags && kind->flags == (start->flags & BLANK_FLAGS) &&
           kind->uid_size == start->uid_map.count && kind->gid_size == start->gid_map.count &&
           memcmp(kind->maps, span_at(request->bytes, start->uid_map), kind->uid_size) == 0 &&
           memcmp(kind->maps + kind->uid_size, span_at(request->bytes, start->gid_map),
                  kind->gid_size) == 0;
}

static struct kind *find_kind(const struct request *request)
{
    for (int i = 0; i < MOST_KINDS; i++)
        if (is_of_kind(request, &kinds[i]))
            return &kinds[i];
    return NULL;
}

/* A child that failed or was killed meanwhile is no use; its end is on its way to us. */
int is_well(const struct container *blank)
{
    struct pollfd_record poll = {.fd = blank->sync};
    struct {
        int64_t seconds, nanoseconds;
    } now = {0, 0};
    if (blank->phase != PHASE_BLANK || blank->arena->progress.error != 0)
        return 0;
    return sys(__NR_ppoll, &poll, 1, &now, 0, 0) == 0;
}

struct container *take_blank(const struct request *request)
{
    struct kind *kind = may_be_blank(request) ? find_kind(request) : NULL;
    struct container *blank = kind == NULL ? NULL : kind->blank;
    if (blank == NULL || !is_well(blank))
        return NULL;
    kind->blank = NULL;
    return blank;
}

/* It died. Another one would as well, and at once: not before the next start of its kind. */
void forget_blank(const struct container *blank)
{
    for (int i = 0; i < MOST_KINDS; i++) {
        if (kinds[i].blank != blank)
            continue;
        kinds[i].blank = NULL;
        kinds[i].wanted = 0;
    }
}

void drop_child(struct container *blank)
{
    kill_container(blank, SIGKILL);
    if (sys(__NR_wait4, blank->pid, 0, WALL, 0) == blank->pid)
        free_container(blank);
}

static void drop_blank(struct kind *kind)
{
    kind->wanted = 0;
    if (kind->blank != NULL)
        drop_child(kind->blank);
}

void drop_blanks(void)
{
    for (int i = 0; i < MOST_KINDS; i++)
        drop_blank(&kinds[i]);
    drop_spares();
}

/* The place of a new kind: the one that was not used for the longest time. */
static struct kind *replace_kind(const struct request *request)
{
    const struct start *start = request->start;
    struct kind *oldest = &kinds[0];
    for (int i = 1; i < MOST_KINDS; i++)
        if (kinds[i].last_use < oldest->last_use)
            oldest = &kinds[i];
    drop_blank(oldest);
    *oldest = (struct kind){.clone_flags = start->clone_flags,
                            .flags = start->flags & BLANK_FLAGS,
                            .uid_size = start->uid_map.count,
                            .gid_size = start->gid_map.count};
    memcpy(oldest->maps, span_at(request->bytes, start->uid_map), oldest->uid_size);
    memcpy(oldest->maps + oldest->uid_size, span_at(request->bytes, start->gid_map),
           oldest->gid_size);
    return oldest;
}

void remember_kind(const struct request *request)
{
    struct kind *kind;
    if (is_claimed() || !may_be_blank(request))
        return;
    kind = find_kind(request);
    if (kind == NULL)
        kind = replace_kind(request);
    kind->last_use = ++uses;
    kind->wanted = 1;
}

static struct kind *find_lack(void)
{
    for (int i = 0; i < MOST_KINDS; i++)
        if (kinds[i].wanted && kinds[i].blank == NULL)
            return &kinds[i];
    return NULL;
}

/* For how long to wait for an event before make_blanks(): milliseconds, -1 for ever. */
int blank_patience(int busy)
{
    if (launcher.ending || launcher.retired)
        drop_blanks();
    if (find_lack() != NULL || lacks_spare())
        return busy ? REFILL_PATIENCE : 0;
    if (launcher.unwatched > 0)
        return REFILL_PATIENCE;
    for (int i = 0; i < MOST_KINDS; i++)
        if (kinds[i].blank != NULL)
            return IDLE_PATIENCE;
    return has_spare() ? IDLE_PATIENCE : -1;
}

/* A request with what the first steps look at, and nothing else. */
static void write_request(struct arena *arena, const struct kind *kind)
{
    struct start *start = (struct start *)arena->bytes;
    uint32_t maps_at = sizeof *start;
    *start = (struct start){.op = REQUEST_START,
                            .flags = kind->flags,
                            .size = maps_at + kind->uid_size + kind->gid_size,
                            .clone_flags = kind->clone_flags,
                            .uid_map = {maps_at, kind->uid_size},
                            .gid_map = {maps_at + kind->uid_size, kind->gid_size}};
    memcpy(arena->bytes + maps_at, kind->maps, kind->uid_size + kind->gid_size);
    prepare_request(&arena->request, arena->bytes);
}

static void make_blank(struct kind *kind)
{
    struct progress progress = {.row = -1};
    struct arena *arena = take_arena();
    struct container *blank;
    kind->wanted = 0; /* until it is there: what fails once is not tried all day long */
    if (arena == NULL)
        return;
    write_request(arena, kind);
    if (clone_container(arena, &progress, &blank) < 0) {
        release_arena(arena);
        return;
    }
    blank->phase = PHASE_BLANK;
    if (map_child(&progress, blank) < 0) {
        kill_container(blank, SIGKILL);
        return;
    }
    kind->blank = blank;
    kind->wanted = 1;
}

/* Nothing happens: prepare for the next start, or, after a longer while, do not any more. */
void make_blanks(void)
{
    struct kind *lack = find_lack();
    if (launcher.unwatched > 0)
        watch_late();
    else if (lack != NULL)
        make_blank(lack);
    else if (lacks_spare())
        make_spare();
    else
        drop_blanks();
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the launcher reads from outside, as a hosted program for sanitizers and fuzzers.
 *
 * The first byte of an input chooses the part, the rest is what that part reads, in memory of
 * exactly its size. Beside what the sanitizers see, everything that the launcher relies on after
 * a check has to be true: a broken promise aborts.
 *
 *     clang -fsanitize=fuzzer,address,undefined ... harness.c          a fuzzer
 *     gcc -fsanitize=address,undefined ... harness.c replay.c          runs the files it is given
 *
 * The sources are included, not linked, so that their static functions can be called. They bring
 * their own declarations of the kernel's interface, hence no header of libc here.
 */
#include "../../csrc/message.c"
#include "../../csrc/request.c"
#include "../../csrc/rights.c"
#include "../../csrc/spare.c"

void *malloc(size_t size);
void free(void *memory);
_Noreturn void abort(void);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct launcher launcher;

/* Every container is there; nothing else of the launcher's is reached. */
struct container *find_container(uint32_t serial)
{
    static struct container found;
    return serial == 0 ? NULL : &found;
}

void drop_child(struct container *blank)
{
    (void)blank;
    abort();
}

struct arena *take_arena(void)
{
    abort();
}

void release_arena(struct arena *arena)
{
    (void)arena;
    abort();
}

void prepare_request(struct request *request, uint8_t *bytes)
{
    (void)request, (void)bytes;
    abort();
}

long clone_spare(struct arena *arena, struct progress *progress, struct container **ret)
{
    (void)arena, (void)progress, (void)ret;
    abort();
}

static void promise(int kept)
{
    if (!kept)
        abort();
}

/* Reads every byte of it: the sanitizer sees one that is not there. */
static size_t read_all(const void *data, size_t size)
{
    const volatile uint8_t *bytes = data;
    size_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += bytes[i];
    return sum;
}

static void read_string(const uint8_t *bytes, uint32_t offset)
{
    const volatile char *at = string_at(bytes, offset);
    while (*at != 0)
        at++;
}

static void read_span(const uint8_t *bytes, struct span span, size_t item)
{
    (void)read_all(span_at(bytes, span), span.count * item);
}

static void read_options(const uint8_t *bytes, struct span data)
{
    const char *at = span_at(bytes, data), *end = at + data.count;
    while (at < end) { /* as configure() of filesystem.c does */
        for (int half = 0; half < 2; half++) {
            promise(at < end);
            while (*at != 0)
                at++;
            at++;
        }
    }
    promise(at == end);
}

static void use_rows(const struct start *start, const uint8_t *bytes)
{
    const struct row *rows = span_at(bytes, start->rows);
    promise(start->root < start->rows.count && start->rows.count <= MAX_ROWS);
    for (uint32_t i = 0; i < start->rows.count; i++) {
        read_string(bytes, rows[i].target);
        read_string(bytes, rows[i].source);
        read_span(bytes, rows[i].data, 1);
        if (rows[i].op == ROW_MOUNT || (rows[i].op == ROW_BIND && rows[i].flags & ROW_PROCFS))
            read_options(bytes, rows[i].data);
        else if (rows[i].op == ROW_OVERLAY)
            read_string(bytes, rows[i].data.offset);
        promise(rows[i].base < i || (rows[i].base == 0 && (i == 0 || i == start->root)));
        promise(rows[i].source_fd < (int64_t)start->source_count);
    }
}

/* As make_vector() of child.c: offsets become pointers in place, up to a null pointer. */
static void use_vector(uint8_t *bytes, struct span span)
{
    uint64_t *slots = (uint64_t *)(bytes + span.offset);
    for (uint32_t i = 0; i < span.count; i++) {
        read_string(bytes, (uint32_t)slots[i]);
        slots[i] = (uint64_t)(uintptr_t)(bytes + slots[i]);
    }
    promise(slots[span.count] == 0);
}

/* What a start and an exec have in common. */
static void use_process(const struct start *copy, uint8_t *bytes)
{
    const uint32_t *programs = span_at(bytes, copy->programs);
    promise(copy->source_count <= MAX_SOURCES && copy->args.count > 0 && copy->programs.count > 0);
    promise((copy->clone_flags & ~(uint64_t)CLONE_NEW_ANY) == 0);
    read_span(bytes, copy->uid_map, 1);
    read_span(bytes, copy->gid_map, 1);
    read_span(bytes, copy->groups, sizeof(uint32_t));
    read_span(bytes, copy->cpus, 1);
    read_span(bytes, copy->passed, sizeof(uint32_t));
    promise(copy->passed.count <= MAX_PASSED);
    read_span(bytes, copy->joined, sizeof(uint32_t));
    promise(copy->joined.count <= MAX_JOINED);
    read_span(bytes, copy->clocks, 1);
    read_span(bytes, copy->rlimits, sizeof(struct limit));
    read_span(bytes, copy->filter, FILTER_SIZE);
    for (uint32_t i = 0; i < copy->rules.count; i++)
        read_string(bytes, ((const struct rule *)span_at(bytes, copy->rules))[i].path);
    read_string(bytes, copy->hostname);
    read_string(bytes, copy->domainname);
    read_string(bytes, copy->cwd);
    for (uint32_t i = 0; i < copy->programs.count; i++)
        read_string(bytes, programs[i]);
}

static void use_vectors(const struct start *copy, uint8_t *bytes)
{
    use_vector(bytes, copy->args);
    use_vector(bytes, copy->env);
    for (int i = 0; i < 2; i++) { /* as run_program() of mapper.c */
        struct span program = i == 0 ? copy->uid_program : copy->gid_program;
        promise(program.count != 1);
        if (program.count > 0)
            use_vector(bytes, program);
    }
}

static void read_start(uint8_t *bytes, size_t size)
{
    struct start *start = (struct start *)bytes;
    struct start copy;
    if (check_start(start, bytes, size) != 0)
        return;
    copy = *start;
    use_process(&copy, bytes);
    promise(copy.clone_flags & CLONE_NEWPID || copy.flags & START_CGROUP);
    use_rows(&copy, bytes);
    use_vectors(&copy, bytes);
}

/* As take_spare() of spare.c: what it keeps of one must fit, and be the same for what it keeps. */
static void describe_twice(struct start *start, uint8_t *bytes)
{
    static struct description kind, again;
    struct request request = {.start = start, .bytes = bytes};
    if (!may_be_spare(&request))
        return;
    describe(&request, &kind);
    promise(kind.size <= sizeof kind.bytes && kind.bytes[kind.size - 1] == 0);
    request = (struct request){.start = (struct start *)kind.bytes, .bytes = kind.bytes};
    promise(may_be_spare(&request));
    describe(&request, &again);
    promise(again.size == kind.size && memcmp(again.bytes, kind.bytes, kind.size) == 0);
}

static void read_exec(uint8_t *bytes, size_t size)
{
    struct start *start = (struct start *)bytes;
    struct start copy;
    if (check_exec(start, bytes, size) != 0)
        return;
    copy = *start;
    promise(copy.clone_flags != 0 && copy.rows.count == 0 && copy.passed.count == 0);
    promise(copy.source_count == (copy.target == 0));
    promise((copy.flags & (START_GATE | START_QUIET | START_CGROUP)) == 0);
    use_process(&copy, bytes);
    read_string(bytes, copy.new_root);
    describe_twice(start, bytes);
    use_vectors(&copy, bytes);
}

static void read_hook(uint8_t *bytes, size_t size)
{
    const struct start *start = (const struct start *)bytes;
    struct start copy;
    if (check_hook(start, bytes, size) != 0)
        return;
    copy = *start;
    promise(copy.clone_flags == 0 && copy.rows.count == 0 && copy.passed.count == 0);
    promise(copy.source_count == 0 && copy.joined.count == 0 && copy.target == 0);
    promise((copy.flags & START_FRESH_USER) == 0);
    use_process(&copy, bytes);
    use_vectors(&copy, bytes);
}

static void read_lease(uint8_t *bytes, size_t size)
{
    const struct lease *lease = (const struct lease *)bytes;
    if (check_lease(lease, bytes, size) != 0)
        return;
    read_string(bytes, lease->path);
    for (uint32_t i = 0; i < lease->count; i++) {
        uint32_t slot = lease->first + (lease->start - lease->first + i) % lease->count;
        promise(slot <= MAX_SLOT);
    }
}

static void read_message(uint8_t *bytes, size_t size)
{
    struct message message = {.size = 0};
    read_control(bytes, size, &message);
    promise(message.fd_count <= MOST_FDS);
    (void)read_all(message.fds, message.fd_count * sizeof(int));
}

static void read_rights(uint8_t *bytes, size_t size)
{
    size_t kept = extract_rights(bytes, size);
    promise(kept <= size);
    (void)read_all(bytes, kept);
    promise(kept == 0 || bytes[kept - 1] == '\n');
    promise(extract_rights(bytes, kept) == kept); /* nothing but rights is left */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const PARTS[])(uint8_t * bytes,
                                 size_t size) = {read_start, read_lease, read_message, read_rights,
                                                 read_exec,  read_hook,  read_message, read_rights};
    uint8_t *bytes;
    if (size < 1)
        return 0;
    bytes = malloc(size - 1);
    if (size > 1)
        memcpy(bytes, data + 1, size - 1);
    PARTS[data[0] % (sizeof PARTS / sizeof PARTS[0])](bytes, size - 1);
    free(bytes);
    return 0;
}

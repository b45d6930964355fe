/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of child.c, for those who go through some of them in another sequence. */
#ifndef CONTAINER_CHILD_H
#define CONTAINER_CHILD_H
#include "internal.h"

struct child_step {
    enum step step;
    long (*run)(struct child *child);
};

/* Do not return. */
void run_steps(struct child *child, const struct child_step *steps, size_t count);
void run_after(struct child *child, enum step step);

void prepare_child(struct child *child, struct arena *arena);
long close_all_but(const int *keep, uint32_t count);
long close_all_but_own(const struct child *child);
long die_with_launcher(const struct child *child);
long become_root_of_namespace(struct child *child);
long enter_session(struct child *child);
long set_rlimits(struct child *child);
long filter_early(struct child *child);
long filter_ahead(struct child *child);
long filter_last(struct child *child);
long drop_bounding(struct child *child);
long set_ids(struct child *child);
long set_capabilities(struct child *child);
long forbid_new_privileges(struct child *child);
long enter_cwd(struct child *child);
long start_init(struct child *child);
long place_fds(struct child *child);
long confine_by_rules(struct child *child);
long execute(struct child *child);

/* hooks.c */
long create_hooks(struct child *child);
long start_hooks(struct child *child);

/* listener.c */
long load_with_listener(struct child *child, const struct sock_fprog *program);

#endif

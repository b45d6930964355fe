/* SPDX-License-Identifier: Apache-2.0 */
/* clone3 and clone onto another stack. */
#ifndef CONTAINER_CLONE_H
#define CONTAINER_CLONE_H
#include "sys.h"

/* The clone runs function(argument) on `stack` and must not return from it; its result here is
 * clone3's. Inlined nowhere else than in C: between the call and the switch nothing may touch the
 * old stack, hence the assembly. */
static inline long clone_onto(struct clone_args *args, void *stack, size_t size,
                              void (*function)(void *), void *argument)
{
    args->stack = (uint64_t)(uintptr_t)stack;
    args->stack_size = size;
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[argument], %%rdi\n\t"
                     "call *%[function]\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)NR_CLONE3), "D"(args),
                       "S"(sizeof *args), [function] "r"(function), [argument] "r"(argument)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = NR_CLONE3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x0, %[argument]\n\t"
                     "blr %[function]\n\t"
                     "brk 1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), [function] "r"(function), [argument] "r"(argument)
                     : "memory");
    return x0;
#endif
}

/* The same by clone(2), which a filter may allow where it refuses clone3; it has fewer flags. */
static inline long clone_plainly(uint64_t flags, int *ret_pidfd, void *stack, size_t size,
                                 void (*function)(void *), void *argument)
{
    void *top = (uint8_t *)stack + size;
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[argument], %%rdi\n\t"
                     "call *%[function]\n\t"
                     "ud2\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)__NR_clone), "D"(flags), "S"(top),
                       "d"(ret_pidfd), [function] "r"(function), [argument] "r"(argument)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = (long)flags;
    register long x1 __asm__("x1") = (long)top;
    register long x2 __asm__("x2") = (long)ret_pidfd;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x0, %[argument]\n\t"
                     "blr %[function]\n\t"
                     "brk 1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), [function] "r"(function), [argument] "r"(argument)
                     : "memory");
    return x0;
#endif
}

#endif

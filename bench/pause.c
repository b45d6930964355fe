/* SPDX-License-Identifier: Apache-2.0 */
/* The first process of a container that commands are run in: waits until it is killed. No libc. */
__attribute__((used)) _Noreturn void _start(void);

/* ppoll(NULL, 0, NULL, NULL) */
static void wait_for_ever(void)
{
#if defined(__x86_64__)
    register long mask __asm__("r10") = 0;
    long number = 271;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(0L), "S"(0L), "d"(0L), "r"(mask)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long number __asm__("x8") = 73;
    register long fds __asm__("x0") = 0;
    register long count __asm__("x1") = 0;
    register long time __asm__("x2") = 0;
    register long mask __asm__("x3") = 0;
    __asm__ volatile("svc 0"
                     : "+r"(fds)
                     : "r"(number), "r"(count), "r"(time), "r"(mask)
                     : "memory");
#else
#error "ppoll of this architecture"
#endif
}

void _start(void)
{
    for (;;)
        wait_for_ever();
}

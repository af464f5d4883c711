/*
 * Preloaded into User-mode Linux: makes PTRACE_SETREGSET of NT_X86_XSTATE work where the CPU has AMX.
 *
 * User-mode Linux of the 6.1 series hands the kernel a buffer of the size that the XSAVE area had before AMX. The kernel
 * wants the whole area and refuses. So the present area is read first, the caller's bytes are laid over its beginning,
 * and the whole is written. A caller that brings the whole area loses nothing by this; every other request goes
 * straight to the system call.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	pid_t pid;
	void *address, *data;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);

	/* The system call stores a peeked word through its last argument; the C function returns it. */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word = -1;
		return syscall(SYS_ptrace, request, pid, address, &word) < 0 ? -1 : word;
	}
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
		static __thread char area[16384];
		struct iovec *given = data, whole = { area, sizeof(area) };
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &whole) == 0 && given->iov_len <= whole.iov_len) {
			memcpy(area, given->iov_base, given->iov_len);
			return syscall(SYS_ptrace, request, pid, address, &whole);
		}
	}
	return syscall(SYS_ptrace, request, pid, address, data);
}

"""Give up what a submission's process does not need: a seccomp filter, and a limit of memory.

The filter ends in "operation not permitted" for sockets, new processes, other programs, and looking
into or signalling other processes. Threads stay allowed. man 2 seccomp; the numbers are the
kernel's, of x86-64 and arm64.
"""

import ctypes
import errno
import platform
import resource
import struct
from pathlib import Path

NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld abs, jeq, jset, ret
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD = 0x10000
MACHINES = {
    "x86_64": {
        "architecture": 0xC000003E,
        "clone": 56,
        # socket socketpair fork vfork execve kill ptrace tkill inotify_init inotify_init1
        # process_vm_readv process_vm_writev execveat io_uring_setup pidfd_open unshare bpf
        "refused": (
            *(41, 53, 57, 58, 59, 62, 101, 200, 253, 294),
            *(310, 311, 322, 425, 434, 272, 321),
        ),
    },
    "aarch64": {
        "architecture": 0xC00000B7,
        "clone": 220,
        "refused": (198, 199, 221, 129, 117, 130, 26, 270, 271, 281, 425, 434, 97, 280),
    },
}
CLONE3 = 435  # refused as unknown: the C library then makes threads by clone, whose flags are seen


def filter_system_calls() -> bool:
    """Install the filter for this process and its threads; False where the system has none."""
    machine = MACHINES.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    program = b"".join(struct.pack("<HBBI", *step) for step in _steps(machine))
    code = ctypes.create_string_buffer(program)
    pointer = ctypes.cast(code, ctypes.c_void_p).value
    head = struct.pack("@HxxxxxxP", len(program) // 8, pointer)  # struct sock_fprog
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(SET_SECCOMP, FILTER, ctypes.create_string_buffer(head), 0, 0) == 0


def _steps(machine: dict) -> list[tuple[int, int, int, int]]:
    """The BPF program: (code, steps to jump if true, if false, constant)."""
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, machine["architecture"]),
        refuse,
        (LOAD, 0, 0, NUMBER),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
    ]
    for number in machine["refused"]:
        steps += [(JUMP_EQUAL, 0, 1, number), refuse]
    if machine["architecture"] == MACHINES["x86_64"]["architecture"]:
        steps += [(JUMP_SET, 0, 1, 0x40000000), refuse]  # the x32 names of the same calls
    return [
        *steps,
        (JUMP_EQUAL, 0, 3, machine["clone"]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_SET, 1, 0, CLONE_THREAD),
        refuse,
        (RETURN, 0, 0, ALLOW),
    ]


def limit_memory(more: int) -> bool:
    """Let the process take `more` bytes beyond what it has now; False where that is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return False
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return True

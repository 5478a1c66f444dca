"""The system calls that a sandboxed program may not make, as a filter for the kernel (seccomp(2), classic BPF).

Namespaces take files, network and processes out of a program's sight. The filter adds what they leave: no second
process or thread (a limit on processes would not bind root, and would count the user's other ones), no sockets, no
memory that no limit counts, and none of the rarely used parts of the kernel where its holes are found.
"""

import platform
import struct

# Numbers of x86_64 and aarch64, asm/unistd.h of Linux 6.
_FORBIDDEN = {
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
}
_CLONE3 = 435
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _ALLOW, _EPERM, _ENOSYS = 0x80000000, 0x7FFF0000, 0x00050000 + 1, 0x00050000 + 38


def program() -> bytes | None:
    """The filter for this machine; None where its system calls are not known here."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    column, audit = _ARCHITECTURES[platform.machine()]
    numbers = [number for row in _FORBIDDEN.values() if (number := row[column]) is not None]
    code = [
        (_LOAD, 0, 0, 4),  # the architecture: another one has other numbers
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 0, 1, 0x40000000),  # the calls of x32
        (_RETURN, 0, 0, _KILL),
        (_EQUAL, 0, 1, _CLONE3),  # its flags cannot be read; the C library then uses clone
        (_RETURN, 0, 0, _ENOSYS),
    ]
    code += [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("HBBI", *each) for each in code)

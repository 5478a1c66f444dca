"""What the kernel says of the memory of this process's cgroup, such as a container's. Zero where it says nothing."""

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """Processes that were killed because the cgroup was out of memory, since it exists."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines()]
    except OSError:
        return 0
    counts = [0]
    for _, controllers, own in lines:
        for folder in (own.strip("/"), ""):  # a container may see its own cgroup as the root
            if controllers == "":
                counts.append(_count(_ROOT / folder / "memory.events"))
            elif "memory" in controllers.split(","):  # version 1
                counts.append(_count(_ROOT / "memory" / folder / "memory.oom_control"))
    return max(counts)


def _count(file: Path) -> int:
    try:
        return int(dict(line.split() for line in file.read_text("utf-8").splitlines()).get("oom_kill", 0))
    except (OSError, ValueError):
        return 0

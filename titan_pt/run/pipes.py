"""The pipe that a command writes to. Imported where one prints what can be long."""

import os
import select
import sys


def nobody_reads() -> bool:
    """Whether the reader of the standard output is gone; what is still to be flushed at the exit then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True

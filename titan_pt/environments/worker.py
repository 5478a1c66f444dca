"""The process that runs `step` of environments: it answers one call at a time, over a pipe. No torch here.

    python -m titan_pt.environments.worker FD BYTES

It first reads the environments, then says None once it can be asked, or what went wrong. Each call is (number of an
environment, state, turn), each answer a `Reply`, or (text of a failure, whether the process can answer no other call).
"""

import os
import pickle
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from titan_pt.config.errors import shown
from titan_pt.environments.protocol import Environment, EpisodeState, ModelTurn, Reply
from titan_pt.protocols.plugins import reason
from titan_pt.run.parents import die_with_parent
from titan_pt.tasks.task import is_message, unwritable


def main(descriptor: int, memory: int) -> None:
    """Answer calls until the pipe is closed."""
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)  # a program that an environment starts would keep the pipe open
    pipe = Connection(descriptor)
    try:
        environments: list[Environment] = pickle.loads(pipe.recv_bytes())
    except BaseException as error:
        pipe.send(described(error))
        return
    _limit_memory(memory)
    pipe.send(None)
    while True:
        try:
            number, state, turn = pipe.recv()
        except (EOFError, OSError):
            return
        answer = _answer(environments[number], state, turn)
        try:
            pipe.send(answer)
        except Exception as error:  # a memory that cannot be pickled
            text = f"its Reply cannot be sent: {described(error)}; hold plain data in it"
            pipe.send((text, isinstance(error, MemoryError)))


def checked(reply: Any) -> Reply:
    """The reply of an environment in plain types.

    Raises:
        TypeError: it is none; says what is wrong with it.
    """
    if not isinstance(reply, Reply):
        raise TypeError(f"step gave {shown(reply)}; want an environments.protocol.Reply")
    messages, rewards = reply.messages, reply.rewards
    if not isinstance(messages, list | tuple) or not all(is_message(message) for message in messages):
        raise TypeError(
            f"Reply.messages = {shown(messages)}; want a list of messages such as "
            '{"role": "user", "content": "too low"}'
        )
    if not isinstance(rewards, dict) or not all(isinstance(name, str) for name in rewards):
        raise TypeError(f'Reply.rewards = {shown(rewards)}; want a dict of numbers by name, such as {{"correct": 1.0}}')
    for name, value in rewards.items():
        if isinstance(value, str | bytes) or not hasattr(value, "__float__") or not abs(float(value)) <= 1e30:
            raise TypeError(f"Reply.rewards[{name!r}] = {shown(value)}; want a finite number")
    for what, value in (("messages", messages), ("rewards", list(rewards))):
        if fault := unwritable(value):
            raise TypeError(f"Reply.{what} cannot be written: {fault}; want plain text and numbers")
    if not reply.done and not messages:
        raise TypeError("Reply has neither messages nor done = True; the model would have nothing to read")
    return Reply(list(messages), bool(reply.done), {name: float(rewards[name]) for name in rewards}, reply.memory)


def described(error: BaseException) -> str:
    """An error with the line of the environment's code that raised it, in one line."""
    text = reason(error).encode(errors="backslashreplace").decode()
    return text if len(text) <= 300 else f"{text[:297]}..."


def _answer(environment: Environment, state: EpisodeState, turn: ModelTurn) -> Reply | tuple[str, bool]:
    try:
        return checked(environment.step(state, turn))
    except BaseException as error:  # exit() in an environment ends its episode, not the process
        return described(error), isinstance(error, MemoryError)  # what it holds may be kept for good


def _limit_memory(added: int) -> None:
    """Let this process have so many bytes beside what it has now. On Linux alone."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + added, now + added))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""What runs in the sandbox: reads a job from its standard input, sets limits on itself, runs the program.

Standard library alone, and of it as little as can be: it is the text of this file that runs, once for each program.

The job is a length in bytes, a line end, values by `marshal`, and then what the program reads. (`marshal` is built in;
to import a parser would take longer than most programs.)
"""

import marshal
import os
import resource


def main() -> None:
    """Run the job: a program by itself, or a program and then tests beside it."""
    size = b""
    while not size.endswith(b"\n"):
        size += os.read(0, 1)
    job = b""
    while len(job) < int(size):
        job += os.read(0, int(size) - len(job))
    limits, program, tests, mark = marshal.loads(job)
    os.write(1, f"{mark}\n".encode())  # what fails from here on is the program's
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if "random" in program:
        import random

        random.seed(0)  # the same program has the same verdict
    if tests is None:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    else:
        _beside(program, tests, mark)


def _beside(program: str, tests: "list[tuple[bool, str]]", mark: str) -> None:
    """Write one line for each test: the mark, and the value of its expression or true, as JSON."""
    import json

    out = open(os.dup(1), "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    os.dup2(2, 1)  # what the program prints goes to nobody
    os.dup2(2, 0)
    names = {"__name__": "program"}
    # The program may replace them where they are looked up.
    make, run, value_of, plain, write, leave = compile, exec, eval, _plain, out.write, os._exit
    encode, kind_of = json.JSONEncoder().encode, type

    def say(what: object) -> None:
        write(f"{mark} {encode(what)}\n")

    try:
        run(make(program, "program.py", "exec"), names)
    except BaseException as error:
        say({"error": f"{kind_of(error).__name__}: {error}"[:200]})
        leave(1)
    say("ready")
    for is_value, code in tests:
        try:
            if is_value:
                say(plain(value_of(code, names)))
            else:
                run(code, names)
                say(True)
        except BaseException as error:
            say({"error": f"{kind_of(error).__name__}: {error}"[:200]})


def _plain(value: object) -> object:
    """A value of built-in types as JSON that keeps lists, tuples, sets and dicts apart (see `programs.decoded`)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind in (tuple, list, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(_plain, value)]
    if isinstance(value, dict):
        return ["dict", *([_plain(key), _plain(item)] for key, item in value.items())]
    raise TypeError(f"the value is of {type(value)}, not of a built-in type")


if __name__ == "__main__":
    main()

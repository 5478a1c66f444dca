"""What happens to a run: an experiment and the faults of its starts, drawn by a seed."""

import errno
import random
import signal
from dataclasses import dataclass, replace

from chaos.experiments import EXPERIMENTS
from chaos.library import CHANGES, ON_TIME, Clock, Rule

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
DAY = 86400.0
NUMBERS = {"open": 28, "write": 370, "rename": 11, "fsync": 50, "unlink": 16, "mkdir": 10, "truncate": 1, "read": 76}
"""Operations of an undisturbed run of most experiments."""


@dataclass(frozen=True)
class Start:
    """One start of a run, and what goes wrong before and in it."""

    fault: str = "none"
    """Its kind, for the table."""
    rules: tuple[Rule, ...] = ()
    rank: int = 0
    """Whose operations the rules are about."""
    clock: Clock = ON_TIME
    signal: int = 0
    """Sent to one rank, or to all, so many seconds after training began."""
    after: float = 0.0
    to_all: bool = True
    pause: float = 0.0
    """SIGSTOP at `after`, and SIGCONT so many seconds later."""
    damage: tuple[str, str, float] = ("", "", 0.0)
    """Before the start: what of ("step", "record") is hurt how ("flip", "cut", "remove", "rename"), and where in it."""
    http: str = ""
    """A fault of `hub_server`."""
    http_requests: tuple[int, int] = (0, 0)
    """The first and the last request that has it."""
    second: bool = False
    """A second process is started in the same folder meanwhile."""
    bad_weight: int = 0
    """The step behind which a weight is infinite."""
    stops: int = 0
    """The step behind which SIGTERM comes, so that there is something left for the next start."""


@dataclass(frozen=True)
class Scenario:
    """Starts with faults; after them the run is started until it is done."""

    experiment: str
    starts: tuple[Start, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.experiment}: {', then '.join(start.fault for start in self.starts)}"


def draw(seed: int) -> Scenario:
    """The scenario of a seed: one to three starts with faults."""
    rng = random.Random(seed)
    name = rng.choices(list(EXPERIMENTS), [experiment.weight for experiment in EXPERIMENTS.values()])[0]
    starts = [_draw_start(rng, name, first=True)]
    for i in range(rng.choices([0, 1, 2], [5, 3, 1])[0]):
        starts[-1] = replace(starts[-1], stops=EXPERIMENTS[name].steps * (i + 1) // 3 + rng.randrange(2))
        starts.append(_draw_start(rng, name, first=False))
    return Scenario(name, tuple(starts))


def _draw_start(rng: random.Random, experiment: str, *, first: bool) -> Start:
    kinds = {_failure: 6, _kill: 6, _clock: 4, _signal: 4, _pause: 1, _second: 1}
    if not first:
        kinds[_damage] = 6
    if experiment == "http":
        kinds[_http] = 12
    if experiment not in ("bad gradients", "grpo"):
        kinds[_bad_weight] = 1
    return rng.choices(list(kinds), list(kinds.values()))[0](rng, EXPERIMENTS[experiment].ranks)


def _failure(rng: random.Random, ranks: int) -> Start:
    value = rng.choice(ERRORS)
    kinds = {
        errno.ENOSPC: ("open", "write", "mkdir", "copy"),
        errno.EDQUOT: ("open", "write", "mkdir", "copy"),
        errno.EMFILE: ("open",),
        errno.EROFS: tuple(kind for kind in CHANGES if kind != "fsync"),
        errno.EIO: rng.choice([*((kind,) for kind in NUMBERS), CHANGES]),
    }[value]
    first, length = _operation(rng, kinds), rng.choice([1, 1, 3, 20, 150])
    if value == errno.ENOSPC and rng.random() < 0.3:
        return Start("short write", (Rule("short", first, first + 2, ("write",)),), rng.randrange(ranks))
    rule = Rule("fail", first, first + length - 1, kinds, value)
    return Start(f"{errno.errorcode[value]} {'once' if length == 1 else 'for a while'}", (rule,), rng.randrange(ranks))


def _operation(rng: random.Random, kinds: tuple[str, ...]) -> int:
    """One of those that a start does, more often one of the first."""
    number = sum(NUMBERS.get(kind, 0) for kind in kinds)
    return rng.choice([rng.randint(1, max(1, number // 8)), rng.randint(1, number)])


def _kill(rng: random.Random, ranks: int) -> Start:
    if rng.random() < 0.2:
        return Start("SIGKILL at a moment", signal=signal.SIGKILL, after=rng.uniform(0, 1.0), to_all=rng.random() < 0.5)
    kinds = rng.choice([CHANGES, CHANGES, ("open",), ("rename",), ("fsync",), ("mkdir",), ("unlink",), ("truncate",)])
    action = rng.choice(["kill before", "kill after"])
    where = "before" if action == "kill before" else "in or behind"
    rule = Rule(action, _operation(rng, kinds), kinds=kinds)
    return Start(f"SIGKILL {where} an operation", (rule,), rng.randrange(ranks))


def _clock(rng: random.Random, _ranks: int) -> Start:
    call = rng.randrange(1, 1400)
    jumps = [-5.0, -3600.0, -DAY, 5.0, 7200.0, DAY]
    kind = rng.choice(["jump", "jump", "offset", "freeze"])
    if kind == "offset":
        offset = rng.choice(jumps)
        return Start(f"clock {'back' if offset < 0 else 'ahead'} at a start", clock=Clock(offset=offset))
    if kind == "freeze":
        return Start("clock stands still", clock=Clock(call=call, freezes=True))
    jump = rng.choice(jumps)
    return Start(f"clock jumps {'back' if jump < 0 else 'ahead'}", clock=Clock(call=call, jump=jump))


def _signal(rng: random.Random, ranks: int) -> Start:
    number = rng.choice(SIGNALS)
    if rng.random() < 0.5:  # at an exact place
        rule = Rule("signal", _operation(rng, CHANGES), value=number)
        return Start(number.name, (rule,), rng.randrange(ranks))
    return Start(number.name, signal=number, after=rng.uniform(0, 1.0), to_all=rng.random() < 0.5)


def _pause(rng: random.Random, _ranks: int) -> Start:
    return Start("SIGSTOP, SIGCONT", after=rng.uniform(0, 0.5), pause=rng.uniform(0.2, 1.0), to_all=rng.random() < 0.5)


def _second(_rng: random.Random, _ranks: int) -> Start:
    return Start("a second process", second=True)


def _damage(rng: random.Random, _ranks: int) -> Start:
    what = rng.choice(["step", "step", "step", "record"])
    how = rng.choice(["flip", "cut", "remove", "rename"] if what == "step" else ["flip", "cut", "remove"])
    return Start(f"damaged {what}: {how}", damage=(what, how, rng.random()))


def _http(rng: random.Random, _ranks: int) -> Start:
    fault = rng.choice(["sleep", "reset", "429", "500", "404", "page", "cut", "short", "garbage", "trickle"])
    # What a server denies, or what cannot be decoded, three times is given up for that pass: documented, and recorded.
    most = 2 if fault in ("404", "page", "short", "garbage") else 6
    first, length = rng.randrange(1, 30), min(most, rng.choice([1, 1, 3, 6]))
    return Start(f"HTTP {fault}", http=fault, http_requests=(first, first + length - 1))


def _bad_weight(rng: random.Random, _ranks: int) -> Start:
    return Start("an infinite weight", bad_weight=rng.randrange(1, 12))

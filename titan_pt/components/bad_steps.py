"""The answers to bad steps (training.on_bad_step): skip, go back to a saved step, or stop.

A bad step is not applied (`guarded_update`; a step function may also say so by a guard of its own). Its flag is read
where the step is logged or saved, so a saved step is always one of which all flags were looked at. To go back is to
load the newest saved step and to train again from there. Behind the step before the bad one the data jump over its
documents: the loader is set to the state that it had behind them. The jumps are a part of the saved state, so that a
resume makes the same ones; a run that was killed before it saved them finds the same bad step again.

A step function may ask for the best saved step instead (`GoBack`), as grpo.on_collapse does: the data then do not jump.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from titan_pt.components.black_box import describe, write_black_box
from titan_pt.components.checkpoint.checkpointer import Checkpointer
from titan_pt.components.checkpoint.keeping import leave_behind
from titan_pt.components.checkpoint.step_folders import iter_steps
from titan_pt.components.metrics import MetricRows
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.run.exit_codes import GaveUp, Preempted
from titan_pt.run.heartbeat import phase

logger = logging.getLogger("titan_pt")

_NAMES = 1000
"""Documents of a jump that checkpoints name; the black box names all."""


class TakenStep(NamedTuple):
    """A bad step."""

    step: int
    metrics: StepMetrics
    data: dict[str, Any] | None
    """State of this rank's data behind it, where the run may go back."""
    flag: float
    """Above 1: the score of a spike."""


class BadSteps:
    """Decides what becomes of a run with bad steps. The same on all ranks, which call it together.

    What it goes by is `TrainState.guard`: "skipped" and "rewinds", numbers of steps within the window, and "jumps", of
    which each has the step behind which the data jump, their state, and the documents that are left out.

    Args:
        rows: the run's.
        checkpointer: the run's; None where it saves no steps.
    """

    def __init__(
        self, context: TrainContext[Any], run_folder: Path, rows: MetricRows, checkpointer: Checkpointer | None
    ) -> None:
        self._context, self._folder, self._rows, self._checkpointer = context, run_folder, rows, checkpointer
        self._options = context.config.training
        self._documents: dict[int, tuple[str, ...]] = {}

    def note(self, step: int, metrics: StepMetrics) -> dict[str, Any]:
        """Note the documents of a step, for as long as the run may go back before it; returns the state of the data."""
        saved = self._checkpointer.last_step if self._checkpointer else 0
        self._documents = {number: names for number, names in self._documents.items() if number > saved}
        self._documents[step] = metrics.documents
        found: dict[str, Any] = self._context.dataloader.state_dict()
        return found

    def jump_if_due(self, state: TrainState) -> None:
        """Set the data behind the documents that are left out, where a jump begins at the last finished step."""
        loader = self._context.dataloader
        for jump in state.guard.get("jumps", ()):
            if jump["step"] != state.step:
                continue
            data = jump["data"]
            self._context.world.together(lambda data=data: loader.load_state_dict(data))  # type: ignore[misc]
            if hasattr(loader, "drop_begun"):  # documents that end in later rows
                loader.drop_begun()
            logger.warning(f"step {state.step + 1}: {jump['num_documents']:,} documents are left out: {jump['why']}")

    def judge(
        self, state: TrainState, bad: Sequence[tuple[Any, ...]], total_steps: int, *, hurried: bool
    ) -> Path | None:
        """Count and record bad steps; returns the saved step to go back to, if any.

        Args:
            bad: values of a `TakenStep` each.
            hurried: the run is about to end, so that a step's time for a black box is too long.

        Raises:
            GaveUp: the run is to end; the row of its last step is written.
        """
        steps = [TakenStep(*values) for values in bad]
        for taken in steps:
            self._report(state, taken, hurried=hurried)
        if self._checkpointer:
            with phase("a save under way", "save"):
                self._checkpointer.join()  # all ranks are here, and nobody waits for a save after a failure
        try:
            return self._answer(state, steps)
        except GaveUp:
            self._rows.write(self._rows.make_row(state), total_steps, self._rows.interval.last.texts)
            raise

    def find_best(self, state: TrainState, key: str, least: float, why: str) -> Path:
        """The best saved step, for a run that is to go back to it; the steps behind it get names that nothing opens.

        Args:
            key: of metrics.jsonl, says which step is the best, as in checkpoint.keep_best.
            least: a step with a lower value is no way back.
            why: what happened, for the log.

        Raises:
            GaveUp: no saved step is good enough, or the run went back too often.
        """
        guard = state.guard
        guard["collapses"] = [*guard.get("collapses", []), state.step]
        if len(guard["collapses"]) > (limit := self._options.max_rewinds):
            raise GaveUp(f"{why}, after training.max_rewinds = {limit} times back to a saved step; lower optimizer.lr")
        if self._checkpointer:
            with phase("a save under way", "save"):
                self._checkpointer.join()
        folder = self._folder / self._context.config.checkpoint.folder
        mirror = self._checkpointer.mirror if self._checkpointer else None
        in_mirror = mirror.leave_behind if mirror else None
        found = self._context.world.on_main(lambda: leave_behind(folder, self._folder, key, least, in_mirror))
        if found is None:
            raise GaveUp(
                f"{why}, and no saved step has {key} of {least:.4g} or more to go back to; lower optimizer.lr, or save "
                "more often: checkpoint.interval, checkpoint.enable_first_step_checkpoint"
            )
        logger.warning(f"{why}. Back to {found}")
        return found

    def _answer(self, state: TrainState, bad: Sequence[TakenStep]) -> Path | None:
        policy, window = self._options.on_bad_step, self._options.bad_step_window
        if policy == "stop":
            raise GaveUp(f'step {bad[0].step}: {describe(bad[0])}; training.on_bad_step = "stop"; {self._advice()}')
        for name in ("skipped", "rewinds"):
            state.guard[name] = [step for step in state.guard.get(name, []) if step > state.step - window]
        saved = self._checkpointer.find() if self._checkpointer and policy == "rewind" else None
        if saved is not None:
            return self._plan_rewind(state, bad, saved)
        state.skipped_steps += len(bad)
        state.guard["skipped"] += [taken.step for taken in bad]
        count, limit = len(state.guard["skipped"]), self._options.max_skipped_steps
        if count > limit:
            kinds = sorted({describe(taken, short=True) for taken in bad})
            raise GaveUp(
                f"{count} steps had {' or '.join(kinds)}, more than training.max_skipped_steps = {limit} within "
                f"{window:,} steps; {self._advice()}"
            )
        return None

    def _plan_rewind(self, state: TrainState, bad: Sequence[TakenStep], saved: Path) -> Path:
        """Add the jumps over the documents of bad steps."""
        base, guard = int(saved.name.removeprefix("step-")), state.guard
        guard["rewinds"] = [*guard["rewinds"], bad[0].step]
        count, limit = len(guard["rewinds"]), self._options.max_rewinds
        if count > limit:
            raise GaveUp(
                f"step {bad[0].step}: {describe(bad[0])}, after training.max_rewinds = {limit} times back to a saved "
                f"step within {self._options.bad_step_window:,} steps; {self._advice()}"
            )
        if count == limit:  # the documents of the bad steps alone did not help: another way from the saved step on
            starts, over = [base], [range(base + 1, bad[-1].step + 1)]
        else:
            starts = [taken.step - 1 - i for i, taken in enumerate(bad)]
            over = [range(taken.step, taken.step + 1) for taken in bad]
        oldest = min(number for number, _ in iter_steps(saved.parent))
        before = [jump for jump in guard.get("jumps", []) if jump["step"] >= oldest]  # nothing goes back further
        jumps = [jump for jump in before if jump["step"] < starts[0]]
        left_out = [jump for jump in before if jump["step"] >= starts[0]]  # the new ones lead over theirs too
        for start, steps, taken in zip(starts, over, bad[-len(starts) :], strict=True):
            if jumps and jumps[-1]["step"] == start:  # bad steps in a row are one jump
                left_out = [jumps.pop()]
            names = self._all_documents(steps)
            jumps.append(
                {
                    "step": start,
                    "data": self._all_data(taken),
                    "why": f"step {taken.step}: {describe(taken)}",
                    "num_documents": sum((jump["num_documents"] for jump in left_out), start=len(names)),
                    "documents": [*(name for jump in left_out for name in jump["documents"]), *names][:_NAMES],
                }
            )
            left_out = []
        guard["jumps"] = jumps
        logger.warning(
            f"Back to {saved}: from step {base + 1} on without "
            + (f"all that was read up to step {bad[-1].step}" if count == limit else "the documents of the bad steps")
        )
        return saved

    def _report(self, state: TrainState, taken: TakenStep, *, hurried: bool) -> None:
        """One error line a rank, and the black box."""
        logger.error(
            f"step {taken.step}: {describe(taken)}; weights are unchanged; its documents on this rank: "
            f"{', '.join(taken.metrics.documents) or 'unknown'}"
        )
        documents = [name for names in self._context.world.gather(taken.metrics.documents) for name in names]
        try:
            write_black_box(self._context, self._folder, state, taken, documents, again=not hurried)
        except Preempted:
            logger.warning(f"step {taken.step}: a signal came before its black box was whole")
        self._context.model.zero_grad(set_to_none=True)

    def _all_documents(self, steps: range) -> list[str]:
        own = [name for step in steps for name in self._documents.get(step, ())]
        return list(dict.fromkeys(name for names in self._context.world.gather(own) for name in names))

    def _all_data(self, taken: TakenStep) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for part in self._context.world.gather(taken.data or {}):
            joined |= part
        return joined

    def _advice(self) -> str:
        return (
            "lower optimizer.lr, lengthen lr_scheduler.warmup_steps, or look at the documents named above and at "
            f"python -m titan_pt.tools.blackbox {self._folder}"
        )

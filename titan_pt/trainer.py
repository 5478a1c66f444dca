"""The Trainer: the loop and what every kind of training shares, from resume to the last checkpoint."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from titan_pt.components.checkpoint.checkpointer import Checkpointer, CheckpointError
from titan_pt.components.checkpoint.run_state import expected_bytes, run_documents, run_identity, run_tensors
from titan_pt.components.metrics import Interval, MetricRows
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.garbage import GarbageCollection
from titan_pt.protocols.context import StatefulStep, Step, TrainContext, TrainState, Validator
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.exit_codes import GaveUp, GaveUpTogether, GoBack, Preempted
from titan_pt.run.heartbeat import enter, phase
from titan_pt.run.ledger import LEDGER_FILE, Ledger
from titan_pt.run.run_folder import RunLock, lock_run_folder, run_folder
from titan_pt.run.signals import protect_progress
from titan_pt.run.step_plan import StepPlan

if TYPE_CHECKING:
    from titan_pt.components.bad_steps import BadSteps
    from titan_pt.components.checkpoint.resume import Resumed

logger = logging.getLogger("titan_pt")


class Trainer:
    """Runs a step function from the state it finds in the run folder to the last step.

    Args:
        context: what the step function was built from.
        peak_flops: FLOP/s of one device at its best, for the MFU; None where it is not known.
        validates_first: validate before step 1 too.
        started: when this attempt began, by `time.monotonic`; a deadline counts from the run's first one.
    """

    def __init__(
        self,
        context: TrainContext[Any],
        step: Step,
        validator: Validator | None,
        *,
        peak_flops: float | None,
        validates_first: bool = False,
        started: float,
    ) -> None:
        self.context, self._step, self._validator = context, step, validator
        self._validates_first = validates_first
        self._identity = run_identity(context.config, context.args, context.tokenizer)
        self._folder = run_folder(context.config)
        self.state = TrainState()
        options, world, profiling = context.config.checkpoint, context.world, context.config.profiling
        self._checkpointer = (
            Checkpointer(self._folder / options.folder, options, world, self._folder) if options.enable else None
        )
        self._plan = StepPlan(context)
        if context.config.training.max_hours is not None:
            kept = self._folder if options.enable else None  # without checkpoints each start is another run
            self._plan = import_attribute("titan_pt.run.deadline:DeadlinePlan")(context, kept, started)
        self._garbage = GarbageCollection(context.config.training)
        self._profiler: Any = None
        if profiling.enable_profiling or profiling.enable_memory_snapshot:
            self._profiler = import_attribute("titan_pt.components.profiling:Profiler")(profiling, self._folder, world)
        self._rows = MetricRows(context, self._folder, peak_flops)
        self._ledger = Ledger(self._folder / LEDGER_FILE if world.is_main else None, started)
        self._lock: RunLock | None = None
        self._warm, self._whole = False, True  # whole: the weights are those of the last finished step
        self._goes_back = context.config.training.on_bad_step == "rewind"

    # -- life ---------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Resume from the run folder, else take the starting weights, else keep the initial ones; say which.

        Raises:
            ConfigError: the checkpoint is damaged, missing, or of another run.
            RuntimeError: another run is in the run folder.
        """
        context = self.context
        if context.world.is_main:
            checkpoints = self._folder / context.config.checkpoint.folder
            self._lock = lock_run_folder(self._folder, checkpoints if self._saves(last=True) else None)
        if self._checkpointer and not context.config.checkpoint.load_only:
            context.optimizer_state.check()  # before a state is loaded into it
        if self._checkpointer:
            self._checkpointer.open()
        initial_path = context.config.checkpoint.initial_load_path
        found = self._checkpointer.find() if self._checkpointer else None
        resumed: Resumed | None = None
        if self._checkpointer and found is not None:
            from titan_pt.components.checkpoint.resume import warn_of_another_rate

            resumed = self._resume(found)
            protect_progress()
            logger.info(f"Resumed from {resumed.folder}: step {self.state.step}, {self.state.tokens_seen:,} tokens")
        elif initial_path:
            from titan_pt.components.checkpoint.resume import start_from

            start_from(context, initial_path, self._identity)
        else:
            why = "No checkpoint in the run folder" if self._checkpointer else "checkpoint.enable is false"
            logger.info(f"{why}: starting from initial weights")
        if self._lock and self._lock.killed:
            from titan_pt.run.idle_starts import count_kill

            if reason := count_kill(self._folder, self.state.step):
                raise GaveUp(reason)
        self._plan.begin(resumed.deadline if resumed else None)
        if self._checkpointer and self.state.step < self._plan.total_steps and not context.config.checkpoint.load_only:
            self._checkpointer.require_space(expected_bytes(context, self._step))
        if resumed:
            warn_of_another_rate(resumed, context, self._plan.total_steps, self._plan.advice)
        if resumed and resumed.unwritten_row:
            self._rows.open(self.state.step - 1)
            self._rows.write(resumed.unwritten_row, self._plan.total_steps, {})
        else:
            self._rows.open(self.state.step or -1)  # a run that begins anew writes the row of step 0 anew

    def _resume(self, found: Path) -> "Resumed":
        from titan_pt.components.checkpoint.resume import load_newest

        assert self._checkpointer is not None
        return load_newest(self.context, self._step, self._checkpointer, found, self._identity, self.state)

    def train(self) -> None:
        """Train to the last step or the end of the data.

        Raises:
            Preempted: a signal came; a checkpoint of the last finished step is on disk (`has_checkpoint`).
            GaveUp: too many steps were not finite.
        """
        state, self._whole = self.state, True
        if state.step < self._plan.total_steps:
            logger.info(f"Training starts at step {state.step + 1}", extra={"live": True})
            self._ledger.begin(state.step, anew=self._checkpointer is None)
        else:
            logger.info(f"The run has its {self._plan.total_steps:,} steps: to go on, raise {self._plan.advice}")
        try:
            if self._validates_first if state.step == 0 else self._validates():
                completed = self._complete_row()  # the first evaluation, or a validation that a signal ended
                if completed and state.step and isinstance(self._step, StatefulStep) and self._saves(last=True):
                    self._save(required=True)  # the step's own state may follow from validations, as a plateau does
            self._export(last=state.step >= self._plan.total_steps, owed=True)  # a kill may come behind its save
            self._rows.interval = Interval()
            hook = register_optimizer_step_pre_hook(self._update_begins)  # one of its own would be in its trial
            with self._garbage, self._profiler or contextlib.nullcontext(), hook:
                while state.step < self._plan.total_steps:
                    if not self._one_step() and not self._judge():
                        logger.warning("Every data source is spent: the run ends here")
                        self._finish_early("data.sources: spent", "add documents or raise their max_epochs")
                        break
        except Preempted:
            self.context.optimizer.zero_grad(set_to_none=True)  # the unfinished step
            if not self._plan.is_over():
                self._save_finished()
                raise
            logger.warning("The deadline came before the planned last step, whose learning rate is the lowest")
            limit = f"training.max_hours = {self.context.config.training.max_hours:g}"
            self._finish_early(f"{limit}: over", "give the run more time")
        except Exception as error:
            if self._whole and not isinstance(error, CheckpointError | GaveUp):
                from titan_pt.distributed.agreement import save_together

                save_together(self.context, state.step, self._save_finished, error)
            raise
        self.goodput = self._ledger.write(state.step, done=True)["goodput"]
        if hasattr(self._step, "end"):
            self._step.end(state)
        done = f"Training is done at step {state.step}: {state.tokens_seen:,} tokens{self._plan.describe_end()}"
        logger.info(done, extra={"live": False})

    @property
    def has_checkpoint(self) -> bool:
        """Whether the last finished step is whole on disk, so that the same command goes on from it."""
        return self._checkpointer is not None and self._checkpointer.has(self.state.step)

    def close(self, *, wait: bool = True) -> None:
        """Flush the records; with `wait` let a save under way end, for which all ranks are needed."""
        if self._checkpointer and wait:
            self._checkpointer.close(self.context.config.comm.grace_seconds)
        if wait:
            self.context.dataloader.close()
        self._rows.close()
        if hasattr(self._step, "close"):
            self._step.close()
        if self._lock:
            self._lock.close()

    # -- one step -----------------------------------------------------------------------------------------------------

    def _one_step(self) -> bool:
        """Make a step, or go back to a saved one; returns whether there were data for it."""
        state, config = self.state, self.context.config
        enter(f"step {state.step + 1}", "train" if self._warm else "init")
        self.context.raise_if_preempted()
        self._plan.replan(state.step)
        if state.guard:
            self._bad_steps.jump_if_due(state)
        self.context.model.noise = config.debug.seed, state.step  # type: ignore[assignment]
        try:
            metrics = self._step(state)
        except GaveUpTogether:
            self._save_finished()
            raise
        except GoBack as asked:
            self._go_back(self._bad_steps.find_best(state, *asked.args))
            self._save(required=True)  # else a kill before the next save forgets the way back
            return True
        if metrics is None:
            return False
        state.step, self._whole = state.step + 1, True
        if self.context.ema:
            self.context.ema.update(metrics.skipped)
        state.tokens_seen += metrics.tokens
        state.trained_tokens += metrics.tokens if metrics.trained_tokens is None else metrics.trained_tokens
        data = self._bad_steps.note(state.step, metrics) if self._goes_back else None
        self._rows.interval.add(state.step, metrics, data)
        self._plan.step_ends()
        self._ledger.step_ends(metrics)
        last, validates = state.step == self._plan.total_steps, self._validates()
        logs = validates or state.step == 1 or last or state.step % config.metrics.log_freq == 0
        saves = self._saves(last)
        if (logs or saves) and self._judge():
            return True
        if logs:
            self._log(validate=validates)
        if saves:
            self._save(required=last)
        self._export(last)
        if not self._warm:  # the first step compiles and connects
            self._warm = True
            if self._checkpointer and not config.checkpoint.load_only:
                self.context.optimizer_state.document()  # refuses now what it could not save in hours
            protect_progress()
            self._plan.keep_start()
        self._garbage.step(state.step)
        if self._profiler:
            self._profiler.step()
        return True

    def _finish_early(self, why: str, way_out: str) -> None:
        """The data or the time ended before the steps did: log, validate and save the last finished step."""
        self._judge(hurried=True)
        if self.state.step == 0:
            raise ConfigError(f"{why} before the first step was done; {way_out}")
        if self._rows.interval.num_steps:
            self._log(validate=self._validator is not None)
        else:
            self._complete_row()  # it was written before it was known to be the last
        self._save_finished()
        self._export(last=True)

    # -- records ------------------------------------------------------------------------------------------------------

    def _validates(self) -> bool:
        """Whether a validation belongs to the last finished step."""
        step, freq = self.state.step, self.context.config.validation.freq
        return self._validator is not None and (step in (1, self._plan.total_steps) or step % freq == 0)

    def _log(self, *, validate: bool) -> None:
        """Write the row of the last finished step, with a validation if asked.

        Where a signal or a failure ends it, the row is written without it, and the next start completes the row.
        """
        row, texts = self._rows.make_row(self.state), self._rows.interval.last.texts
        row |= self._ledger.write(self.state.step)
        try:
            values, samples = self._validate() if validate else ({}, {})
        except Exception as error:
            self._rows.write(row, self._plan.total_steps, texts)
            self._rows.interval = Interval()  # where it was the deadline, _finish_early completes this row
            if isinstance(error, GaveUpTogether):
                self._save_finished()
            raise
        self._rows.write({**row, **values}, self._plan.total_steps, {**samples, **texts})
        self._rows.interval = Interval()

    def _complete_row(self) -> bool:
        """Validate the last finished step if its row in metrics.jsonl lacks that; returns whether it did."""
        from titan_pt.components.late_validation import complete, lacks_validation

        if not self._validator or not lacks_validation(self._rows, self.state.step):
            return False
        values, texts = self._validate()
        complete(self._rows.writer, self.state.step, values, self._plan.total_steps, texts)
        return True

    def _validate(self) -> tuple[dict[str, float], Mapping[str, str]]:
        """(values for the row, texts by name) of the validator. A collective."""
        assert self._validator is not None
        with self._pause("validation"):
            values = self.context.ema.validate(self._validator) if self.context.ema else self._validator()
        return values, getattr(self._validator, "texts", {})

    # -- bad steps ----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _bad_steps(self) -> "BadSteps":
        from titan_pt.components.bad_steps import BadSteps

        return BadSteps(self.context, self._folder, self._rows, self._checkpointer)

    def _judge(self, *, hurried: bool = False) -> bool:
        """Look whether the last steps were bad; returns whether the run went back to a saved step. A collective.

        Raises:
            GaveUp: there were too many.
        """
        bad = self._rows.interval.read_bad()
        found = self._bad_steps.judge(self.state, bad, self._plan.total_steps, hurried=hurried) if bad else None
        return found is not None and self._go_back(found)

    def _go_back(self, saved: Path) -> bool:
        """Go on from a saved step, and keep what the answers to bad steps go by; True. A collective."""
        guard = self.state.guard
        self._resume(saved)
        self.state.guard = {**guard, "spikes": self.state.guard.get("spikes", {})}
        self._rows.open(self.state.step)
        self._rows.interval = Interval()
        return True

    @contextlib.contextmanager
    def _pause(self, what: str) -> Iterator[None]:
        """Training waits for a validation, a save or an export: no time of a step."""
        start = time.perf_counter()
        limit = "save" if what != "validation" else "train" if self._warm else "init"
        with phase(f"the {what} of step {self.state.step}", limit):
            yield
        seconds = time.perf_counter() - start
        self._rows.interval.paused_seconds += seconds
        self._rows.interval.save_seconds += seconds if what == "save" else 0.0
        whole = self._checkpointer.seconds if self._checkpointer and what == "save" else 0.0
        self._plan.paused(what, seconds, whole)
        self._ledger.paused(what, seconds, self.state.step)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _saves(self, last: bool) -> bool:
        options = self.context.config.checkpoint
        if self._checkpointer is None or options.load_only:
            return False
        # A run with a deadline has to know early how long a save takes.
        early = options.enable_first_step_checkpoint or self.context.config.training.max_hours is not None
        first = (early or self._goes_back) and self.state.step == 1
        if self._goes_back and options.exclude_from_loading:  # else a way back leaves that out, and nothing else, anew
            first = first or not self._warm
        return last or first or self._checkpointer.is_due(self.state.step)

    def _export(self, last: bool, *, owed: bool = False) -> None:
        """Write `hf/step-N` where checkpoint.export_hf_interval says so; `owed`: unless an earlier start did."""
        if self.context.config.checkpoint.export_hf_interval:
            export_if_due = import_attribute("titan_pt.hf.export_running:export_if_due")
            export_if_due(self.context, self.state, self._folder, self._pause, last=last, owed=owed)

    def _save_finished(self) -> None:
        """Save the last finished step, if there is one and it is not on disk."""
        if not self._judge(hurried=True) and self.state.step and self._saves(last=True) and not self.has_checkpoint:
            self._save(required=True)

    def _update_begins(self, optimizer: Optimizer, *_: Any) -> None:
        self._whole &= optimizer is not self.context.optimizer

    def _save(self, *, required: bool) -> None:
        """Save this step. A failure is an error line while there are steps to come: an older step is still whole."""
        assert self._checkpointer is not None
        with self._pause("save"):
            if self.context.spikes:
                self.state.guard["spikes"] = self.context.spikes.state_dict()
            documents = run_documents(self.context, self._step, self._identity, self.state, self._plan.state_dict())
            try:
                self._checkpointer.save(self.state.step, run_tensors(self.context, self._step), documents)
                if required:
                    self._checkpointer.wait()
            except CheckpointError as error:
                if required:
                    raise
                if self.context.world.is_main:
                    logger.error(f"{error}; training goes on")

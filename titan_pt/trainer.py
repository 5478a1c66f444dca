"""The Trainer: the loop and what every kind of training shares, from resume to the last checkpoint."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from titan_pt.components.checkpoint.checkpointer import Checkpointer, CheckpointError
from titan_pt.components.checkpoint.run_state import Resumed, load_run, load_weights, run_documents, run_tensors
from titan_pt.components.checkpoint.steps import find_initial
from titan_pt.components.profiling import Profiler
from titan_pt.components.records import Interval, MetricRows
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.garbage import GarbageCollection
from titan_pt.distributed.world import tighten_timeouts
from titan_pt.protocols.context import Step, StepMetrics, TrainContext, TrainState, Validator
from titan_pt.run.exit_codes import GaveUp, GaveUpTogether, Preempted
from titan_pt.run.run_folder import lock_run_folder
from titan_pt.run.signals import protect_progress
from titan_pt.run.timekeeper import Timekeeper

logger = logging.getLogger("titan_pt")


class Trainer:
    """Runs a step function from the state it finds in the run folder to the last step.

    Args:
        context: what train.py built.
        identity: what a checkpoint must share with this run to be resumed.
        flops_per_second: peak of all ranks together, for the MFU; None where unknown.
        flops_per_token: of training.
        validates_first: validate before step 1 too.
        started: when this attempt began, a Unix time; a deadline counts from the run's first one.
    """

    def __init__(
        self,
        context: TrainContext,
        step: Step,
        validator: Validator | None,
        *,
        run_folder: Path,
        identity: Mapping[str, Any],
        flops_per_second: float | None,
        flops_per_token: float,
        validates_first: bool = False,
        started: float,
    ) -> None:
        self.context, self._step, self._validator = context, step, validator
        self._identity = dict(identity)
        self._run_folder, self._validates_first = run_folder, validates_first
        self.state = TrainState()
        options = context.config.checkpoint
        self._checkpointer = (
            Checkpointer(run_folder / options.folder, options, context.world) if options.enable else None
        )
        # Without checkpoints each start is another run.
        self._time = Timekeeper(context, run_folder if options.enable else None, started)
        self._garbage = GarbageCollection(context.config.training)
        self._profiler = Profiler(context.config.profiling, run_folder, context.world)
        self._records = MetricRows(
            context, run_folder, flops_per_second=flops_per_second, flops_per_token=flops_per_token
        )
        self._lock: IO[str] | None = None
        self._warm = False

    # -- life ---------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Resume from the run folder, else take the starting weights, else keep the initial ones; say which.

        Raises:
            ConfigError: the checkpoint is damaged, missing, or of another run.
            RuntimeError: another run is in the run folder.
        """
        context = self.context
        if context.world.is_main:
            self._lock = lock_run_folder(self._run_folder)
        if self._checkpointer:
            self._checkpointer.remove_leftovers()
        initial_path = context.config.checkpoint.initial_load_path
        found = self._checkpointer.find() if self._checkpointer else None
        planned: Mapping[str, Any] | None = None
        if self._checkpointer and found is not None:
            resumed = load_run(context, self._step, found, self._identity)
            self.state, planned = resumed.state, resumed.deadline
            self._records.row, self._records.owed = resumed.owed_row or {}, resumed.owed_row is not None
            self._checkpointer.last_step = self.state.step
            protect_progress()
            logger.info(f"Resumed from {found}: step {self.state.step}, {self.state.tokens_seen:,} tokens")
        elif initial_path:
            initial = context.world.on_main(lambda: find_initial(initial_path))
            load_weights(context, initial, self._identity)
            logger.info(f"Starting weights from {initial}")
        else:
            why = "No checkpoint in the run folder" if self._checkpointer else "checkpoint.enable is false"
            logger.info(f"{why}: starting from initial weights")
        self._time.begin(planned)
        # A row that is still to be written must not be there twice; nor the row of step 0, before any training.
        rewrites = self._records.owed or self.state.step == 0
        self._records.open(self.state.step - 1 if rewrites else self.state.step)

    def train(self) -> None:
        """Train to the last step or the end of the data.

        Raises:
            Preempted: a signal came; a checkpoint of the last finished step is on disk (`has_checkpoint`).
            GaveUp: too many steps were not finite.
        """
        state = self.state
        if state.step < self._time.total_steps:
            logger.info(f"Training starts at step {state.step + 1}")
        else:
            logger.info(f"The run has its {self._time.total_steps:,} steps; raise {self._time.advice} to go on")
        try:
            if state.step == 0 and self._validates_first and self._validator:
                self._records.row = {"step": 0}
                self._write_row(validate=True)
            elif self._records.owed:
                self._write_row(validate=self._validator is not None)
            self._records.interval = Interval()
            with self._garbage, self._profiler:
                while state.step < self._time.total_steps:
                    metrics = self._one_step()
                    if metrics is None:
                        logger.warning("Every data source is spent: the run ends here")
                        self._finish_early("data.sources: spent", "add documents or raise their max_epochs")
                        break
        except Preempted:
            self.context.optimizer.zero_grad(set_to_none=True)  # the unfinished step
            if not self._time.is_over():
                self._save_finished()
                raise
            logger.warning("The deadline came before the planned last step, whose learning rate is the lowest")
            self._finish_early(
                f"training.max_hours = {self.context.config.training.max_hours:g}: over", "give the run more time"
            )
        logger.info(f"Training is done at step {state.step}: {state.tokens_seen:,} tokens{self._time.end()}")

    @property
    def has_checkpoint(self) -> bool:
        """Whether the last finished step is whole on disk, so that the same command goes on from it."""
        return self._checkpointer is not None and self._checkpointer.has(self.state.step)

    def close(self, *, wait: bool = True) -> None:
        """Flush the records; with `wait` let a save under way end, for which all ranks are needed."""
        if self._checkpointer and wait:
            self._checkpointer.close()
        if wait:
            self.context.dataloader.close()
        self._records.close()
        if self._lock:
            self._lock.close()

    # -- one step -----------------------------------------------------------------------------------------------------

    def _one_step(self) -> StepMetrics | None:
        state, config = self.state, self.context.config
        self.context.raise_if_preempted()
        self._time.plan(state.step)
        try:
            metrics = self._step(state)
        except GaveUpTogether:
            self._save_finished()
            raise
        if metrics is None:
            return None
        state.step += 1
        state.tokens_seen += metrics.tokens
        state.trained_tokens += metrics.tokens if metrics.trained_tokens is None else metrics.trained_tokens
        self._records.interval.add(state.step, metrics)
        self._time.step_ends()
        last = state.step == self._time.total_steps
        validates = self._validator and (state.step == 1 or last or state.step % config.validation.freq == 0)
        if validates or state.step == 1 or last or state.step % config.metrics.log_freq == 0:
            self._log(validate=bool(validates))
        if self._saves(last):
            self._save(required=last)
        self._export(last)
        if not self._warm:  # the first step compiles and connects
            self._warm = True
            protect_progress()
            self._time.keep_start()
            tighten_timeouts(self.context.world, config.comm.train_timeout_seconds)
        self._garbage.step(state.step)
        self._profiler.step()
        return metrics

    def _finish_early(self, why: str, way_out: str) -> None:
        """The data or the time ended before the steps did: log, validate and save the last finished step."""
        state, validates = self.state, self._validator is not None
        if state.step == 0:
            raise ConfigError(f"{why} before the first step was done; {way_out}")
        records = self._records
        if records.interval.num_steps:
            self._log(validate=validates)
        elif validates and records.row and not records.validated:
            records.open(state.step - 1)  # its row was written before it was known to be the last
            self._write_row(validate=True)
        self._save_finished()
        self._export(last=True)

    # -- records ------------------------------------------------------------------------------------------------------

    def _log(self, *, validate: bool) -> None:
        """Read the interval's numbers from the device, validate if asked, and write one row."""
        self._records.make_row(self.state)
        self._write_row(validate=validate)
        self._records.write_texts(self._records.interval.last.texts, self.state.step)
        self._records.interval = Interval()
        self._give_up_after_too_many()

    def _give_up_after_too_many(self) -> None:
        limit, skipped = self.context.config.training.max_skipped_steps, self.state.skipped_steps
        if skipped > limit:
            if self._checkpointer:
                self._checkpointer.close()  # all ranks are here, and nobody waits for a save after a failure
            raise GaveUp(
                f"{skipped} steps had a non-finite loss or gradient, more than "
                f"training.max_skipped_steps = {limit}; lower optimizer.lr, lengthen lr_scheduler.warmup_steps, or "
                "look at the documents named above"
            )

    def _write_row(self, *, validate: bool) -> None:
        """Validate if asked, and write the row. Where a signal ends the validation, the next start owes both."""
        records = self._records
        records.owed = True
        if validate and self._validator:
            # Patient: the first one compiles, and ranks may evaluate at their own pace.
            with self._pause("validation"), self.context.world.patient():
                records.row |= self._validator()
        records.validated = validate
        records.write(self._time.total_steps)
        if validate:
            records.write_texts(getattr(self._validator, "texts", {}), self.state.step)

    @contextlib.contextmanager
    def _pause(self, what: str) -> Iterator[None]:
        """Training waits for a validation, a save or an export: no time of a step."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._records.interval.paused_seconds += seconds
        whole = self._checkpointer.seconds if self._checkpointer and what == "save" else 0.0
        self._time.paused(what, seconds, whole)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _saves(self, last: bool) -> bool:
        options = self.context.config.checkpoint
        if self._checkpointer is None or options.load_only:
            return False
        # A run with a deadline has to know early how long a save takes.
        early = options.enable_first_step_checkpoint or self.context.config.training.max_hours is not None
        first = early and self.state.step == 1
        return last or first or self.state.step % options.interval == 0

    def _export(self, last: bool) -> None:
        """Write `hf/step-N` where checkpoint.export_hf_interval says so."""
        interval = self.context.config.checkpoint.export_hf_interval
        if interval and (last or self.state.step % interval == 0):
            from titan_pt.hf.export_running import export_running

            with self._pause("export"):
                export_running(self.context, self.state, self._run_folder / "hf" / f"step-{self.state.step}")

    def _save_finished(self) -> None:
        """Save the last finished step, if there is one and it is not on disk."""
        if self.state.step and self._saves(last=True) and not self.has_checkpoint:
            self._save(required=True)

    def _save(self, *, required: bool) -> None:
        """Save this step. A failure is an error line while there are steps to come: an older step is still whole."""
        assert self._checkpointer is not None
        with self._pause("save"):
            self._records.count_skipped(self.state)
            self._give_up_after_too_many()
            owed_row = self._records.row if self._records.owed else None
            resumed = Resumed(self.state, owed_row, self._time.state_dict())
            documents = run_documents(self.context, self._step, self._identity, resumed)
            try:
                self._checkpointer.save(self.state.step, run_tensors(self.context, self._step), documents)
                if required:
                    self._checkpointer.wait()
            except CheckpointError as error:
                if required:
                    raise
                if self.context.world.is_main:
                    logger.error(f"{error}; training goes on")

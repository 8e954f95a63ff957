"""Several trials at a time, in worker processes of Ray, which may be on several machines.

Ray Tune pulls: its searcher hands out our jobs and tells our study what came of them. So the study
is the record, only this process writes to it, and what Tune keeps is thrown away. A worker keeps
its models and what it has compressed from trial to trial. When one dies, Tune starts another and
the trial is measured again, under its number.

Reference: Liaw et al. 2018, Tune, https://arxiv.org/abs/1807.05118
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from autocomp.config import SearchConfig
from autocomp.core.errors import AutocompError, ConfigError, WorkerError
from autocomp.env import prepare_ray, ray_address
from autocomp.search.drivers.job import Evaluate, Job, Report
from autocomp.search.drivers.queue import TrialQueue

RESTARTS = 2
OBJECT_STORE_BYTES = 100_000_000


def _import_ray() -> Any:
    """Return Ray with Tune imported.

    Raises:
        ConfigError: If it is not installed.
    """
    prepare_ray()
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise ConfigError(
            f"several workers need Ray: pip install 'autocomp[ray]' ({error})."
        ) from error
    return ray


class RayTuneDriver:
    """Measures ``workers`` trials at a time.

    It joins the cluster of ``RAY_ADDRESS``, or one that the process has joined already; else it
    starts a private one on this machine. A worker has ``resources.cpus`` threads, and
    ``resources.gpus`` of a GPU, which several may share.

    Args:
        config: Section ``search`` of the settings.

    Raises:
        ConfigError: If Ray is not installed.
    """

    def __init__(self, config: SearchConfig) -> None:
        self._ray = _import_ray()
        share, gpus = config.resources, torch.cuda.device_count()
        self._workers = config.workers
        self._cpus = share.cpus or max(1, torch.get_num_threads() // config.workers)
        self._gpus = min(1.0, gpus / config.workers) if share.gpus is None else share.gpus

    def run(self, trials: TrialQueue, here: Evaluate, elsewhere: Callable[[], Evaluate]) -> None:
        """Measure all trials; see :class:`~autocomp.search.drivers.queue.Driver`.

        Raises:
            WorkerError: If workers cannot start, or die again and again.
        """
        tune = self._ray.tune
        searcher = _searcher(tune, trials, self._workers)
        try:
            with self._cluster() as folder:
                tune.run(
                    _trainable(tune, elsewhere, self._cpus),
                    name="autocomp",
                    search_alg=searcher,
                    num_samples=-1,
                    resources_per_trial={"cpu": self._cpus, "gpu": self._gpus},
                    reuse_actors=True,
                    max_failures=RESTARTS,
                    raise_on_failed_trial=False,
                    storage_path=folder,
                    callbacks=[_callback(tune, searcher, trials)],
                    verbose=0,
                )
            if not searcher.ended:  # Tune has caught Ctrl-C
                raise KeyboardInterrupt
        except tune.TuneError as error:
            raise WorkerError(f"Ray Tune failed: {error}") from error
        except KeyboardInterrupt:
            trials.release()
            raise

    @contextmanager
    def _cluster(self) -> Iterator[str]:
        """Join or start a cluster; yield a folder for what Tune writes."""
        ray = self._ray
        with tempfile.TemporaryDirectory(prefix="autocomp-", ignore_cleanup_errors=True) as folder:
            if ray.is_initialized():
                yield folder
                return
            options: dict[str, Any] = {"address": ray_address() or "local"}
            if options["address"] == "local":
                options |= {
                    "num_cpus": self._workers * self._cpus,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "include_dashboard": False,
                    "_temp_dir": folder,
                }
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            try:
                yield folder
            finally:
                ray.shutdown()


def _searcher(tune: Any, trials: TrialQueue, workers: int) -> Any:
    """Return the searcher through which Tune pulls jobs and tells reports."""

    class StudySearcher(tune.search.Searcher):  # type: ignore[misc]
        """Hands out jobs, at most as many at a time as there are workers."""

        def __init__(self) -> None:
            super().__init__()
            self.ended = False
            self.failure: Exception | None = None
            self._jobs: dict[str, Job] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            """Return the settings of a Tune trial: a job."""
            if len(trials.running) >= workers:
                return None
            job = trials.next()
            if job is not None:
                self._jobs[trial_id] = job
                return {"job": job}
            self.ended = not trials.running
            return self.FINISHED if self.ended else None

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            """Tell what came of a job; note what keeps workers from measuring any."""
            job, found = self._jobs.pop(trial_id), result or {}
            if self.failure is not None:
                return
            try:
                if error:
                    deaths = f"its worker died {RESTARTS + 1} times"
                    trials.tell(job, Report(None, reason=deaths, crashed=True))
                elif "failure" in found:
                    self.failure = found["failure"]
                    trials.release()
                elif "report" in found:
                    trials.tell(job, found["report"])
            except Exception as failure:  # raised here, Tune would run the trial again
                self.failure = failure

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the study is the record."""

    return StudySearcher()


def _callback(tune: Any, searcher: Any, queue: TrialQueue) -> Any:
    """Return what looks after the jobs while Tune waits."""

    class Attention(tune.Callback):  # type: ignore[misc]
        """Is called at every step of Tune."""

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            """Prolong leases; end the run when no worker can measure anything."""
            if searcher.failure is not None:
                raise searcher.failure
            queue.keep_alive()

        def on_trial_recover(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            """Say that a trial is measured again."""
            number = trial.config["job"].number
            queue.progress.log(f"#{number}: its worker died; another one measures it again")

    return Attention()


def _trainable(tune: Any, elsewhere: Callable[[], Evaluate], cpus: int) -> Any:
    """Return the class of the workers."""

    class Worker(tune.Trainable):  # type: ignore[misc]
        """Measures one job a Tune trial, and keeps what it has loaded for the next."""

        def setup(self, config: dict[str, Any]) -> None:
            """Take a job; models are loaded when it is measured."""
            torch.set_num_threads(cpus)
            self._evaluate: Evaluate | None = None
            self._job: Job = config["job"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Take another job."""
            self._job = new_config["job"]
            return True

        def step(self) -> dict[str, Any]:
            """Measure the job."""
            try:
                self._evaluate = self._evaluate or elsewhere()
                return {"done": True, "report": self._evaluate(self._job, lambda: None)}
            except (AutocompError, OSError) as error:  # not the plan's fault
                return {"done": True, "failure": error}
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                return {"done": True, "report": Report(None, reason=reason, crashed=True)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Save nothing."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Load nothing."""

    return Worker

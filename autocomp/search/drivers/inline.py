"""One trial after another, in this process."""

from collections.abc import Callable

import torch

from autocomp.config import SearchConfig
from autocomp.search.drivers.job import Evaluate
from autocomp.search.drivers.queue import TrialQueue


class InlineDriver:
    """Asks, measures, tells: killed and run again, it gives the same plans and values.

    Args:
        config: Section ``search`` of the settings.
    """

    def __init__(self, config: SearchConfig) -> None:
        self._threads = config.resources.cpus

    def run(self, trials: TrialQueue, here: Evaluate, elsewhere: Callable[[], Evaluate]) -> None:
        """Measure all trials; see :class:`~autocomp.search.drivers.queue.Driver`."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            while (job := trials.next()) is not None:
                trials.tell(job, here(job, trials.keep_alive))
        except KeyboardInterrupt:
            trials.release()
            raise
        finally:
            torch.set_num_threads(before)

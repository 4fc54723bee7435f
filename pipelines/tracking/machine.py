"""CPU, memory, disk, network and GPU of this machine, as metrics of a run."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SECONDS_BETWEEN = 10

Log = Callable[[Mapping[str, float], int], None]


class Machine(SystemMetricsMonitor):
    """MLflow's monitor, writing to the run's own spool.

    MLflow's own loop asks the tracking server before each sample, and ends for good when one call fails.
    """

    def __init__(self, run_id: str, log: Log, first_step: int) -> None:
        super().__init__(run_id, sampling_interval=SECONDS_BETWEEN)
        self._log, self._logging_step = log, first_step
        self._ended = threading.Event()
        self._sampling = threading.Thread(target=self._sample, name="machine", daemon=True)

    def __enter__(self) -> Self:
        self._sampling.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._sampling.join()

    def _sample(self) -> None:
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._ended.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Logs what was sampled, as the next step."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._log({prefix + name: value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()

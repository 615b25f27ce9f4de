"""TensorBoard event files, an optional extra: `pip install tensorboardX`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import mindspore  # noqa: F401  whose messages are of an older protobuf: it must choose the implementation

from skipvit.util.errors import UsageError

try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] protobuf makes it
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    EventsWriter = None


def require() -> None:
    """Raises UsageError if the library is not installed."""
    if EventsWriter is None:
        raise UsageError("log.tensorboard: needs `pip install tensorboardX`; or --log.tensorboard false")


class Events:
    """The records of a run as TensorBoard scalars, written at once: a full disk is an OSError here, not a stuck
    thread."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        assert EventsWriter is not None  # see `require`
        self.writer = EventsWriter(str(folder / "events"))

    def add(self, record: dict) -> None:
        """Add the numbers of a record under `step/...` or `epoch/...`, see `RunFolder.log`."""
        unit = "epoch" if "epoch" in record else "step"
        values = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name != unit}
        for forward, scores in record.get("val", {}).items():
            values |= {f"{forward}/{name}": value for name, value in scores.items()}
        scalars = [Summary.Value(tag=f"{unit}/{name}", simple_value=value) for name, value in values.items()]
        self.writer.write_event(Event(wall_time=time.time(), step=record[unit], summary=Summary(value=scalars)))
        self.writer.flush()

    def close(self) -> None:
        with suppress(OSError):  # said when it was written
            self.writer.close()

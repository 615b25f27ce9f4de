"""All that this project uses of MindSpore though its documentation does not promise it: look here when it moves on.

MindSpore is imported inside the functions, so that importing this file stays cheap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock


def sigmoid_grad() -> Any:
    """The primitive `SigmoidGrad`, of a sigmoid's result and its gradient; `mindspore.ops` does not export it."""
    from mindspore.ops.auto_generate import SigmoidGrad

    return SigmoidGrad


def mind_ir() -> Any:
    """The protobuf messages of a MindIR file (`ModelProto`, `TensorProto`, `AttributeProto`, ...)."""
    from mindspore.train import mind_ir_pb2

    return mind_ir_pb2


@contextmanager
def compiled_as_for_910a() -> Iterator[None]:
    """MindSpore's finite check asks which chip it is compiled for: inside, it is told an Ascend 910A."""
    from mindspore import amp, ops

    @ops.constexpr
    def yes():
        return True

    with mock.patch.multiple(amp, _ascend_target=yes, _ascend_910a_target=yes):
        yield


def why_no_ascend() -> str:
    """Why MindSpore could not load its Ascend part; "" if it does not say."""
    try:
        from mindspore._c_expression import MSContext

        lines = str(MSContext.get_instance().load_plugin_error()).splitlines()
    except (ImportError, AttributeError, RuntimeError):
        return ""
    return next((line.strip() for line in lines if "ascend" in line.lower()), "")[:200]


def accepted_cann() -> tuple[str, ...]:
    """CANN versions (8.2, ...) that the installed MindSpore's start-up check accepts; () if it does not say."""
    try:
        path = metadata.distribution("mindspore").locate_file("mindspore/run_check/_check_version.py")
        text = Path(str(path)).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return ()
    found = re.search(r"class AscendEnvChecker.*?self\.version = \[([^\]]*)\]", text, re.DOTALL)
    return tuple(re.findall(r"\d+\.\d+", found[1])) if found else ()

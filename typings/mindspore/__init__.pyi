# For the type checker: what MindSpore computes with is Any. Its own annotations say that a primitive returns None, a cell a
# union of everything, and its C++ half is not annotated at all.
from typing import Any
from typing import Any as Parameter
from typing import Any as ParameterTuple
from typing import Any as Tensor

def __getattr__(name: str) -> Any: ...

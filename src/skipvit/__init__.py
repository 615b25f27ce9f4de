"""SkipViT: Vision Transformers whose unimportant tokens skip the middle of the network (arXiv 2401.15293)."""

import os

__version__ = "0.1.0"

# MindSpore interprets, slowly, what it takes for third-party code, and that is whatever lies in site-packages.
os.environ["MS_JIT_MODULES"] = ",".join(filter(None, [os.environ.get("MS_JIT_MODULES"), "skipvit"]))

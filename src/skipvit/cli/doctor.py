"""`skipvit doctor`: whether this machine will train, and what to do about each thing that is missing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from skipvit.ascend.doctor import look
from skipvit.cli.options import OneLineParser, from_words
from skipvit.cli.train import DEMO
from skipvit.config.reading import load_config
from skipvit.util.errors import RunError, UsageError

EPILOG = """Each line is ok, a warning or fails, and says what to do. Exit code 0: it will do; 1: a line fails.

examples:
  skipvit doctor
  skipvit doctor --device ascend --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
"""


def main(words: list[str]) -> None:
    parser = OneLineParser("skipvit doctor", "Check this machine.", EPILOG)
    parser.add_argument("--config", metavar="FILE", help="also check a run that is to begin; its keys may follow")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    config, options = from_words(parser, words, lambda options: options.config or DEMO)
    if not options.config and config.changed_since(load_config(DEMO), {"device"}):
        raise UsageError("keys of a run need the --config that they belong to (see --help)")
    findings = []
    for finding in look(config.device, Path(options.runs), config if options.config else None):
        findings.append(finding)
        if not options.json:
            todo = f"\n{'':27}to do: {finding.do}" if finding.do else ""
            print(f"{finding.state:9}{finding.name:18}{finding.found}{todo}", flush=True)
    failing = [finding.name for finding in findings if finding.state == "fails"]
    if options.json:
        print(json.dumps({"ok": not failing, "findings": [asdict(finding) for finding in findings]}))
    if failing:
        raise RunError(f"this machine will not do: {', '.join(failing)}")

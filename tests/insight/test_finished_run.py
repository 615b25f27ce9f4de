"""A figure that cannot be drawn does not turn a finished training into a failure."""

import json

from skipvit import training
from skipvit.config.reading import load_config
from skipvit.runs.folder import RunFolder
from skipvit.runs.run import Run


def test_a_run_is_finished_whatever_its_figure_fails_for(make_run, tmp_path, monkeypatch, caplog):
    folder, _ = make_run(tmp_path / "run")
    records = [json.loads(line) | {"best_top1": 12.5} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def fail(*_):
        raise ValueError("ParseException: unknown symbol\nin a formula")

    monkeypatch.setattr(training, "draw_kept", fail)
    training.finish(load_config(folder / "config.yaml"), "cpu", None, RunFolder(folder), None, records[-1])
    assert "bypassed.png: not drawn (ParseException: unknown symbol)" in caplog.text
    assert Run(folder).finished and not (folder / "bypassed.png").exists()

"""Files are replaced as a whole, locked against other processes, and only read where they are regular."""

import os
import subprocess
import sys
import threading

import pytest

from skipvit.util.errors import UsageError
from skipvit.util.files import (
    append_line,
    is_locked,
    lock,
    make_folder,
    open_regular,
    read_text,
    replacing,
    resolved,
    rotate,
    write_whole,
)


def test_a_file_is_replaced_as_a_whole_or_left(tmp_path):
    path = tmp_path / "about.json"
    write_whole(path, "old é")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        partial.write_text("ne")
        raise OSError("the disk is full")
    assert read_text(path) == "old é" and os.listdir(tmp_path) == ["about.json"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["about.json"]


def test_an_error_names_the_file_itself(tmp_path):
    (tmp_path / "about.json" / "below").mkdir(parents=True)
    with pytest.raises(OSError) as raised:
        write_whole(tmp_path / "about.json", "new")
    assert raised.value.filename == str(tmp_path / "about.json")


def test_a_line_stands_behind_one_that_was_cut(tmp_path):
    path = tmp_path / "log"
    append_line(path, "a \udcff")
    path.write_bytes(path.read_bytes() + b"torn")
    append_line(path, "b")
    append_line(path, "c")
    assert path.read_text() == "a \\udcff\ntorn\nb\nc\n"


def test_the_partial_file_keeps_the_ending(tmp_path):
    """matplotlib chooses the format by it."""
    with replacing(tmp_path / "curves.png") as partial:
        assert partial.suffix == ".png" and partial.parent == tmp_path
        partial.touch()


def test_a_lock_is_kept_from_other_processes_and_ends_with_its_own(tmp_path):
    path = tmp_path / ".lock"
    assert not is_locked(path) and not path.exists()
    words = (
        "import sys; from pathlib import Path; from skipvit.util.files import lock; f = lock(Path(sys.argv[1]), 'x')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", words + "; print(1, flush=True); input()", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        assert is_locked(path)
        with pytest.raises(UsageError, match="another one trains"):
            lock(path, "another one trains")
        other.kill()
    assert not is_locked(path)
    with lock(path, "taken"):
        pass


def in_time(function, *arguments) -> BaseException | None:
    """What a call raises; fails where it does not come back."""
    raised = []

    def attempt():
        try:
            function(*arguments)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), f"{function.__name__} hangs"
    return raised[0] if raised else None


def test_pipes_and_devices_are_no_files(tmp_path):
    pipe, link, loop = tmp_path / "pipe", tmp_path / "link", tmp_path / "loop"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    for path in (pipe, link, tmp_path, os.fsencode(pipe)):
        error = in_time(open_regular, path)
        assert isinstance(error, OSError) and error.strerror == "not a regular file"
        assert isinstance(in_time(append_line, tmp_path / os.fsdecode(path), "x"), OSError)
    for name in ("a\0b", "a\ud800"):
        assert isinstance(in_time(open_regular, name), OSError)
        assert isinstance(in_time(open_regular, path, "ab"), OSError)
    assert isinstance(in_time(open_regular, loop), OSError)
    assert isinstance(in_time(lock, pipe, "taken"), UsageError)
    assert in_time(is_locked, pipe) is None


def test_what_is_added_to_a_file_and_one_that_is_not_there_yet(tmp_path):
    for word in (b"one ", b"two"):
        with open_regular(tmp_path / "log", "ab") as file:
            file.write(word)
    assert (tmp_path / "log").read_bytes() == b"one two"


def test_a_pipe_in_the_way_of_a_file_that_is_replaced_or_a_log_that_is_begun(tmp_path):
    os.mkfifo(tmp_path / ".partial.about.json")
    assert in_time(write_whole, tmp_path / "about.json", "new") is None
    assert os.listdir(tmp_path) == ["about.json"] and read_text(tmp_path / "about.json") == "new"
    os.mkfifo(tmp_path / "worker_0.log")
    assert in_time(rotate, tmp_path / "worker_0.log") is None
    assert sorted(os.listdir(tmp_path)) == ["about.json", "worker_0.log.1"]


def test_a_path_without_links(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert resolved(tmp_path / "link" / ".." / "link") == tmp_path.resolve() / "file"
    assert resolved(tmp_path / "loop").name == "loop" and resolved("a\0b").name == "a\0b"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/runs: the run folder cannot be made .*; choose another --runs"):
        make_folder(tmp_path / "file" / "runs", "run folder", "--runs")

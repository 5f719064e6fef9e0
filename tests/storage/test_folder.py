"""Output folders: which command made one, who may write to it, and what a kill leaves there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trajmatch.errors import SettingError
from trajmatch.storage.files import partial_path
from trajmatch.storage.folder import LOCK, MARKER, claim, commands_of, require_own_folder, sweep

HOLDER = """
import sys, time
from pathlib import Path
from trajmatch.storage.folder import claim

with claim(Path(sys.argv[1]), sys.argv[2], shared=sys.argv[3] == "shared"):
    print("claimed", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(out: Path, command: str, how: str = "alone") -> Iterator[Callable[[], None]]:
    """Another process has claimed `out`, until the block ends or what is yielded is called."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out), command, how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None

    def kill() -> None:
        process.kill()  # SIGKILL: no cleanup of its own
        process.wait()

    try:
        assert process.stdout.readline() == "claimed\n"
        yield kill
    finally:
        kill()
        process.stdout.close()


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(out: Path, command: str, **options: object) -> str:
    """What a claim of `out` is refused with."""
    with pytest.raises(SettingError) as error, claim(out, command, **options):  # type: ignore[arg-type]
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


# -- what a folder is ------------------------------------------------------------------------------


def test_a_folder_says_which_command_made_it(tmp_path: Path) -> None:
    assert commands_of(tmp_path) == ()
    with claim(tmp_path / "a" / "run", "distill"):
        write(tmp_path / "a" / "run" / "log.jsonl")
    run = tmp_path / "a" / "run"
    assert json.loads((run / MARKER).read_text()) == {"command": "distill"}
    assert commands_of(run) == ("distill",)
    said = refusal(run, "select")
    assert f"{run} is a folder of `trajmatch distill`" in said
    assert "`trajmatch select` would write over what it holds; give another out=" in said
    with claim(run, "distill"):
        pass
    with claim(run, "run", also=["distill"]):
        pass
    assert commands_of(run) == ("distill",)


@pytest.mark.parametrize(
    ("files", "commands"),
    [
        ({"result.json": '{"command": "select"}'}, ("select",)),
        ({"result.json": '{"command": "study", "study": {"name": "init"}}'}, ("study init",)),
        ({"result.json": '{"command": "study", "study": {"name": "methods"}}'}, ("compare",)),
        ({"library.json": '{"made": {}}'}, ("experts",)),
        ({"library.json": '{"made": {"imported": "a buffer"}}'}, ("import",)),
        ({"library.json": "damaged"}, ()),
        ({"checkpoint.safetensors": "", "log.jsonl": ""}, ("distill", "run")),
        ({"snapshots/000000.safetensors": "", "log.jsonl": ""}, ("distill", "run")),
        ({"best/distilled.json": "{}", "log.jsonl": ""}, ("select",)),
        ({"distilled.json": "{}"}, ("import", "export")),
        ({"random-ipc1/seed0/cell.json": "{}"}, ("study", "compare")),
        ({"thesis.tex": ""}, ()),
        ({MARKER: "damaged", "result.json": '{"command": "select"}'}, ("select",)),
    ],
)
def test_folders_without_a_marker_are_known_by_their_files(
    tmp_path: Path, files: dict[str, str], commands: tuple[str, ...]
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    assert commands_of(tmp_path) == commands
    for command in ("distill", "run", "experts", "select", "study init", "compare", "import"):
        if not commands or command in commands or command.partition(" ")[0] in commands:
            require_own_folder(tmp_path, command)
        else:
            assert f"a folder of `trajmatch {commands[0]}`" in refusal(tmp_path, command)


@pytest.mark.parametrize("part", ["best", "last"])
def test_the_set_of_a_run_is_no_output_folder(tmp_path: Path, part: str) -> None:
    run = tmp_path / "run"
    with claim(run, "distill"):
        write(run / part / "distilled.json", "{}")
    for command in ("import", "export", "distill", "select"):
        said = refusal(run / part, command)
        assert f"{run / part} is " in said
        assert "give another out=" in said
    assert [path.name for path in (run / part).iterdir()] == ["distilled.json"]
    with claim(run, "distill"):
        require_own_folder(run / part, "import")
    with claim(tmp_path / part, "import"):  # a set of no run
        write(tmp_path / part / "distilled.json", "{}")
    require_own_folder(tmp_path / part, "import")


def test_a_cell_of_a_study_is_no_output_folder(tmp_path: Path) -> None:
    cell = tmp_path / "herding-ipc1" / "seed0"
    with claim(tmp_path, "compare"), claim(cell, "select"):
        write(cell / "cell.json", "{}")
    said = refusal(cell, "select")
    assert f"{cell} is a part of {tmp_path}, a folder of `trajmatch compare`" in said
    with claim(tmp_path, "compare"), claim(cell, "select"):
        pass


def test_another_study_is_another_command(tmp_path: Path) -> None:
    with claim(tmp_path, "study init"):
        write(tmp_path / "result.json", '{"command": "study", "study": {"name": "init"}}')
    assert "a folder of `trajmatch study init`" in refusal(tmp_path, "study zca")


def test_a_result_of_another_program_is_not_written_over(tmp_path: Path) -> None:
    file = write(tmp_path / "result.json", '{"accuracy": 0.9}')
    assert f"{file} is not a result of trajmatch, or damaged" in refusal(tmp_path, "distill")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["result.json", "log.jsonl", "checkpoint.safetensors", LOCK])
def test_a_folder_where_a_file_belongs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    said = refusal(tmp_path, "distill")
    assert f"{tmp_path / name} is not a regular file" in said
    assert "remove it or give another out=" in said


@pytest.mark.parametrize("name", ["best", "last", "snapshots"])
def test_a_file_where_a_folder_belongs_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert f"{tmp_path / name} is a file, and a folder of that name" in refusal(tmp_path, "distill")
    require_own_folder(tmp_path, "evaluate")  # which makes none


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    assert "is a file; give a folder as out=" in refusal(write(tmp_path / "out"), "distill")


def test_a_link_that_leads_to_itself_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError) as error, claim(tmp_path / "loop", "distill"):
        pass
    assert error.value.filename == str(tmp_path / "loop")


# -- the folder of the images ----------------------------------------------------------------------


def test_out_in_the_folder_of_the_images_is_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write(photos / "cat" / "1.png")
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, photos / "run", photos / "cat" / ".." / "run", tmp_path / "link" / "run"):
        said = refusal(out, "distill", data=photos)
        assert f"the output folder {out} is in the folder of the images, {photos}" in said
        assert "give an out= outside of it" in said
    assert "is in the folder" in refusal(photos / "run", "distill", data=tmp_path / "link")
    assert [path.name for path in photos.iterdir()] == ["cat"]
    with claim(tmp_path / "run", "distill", data=photos):
        pass
    with claim(tmp_path, "distill", data=photos):  # beside the images
        pass
    require_own_folder(tmp_path / "run", "distill", data="digits")


def test_images_in_what_a_run_replaces_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "best" / "images" / "cat" / "1.png")
    said = refusal(tmp_path, "distill", data=tmp_path / "best" / "images")
    assert f"lie in {tmp_path / 'best'}, which is replaced while the command runs" in said


# -- one at a time ---------------------------------------------------------------------------------


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with holder(tmp_path / "run", "distill"):
        said = refusal(tmp_path / "run", "distill")
        assert said.startswith(f"another process is writing to {tmp_path / 'run'}; wait for it")
        said = refusal(tmp_path / "run", "experts", shared=True)
        assert "a folder of `trajmatch distill`" in said
    with claim(tmp_path / "run", "distill"):  # free again, though it was killed
        pass


def test_those_that_share_a_folder_work_side_by_side(tmp_path: Path) -> None:
    with holder(tmp_path, "experts", "shared") as kill:
        unfinished = write(partial_path(tmp_path / "expert_00000.safetensors"))
        with claim(tmp_path, "experts", shared=True):
            pass
        assert unfinished.exists()  # perhaps the other's
        with claim(tmp_path, "experts", shared=True):
            kill()
        assert not unfinished.exists()  # the last to leave removes it
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, MARKER}


def test_a_shared_folder_is_swept_when_the_others_were_killed(tmp_path: Path) -> None:
    write(tmp_path / ".member-0a1b2c3d.lock")
    unfinished = write(partial_path(tmp_path / "images"))
    with claim(tmp_path, "experts", shared=True):
        assert not unfinished.exists()


def test_a_claim_in_a_claim_is_granted_and_one_of_another_thread_is_not(tmp_path: Path) -> None:
    found: list[str] = []
    with claim(tmp_path, "run"):
        with claim(tmp_path, "distill"):
            thread = threading.Thread(target=lambda: found.append(refusal(tmp_path, "run")))
            thread.start()
            thread.join()
        thread = threading.Thread(target=lambda: found.append(refusal(tmp_path, "run")))
        thread.start()
        thread.join()
        with claim(tmp_path / "experts", "experts", shared=True):
            pass
    assert [said.partition(" to ")[0] for said in found] == ["another process is writing"] * 2
    assert commands_of(tmp_path) == ("run",)


def test_a_claim_that_fails_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine" / "notes.txt")
    for out in (tmp_path / "a" / "b" / "run", mine.parent):
        for shared in (False, True):
            with pytest.raises(RuntimeError, match="refused"), claim(out, "distill", shared=shared):
                raise RuntimeError("refused")
    assert not (tmp_path / "a").exists()
    assert list(mine.parent.iterdir()) == [mine]
    with pytest.raises(FileNotFoundError), claim(mine.parent, "distill"):
        write(mine.parent / "log.jsonl").rename(mine.parent / "absent" / "log.jsonl")
    assert commands_of(mine.parent) == ("distill",)


# -- what a kill leaves ----------------------------------------------------------------------------


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    keep = [write(tmp_path / "film.partial"), write(tmp_path / "expert_00001.partial.safetensors")]
    for name in ("checkpoint.safetensors", "snapshots/000004.safetensors", "log.jsonl"):
        write(partial_path(tmp_path / name))
    write(tmp_path / "log.jsonl.77.partial")  # as version 0.1 named it
    write(partial_path(tmp_path / "best") / "images" / "cat" / "1.png")
    with claim(tmp_path, "distill"):
        left = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {*keep, tmp_path / LOCK, tmp_path / MARKER}
        assert not list(tmp_path.glob("best.*"))


def test_sweeping_removes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    target = write(tmp_path / "elsewhere" / "precious.txt")
    folder = tmp_path / "run"
    folder.mkdir()
    partial_path(folder / "best").symlink_to(target.parent)
    sweep(folder)
    assert list(folder.iterdir()) == []
    assert target.exists()

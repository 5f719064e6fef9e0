"""Hostile files: whatever happens to one of ours, reading it is right or says why not."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trajmatch.errors import FileFormatError, SettingError
from trajmatch.storage import files
from trajmatch.storage import header as headers
from trajmatch.storage.checksum import CHECKSUMS, WRITTEN, xxh3
from trajmatch.storage.files import atomic_write, open_tensors, read_json, save_tensors, write_json

METADATA = {"seed": 3, "name": 'a "quoted" é\\u00e9', "metrics": [{"loss": 0.5}]}


def _tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "parameters": torch.randn(5, 7, generator=generator),
        "half": torch.randn(3, 4, generator=generator).bfloat16(),
        "labels": torch.arange(6),
        "step_size": torch.tensor(0.25, dtype=torch.float64),
    }


def _save(path):
    save_tensors(path, _tensors(), kind="test", version=1, metadata=METADATA)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("saved") / "file.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.zeros(0),
        torch.zeros(0, 4),
        torch.zeros(3, 0),
        torch.tensor([[True, False]]),
        torch.arange(20, dtype=torch.uint8).reshape(4, 5).T,
        torch.arange(20).reshape(4, 5)[:, ::2],
        torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1)).bfloat16(),
        torch.randn(2, 3, requires_grad=True),
        torch.full((2, 2), float("nan")),
    ],
    ids=lambda t: f"{t.dtype}-{list(t.shape)}",
)
def test_what_was_saved_is_read_back_to_the_bit(tmp_path, tensor):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"t": tensor, "odd": torch.zeros(3, dtype=torch.uint8)}, kind="k", version=1)
    back = open_tensors(path, kind="k", version=1)
    back.verify()
    for read in (back.read("t"), load_file(path)["t"]):  # any safetensors reader opens it
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        torch.testing.assert_close(read, tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_rows_metadata_names_and_shapes(saved):
    file = open_tensors(saved, kind="test", version=1)
    assert file.metadata == METADATA
    assert file.names == ("half", "labels", "parameters", "step_size")
    assert file.shape("parameters") == (5, 7)
    assert file.dtype("half") == torch.bfloat16
    for i in range(5):
        assert torch.equal(file.rows("parameters", i), _tensors()["parameters"][i])
    for name, index in [("parameters", 5), ("parameters", -1), ("labels", 0), ("step_size", 0)]:
        with pytest.raises(SettingError, match="no row"):
            file.rows(name, index)
    with pytest.raises(SettingError, match="did you mean 'parameters'"):
        file.read("parameter")


def test_a_row_is_fresh_memory(saved):
    file = open_tensors(saved, kind="test", version=1)
    file.rows("parameters", 0).zero_()
    assert file.rows("parameters", 0).any()


def test_a_row_read_touches_only_that_row(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"t": torch.randn(50, 1000)}, kind="k", version=1)
    touched = []
    checksum = CHECKSUMS[WRITTEN]
    monkeypatch.setitem(
        CHECKSUMS, WRITTEN, lambda block: touched.append(len(block)) or checksum(block)
    )
    file = open_tensors(path, kind="k", version=1)
    file.rows("t", 17)
    assert touched == [4000]
    file.rows("t", (40, 2, 3))
    assert touched == [4000] * 4


def test_a_row_is_read_into_given_memory(saved):
    file, out = open_tensors(saved, kind="test", version=1), torch.zeros(3, 7)
    assert file.rows("parameters", 4, out[1]).data_ptr() == out[1].data_ptr()
    assert torch.equal(out, torch.stack([torch.zeros(7), _tensors()["parameters"][4], out[0]]))
    for wrong in (torch.zeros(6), torch.zeros(1, 7), out.double()[0], torch.zeros(7, 2)[:, 0]):
        with pytest.raises(SettingError, match=r"does not fit .*tensor of torch.float32"):
            file.rows("parameters", 4, wrong)


def test_several_rows_are_read_in_the_order_given(saved):
    file, whole = open_tensors(saved, kind="test", version=1), _tensors()["parameters"]
    out = torch.zeros(3, 7)
    assert file.rows("parameters", (4, 0, 4), out) is out
    assert torch.equal(out, whole[[4, 0, 4]])
    assert torch.equal(file.rows("parameters", [1]), whole[[1]])
    assert file.rows("parameters", ()).shape == (0, 7)
    for wrong in ((0, 5), (-1, 0)):
        with pytest.raises(SettingError, match=r"so no row (5|-1);"):
            file.rows("parameters", wrong)
    with pytest.raises(SettingError, match=r"tensor of torch.float32 \[2, 7\]"):
        file.rows("parameters", (0, 1), out)


def test_what_the_system_reads_in_portions_is_read_to_its_end(tmp_path):
    """As reads of more than 2 GB are."""

    class Portions(io.FileIO):
        def readinto(self, block):
            return super().readinto(block[:10])

    content, path = bytes(range(64)), tmp_path / "content"
    path.write_bytes(content)
    for length, complete in [(64, True), (61, True), (0, True), (65, False)]:
        block = memoryview(bytearray(length))
        with Portions(path) as file:
            assert files._filled(file, block) == complete
        assert bytes(block) == (content + b"\0")[:length]


def test_open_files_hold_no_descriptor(saved):
    before = len(os.listdir("/proc/self/fd"))
    held = [open_tensors(saved, kind="test", version=1) for _ in range(50)]
    assert held[0].rows("parameters", 0).shape == (7,)
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_cut_is_refused(tmp_path, saved):
    content, cut = saved.read_bytes(), tmp_path / "cut.safetensors"
    for end in [*range(0, len(content), 7), len(content) - 1]:
        cut.write_bytes(content[:end])
        with pytest.raises(FileFormatError, match=r"cut\.safetensors"):
            open_tensors(cut, kind="test", version=1)
    cut.write_bytes(content + b"\0")
    with pytest.raises(FileFormatError, match="altered"):
        open_tensors(cut, kind="test", version=1)


def _flip(content, position, bit):
    altered = bytearray(content)
    altered[position] ^= 1 << bit
    return bytes(altered)


def test_every_bit_of_the_header_is_guarded(tmp_path):
    """Not a sample: all of them. JSON has spellings that parse alike, e.g. \\u00e9 and \\u00E9."""
    path = tmp_path / "flip.safetensors"
    save_tensors(path, {"é": torch.ones(2, 1)}, kind="test", version=1, metadata={"lr": 1e-5})
    content = path.read_bytes()
    assert b"\\u00e9" in content
    header = 8 + int.from_bytes(content[:8], "little")
    for position in range(header):
        for bit in range(8):
            path.write_bytes(_flip(content, position, bit))
            with pytest.raises(FileFormatError) as error:
                open_tensors(path, kind="test", version=1)
            assert "\n" not in str(error.value)
            assert ";" in str(error.value)  # every one tells the mend


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), bit=st.integers(0, 7))
def test_any_flipped_bit_fails_verification(tmp_path, saved, data, bit):
    content, path = saved.read_bytes(), tmp_path / "flip.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    start, stop = data.draw(st.sampled_from([(0, 8), (8, header), (header, len(content))]))
    path.write_bytes(_flip(content, data.draw(st.integers(start, stop - 1)), bit))
    with pytest.raises(FileFormatError):
        open_tensors(path, kind="test", version=1).verify()


def test_a_row_that_was_sound_is_checked_again_when_it_is_read_again(tmp_path):
    path = _save(tmp_path / "t.safetensors")
    file = open_tensors(path, kind="test", version=1)
    file.rows("parameters", 2)
    content, row = path.read_bytes(), _tensors()["parameters"][2].numpy().tobytes()
    path.write_bytes(_flip(content, content.index(row), 0))
    with pytest.raises(FileFormatError, match="row 2 of 'parameters'"):
        file.rows("parameters", 2)


def test_a_file_that_took_the_place_of_an_opened_one_is_checked(tmp_path):
    path, other = _save(tmp_path / "t.safetensors"), tmp_path / "other.safetensors"
    file = open_tensors(path, kind="test", version=1)
    file.rows("parameters", (2, 3))
    tensors = _tensors()
    tensors["parameters"] += 1
    save_tensors(other, tensors, kind="test", version=1, metadata=METADATA)
    os.replace(other, path)
    with pytest.raises(FileFormatError, match="row 2 of 'parameters'"):
        file.rows("parameters", (2, 3))


def test_a_flip_fails_its_own_row_and_no_other(tmp_path, saved):
    content, path = saved.read_bytes(), tmp_path / "flip.safetensors"
    row = _tensors()["parameters"][2].numpy().tobytes()
    path.write_bytes(_flip(content, content.index(row) + 3, 6))
    file = open_tensors(path, kind="test", version=1)
    for i in (0, 1, 3, 4):
        assert torch.equal(file.rows("parameters", i), _tensors()["parameters"][i])
    with pytest.raises(FileFormatError, match=r"row 2 of 'parameters'.*flip.safetensors"):
        file.rows("parameters", 2)
    with pytest.raises(FileFormatError):
        file.read("parameters")
    assert torch.equal(file.read("labels"), torch.arange(6))


def test_a_file_cut_after_opening_is_refused(tmp_path):
    path = _save(tmp_path / "t.safetensors")
    file = open_tensors(path, kind="test", version=1)
    os.truncate(path, path.stat().st_size - 60)
    with pytest.raises(FileFormatError, match="truncated"):
        file.verify()
    path.unlink()
    with pytest.raises(FileFormatError, match="No such file"):
        file.read("labels")


def test_other_kinds_versions_and_strangers(tmp_path):
    path = _save(tmp_path / "t.safetensors")
    with pytest.raises(FileFormatError, match="holds 'test', not 'trajectory'"):
        open_tensors(path, kind="trajectory", version=1)
    save_tensors(path, _tensors(), kind="test", version=3)
    newer = r"newer trajmatch \(format 3, this one reads up to 1\); upgrade trajmatch"
    with pytest.raises(FileFormatError, match=newer):
        open_tensors(path, kind="test", version=1)
    assert open_tensors(path, kind="test", version=4).names
    for metadata in (None, {"kind": "test"}):
        save_file(_tensors(), path, metadata=metadata)
        with pytest.raises(FileFormatError, match="not written by trajmatch"):
            open_tensors(path, kind="test", version=1)


def _forge(path, change):
    """A header that is changed and then digested again: what a careful stranger could write."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header, separators=(",", ":")).encode()
    place = len(headers._PREFIX)
    raw = raw[:place] + headers._header_digest(raw) + raw[place + headers._DIGEST :]
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


EARLIER = Path(__file__).parent / "written_by_earlier_versions"
LONG = (torch.arange(33_000) % 251).to(torch.uint8)  # longer than a line of the folded checksum
RAMP = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 4


@pytest.mark.parametrize("checksum", ["crc32", "folded"])
def test_files_of_earlier_versions_are_read_and_checked(tmp_path, checksum):
    """Written by the code of their time. The first files do not name their checksum."""
    path = Path(shutil.copy(EARLIER / f"{checksum}.safetensors", tmp_path))
    content = path.read_bytes()
    assert (b'"checksum":"folded"' in content) == (checksum == "folded")
    file = open_tensors(path, kind="fixture", version=1)
    file.verify()
    assert file.metadata == {"seed": 3, "lr": 0.01}
    assert torch.equal(file.rows("long", 0), LONG)
    assert torch.equal(file.read("ramp"), RAMP)
    path.write_bytes(_flip(content, -1, 5))
    assert torch.equal(file.read("ramp"), RAMP)
    with pytest.raises(FileFormatError, match="row 0 of 'long'"):
        file.rows("long", 0)


def test_new_files_name_their_checksum(saved):
    assert b'"checksum":"xxh3"' in saved.read_bytes()
    assert open_tensors(saved, kind="test", version=1)._checksum is xxh3


@pytest.mark.parametrize("name", ["better", [], None])
def test_a_checksum_of_a_later_version_is_refused(tmp_path, name):
    path = _save(tmp_path / "t.safetensors")
    _forge(path, lambda header: header["__metadata__"].update(checksum=name))
    with pytest.raises(FileFormatError, match=r"written by a newer trajmatch .*; upgrade") as error:
        open_tensors(path, kind="test", version=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["parameters"].update(data_offsets=[0, 10**12]),
        lambda h: h["parameters"].update(shape=[5, 7, 1, 2]),
        lambda h: h["parameters"].update(shape=[-5, -7]),
        lambda h: h["parameters"].update(shape=[True, 35]),
        lambda h: h["parameters"].update(dtype="F8"),
        lambda h: h["parameters"].pop("shape"),
        lambda h: h.update(extra={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        lambda h: h["__metadata__"].update(rows="[]"),
        lambda h: h["__metadata__"].update(rows='{"parameters":3}'),
        lambda h: h["__metadata__"].update(metadata="3"),
        lambda h: h["__metadata__"].pop("metadata"),
        lambda h: h["__metadata__"].update(version="9" * 5000),
        lambda h: h.update(parameters=[1]),
    ],
)
def test_an_inconsistent_header_is_refused_even_with_a_right_digest(tmp_path, change):
    path = _save(tmp_path / "t.safetensors")
    _forge(path, lambda header: None)
    open_tensors(path, kind="test", version=1).verify()  # the forging itself is sound
    _forge(path, change)
    with pytest.raises(FileFormatError):
        open_tensors(path, kind="test", version=1).verify()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
        b"\xff" * 100,
        b"\x80\x04pickled, perhaps",
    ],
)
def test_strange_content_is_refused(tmp_path, content):
    path = tmp_path / "strange.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"strange\.safetensors"):
        open_tensors(path, kind="test", version=1)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")  # opening one would wait for ever
    for name, reason in [
        ("absent", "No such file"),
        ("nowhere", "No such file"),
        ("loop", "symbolic links"),
        ("fifo", "not a regular file"),
        ("", "is a folder"),
    ]:
        with pytest.raises(FileFormatError, match=reason):
            open_tensors(tmp_path / name, kind="test", version=1)


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path):
    path = tmp_path / "t.safetensors"
    for tensors in (
        {},
        {"c": torch.zeros(2, dtype=torch.complex64)},
        {"__metadata__": torch.ones(2)},
    ):
        with pytest.raises(SettingError):
            save_tensors(path, tensors, kind="k", version=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = _save(tmp_path / "t.safetensors")
    before = path.read_bytes()

    def write_and_fail():
        with atomic_write(path) as partial:
            partial.write_bytes(b"half of it")
            assert partial.parent == path.parent
            assert path.read_bytes() == before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"mean": 1.5, "sd": float("nan"), "values": (1, float("inf")), "name": "é"})
    assert b"NaN" not in path.read_bytes()
    assert read_json(path) == {"mean": 1.5, "sd": None, "values": [1, None], "name": "é"}
    write_json(path, {"path": b"\xff.zip".decode("utf-8", "surrogateescape")})
    assert read_json(path) == {"path": "\udcff.zip"}
    for content in (b"{", b"", b"\xff", b"[" * 10**6):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"a.json is not a readable JSON"):
            read_json(path)
    for absent in (Path(tmp_path / "absent.json"), tmp_path):
        with pytest.raises(FileFormatError):
            read_json(absent)

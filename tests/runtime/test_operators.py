"""Building and loading C++ operators: once, whole or not at all, and what is said where it fails.

Most compilers here are small scripts; one test builds a real library, others are slow.
"""

import functools
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trajmatch.runtime import operators
from trajmatch.runtime.operators import OperatorsMissing, available, load

TWICE = """
#include <torch/library.h>
#include "factor.h"

static at::Tensor twice(const at::Tensor& x) {{ return x.mul(FACTOR); }}

TORCH_LIBRARY({namespace}, library) {{ library.def("twice(Tensor x) -> Tensor", twice); }}
"""


def write_source(folder, namespace="none", factor=2):
    """A source of one operator, and a header beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "factor.h").write_text(f"#define FACTOR {factor}\n")
    source = folder / f"{namespace}.cpp"
    source.write_text(TWICE.format(namespace=namespace))
    return source


def write_compiler(folder, body, version="1.0"):
    """A script in place of a compiler. `$output` is what it is told to write; every call that
    compiles adds a line to `calls` beside it."""
    folder.mkdir(exist_ok=True)
    compiler = folder / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then echo "{version}"; exit 0; fi\n'
        f'echo "$@" >> "{folder}/calls"\n'
        "for output do :; done  # the last argument\n" + body
    )
    compiler.chmod(0o755)
    return compiler


def calls(compiler):
    """The command lines that a script of `write_compiler` was given."""
    path = compiler.parent / "calls"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The folder of built libraries; not there yet."""
    folder = tmp_path / "built"
    monkeypatch.setenv(operators.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(operators, "_keep_freed_memory", lambda: None)
    return folder


@pytest.fixture
def loaded(monkeypatch):
    """What torch is told to load; nothing is loaded."""
    paths = []
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    return paths


@pytest.fixture
def use(monkeypatch, tmp_path):
    """use(body): a script is the compiler, on a processor with AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")

    def use(body='echo library > "$output"\n', **options):
        compiler = write_compiler(tmp_path / "bin", body, **options)
        monkeypatch.setenv("CXX", str(compiler))
        return compiler

    return use


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def libraries(folder):
    return sorted(folder.glob("*.so"))


# -- built once ----------------------------------------------------------------------------------


def require_compiler():
    try:
        operators.find_compiler(), operators.instructions()
    except OperatorsMissing as error:
        pytest.skip(str(error))


def test_a_source_is_built_once_and_its_operators_can_be_called(tmp_path, built):
    require_compiler()
    source = write_source(tmp_path / "source", "trajmatch_test_once")
    library = load(source)
    assert torch.ops.trajmatch_test_once.twice(torch.ones(2)).tolist() == [2, 2]
    assert library.parent == built
    assert files(built) == [library.with_suffix(".lock").name, library.name]
    before = library.stat()
    assert load(source) == library
    after = library.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.slow
def test_another_process_finds_the_library(tmp_path, built):
    require_compiler()
    source = write_source(tmp_path / "source", "trajmatch_test_other")
    script = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from trajmatch.runtime.operators import load\n"
        "print(load(Path(sys.argv[1])))\n"
        "print(torch.ops.trajmatch_test_other.twice(torch.ones(1)).item())\n"
    )
    command = [sys.executable, "-c", script, str(source)]
    # Two at a time: one builds and the other waits.
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].split() for process in both]
    (library,) = libraries(built)
    assert printed == [[str(library), "2.0"]] * 2
    before = library.stat().st_mtime_ns
    third = subprocess.run(command, capture_output=True, text=True, check=True)
    assert third.stdout.split() == printed[0]
    assert library.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_changed_header_changes_the_operator(tmp_path, built):
    require_compiler()
    first = load(write_source(tmp_path / "source", "trajmatch_test_header"))
    changed = write_source(tmp_path / "source", "trajmatch_test_header", factor=3)
    script = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from trajmatch.runtime.operators import load\nload(Path(sys.argv[1]))\n"
        "print(torch.ops.trajmatch_test_header.twice(torch.ones(1)).item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(changed)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3.0"]
    assert first in libraries(built)
    assert len(libraries(built)) == 2


def test_a_second_call_finds_what_the_first_built(tmp_path, built, loaded, use):
    compiler, source = use(), write_source(tmp_path / "source")
    library = load(source)
    assert load(source) == library
    assert loaded == [library, library]
    assert len(calls(compiler)) == 1
    assert library.read_text() == "library\n"
    assert files(built) == [library.with_suffix(".lock").name, library.name]


def test_what_the_compiler_is_told(tmp_path, built, loaded, use):
    compiler, source = use(), write_source(tmp_path / "source")
    library = load(source)
    (line,) = calls(compiler)
    words = line.split()
    assert str(source) in words
    assert {"-mavx2", "-mfma", "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"} <= {*words}
    assert "-mavx512f" not in words
    assert f"-I{Path(torch.__file__).parent / 'include'}" in words
    # Into a folder of its own first: no process ever sees half a library.
    assert Path(words[-1]).name == library.name
    assert Path(words[-1]).parent.parent == built


@pytest.mark.parametrize("change", ["header", "new header", "source", "compiler", "processor"])
def test_another_of_what_it_depends_on_is_another_library(
    change, tmp_path, built, loaded, use, monkeypatch
):
    compiler, source = use(), write_source(tmp_path / "source")
    first = load(source)
    if change == "header":
        write_source(tmp_path / "source", factor=3)
    elif change == "new header":
        (source.parent / "other.h").write_text("")
    elif change == "source":
        source.write_text(source.read_text() + "// changed\n")
    elif change == "compiler":
        compiler = use(version="2.0")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    second = load(source)
    assert second != first
    assert libraries(built) == sorted([first, second])
    assert len(calls(compiler)) == 2


def test_bf16_instructions_only_where_the_processor_has_them(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for has in (True, False):
        monkeypatch.setattr(operators, "computes_bf16", lambda device, has=has: has)
        assert ("-mavx512bf16" in operators.instructions()) is has


@pytest.mark.slow
def test_what_is_being_built_by_another_is_waited_for(tmp_path, built, loaded, use):
    """Two at once: one builds, the other takes what it made."""
    compiler, source = use('sleep 0.5\necho library > "$output"\n'), write_source(tmp_path / "s")
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom trajmatch.runtime import operators\n"
        "torch.backends.cpu.get_cpu_capability = lambda: 'AVX2'\n"
        "torch.ops.load_library = print\n"
        "operators.load(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(source)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].split() for process in both]
    (library,) = libraries(built)
    assert printed == [[str(library)]] * 2
    assert len(calls(compiler)) == 1


def test_the_lock_of_a_killed_build_does_not_hold_up_the_next(tmp_path, built, loaded, use):
    use("sleep 60\n")
    source = write_source(tmp_path / "source")
    script = (
        "import sys, torch\nfrom pathlib import Path\nfrom trajmatch.runtime import operators\n"
        "torch.backends.cpu.get_cpu_capability = lambda: 'AVX2'\n"
        "operators.load(Path(sys.argv[1]))\n"
    )
    first = subprocess.Popen([sys.executable, "-c", script, str(source)], start_new_session=True)
    compiler = tmp_path / "bin" / "c++"
    limit = time.monotonic() + 60
    while not calls(compiler) and time.monotonic() < limit:
        time.sleep(0.05)
    assert calls(compiler)
    os.killpg(first.pid, 9)
    first.wait()
    use()
    library = load(source)
    assert loaded == [library]


# -- where it fails ------------------------------------------------------------------------------


def only_lock(folder):
    return [Path(name).suffix for name in files(folder)] == [".lock"]


def test_a_broken_source_gives_the_compilers_error_in_one_line(tmp_path, built, loaded, use):
    use(
        'echo half > "$output"\n'
        "echo 'In file included from a:' >&2\n"
        'echo "none.cpp:3:1: error: unknown type name" >&2\n'
        "echo 'none.cpp:4:1: error: and another' >&2\n"
        "exit 1\n"
    )
    with pytest.raises(OperatorsMissing) as caught:
        load(write_source(tmp_path / "source"))
    assert str(caught.value) == "c++ failed: none.cpp:3:1: error: unknown type name"
    assert only_lock(built)
    assert loaded == []


@pytest.mark.slow
def test_a_real_compilers_error_is_one_line(tmp_path, built):
    require_compiler()
    source = write_source(tmp_path / "source", "trajmatch_test_broken")
    source.write_text(source.read_text() + "nothing such;\n")
    with pytest.raises(OperatorsMissing, match=r"failed: .*error: .*nothing") as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert only_lock(built)


def test_after_a_failure_the_next_call_builds(tmp_path, built, loaded, use):
    source = write_source(tmp_path / "source")
    use("exit 1\n")
    with pytest.raises(OperatorsMissing, match=r"c\+\+ failed"):
        load(source)
    use()
    library = load(source)
    assert libraries(built) == loaded == [library]


def test_a_compiler_that_writes_nothing_is_one_line(tmp_path, built, loaded, use):
    use("exit 0\n")
    with pytest.raises(OperatorsMissing) as caught:
        load(write_source(tmp_path / "source"))
    assert "\n" not in str(caught.value)
    assert only_lock(built)


def test_a_compiler_that_cannot_be_run_is_one_line(tmp_path, built, loaded, use):
    use()
    compiler = tmp_path / "bin" / "c++"
    compiler.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(OperatorsMissing):
        load(write_source(tmp_path / "source"))
    assert loaded == []


def test_a_library_that_cannot_be_loaded_is_one_line(tmp_path, built, use):
    use()  # which writes no library but a text
    with pytest.raises(OperatorsMissing) as caught:
        load(write_source(tmp_path / "source"))
    assert "\n" not in str(caught.value)
    assert ".so" in str(caught.value)


def test_without_a_compiler_the_message_names_what_to_install(tmp_path, built, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(OperatorsMissing, match=r"no C\+\+ compiler \(c\+\+, g\+\+ or clang\+\+\)"):
        load(write_source(tmp_path / "source"))
    assert not built.exists()


def test_the_compiler_is_the_environments_or_one_on_the_path(tmp_path, monkeypatch):
    own = write_compiler(tmp_path / "own", "")
    on_path = write_compiler(tmp_path / "path", "")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("CXX", str(own))
    assert operators.find_compiler() == str(own)
    monkeypatch.setenv("CXX", "not-there")
    assert operators.find_compiler() == str(on_path)
    monkeypatch.delenv("CXX")
    assert operators.find_compiler() == str(on_path)
    on_path.rename(on_path.with_name("clang++"))
    assert operators.find_compiler() == str(on_path.with_name("clang++"))


def test_off_builds_nothing(tmp_path, loaded, use, monkeypatch):
    compiler = use()
    monkeypatch.setenv(operators.FOLDER_VARIABLE, "off")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OperatorsMissing, match="TRAJMATCH_OPERATORS is off"):
        load(write_source(tmp_path / "source"))
    assert calls(compiler) == loaded == []
    assert not Path("off").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, loaded, use, monkeypatch):
    use()
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "inside"):
        monkeypatch.setenv(operators.FOLDER_VARIABLE, str(folder))
        with pytest.raises(OperatorsMissing, match="file") as caught:
            load(write_source(tmp_path / "source"))
        assert "\n" not in str(caught.value)
    assert loaded == []


def test_a_processor_without_avx2_is_named(tmp_path, built, loaded, use, monkeypatch):
    compiler = use()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    text = r"the processor has neither AVX2 nor AVX-512 \(DEFAULT\)"
    with pytest.raises(OperatorsMissing, match=text):
        load(write_source(tmp_path / "source"))
    assert calls(compiler) == loaded == []
    assert not built.exists()


# -- where libraries are -------------------------------------------------------------------------


def test_libraries_are_in_the_users_cache_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(operators.FOLDER_VARIABLE, "~/mine")
    assert operators.folder() == tmp_path / "mine"
    monkeypatch.setattr(
        operators.platformdirs, "user_cache_dir", lambda name, appauthor: f"/cache/{name}"
    )
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv(operators.FOLDER_VARIABLE)
        else:
            monkeypatch.setenv(operators.FOLDER_VARIABLE, unset)
        assert operators.folder() == Path("/cache/trajmatch/operators")


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    def no_home(*_, **__):
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv(operators.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(operators.platformdirs, "user_cache_dir", no_home)
    with pytest.raises(OperatorsMissing, match="set TRAJMATCH_OPERATORS"):
        operators.folder()


# -- whether there are any -----------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is known yet of what can be loaded."""
    monkeypatch.setattr(operators, "_loaded", functools.cache(operators._loaded.__wrapped__))


def test_what_cannot_be_had_is_one_line_in_the_log(
    tmp_path, loaded, use, fresh, monkeypatch, caplog
):
    compiler, source = use(), write_source(tmp_path / "source")
    monkeypatch.setenv(operators.FOLDER_VARIABLE, "off")
    with caplog.at_level(logging.INFO, logger="trajmatch"):
        assert [available(source), available(source)] == [False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "going on without C++ operators: TRAJMATCH_OPERATORS is off"
    ]
    assert calls(compiler) == loaded == []


def test_a_failed_build_is_tried_once_a_process(tmp_path, built, loaded, use, fresh, caplog):
    compiler, source = use("exit 1\n"), write_source(tmp_path / "source")
    with caplog.at_level(logging.INFO, logger="trajmatch"):
        assert [available(source), available(source)] == [False, False]
    assert len(calls(compiler)) == 1
    assert len([r for r in caplog.records if "going on without" in r.getMessage()]) == 1


def test_what_is_built_is_said(tmp_path, built, loaded, use, fresh, caplog):
    use()
    source = write_source(tmp_path / "source")
    with caplog.at_level(logging.INFO, logger="trajmatch"):
        assert [available(source), available(source)] == [True, True]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("building the C++ operators")
    assert said[1].startswith("built in ")
    assert loaded == libraries(built)


def test_the_packages_sources_are_beside_the_code():
    from trajmatch.unroll import native

    assert native.SOURCE.is_file()
    included = native.SOURCE.read_text() + "".join(
        path.read_text() for path in native.SOURCE.parent.glob("*.h")
    )
    own = [line.split('"')[1] for line in included.splitlines() if line.startswith('#include "')]
    assert own
    assert all((native.SOURCE.parent / name).is_file() for name in own)


@pytest.mark.slow
@pytest.mark.parametrize("capability", sorted(operators.INSTRUCTIONS))
def test_the_packages_sources_compile_for_every_processor(capability, tmp_path, monkeypatch):
    """Not loaded: this processor may not run it."""
    from trajmatch.unroll import native

    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    paths = []
    monkeypatch.setattr(torch.ops, "load_library", paths.append)
    for bf16 in (False, True) if capability == "AVX512" else (False,):
        monkeypatch.setattr(operators, "computes_bf16", lambda device, bf16=bf16: bf16)
        monkeypatch.setenv(operators.FOLDER_VARIABLE, str(tmp_path))
        assert load(native.SOURCE).is_file()
    assert len(paths) == len(libraries(tmp_path))

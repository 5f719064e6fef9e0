"""C++ operators, built on this machine when first needed.

Sources become one library file, named by a digest of them, of torch, the processor's instructions
and the compiler, in the folder of the environment variable TRAJMATCH_OPERATORS, else `operators` in
the user's cache folder. Building takes about 15 seconds, once; every later process loads the file.
Where there is no C++ compiler, no instructions that the sources are written for (AVX2 or AVX-512),
or TRAJMATCH_OPERATORS is "off", nothing is built, and callers compute in their other way.

Not torch.utils.cpp_extension.load: it needs ninja and setuptools, and the lock of a build that was
killed makes every later one wait for good.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import textwrap
import time
from pathlib import Path

import filelock
import platformdirs
import torch

from trajmatch.runtime.processor import computes_bf16

log = logging.getLogger("trajmatch")

FOLDER_VARIABLE = "TRAJMATCH_OPERATORS"
OFF = "off"

INSTRUCTIONS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
}
"""Compiler flags, by what torch calls the capability of the processor."""
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-w"]


class OperatorsMissing(Exception):
    """The operators cannot be built or loaded here; the message says why, in one line."""


def available(source: Path) -> bool:
    """Whether the operators that `source` registers with torch are there to be called; builds and
    loads them the first time. Where that fails, one line is logged, once a process."""
    return _loaded(source)


@functools.cache
def _loaded(source: Path) -> bool:
    try:
        load(source)
    except OperatorsMissing as error:
        log.info("going on without C++ operators: %s", error)
        return False
    return True


def load(source: Path) -> Path:
    """Load the library built from `source` and the headers beside it, building it if need be; its
    path.

    Raises OperatorsMissing.
    """
    flags, compiler = instructions(), find_compiler()
    try:
        library = folder() / f"{source.stem}-{_digest(source, flags, compiler)}.so"
        if not library.is_file():
            _build_alone(source, flags, compiler, library)
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise OperatorsMissing(textwrap.shorten(f"{error} {error.__cause__ or ''}", 300)) from error
    _keep_freed_memory()
    return library


FREED_BYTES = 256 * 2**20
"""Of freed memory, how much stays with the process."""
LARGEST_BYTES = 32 * 2**20
"""Blocks up to this size are taken from it; larger ones from the system (glibc's own limit)."""


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensors instead of giving it back.

    A step's activations are freed and needed again a millisecond later. By default each comes back
    from the system page by page, which takes a twentieth of a step's time. Nothing is changed where
    the environment has settings of the allocator, or with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if mallopt is not None and not own:
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(trim, FREED_BYTES)
        mallopt(mmap, LARGEST_BYTES)


def instructions() -> list[str]:
    """The compiler flags for this processor's instructions. Raises OperatorsMissing where the
    operators are not written for them."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in INSTRUCTIONS:
        raise OperatorsMissing(f"the processor has neither AVX2 nor AVX-512 ({capability})")
    flags = [*INSTRUCTIONS[capability], "-DCPU_CAPABILITY=" + capability]
    if capability == "AVX512" and computes_bf16(torch.device("cpu")):
        flags.append("-mavx512bf16")
    return [*flags, f"-DCPU_CAPABILITY_{capability}"]


def find_compiler() -> str:
    """The C++ compiler: $CXX, or one on the PATH. Raises OperatorsMissing without one."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise OperatorsMissing("no C++ compiler (c++, g++ or clang++) is on the PATH")
    return found


def folder() -> Path:
    """Where built libraries are. Raises OperatorsMissing where it is set to "off", and without a
    home folder."""
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen == OFF:
        raise OperatorsMissing(f"{FOLDER_VARIABLE} is {OFF}")
    try:
        if chosen:
            return Path(chosen).expanduser()
        cache = Path(platformdirs.user_cache_dir("trajmatch", appauthor=False)).expanduser()
        return cache / "operators"
    except RuntimeError as error:
        raise OperatorsMissing(f"no home folder for them; set {FOLDER_VARIABLE}") from error


def _digest(source: Path, flags: list[str], compiler: str) -> str:
    """Of everything that the library depends on."""
    version = _run([compiler, "--version"]).stdout
    built = [torch.__version__, str(torch.version.git_version), _abi()]
    parts = [*built, *FLAGS, *flags, compiler, version]
    for file in [*sorted(source.parent.glob("*.h")), source]:
        parts += [file.name, file.read_text(encoding="utf-8")]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=10).hexdigest()


def _abi() -> str:
    return f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """With what it says as text, whatever the locale."""
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def _build_alone(source: Path, flags: list[str], compiler: str, library: Path) -> None:
    """Build `library` unless another process is doing so; then wait for it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    # Kernel-backed: the kernel frees it when a process is killed.
    with filelock.FileLock(library.with_suffix(".lock"), fallback_to_soft=False):
        if not library.is_file():
            _build(source, flags, compiler, library)


def _build(source: Path, flags: list[str], compiler: str, library: Path) -> None:
    log.info("building the C++ operators (about 15 seconds, once on this machine)")
    began = time.perf_counter()
    scratch = library.with_suffix(".build")  # of one name: a killed build's is taken over
    scratch.mkdir(exist_ok=True)
    try:
        built = scratch / library.name
        home = Path(torch.__file__).parent
        includes = [f"-I{home / 'include'}"]
        libraries = [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
        command = [compiler, *FLAGS, *flags, _abi(), *includes, str(source), *libraries]
        command += ["-o", str(built)]
        done = _run(command)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            reason = textwrap.shorten((errors or [done.stderr])[0], 200)
            raise OperatorsMissing(f"{Path(compiler).name} failed: {reason}")
        built.replace(library)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    log.info("built in %.0f s", time.perf_counter() - began)

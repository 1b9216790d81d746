"""Compile kernels with Numba and keep the machine code in a private cache folder.

Runs on driver and executors. The only module that knows Numba flags.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core import caching
from numba.core.compiler_lock import global_compiler_lock

from spark_fm._version import __version__

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

log = logging.getLogger(__name__)

# No "nnan" and no "ninf": divergence checks must see non-finite values.
FASTMATH_FLAGS = frozenset({"nsz", "arcp", "contract", "afn", "reassoc"})

_config: Any = numba.config
_HAS_KERNELS = re.compile(r"^(from|import) .*\b(njit|llvmlite)\b", re.MULTILINE)
_IMPORT = re.compile(r"^from (spark_fm[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
_CONSTANT = re.compile(r"\b[A-Z][A-Z0-9_]+\b")


def njit(
    function: Callable[..., Any], *, tag: str | None = None, variant: str | None = None
) -> Any:
    """Compile ``function`` in nopython mode, lazily, with the project's flags.

    ``function`` may be a closure over integers and other kernels; ``tag``, unique for the
    captured values, names this specialisation, whose machine code is cached on disk under that
    name. ``variant`` names a helper that is not cached by itself but inside a cached kernel.

    ``NUMBA_DISABLE_JIT``, as coverage tools and debuggers want it, leaves these functions
    compiled: they cannot run as Python. It counts for everybody else's as before.

    Numba's own cache is not used because its index is shared by all closures of
    one function: two processes that add specialisations at the same time can
    make it return the code of the other one. Here each specialisation has a file
    of its own, in a folder named after the source, so neither race nor stale
    helper code can be loaded.

    The name of the specialisation also becomes part of the function's name. Otherwise
    the machine code of two specialisations, compiled in two processes and loaded into a
    third, has the same symbols, and the linker takes the one for the other.
    """
    unique = tag or variant
    if unique is not None:
        function.__qualname__ = f"{function.__qualname__}_{unique.replace('-', '_')}"
    with _compiling():
        dispatcher = numba.njit(
            function, fastmath=set(FASTMATH_FLAGS), nogil=True, error_model="numpy",
            # A helper left out of line exists twice where it was compiled, optimised by
            # itself and within the kernel; the linker's choice would decide about bits.
            forceinline=tag is None,
        )  # fmt: skip
    if _config.DISABLE_JIT:  # compiling decorates, too: Numba's own functions
        dispatcher.compile = _compiling()(dispatcher.compile)
    folder = cache_folder()
    if tag is not None and folder is not None:
        dispatcher._cache = _KernelCache(dispatcher.py_func, tag, folder)
    return dispatcher


@contextmanager
def _compiling() -> Iterator[None]:
    """Set NUMBA_DISABLE_JIT aside: vector instructions exist in compiled code only."""
    with global_compiler_lock:
        disabled = _config.DISABLE_JIT
        _config.DISABLE_JIT = 0
        try:
            yield
        finally:
            _config.DISABLE_JIT = disabled


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """Return the folder of compiled kernels, or None when there is no safe one.

    Candidates in order: ``SPARK_FM_CACHE_DIR``, ``XDG_CACHE_HOME`` or ``~/.cache``,
    the temporary folder. The index is a pickle, so a folder counts as safe only
    when it belongs to this user and nobody else may enter it.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    named = Path(os.environ["SPARK_FM_CACHE_DIR"]) if os.environ.get("SPARK_FM_CACHE_DIR") else None
    candidates = [] if named is None else [named]
    if os.environ.get("XDG_CACHE_HOME"):
        candidates.append(Path(os.environ["XDG_CACHE_HOME"]) / "spark_fm")
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        candidates.append(Path(home) / ".cache" / "spark_fm")
    candidates.append(Path(tempfile.gettempdir()) / f"spark_fm-{user}")
    for base in candidates:
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
            base.mkdir(mode=0o700, exist_ok=True)
            status = os.lstat(base)
            private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
            if private and status.st_uid == user and os.access(base, os.W_OK):
                folder = base / f"kernels-{__version__}-{_source_digest()}"
                folder.mkdir(mode=0o700, exist_ok=True)
                return folder
            level = logging.WARNING if base == named else logging.DEBUG
            log.log(level, "kernel cache %s is not used: others may enter or own it", base)
        except OSError as err:
            log.debug("kernel cache %s is not usable: %s", base, err)
    log.debug("no private cache folder: kernels are compiled in each process")
    return None


def is_cached(tag: str) -> bool:
    """Return whether this machine keeps machine code of a specialisation on disk."""
    folder = cache_folder()
    return folder is not None and (folder / f"{tag}.nbi").exists()


def _source_digest(package: Traversable | None = None) -> str:
    """Return a digest of all sources with kernels and of what compiles them."""
    root = importlib.resources.files("spark_fm") if package is None else package
    sources = {
        name: text
        for folder in ("learner", "formats")
        for name, text in _python_files(root.joinpath(folder), f"spark_fm.{folder}")
    }
    covered = {name for name, text in sources.items() if _HAS_KERNELS.search(text)} | {__name__}
    for name in list(covered):  # constants become part of the machine code
        for module, names in _IMPORT.findall(sources[name]):
            if _CONSTANT.search(names):
                covered.add(module)
    digest = hashlib.sha256(f"{numba.__version__} {sys.version_info[:2]}".encode())
    for name in sorted(covered & sources.keys()):
        digest.update(sources[name].encode())
    return digest.hexdigest()[:16]


def _python_files(folder: Traversable, package: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of each module in a folder and below it."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _python_files(entry, f"{package}.{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{package}.{entry.name[:-3]}", entry.read_text(encoding="utf-8")


class _KernelLocator:
    """Locates one specialisation for Numba's cache machinery."""

    def __init__(self, py_func: Any, folder: Path) -> None:
        self._py_file = py_func.__code__.co_filename
        self._folder = folder

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(self._folder)


class _KernelCacheImpl(caching.CompileResultCacheImpl):
    def __init__(self, py_func: Any, tag: str, folder: Path) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        self._locator = _KernelLocator(py_func, folder)
        self._filename_base = tag


@lru_cache(maxsize=1)
def _load_array_functions() -> None:
    """Import what Numba imports before it loads a kernel, but not scipy.linalg, which takes longer.

    Numba only looks whether SciPy is there, which it is wherever spark_fm is installed.
    """
    with global_compiler_lock, suppress(ImportError, AttributeError):  # of another Numba
        from numba.np import linalg

        look, linalg.ensure_blas = linalg.ensure_blas, lambda: None
        try:
            importlib.import_module("numba.np.arraymath")
        finally:
            linalg.ensure_blas = look


class _KernelCache(caching.FunctionCache):
    """Numba's function cache with one index a specialisation, and no way to fail."""

    def __init__(self, py_func: Any, tag: str, folder: Path) -> None:
        self._name = repr(py_func)
        self._py_func = py_func
        self._tag = tag
        self._impl = _KernelCacheImpl(py_func, tag, folder)
        self._cache_path = str(folder)
        self._cache_file = caching.IndexDataCacheFile(
            cache_path=str(folder), filename_base=tag, source_stamp=folder.name
        )
        self.enable()

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (sig, codegen.magic_tuple(), self._tag)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        _load_array_functions()
        try:
            return super().load_overload(sig, target_context)
        except Exception as err:  # noqa: BLE001 - a damaged pickle raises anything
            log.warning("kernel cache entry %s is unreadable (%s); compiling again", self._tag, err)
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as err:  # noqa: BLE001 - a cache must never stop a training
            log.debug("kernel %s was not cached: %s", self._tag, err)

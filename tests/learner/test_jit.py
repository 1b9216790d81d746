"""The private kernel cache: where it lives, whom it trusts, and that it cannot break a job."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spark_fm.learner import jit


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Move every candidate folder below an own one, none of them named by a variable."""
    tmp_path.chmod(0o700)
    monkeypatch.delenv("SPARK_FM_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def found_folder() -> Path | None:
    return jit.cache_folder.__wrapped__()  # past the memory of this process's answer


def test_the_named_folder_is_used_and_private(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_FM_CACHE_DIR", str(elsewhere / "a" / "named"))

    folder = found_folder()

    assert folder is not None
    assert folder.parent == elsewhere / "a" / "named"
    assert folder.name.startswith("kernels-")
    for part in (folder, folder.parent):
        assert part.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    shared = elsewhere / "shared"
    shared.mkdir()
    shared.chmod(mode)
    monkeypatch.setenv("SPARK_FM_CACHE_DIR", str(shared))

    folder = found_folder()

    assert folder is not None
    assert folder.parent == elsewhere / "home" / ".cache" / "spark_fm"
    assert list(shared.iterdir()) == []


def test_a_link_to_a_folder_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "real").mkdir(mode=0o700)
    (elsewhere / "link").symlink_to(elsewhere / "real")
    monkeypatch.setenv("SPARK_FM_CACHE_DIR", str(elsewhere / "link"))

    assert found_folder().parent == elsewhere / "home" / ".cache" / "spark_fm"  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no user ids here")
def test_a_folder_of_another_user_is_refused(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_FM_CACHE_DIR", str(elsewhere / "named"))
    monkeypatch.setattr(os, "getuid", lambda: 12345)

    assert found_folder() is None  # every candidate belongs to the user of this process


def test_xdg_cache_home_comes_before_home(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere / "xdg"))

    assert found_folder().parent == elsewhere / "xdg" / "spark_fm"  # type: ignore[union-attr]


def test_an_unwritable_home_falls_back_to_the_temporary_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "file").touch()  # nothing can be made below a file, not even by root
    monkeypatch.setenv("HOME", str(elsewhere / "file" / "home"))

    folder = found_folder()

    assert folder is not None
    assert folder.parent.parent == elsewhere / "tmp"
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_home_that_denies_access_falls_back_to_the_temporary_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    home = str(elsewhere / "home")
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).startswith(home) and allowed(path, mode)
    )

    assert found_folder().parent.parent == elsewhere / "tmp"  # type: ignore[union-attr]


@pytest.mark.parametrize("home", ["below-a-file", "not/absolute"])
def test_no_usable_folder_means_no_cache_and_no_error(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    file = elsewhere / "file"
    file.touch()
    monkeypatch.setenv("HOME", str(file / "home") if home == "below-a-file" else home)
    monkeypatch.setattr(tempfile, "tempdir", str(file))

    assert found_folder() is None


def triple(x: float) -> float:
    return 3 * x


def test_a_function_without_cache_folder_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "cache_folder", lambda: None)

    assert jit.njit(triple, tag="triple")(2.0) == 6.0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Cache what this test compiles in a folder of its own."""
    path = tmp_path / "kernels"
    monkeypatch.setattr(jit, "cache_folder", lambda: path)
    path.mkdir()
    return path


def hits(function: object) -> int:
    return sum(function.stats.cache_hits.values())  # type: ignore[attr-defined]


def test_a_second_dispatcher_loads_what_the_first_compiled(folder: Path) -> None:
    jit.njit(triple, tag="triple")(2.0)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    again = jit.njit(triple, tag="triple")

    assert again(2.0) == 6.0
    assert hits(again) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_specialisations_of_one_function_do_not_mix(folder: Path) -> None:
    def times(n: int) -> Callable[[float], float]:
        return lambda x: n * x

    for n in (2, 5, 2, 5):
        assert jit.njit(times(n), tag=f"times-{n}")(1.0) == n

    assert sorted(path.name for path in folder.glob("*.nbi")) == ["times-2.nbi", "times-5.nbi"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"not a pickle at all",
        lambda whole: b"\x00" * len(whole),
        lambda whole: b"\xff" * len(whole),
        lambda whole: b"\x80\x04N.",  # a good pickle of something else
        lambda whole: b"cno_such_module\nthing\n.",
        lambda whole: b"h\x05.",  # a reference to nothing
    ],
    ids=["empty", "half", "cut", "text", "zeros", "ones", "other", "module", "reference"],
)
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_corrupted_cache_entry_is_compiled_again_and_mended(
    folder: Path, suffix: str, broken: Callable[[bytes], bytes]
) -> None:
    jit.njit(triple, tag="triple")(2.0)
    (path,) = folder.glob(f"*.{suffix}")
    path.write_bytes(broken(path.read_bytes()))

    assert jit.njit(triple, tag="triple")(2.0) == 6.0

    mended = jit.njit(triple, tag="triple")
    assert mended(2.0) == 6.0
    assert hits(mended) == 1


def test_a_folder_that_disappears_is_made_again(folder: Path) -> None:
    folder.rmdir()

    assert jit.njit(triple, tag="triple")(2.0) == 6.0

    assert sorted(path.suffix for path in folder.iterdir()) == [".nbc", ".nbi"]


def test_a_folder_that_cannot_be_written_does_not_stop_the_kernel(folder: Path) -> None:
    folder.rmdir()
    folder.touch()  # a file where the folder was

    assert jit.njit(triple, tag="triple")(2.0) == 6.0


def test_flags_leave_nan_and_infinity_visible() -> None:
    def classify(x: float) -> int:
        return (2 if math.isnan(x) else 0) + (1 if math.isinf(x) else 0)

    kernel = jit.njit(classify)

    assert [kernel(x) for x in (1.0, np.nan, np.inf, -np.inf)] == [0, 2, 1, 1]


PROGRAM = """
import numpy as np
from spark_fm.learner import csr
from spark_fm.learner.jit import cache_folder
csr.CsrBatch.from_matrix(np.eye(3))
kernel = csr._rows_strictly_increase
print(cache_folder().parent, sum(kernel.stats.cache_hits.values()))
"""


def run_program(cache: Path, program: str = PROGRAM, **variables: str) -> list[str]:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"SPARK_FM_CACHE_DIR": str(cache), "PYTHONPATH": str(root)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


WITHOUT_JIT = """
import numba
import numpy as np
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights

@numba.njit
def of_somebody_else(x):
    return x

table = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
rows = CsrBatch.from_matrix(np.random.default_rng(2).normal(size=(9, 20)))
scores = FMWeights(0.5, table, 20).predict(rows, "logistic")
print(scores.tobytes().hex(), hasattr(of_somebody_else, "py_func"))
"""


def test_with_numba_s_jit_disabled_kernels_give_the_same_bits_and_others_stay_python(
    tmp_path: Path,
) -> None:
    compiled, cached, uncompiled = (
        run_program(tmp_path / folder, WITHOUT_JIT, NUMBA_DISABLE_JIT=disabled)
        for folder, disabled in (("a", "0"), ("a", "1"), ("b", "1"))
    )

    assert compiled[1:] == ["True"]
    assert cached == uncompiled == [compiled[0], "False"]


def test_a_second_process_loads_from_the_cache_and_survives_its_corruption(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    first = run_program(cache)
    files = {path: path.read_bytes() for path in cache.rglob("*.nb?")}

    second = run_program(cache)

    assert (first, second) == ([str(cache), "0"], [str(cache), "1"])
    assert {path: path.read_bytes() for path in cache.rglob("*.nb?")} == files
    for path in files:
        path.write_bytes(b"")
    assert run_program(cache) == [str(cache), "0"]


LOADS_A_KERNEL = """
import sys
import numba
import numpy as np
from spark_fm.learner.csr import CsrBatch, canonical
rows = CsrBatch.from_arrays(
    np.array([0, 2]), np.array([0, 1], np.int32), np.ones(2, np.float32), labels=np.ones(1),
    weights=np.ones(1),
)
canonical(rows)
print("scipy.linalg" in sys.modules, "numba.np.arraymath" in sys.modules)
print(numba.njit(lambda a: np.linalg.det(a @ a))(2 * np.eye(1)))
"""


def test_loading_a_kernel_imports_no_linear_algebra_and_leaves_it_to_others(tmp_path: Path) -> None:
    run_program(tmp_path, LOADS_A_KERNEL)

    assert run_program(tmp_path, LOADS_A_KERNEL) == ["False", "True", "4.0"]


EDITS = {
    "learner/kernels.py": True,
    "learner/simd.py": True,  # intrinsics
    "learner/jit.py": True,  # flags
    "learner/optimizers.py": True,
    "formats/recordio/framing.py": True,  # magic numbers
    "formats/recordio/decode.py": True,
    "formats/requests.py": False,
    "learner/metrics.py": False,
    "learner/spec.py": False,
    "ml/params.py": False,
}


@pytest.mark.parametrize("name", EDITS)
def test_only_an_edit_of_what_kernels_are_made_of_compiles_them_again(
    tmp_path: Path, name: str
) -> None:
    package = tmp_path / "spark_fm"
    shutil.copytree(Path(jit.__file__).parent.parent, package)
    before = jit._source_digest(package)
    assert before == jit._source_digest()

    with open(package / name, "a") as file:
        file.write("# an edit\n")

    assert (jit._source_digest(package) != before) == EDITS[name]


def test_an_edit_of_a_kernel_in_a_subfolder_compiles_it_again(tmp_path: Path) -> None:
    package = tmp_path / "spark_fm"
    shutil.copytree(Path(jit.__file__).parent.parent, package)
    kernel = package / "learner" / "below" / "further" / "kernel.py"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("from spark_fm.learner.jit import njit\n")
    before = jit._source_digest(package)

    kernel.write_text("from spark_fm.learner.jit import njit\n\nSTEP = 2\n")

    assert jit._source_digest(package) != before

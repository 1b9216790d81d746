"""Find and probe a GPU, and size launches for it; driver and executors. Experimental."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config

from spark_fm.errors import GpuNotFoundError
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.spec import LossName, OptimizerName

INSTALL = "pip install 'spark-fm[gpu]' where tasks run"


def n_gpus() -> int:
    """Return how many GPUs this process sees (>= 1); raise GpuNotFoundError without one."""
    # As nvidia-smi numbers them, of which discovery scripts ask: by default the fastest is 0.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        from numba import cuda
    except ImportError as err:
        raise GpuNotFoundError(f"numba.cuda cannot be imported ({err}): {INSTALL}") from err
    if not cuda.is_available():
        raise GpuNotFoundError(
            f"no CUDA driver or no NVIDIA GPU is there{_driver_error()}, or CUDA's libraries are "
            f"missing: {INSTALL}"
        )
    return len(cuda.gpus)


def use_gpu(address: str) -> None:
    """Make a GPU the current one of this thread.

    ``address`` is its number among those that ``CUDA_VISIBLE_DEVICES`` leaves, or its UUID.
    Raises GpuNotFoundError, also when the driver refuses it: another process may hold or fill it.
    """
    seen = n_gpus()
    if simulated():
        return
    from numba import cuda
    from numba.cuda import dispatcher

    settings: Any = vars(dispatcher)["config"]  # numba's own, or that of numba-cuda
    settings.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # rows may be few
    number = _number_of(address, seen)
    try:
        cuda.select_device(number)
    except Exception as err:
        raise GpuNotFoundError(
            f"GPU {address} cannot be used ({_summary_of(err)}); nvidia-smi shows what holds it"
        ) from err


def gpu_name() -> str:
    """Return the name of the current GPU."""
    if simulated():
        return "Numba's CUDA simulator"
    from numba import cuda

    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


def check_gpu() -> None:
    """Compile and run a kernel whose threads wait for each other; raise GpuNotFoundError."""
    from numba import cuda

    try:
        from spark_fm.learner.cuda.probe import add_one

        numbers = cuda.to_device(np.zeros(1, np.float32))
        add_one[1, 1](numbers)
        result = float(numbers.copy_to_host()[0])
    except Exception as err:
        raise GpuNotFoundError(f"the GPU runs no kernel ({_summary_of(err)}): {INSTALL}") from err
    if result != 1:
        raise GpuNotFoundError(f"the GPU computes 0 + 1 = {result}")


def _summary_of(err: Exception) -> str:
    """Return the type and the first line of an error."""
    first = str(err).split("\n")[0]
    return f"{type(err).__name__}: {first}"


def _number_of(address: str, seen: int) -> int:
    """Return the number of the GPU with this number or UUID."""
    from numba import cuda

    if address.isdigit() and int(address) < seen:
        return int(address)
    for number in range(seen):
        if str(cuda.gpus[number].uuid) == address:
            return number
    raise GpuNotFoundError(
        f"GPU {address!r} is not among the {seen} that this process sees; check the discovery "
        "script and CUDA_VISIBLE_DEVICES"
    )


def _driver_error() -> str:
    from numba import cuda

    try:
        text = str(cuda.cuda_error() or "")
    except Exception:  # noqa: BLE001 - only a detail of the message
        return ""
    lines = [line for line in text.split("\n") if line.strip()]
    return f" ({lines[0]})" if lines else ""


WARP = 32
SIMULATED_WARP = 4  # the simulator takes a thread of the CPU for each
SCALARS = 7  # sums over a chunk's entries beside those by factor
# Products of a batch from which its way to the GPU and back, about 1 ms, pays: an estimate from
# the time of a CPU core (docs/notes/2026-11-benchmarks.md).
LEAST_PRODUCTS = 2**22


def pays(nnz: int, k: int) -> bool:
    """Return whether a batch is large enough to be scored on a GPU."""
    return nnz * (k + 16) >= LEAST_PRODUCTS


def simulated() -> bool:
    """Return whether Numba's simulator stands in for a GPU."""
    return bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]  # set when Numba is imported


@dataclass(frozen=True, slots=True)
class Shape:
    """Constants of a specialisation."""

    k: int
    loss: LossName
    optimizer: OptimizerName
    per_row: bool  # a step for each row of a block; otherwise the block is a mini-batch
    shuffles: bool  # sums of a warp through registers; otherwise shared memory, one warp a block

    @property
    def lanes(self) -> int:
        """Threads of a warp."""
        return SIMULATED_WARP if simulated() else WARP

    @property
    def warps(self) -> int:
        """Warps of a thread block."""
        return 4 if self.shuffles else 1

    @property
    def threads(self) -> int:
        """Threads of a thread block."""
        return self.lanes * self.warps

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a thread block."""
        return 0 if self.shuffles else 4 * self.lanes

    def launch(self, n_thread_blocks: int) -> tuple[int, int, int, int]:
        """Return a kernel's configuration: grid, threads, stream, shared memory."""
        return n_thread_blocks, self.threads, 0, self.shared_bytes

    @property
    def width(self) -> int:
        """Threads that share a row's factors: a power of two up to a warp."""
        return min(self.lanes, 1 << max(0, self.k - 1).bit_length())

    @property
    def groups(self) -> int:
        """Entries that a warp reads at once."""
        return self.lanes // self.width

    @property
    def n_held(self) -> int:
        """Factors of one thread."""
        return -(-self.k // self.width)

    @property
    def tail(self) -> int:
        """Sums by factor of a chunk: Adam has their squares, too."""
        return (2 if OPTIMIZERS[self.optimizer].has_factor_squares else 1) * self.k

    @property
    def partial(self) -> int:
        """Floats that a chunk which is one of several leaves behind."""
        return self.tail + SCALARS

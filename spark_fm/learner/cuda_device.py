"""The GPUs that this process sees, and the one that it uses.

Numba looks for them when it is first asked: nothing here runs where no GPU is wanted.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from spark_fm.errors import GpuNotFoundError
from spark_fm.learner.cuda_shape import simulated

INSTALL = "pip install 'spark-fm[gpu]' where tasks run"


def n_gpus() -> int:
    """Return how many GPUs this process sees (>= 1).

    Raises
    ------
    GpuNotFoundError
        When there is none, or Numba cannot use it.
    """
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

    Parameters
    ----------
    address : str
        Its number among those that ``CUDA_VISIBLE_DEVICES`` leaves, or its UUID.

    Raises
    ------
    GpuNotFoundError
        Also when the driver refuses it: another process may have it for itself or fill it.
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
            f"GPU {address} cannot be used ({_said(err)}); nvidia-smi shows what holds it"
        ) from err


def gpu_name() -> str:
    """Return what the current GPU calls itself."""
    if simulated():
        return "Numba's CUDA simulator"
    from numba import cuda

    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


def check_gpu() -> None:
    """Compile a kernel whose threads wait for each other, once a process, and run it.

    Raises
    ------
    GpuNotFoundError
        With what Numba says, when it does not work.
    """
    from numba import cuda

    try:
        from spark_fm.learner.cuda_probe import add_one

        numbers = cuda.to_device(np.zeros(1, np.float32))
        add_one[1, 1](numbers)
        found = float(numbers.copy_to_host()[0])
    except Exception as err:
        raise GpuNotFoundError(f"the GPU runs no kernel ({_said(err)}): {INSTALL}") from err
    if found != 1:
        raise GpuNotFoundError(f"the GPU computes 0 + 1 = {found}")


def _said(err: Exception) -> str:
    """Return its kind and the first line of what it says."""
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
    except Exception:  # noqa: BLE001 - its words are an extra
        return ""
    said = [line for line in text.split("\n") if line.strip()]
    return f" ({said[0]})" if said else ""

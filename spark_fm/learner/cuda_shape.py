"""Which work is for a GPU, and how its threads share that of one specialisation."""

from __future__ import annotations

from dataclasses import dataclass

from numba import config

from spark_fm.learner.spec import Loss, Optimizer

WARP = 32
SIMULATED_WARP = 4  # the simulator takes a thread of the processor for each
SCALARS = 7  # sums over a chunk's entries beside those by factor
# Products of a batch from which its way to the GPU and back, about 1 ms, is made up for: an
# estimate from what a processor's core takes for them (docs/performance.md).
LEAST_PRODUCTS = 2**22


def pays(nnz: int, k: int) -> bool:
    """Tell whether a batch is large enough to be scored on a GPU."""
    return nnz * (k + 16) >= LEAST_PRODUCTS


def simulated() -> bool:
    """Tell whether Numba's simulator stands in for a GPU."""
    return bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]  # set when Numba is imported


@dataclass(frozen=True, slots=True)
class Shape:
    """Constants of a specialisation.

    Parameters
    ----------
    k : int
    loss, optimizer : str
    per_row : bool
        Every row of a block takes a step of its own, as far as they go together; otherwise
        the block is a mini-batch and takes one.
    shuffles : bool
        Sums of a warp go through registers; otherwise through shared memory, and a thread
        block is one warp.
    """

    k: int
    loss: Loss
    optimizer: Optimizer
    per_row: bool
    shuffles: bool

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
        return (2 if self.optimizer == "adam" else 1) * self.k

    @property
    def partial(self) -> int:
        """Floats that a chunk which is one of several leaves behind."""
        return self.tail + SCALARS

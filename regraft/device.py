"""Devices, threads and arithmetic precision: the `--device` and `--threads` of every command."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from regraft.errors import InputError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_USED = 0.8  # of all memory, where the system does not say how much is free


def pick_device(name: str) -> torch.device:
    """The torch device of that name; 'auto' is CUDA if available. Raises InputError for unknown or
    missing devices, with the driver's reason, and for a GPU that this torch has no kernels for."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = _device_of(name)
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        reason = f"there are {count}" if count else _no_gpu()
        raise InputError(
            f"--device {name}: torch {torch.__version__} sees no such GPU here ({reason})."
        )
    if device.type == "cuda":
        _refuse_without_kernels(device)
    return device


def check_device(name: str) -> None:
    """Raise InputError for a name that `pick_device` accepts on no machine with this torch. For
    work that other machines do."""
    import torch

    if name == "auto" or _device_of(name).type == "cpu" or torch.backends.cuda.is_built():
        return
    raise InputError(
        f"--device {name}: torch {torch.__version__} is built without CUDA, so that it uses no GPU "
        "on any machine; install another build of torch or say --device cpu."
    )


def _device_of(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device '{name}' is not auto, cpu, cuda or cuda:N.")
    return device


def _no_gpu() -> str:
    """Why torch sees no GPU, such as a driver that is too old for it."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return "none is visible; see CUDA_VISIBLE_DEVICES"


def _refuse_without_kernels(device: torch.device) -> None:
    """Raise InputError for a GPU of a generation that torch was not built for: its kernels would
    fail at the first operation."""
    import torch

    own = torch.cuda.get_device_capability(device)
    built = []
    for name in torch.cuda.get_arch_list():
        if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)) is None:
            return  # AMD's names, such as gfx942
        built.append((match[1], (int(match[2]), int(match[3]))))
    # machine code runs on later GPUs of its generation, PTX (compute_) on all later ones
    if built and not any(
        known <= own and (kind == "compute" or known[0] == own[0]) for kind, known in built
    ):
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has compute capability {own[0]}.{own[1]}, for "
            f"which torch {torch.__version__} has no kernels (it has "
            f"{', '.join(torch.cuda.get_arch_list())}); install another build of torch or say "
            "--device cpu."
        )


def use_expandable_segments() -> None:
    """Set expandable segments for torch's GPU allocator, unless the user has configured it: buffer
    sizes change with every module, stage and length, which fragments fixed segments. Has no effect
    once the process has used a GPU."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def use_threads(count: int | None) -> None:
    """Set torch's number of threads (None: torch's own choice). Raises InputError below 1."""
    import torch

    if count is not None:
        if count < 1:
            raise InputError(f"--threads {count} is too few; give at least 1.")
        torch.set_num_threads(count)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 faster than float32; nothing is timed."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def total_memory() -> float:
    """Bytes of memory of this machine, or of the container it is in."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, float(text))
    return total


def available_memory() -> float:
    """Bytes that a new process can use: Linux' MemAvailable, else 0.8 of all memory."""
    total = total_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(total, float(line.split()[1]) * 1024)
    return _USED * total


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still allocate on a device."""
    import torch

    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products, and sums of bfloat16 products, in float32 in the block.

    The settings of the process are restored after it. NVIDIA's containers turn TF32 on by an
    environment variable: products then have 11 bits. Also a decorator.
    """
    import torch

    matmul = torch.backends.cuda.matmul
    precision = torch.get_float32_matmul_precision()
    bfloat16 = matmul.allow_bf16_reduced_precision_reduction
    float16 = matmul.allow_fp16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        matmul.allow_bf16_reduced_precision_reduction = bfloat16
        matmul.allow_fp16_reduced_precision_reduction = float16


def set_cublas_workspace() -> None:
    """Set the cuBLAS workspace with which its products are reproducible to the bit, unless the user
    has set one. cuBLAS reads it before its first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Use operators that sum in the same order every time in the block; those without such a form
    raise RuntimeError. FlashAttention is deterministic then, cuDNN's attention is not."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    set_cublas_workspace()
    torch.use_deterministic_algorithms(True)  # FlashAttention ignores it if it only warns
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warn)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread in the block.

    Small eigenproblems are twenty times faster then: each of their hundred steps would wake a
    second thread.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def workers() -> Iterator[Callable[[Callable[[int, int], None], int], None]]:
    """Yield `each(work, count)`, which calls work(start, stop) on equal parts of range(count).

    There are as many Python threads as torch has threads, each with one torch thread; `each` waits
    for all. Passes over memory in blocks that stay in cache are three times as fast as with torch's
    threads, which synchronise after every block.
    """
    import torch

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "regraft", torch.set_num_threads, (1,)) as pool:

        def each(work: Callable[[int, int], None], count: int) -> None:
            part = -(-count // threads)
            starts = range(0, count, part)
            waiting = [pool.submit(work, i, min(i + part, count)) for i in starts]
            torch.set_num_threads(threads)  # a worker's start sets it for libraries process-wide
            for future in waiting:
                future.result()
            torch.set_num_threads(threads)

        yield each


def run_in_threads(
    items: Iterable[Item], work: Callable[[Item], None], count: int, size: Callable[[Item], int]
) -> None:
    """Call `work` on every item, largest first, in `count` threads with one torch thread each.

    The first error is raised when the items in progress are done.
    """
    import torch

    ordered = sorted(items, key=lambda item: -size(item))
    if count == 1 or len(ordered) < 2:
        for item in ordered:
            work(item)
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "regraft", torch.set_num_threads, (1,)) as pool:
            # one item alone first: libraries start their own threads on first use
            pool.submit(work, ordered.pop()).result()
            running = [pool.submit(work, item) for item in ordered]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                for future in running:
                    future.cancel()
    finally:
        torch.set_num_threads(threads)  # some libraries take a worker's setting for the process

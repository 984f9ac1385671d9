"""Time, memory, operations and differences of the contenders of one case; runs in a process of its own."""

import math
import re
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarking import seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nucsam_monai.networks.sam import SAM
from sam_benchmark.cases import COMPILED, Case, Contender, Settings
from sam_benchmark.runners import Runner, Workbench

MIB = 2**20
Result = dict[str, Any]


def time_contenders(case: Case, settings: Settings, contenders: list[Contender]) -> dict[str, Result]:
    """Compare outputs and measure times, interleaved so that a busy machine disturbs all alike.

    The first step of each contender warms it up and gives outputs, gradients and operations. The first contender
    is the reference of the differences.
    """
    try:
        bench = _prepare(case, settings)
    except (RuntimeError, MemoryError) as error:
        reason = _memory_reason(error, settings)
        return {contender.key: {"skipped": reason} for contender in contenders}
    runners: dict[str, Runner] = {}
    results: dict[str, Result] = {}
    reference: tuple[Tensor, ...] = ()
    for contender in contenders:
        try:
            runner = bench.runner(contender)
            outputs, results[contender.key] = _first_step(
                runner, count=contender.implementation not in COMPILED
            )
        except ModuleNotFoundError as error:
            results[contender.key] = {"skipped": f"{error.name} is not installed"}
            continue
        except (RuntimeError, MemoryError) as error:
            results[contender.key] = {"skipped": _memory_reason(error, settings)}
            continue
        if contender == contenders[0]:
            reference = outputs
        if reference and contender != contenders[0]:
            results[contender.key] |= _differences(outputs, reference)
        runners[contender.key] = runner
    for name, times in _interleaved_times(runners, settings).items():
        results[name] |= {
            "median_ms": round(statistics.median(wall for wall, _ in times) * 1e3, 3),
            "min_ms": round(min(wall for wall, _ in times) * 1e3, 3),
            "cpu_ms": round(min(cpu for _, cpu in times) * 1e3, 3),
            "repeats": len(times),
        }
    return results


def peak_memory(case: Case, settings: Settings, contender: Contender) -> Result:
    """Measure the memory of two steps beyond that of the built model, and all of it.

    On a CPU the resident memory of the process counts, everything that libraries keep included; on a GPU the
    memory that PyTorch allocated.
    """
    try:
        bench = _prepare(case, settings)
        runner = bench.runner(contender)
        memory = _GpuMemory() if bench.device.type == "cuda" else _ResidentMemory()
        for _ in range(2):
            runner.step()
    except (RuntimeError, MemoryError) as error:
        return {"memory_skipped": _memory_reason(error, settings)}
    working = memory.working_bytes()
    return {
        "working_mib": round(working / MIB, 1),
        "peak_mib": round((working + _weight_bytes(bench.sam)) / MIB, 1),
    }


def limit_memory(settings: Settings) -> None:
    """Make allocations fail beyond the limit, so that a case is skipped before the system kills processes.

    What the imported libraries occupy does not count.
    """
    if settings.device == "cpu":
        limit = _status_bytes("VmData") + int(settings.memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _prepare(case: Case, settings: Settings) -> Workbench:
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in convolutions as in matrix products
    limit_memory(settings)
    return Workbench(case, settings)


def _linear_flops(
    input_shape: Sequence[int], *_: object, out_shape: Sequence[int], **_options: object
) -> int:
    """Return the operations of oneDNN's linear layer, which PyTorch's counter does not know."""
    return 2 * math.prod(input_shape) * out_shape[-1]


def _first_step(runner: Runner, *, count: bool) -> tuple[tuple[Tensor, ...], Result]:
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear_flops}
    )
    if count:
        with counter:
            outputs = runner.step()
    else:
        outputs = runner.step()
    gradient = runner.gradient()
    compared = outputs if gradient is None else (*outputs, gradient)
    kept = tuple(tensor.detach().float().cpu() for tensor in compared)
    return kept, {"gmac": round(counter.get_total_flops() / 2e9, 4) if count else None}


def _differences(outputs: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> Result:
    """Return the largest difference relative to the largest value of each output, and of the gradients."""
    relative = [
        float((output - expected).abs().max() / expected.abs().max())
        for output, expected in zip(outputs, reference, strict=True)
    ]
    return {"max_difference": max(relative)}


def _interleaved_times(
    runners: dict[str, Runner], settings: Settings
) -> dict[str, list[tuple[float, float]]]:
    """Return the wall and the processor's seconds of every step."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    start = time.perf_counter()
    for repeat in range(settings.repeats if runners else 0):
        if repeat and time.perf_counter() - start > settings.seconds_per_case:
            break
        names = list(runners)
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(runners[name].step, runners[name].device.type))
    return times


class _GpuMemory:
    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def working_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before


class _ResidentMemory:
    """The kernel's high-water mark, set back to the present size where the kernel permits it."""

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._high_water()
        except OSError:
            self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def working_bytes(self) -> int:
        return max(0, self._high_water() - self.before)

    @staticmethod
    def _high_water() -> int:
        return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(entry: str) -> int:
    """Return a size from the kernel's status of this process; 0 where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"{entry}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


def _weight_bytes(sam: SAM) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in sam.state_dict().values())


def _memory_reason(error: BaseException, settings: Settings) -> str:
    """Return why a contender is left out; an error that is not about memory is raised."""
    signs = ("allocate", "out of memory", "bad_alloc", "primitive")
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
        return f"needs more than {settings.memory_gb:g} GB of memory"
    raise error

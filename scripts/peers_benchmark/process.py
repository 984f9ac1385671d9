"""Measure one system; runs as a process of its own, in the environment of that system.

``python process.py NAME PICTURE LABELS REPEATS THREADS WEIGHTS`` prints one line of JSON.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def measure(
    name: str, picture: Path, labels_file: Path, repeats: int, threads: int, weights: str
) -> dict[str, Any]:
    """Return seconds, memory in MiB and the number of instances of one system."""
    start = _now()
    import numpy as np
    from adapters import PEERS, read

    make, install = PEERS[name]
    try:
        peer = make(weights or None)
    except ModuleNotFoundError as error:
        return {"missing": f"{error.name} is not installed: {install}"}
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    started = _since(start)
    labels = np.load(labels_file)
    stages: dict[str, list[tuple[float, float]]] = {"read": [], "network": [], "instances": []}
    found = labels
    for _ in range(repeats):
        pixels, spent = _timed(read, picture)
        stages["read"].append(spent)
        answer, spent = _timed(peer.network, pixels)
        stages["network"].append(spent)
        found, spent = _timed(peer.instances, answer if weights else peer.perfect(labels))
        stages["instances"].append(spent)
    fastest = {stage: min(times, key=lambda spent: spent[1]) for stage, times in stages.items()}
    return {
        "start_s": started,
        **{
            stage: {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
            for stage, (wall, cpu) in fastest.items()
        },
        "nuclei": int(len(np.unique(found)) - 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _timed(function: Any, *arguments: Any) -> tuple[Any, tuple[float, float]]:
    start = _now()
    return function(*arguments), _since(start)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    asked, image, truth, rounds, count, file = sys.argv[1:]
    print(json.dumps(measure(asked, Path(image), Path(truth), int(rounds), int(count), file)))

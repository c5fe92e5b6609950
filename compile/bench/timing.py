"""Run one graph alone and say what it took: python -m compile.bench.timing FILE RUNS WARM_UP_RUNS."""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

KINDS = {
    "tensor(float)": np.float32,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def main(file: str, runs: int, warm_up: int) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {}
    for value in session.get_inputs():
        shape = (1, *value.shape[1:])
        noise = rng.integers(0, 256, shape) if value.type == "tensor(uint8)" else np.ones(shape)
        inputs[value.name] = noise.astype(KINDS[value.type])
    times = []
    for _ in range(warm_up + runs):
        started = time.perf_counter()
        session.run(None, inputs)
        times.append((time.perf_counter() - started) * 1000)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert peak is not None
    told = {"latency_ms": statistics.median(times[warm_up:]), "memory_mb": int(peak[1]) / 1024}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

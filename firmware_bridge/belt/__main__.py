"""`python -m firmware_bridge.belt CONFIG.json`: run a simulated belt until its parts are judged."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from firmware_bridge.belt.config import BeltConfig
from firmware_bridge.belt.simulator import Simulator


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m firmware_bridge.belt CONFIG.json\n")
        return 2
    path = Path(arguments[0])
    try:
        simulator = Simulator(BeltConfig.model_validate_json(path.read_bytes()))
    except (OSError, ValidationError, ValueError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 1
    signal.signal(signal.SIGTERM, lambda _number, _frame: simulator.terminate())
    signal.signal(signal.SIGINT, lambda _number, _frame: simulator.terminate())
    with contextlib.suppress(PermissionError):  # it plays iron, which never waits for a processor
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    simulator.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m firmware_bridge.belt CONFIG.json`: run a simulated belt until its parts are judged."""

from __future__ import annotations

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
    simulator.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

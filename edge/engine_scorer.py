"""Score with the engine that this box keeps for a bundle, held to the golden answers of the graph it was built from."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import Bundle
from edge.engine.keep import check_here, graph_for
from edge.engine.record import EngineError, engine_file
from edge.scorer import Scorer
from edge.scoring.tensorrt import Engine


def open_engine(engines: Path, bundle: Bundle, class_index: int = 0, sha256: str = "") -> Scorer:
    """The scorer on the bundle's engine; the caller closes it.

    Args:
        engines: where it is kept.
        bundle: the bundle.
        class_index: of the parts to come.
        sha256: of the engine that was measured at the install; "" where any will do.

    Raises:
        EngineError: there is none, it must not be loaded on this machine, or it is another than was measured.
        ScorerError: it cannot be run here, or does not give its golden answers.

    """
    graph = graph_for(bundle)
    fitting = check_here(engines, bundle, graph)
    if sha256 and fitting.record.engine_sha256 != sha256:
        raise EngineError(
            f"{engine_file(engines, bundle, graph)} was built {fitting.record.built}, after the install, which did not "
            "measure it. Install the bundle again."
        )
    return Scorer(
        bundle,
        graph,
        class_index=class_index,
        open_runtime=lambda contract: Engine(fitting.engine, fitting.tensorrt, contract),
    )

"""Build an engine: one ONNX graph, parsed and compiled by TensorRT through its Python API.

The network is strongly typed: each layer computes in the type that the graph gives it, so precision is decided where
it was measured, when the bundle was compiled, and never here. TF32 is off, as float32 must mean float32: the trained
model's float scores are what the golden answers hold it to. Spatial sizes are fixed; the batch is 1 unless asked.

What is asked of TensorRT 10.3 and 11 is read from their documentation, and the names used here are in the Python
bindings of 10.3.0 and 11.4.0. What has run is TensorRT-RTX 1.7.1, ahead of time, on a machine without a GPU. There it
prints errors of the CUDA driver and builds all the same, so the returned plan decides; the messages are kept for the
error. Its timing cache does nothing since 1.2.

DLA (Orin NX and AGX, TensorRT up to 10.7): a layer's fitness is asked of the builder, layer by layer, before anything
is built, and all must fit: nothing falls back to the GPU unseen. Never run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from edge.engine.flavour import TensorRT, TensorRTError
from edge.engine.machine import Machine

log = logging.getLogger(__name__)

Hardware = Literal["exact", "same-capability", "ampere-plus"]
Tick = Callable[[str, int, int], None]  # phase, steps done, steps in all
LEVELS: dict[Hardware, str] = {"same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}


class Options(BaseModel):
    """How an engine is built. What is not the default stands in its record."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    compute_capabilities: list[str] = []  # of the GPUs to build for; none: this machine's. TensorRT-RTX alone
    batches: tuple[int, int, int] = (1, 1, 1)  # smallest, usual, largest
    workspace_mib: int = Field(1024, ge=1)  # largest scratch memory of any layer on the GPU
    hardware: Hardware = "exact"  # TensorRT alone
    version_compatible: bool = False  # for later releases of the same major version too. TensorRT alone
    dla_core: int | None = Field(None, ge=0)  # TensorRT alone


class Built(NamedTuple):
    engine: bytes
    layers: dict[str, dict[str, int]]  # of the parsed network: type -> data type of its output -> how many
    compute_capabilities: list[str]  # what it was built for
    seconds: float
    timing_cache: bytes


def build(
    graph: bytes,
    tensorrt: TensorRT,
    machine: Machine | None,
    options: Options | None = None,
    *,
    timing_cache: bytes = b"",
    tick: Tick | None = None,
) -> Built:
    """Build an engine for this machine's GPU, or for the compute capabilities that the options name.

    Args:
        graph: the serialised ONNX model, without external data.
        tensorrt: see `edge.engine.flavour`.
        machine: see `edge.engine.machine`.
        options: the defaults where None.
        timing_cache: what an earlier build measured on this machine; one that does not fit is not used.
        tick: is told of the progress, from another thread.

    Raises:
        TensorRTError: it cannot build what was asked, or refuses the graph; names the node where it names one.
        KeyboardInterrupt: after the builder has stopped.

    """
    options = options or Options()
    api = tensorrt.api
    targets = _targets(tensorrt, machine, options)
    started = time.monotonic()
    builder, said = _start(tensorrt)
    network, _parser = _parse(builder, graph, tensorrt, said)
    config = builder.create_builder_config()
    config.clear_flag(api.BuilderFlag.TF32)
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.add_optimization_profile(_profile(builder, network, options.batches))
    if tensorrt.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(api.ComputeCapability.__members__[_sm(target)], index)
    else:
        _compatible(config, tensorrt, options)
        if options.dla_core is not None:
            _use_dla(config, builder, network, api, options.dla_core)
        _use_cache(config, timing_cache)
    layers = _layers(network)
    plan = _run(lambda: builder.build_serialized_network(network, config), config, api, tick)
    if plan is None:
        reasons = [text for text in said.errors if "cuda" not in text.lower()] or said.errors
        raise TensorRTError(f"{tensorrt.name} parses the graph but does not build it: {'; '.join(reasons[-3:])}")
    cache = b"" if tensorrt.flavour == "tensorrt-rtx" else bytes(config.get_timing_cache().serialize())
    return Built(bytes(plan), layers, targets, time.monotonic() - started, cache)


def parsed_layers(graph: bytes, tensorrt: TensorRT) -> dict[str, dict[str, int]]:
    """The layers that TensorRT makes of a graph, before it fuses them: type -> data type of the output -> how many.

    Raises:
        TensorRTError: it refuses a node.

    """
    builder, said = _start(tensorrt)
    network, _parser = _parse(builder, graph, tensorrt, said)
    return _layers(network)


def _targets(tensorrt: TensorRT, machine: Machine | None, options: Options) -> list[str]:
    """The compute capabilities to build for, as "8.6"."""
    named = options.compute_capabilities
    if tensorrt.flavour == "tensorrt":
        if machine is None:
            raise TensorRTError(
                "no NVIDIA GPU that CUDA can use: TensorRT builds on the GPU that is to run the engine. Build there, "
                "or name a compute capability for TensorRT-RTX."
            )
        if named and named != [machine.compute_capability]:
            raise TensorRTError(
                f"TensorRT builds for the GPU that it runs on ({machine.gpu}, {machine.compute_capability}), not for "
                f"{', '.join(named)}. Build there, or with TensorRT-RTX."
            )
        return [machine.compute_capability]
    asked = {
        "hardware": options.hardware != "exact",
        "version compatibility": options.version_compatible,
        "DLA": options.dla_core is not None,
    }
    if unfit := [name for name, is_asked in asked.items() if is_asked]:
        raise TensorRTError(
            f"{unfit[0]} is an option of TensorRT, not of TensorRT-RTX: name several compute capabilities instead."
        )
    known = sorted(
        f"{name[2:-1]}.{name[-1]}" for name in tensorrt.api.ComputeCapability.__members__ if name.startswith("SM")
    )
    found = named or ([machine.compute_capability] if machine else [])
    if not found:
        raise TensorRTError(f"no GPU here: name the compute capability to build for, one of {', '.join(known)}.")
    if unknown := [target for target in found if target not in known]:
        raise TensorRTError(f"{tensorrt.name} does not build for {unknown[0]}, but for {', '.join(known)}.")
    return found


def _sm(compute_capability: str) -> str:
    return "SM" + compute_capability.replace(".", "")


def _start(tensorrt: TensorRT) -> tuple[Any, Any]:
    """A builder and its log, which keeps the errors that it reports; both are needed until the end."""
    api = tensorrt.api

    class Log(api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR):
                self.errors.append(message)
            log.debug("%s", message)

    said = Log()
    try:
        return api.Builder(said), said
    except TypeError:  # how the bindings say that nothing was made
        raise TensorRTError(f"{tensorrt.name} does not start: {'; '.join(said.errors[-2:])}") from None


def _parse(builder: Any, graph: bytes, tensorrt: TensorRT, said: Any) -> tuple[Any, Any]:
    """The network, and the parser, which owns the weights until the engine is built."""
    api = tensorrt.api
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, said)
    if parser.parse(graph):
        return network, parser
    if not parser.num_errors:
        raise TensorRTError(f"{tensorrt.name} does not read the graph: {'; '.join(said.errors[-2:])}")
    refused = parser.get_error(0)
    name = refused.node_name() or refused.node()
    raise TensorRTError(f"{tensorrt.name} refuses node {name} ({refused.node_operator()}): {refused.desc()}")


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> Any:
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise TensorRTError(f"batches {batches}: smallest, usual and largest must be in order, from 1 on.")
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *([n if size < 0 else size for size in tensor.shape] for n in batches))
    return profile


def _compatible(config: Any, tensorrt: TensorRT, options: Options) -> None:
    api = tensorrt.api
    if options.hardware != "exact":
        levels = api.HardwareCompatibilityLevel.__members__
        if LEVELS[options.hardware] not in levels:
            raise TensorRTError(f"{tensorrt.name} has no hardware compatibility '{options.hardware}'.")
        config.hardware_compatibility_level = levels[LEVELS[options.hardware]]
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(api.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # nothing may run out of the engine's own file


def _use_dla(config: Any, builder: Any, network: Any, api: Any, core: int) -> None:
    if core >= builder.num_DLA_cores:
        raise TensorRTError(f"no DLA core {core}: this machine has {builder.num_DLA_cores}. Build for the GPU.")
    config.default_device_type, config.DLA_core = api.DeviceType.DLA, core
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if unfit := [layer for layer in layers if not config.can_run_on_DLA(layer)]:
        raise TensorRTError(
            f"DLA takes {len(layers) - len(unfit)} of {len(layers)} layers, not {unfit[0].name} "
            f"({_name(unfit[0].type)}). Build for the GPU."
        )


def _use_cache(config: Any, cache: bytes) -> None:
    """Begin with what was measured before, or with nothing where that does not fit."""
    kept = config.create_timing_cache(cache)
    if kept is None or not config.set_timing_cache(kept, False):
        log.warning("the timing cache does not fit, and is made anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _layers(network: Any) -> dict[str, dict[str, int]]:
    found = Counter(
        (_name(layer.type), _name(layer.get_output(0).dtype))
        for layer in (network.get_layer(index) for index in range(network.num_layers))
    )
    by_type: dict[str, dict[str, int]] = {}
    for (kind, dtype), count in sorted(found.items()):
        by_type.setdefault(kind, {})[dtype] = count
    return by_type


def _name(value: Any) -> str:
    return str(value.name).lower()


def _run(start: Callable[[], Any], config: Any, api: Any, tick: Tick | None) -> Any:
    """Build in a thread of its own, so that Ctrl-C is heard here and stops the builder at its next step."""
    stopped = threading.Event()

    class Progress(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if tick and parent is None:
                tick(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if tick:
                tick(phase, step + 1, self.steps[phase])
            return not stopped.is_set()

        def phase_finish(self, phase: str) -> None:
            if tick:
                tick(phase, self.steps[phase], self.steps[phase])

    progress = Progress()
    config.progress_monitor = progress
    with ThreadPoolExecutor(1, "engine builder") as worker:
        built = worker.submit(start)
        try:
            return built.result()
        except KeyboardInterrupt:
            stopped.set()
            raise

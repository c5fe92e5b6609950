"""From torch to ONNX: one file per module, static in space, dynamic in the batch, and joined to one graph."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from onnx import compose
from torch import Tensor, nn

OPSET = 18
IR_VERSION = 10  # ONNX Runtime 1.23, the last for JetPack 6's Python 3.10, reads it


def export(
    module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Export a module whose every input and output has the batch as its first axis.

    Args:
        module: in eval mode.
        example: one tensor per input; the batch must be at least 2, or the exporter takes it for a constant.
        inputs: names, one per tensor of `example`.
        outputs: names, one per tensor that the module returns.

    """
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = tuple({0: batch} for _ in example)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter deprecates parts of itself
            program = torch.onnx.export(
                module,
                example,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=(shapes,) if _takes_any_number(module) else shapes,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    return tidy(program.model_proto)


def _takes_any_number(module: nn.Module) -> bool:
    """Whether forward is declared with *inputs, which the exporter wants as one nested argument."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL]


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what only the exporter needed (traces, source paths, shapes inside) and pin the file format."""
    model.ir_version = IR_VERSION
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.functions[:]
    default = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(default)
    model.producer_name, model.producer_version = "beltline", ""
    onnx.checker.check_model(model, full_check=True)
    return model


def join(trunk: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Join trunk and head to one graph: the head's inputs that the trunk puts out become inner tensors.

    The result has the trunk's inputs and the head's further ones, and the head's outputs.
    """
    shared = {value.name for value in trunk.graph.output} & {value.name for value in head.graph.input}
    inner = [(f"trunk/{name}", f"head/{name}") for name in sorted(shared)]
    merged = compose.merge_models(
        compose.add_prefix(trunk, "trunk/"), compose.add_prefix(head, "head/"), io_map=inner, producer_name="beltline"
    )
    for prefix, model in (("trunk/", trunk), ("head/", head)):
        for value in (*model.graph.input, *model.graph.output):
            if value.name not in shared:
                _rename(merged.graph, prefix + value.name, value.name)
    for value in (*merged.graph.input, *merged.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    merged.graph.name = "beltline"
    return tidy(merged)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new

"""Export anomalib's models for ONNX Runtime and OpenVINO, by anomalib's own exporter, at 256x256.

Weights are random and nothing is downloaded: time does not depend on their values. What a fit determines and what time
does depend on is set by hand: PatchCore's memory bank holds BANK vectors, fewer than the tenth of 200 pictures'
patches (20,480) that its default coreset would keep; PaDiM's Gaussians have the size of its 100 features.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openvino
import timm
import torch
from anomalib.models import EfficientAd, Fastflow, Padim, Patchcore, Stfpm

SIDE = 256
BANK = 10_000
WISHES: dict[str, Any] = {"opset_version": 18, "dynamic_shapes": None, "verbose": False}
FEATURES = 1536  # of PatchCore's wide_resnet50_2, layers 2 and 3


def export(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Export what can be exported: the ONNX file of each, with an .xml for OpenVINO beside it; of the others, why not.

    Opset 18 is what torch's exporter writes; anomalib's default of 14 is a conversion of it that fails for most. The
    batch is fixed at 1, which can only make them faster; left open, some models come out with a batch of 2.
    """
    torch.manual_seed(0)
    models, failed = {}, {}
    for name, build in BUILDERS.items():
        try:
            with warnings.catch_warnings(), patch("timm.create_model", partial(_untrained, timm.create_model)):
                warnings.simplefilter("ignore")
                model = build().eval()
                made = model.to_onnx(folder / name, input_size=(SIDE, SIDE), **WISHES)
            openvino.save_model(openvino.convert_model(made), made.with_suffix(".xml"), compress_to_fp16=False)
            models[name] = made
        except Exception as error:  # noqa: PERF203 - whatever a peer's exporter raises, its row reads 'not measured'
            logging.getLogger(__name__).exception("%s", name)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return models, failed


def _patchcore() -> Any:
    model = Patchcore(pre_processor=_sized(Patchcore))
    model.model.memory_bank = torch.rand(BANK, FEATURES)
    return model


def _padim() -> Any:
    model = Padim(pre_processor=_sized(Padim))
    gaussian, features = model.model.gaussian, model.model.n_features
    cells = (SIDE // 4) ** 2
    gaussian.mean = torch.rand(features, cells)
    gaussian.inv_covariance = torch.eye(features).expand(cells, -1, -1).contiguous()
    return model


def _plain(kind: Any) -> Any:
    return kind(pre_processor=_sized(kind))


def _sized(kind: Any) -> Any:
    return kind.configure_pre_processor((SIDE, SIDE))


def _untrained(create: Callable[..., Any], *names: Any, **wishes: Any) -> Any:
    return create(*names, **{**wishes, "pretrained": False})


BUILDERS: dict[str, Callable[[], Any]] = {
    "EfficientAD-S": partial(_plain, EfficientAd),
    "PatchCore": _patchcore,
    "PaDiM": _padim,
    "STFPM": partial(_plain, Stfpm),
    "FastFlow": partial(_plain, Fastflow),
}

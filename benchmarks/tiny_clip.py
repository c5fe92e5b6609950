"""A small CLIP of random weights in the published format: it shows that things fit, not what they know."""

from __future__ import annotations

import json
from pathlib import Path

import torch

VISION = {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789."
MERGES = {"fl": "f l", "aw</w>": "a w</w>", "flaw</w>": "fl aw</w>"}
NOISE = 0.2  # on every weight: those that start as zeros or ones would hide mistakes


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors, vocab.json and merges.txt; patches of 16, 64 pixels, 40 shared channels."""
    import transformers  # noqa: PLC0415 - slow to import

    words = [*LETTERS, *(f"{each}</w>" for each in LETTERS), *MERGES, "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPConfig(
        vision_config={**VISION, "image_size": 64, "patch_size": 16},
        text_config={**TEXT, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 2},
        projection_dim=40,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(NOISE * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES.values(), ""]))
    return folder

"""Load a model of `transformers` from a checked folder: every tensor of it, no other, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compile.backbones import BackboneError

NAMED = 3  # tensors that an error names


def load_pretrained(kind: Any, config: Any, folder: Path, *, beside: tuple[str, ...] = ()) -> Any:
    """Load a model.

    Args:
        kind: its class in `transformers`.
        config: of it; nothing of the file but what was checked.
        folder: with safetensors.
        beside: beginnings and ends of names of tensors that may lie there, too.

    Raises:
        BackboneError: the files are damaged, or a tensor is missing, unknown or of another shape.

    """
    import transformers  # noqa: PLC0415 - slow to import
    from safetensors import SafetensorError  # noqa: PLC0415

    with _quiet(transformers.utils.logging):
        try:
            model, info = kind.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="eager",  # plain products and a softmax in the exported graph
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise BackboneError(
                f"{folder}: cannot be loaded ({error}). Fetch config.json and weights again."
            ) from error
    wrong = [
        *(f"{name} is missing" for name in sorted(info["missing_keys"])),
        *(
            f"{name} has shape {list(there)}, wanted {list(here)}"
            for name, there, here in sorted(info["mismatched_keys"])
        ),
        *(
            f"{name} is unknown"
            for name in sorted(info["unexpected_keys"])
            if not (name.startswith(beside) or name.endswith(beside))
        ),
    ]
    if wrong:
        named = "; ".join(wrong[:NAMED])
        raise BackboneError(f"{folder}: weights and config.json do not match in {len(wrong)} tensors: {named}.")
    return model.float()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep `transformers` from writing bars and reports: what matters becomes an error of ours."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

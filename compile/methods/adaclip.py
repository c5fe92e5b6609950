"""AdaCLIP (ECCV 2024, arXiv 2407.15795): a frozen CLIP with prompts learned on labelled defects of other things.

The paper's, in the form of its public code: five prompt tokens before each of the first four blocks. In the image tower
they are appended at the first block and put anew at the next three, flow on, and are cut from what is read; in the text
tower they overwrite positions 1 to 5 at blocks two to four (the first tensor is learned by nobody). Static ones are
parameters; dynamic ones are made of the embedding that the bare tower gives the picture, the same for all four blocks,
and are added. Patches of the four stages and the picture's embedding go through a projection each. A text is the mean
of its normal sentences and of its abnormal ones (`clip_states`); the logit is 100 times the cosine.

`full` is the published model: its text tower runs for every picture, as dynamic prompts change the sentences, 48 for
each. `image` has dynamic prompts in the image tower alone, `static` none: both leave the text constant, so that a table
of two vectors stands for it in the graph. `static` also spares the image tower's second run; it is what ships.

Ours: float32 throughout, where half precision made the published training unstable; batches of more than one picture,
which the public code cannot; of two logits only their difference is kept, as a softmax of two knows no more.
Unverified: how far `static` is behind `full` on the published data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.backbones.clip import CLIP, STAGES, ImageTower, Sentences, TextTower
from compile.methods.clip_states import COUNTS

LENGTH, DEPTH = 5, 4  # tokens of a prompt, blocks that get one
DEVIATION = 0.02  # of prompts at the start
SHARPNESS = 100.0
Prompting = Literal["static", "image", "full"]


class Seen(NamedTuple):
    """`patches` float32 [B, 4, N, D] by stage and `whole` float32 [B, D], all of length 1."""

    patches: Tensor
    whole: Tensor


class Eyes(nn.Module):
    """image uint8 [B, H, W, 3] RGB -> `Seen`: the image tower with its prompts, and the projections.

    Args:
        tower: frozen.
        width: D.
        dynamic: whether prompts depend on the picture, too.

    """

    def __init__(self, tower: ImageTower, width: int, *, dynamic: bool) -> None:
        super().__init__()
        self.tower = tower
        self.static = _prompts(tower.width)
        self.dynamic = _makers(width, tower.width) if dynamic else None
        self.project = nn.ModuleList(nn.Linear(tower.width, width) for _ in range(STAGES))
        self.project_whole = nn.Linear(width, width)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Seen:
        """Context: where prompts depend on the picture and it is known already."""
        if self.dynamic is not None and context is None:
            context = self.context(image)
        stages, whole = run_prompted(self.tower, image, _join(self.static, self.dynamic, context))
        pairs = zip(self.project, stages, strict=True)
        patches = torch.stack([unit(project(stage)) for project, stage in pairs], 1)
        return Seen(patches, unit(self.project_whole(whole)))

    @torch.no_grad()
    def context(self, image: Tensor) -> Tensor:
        """What dynamic prompts are made of: the bare tower's embedding, [B, D]."""
        found: Tensor = self.tower(image)
        return found


class Reader(nn.Module):
    """Sentences of G words, [G, 48, L], to a table [G, D, 2]: normal and abnormal, of length 1.

    Args:
        tower: frozen.
        width: D.
        dynamic: whether prompts depend on a picture, too: then there is one for each word.

    """

    def __init__(self, tower: TextTower, width: int, *, dynamic: bool) -> None:
        super().__init__()
        self.tower = tower
        self.static = _prompts(tower.width)
        self.dynamic = _makers(width, tower.width) if dynamic else None

    def forward(self, sentences: Sentences, context: Tensor | None = None) -> Tensor:
        """Context: [G, D] of the pictures, where prompts depend on them."""
        groups, each, length = sentences.tokens.shape
        per_sentence = None if context is None else context.repeat_interleave(each, 0)
        flat = Sentences(sentences.tokens.reshape(-1, length), sentences.ends.reshape(-1))
        prompts = _join(self.static, self.dynamic, per_sentence)
        found = unit(run_prompted_text(self.tower, flat, prompts)).reshape(groups, each, -1)
        return torch.stack([unit(part.mean(1)) for part in torch.split(found, list(COUNTS), 1)], 2)


class AdaCLIP(nn.Module):
    """Prompts and projections around a frozen CLIP, for pictures of its side."""

    def __init__(self, clip: CLIP, prompting: Prompting = "static") -> None:
        super().__init__()
        self.prompting = prompting
        self.eyes = Eyes(clip.image, clip.width, dynamic=prompting != "static")
        self.reader = Reader(clip.text, clip.width, dynamic=prompting == "full")

    def forward(self, images: Tensor, sentences: Sentences, words: Tensor) -> tuple[Seen, Tensor]:
        """Give what is seen of pictures, and the text's table of each; the bare tower runs once at most."""
        context = None if self.prompting == "static" else self.eyes.context(images)
        return self.eyes(images, context), self._read(sentences, words, context)

    def table(self, sentences: Sentences, words: Tensor, images: Tensor) -> Tensor:
        """Give the text's table of each picture, [B, D, 2].

        Args:
            sentences: of W words, [W, 48, L].
            words: int64 [B], which of them each picture shows.
            images: uint8 [B, H, W, 3], looked at where sentences depend on them.

        """
        return self._read(sentences, words, self.eyes.context(images) if self.prompting == "full" else None)

    def _read(self, sentences: Sentences, words: Tensor, context: Tensor | None) -> Tensor:
        if self.prompting == "full":
            own = Sentences(sentences.tokens[words], sentences.ends[words])
            return cast(Tensor, self.reader(own, context))
        known, which = torch.unique(words, return_inverse=True)
        return cast(Tensor, self.reader(Sentences(sentences.tokens[known], sentences.ends[known]))[which])

    def learned(self) -> dict[str, Tensor]:
        """Give what was learned, by name; nothing of CLIP."""
        return {name: each for name, each in self.state_dict().items() if ".tower." not in name}


def _prompts(width: int) -> nn.ParameterList:
    return nn.ParameterList(DEVIATION * torch.randn(LENGTH, width) for _ in range(DEPTH))


def _makers(width: int, prompt: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, prompt) for _ in range(LENGTH))


def _join(static: nn.ParameterList, dynamic: nn.ModuleList | None, context: Tensor | None) -> list[Tensor]:
    """Static prompts [5, C], plus the same dynamic ones [B, 5, C] at each block."""
    if dynamic is None:
        return list(static)
    made = torch.stack([each(context) for each in dynamic], 1)
    return [each + made for each in static]


def run_prompted(tower: ImageTower, image: Tensor, prompts: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Run the image tower with prompts [5, C] or [B, 5, C] at its first blocks.

    Returns:
        patches [B, N, C] after each stage, without CLS and prompts; the embedding [B, D].

    """
    x = tower.embed(image)
    plain, stages = x.shape[1], []
    for i, block in enumerate(tower.blocks):
        if i < len(prompts):
            x = torch.cat([x[:, :plain], prompts[i].expand(x.shape[0], -1, -1)], 1)
        x = block(x)
        if i in tower.stages:
            stages.append(x[:, 1:plain])
    return stages, tower.finish(x)


def run_prompted_text(tower: TextTower, sentences: Sentences, prompts: Sequence[Tensor]) -> Tensor:
    """Run the text tower with prompts [5, C] or [S, 5, C] in place of the words after the first token: [S, D]."""
    x = tower.embed(sentences.tokens)
    mask = tower.causal(x.shape[1])
    for i, block in enumerate(tower.blocks):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :1], prompts[i].expand(x.shape[0], -1, -1), x[:, 1 + LENGTH :]], 1)
        x = block(x, mask)
    return tower.finish(x, sentences.ends)


def margins(features: Tensor, table: Tensor) -> Tensor:
    """Logit of abnormal less that of normal: features [B, ..., D] and a table [B or 1, D, 2] to [B, ...]."""
    direction = SHARPNESS * (table[..., 1] - table[..., 0])
    return (features.flatten(1, -2) @ direction[..., None]).reshape(features.shape[:-1])


def unit(x: Tensor) -> Tensor:
    """Bring vectors to length 1."""
    return functional.normalize(x, dim=-1, eps=1e-6)

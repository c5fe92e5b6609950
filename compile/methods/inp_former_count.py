"""Parameters and multiply-accumulates of INP-Former on a vision transformer, by formula, under each convention.

The paper's table leaves out of its parameters the blocks that are never run and the position table, and of its
multiply-accumulates the products of queries, keys and values inside the encoder's attention; those of the extractor and
the decoder it counts. Element-wise work (normalisation, softmax, GELU) counts in neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from compile.backbones.dinov2 import ViT
from compile.methods.inp_former import Size

CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    trainable: int  # tokens, extractor, bottleneck, decoder
    encoder: int  # all of it, as its weights file has it
    unused: int  # of the encoder: blocks after the last tap
    table: int  # of the encoder: the position table

    @property
    def full(self) -> int:
        """All there are."""
        return self.trainable + self.encoder

    @property
    def used(self) -> int:
        """Without the blocks that are never run."""
        return self.full - self.unused

    @property
    def paper(self) -> int:
        """As in the paper's table: without unused blocks and position table."""
        return self.used - self.table


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of one picture."""

    encoder_layers: int  # patches and linear layers
    encoder_attention: int
    extractor: int
    bottleneck: int
    decoder: int

    @property
    def full(self) -> int:
        return self.paper + self.encoder_attention

    @property
    def paper(self) -> int:
        """As in the paper's table: without the encoder's attention products."""
        return self.encoder_layers + self.extractor + self.bottleneck + self.decoder


def count_parameters(vit: ViT, size: Size) -> Parameters:
    c, hidden = size.width, size.width * size.ratio
    mlp = 2 * c * hidden + hidden + c
    attention = (c + 1) * 4 * c + 2 * 2 * c  # q, kv, out; two normalisations
    decoder = size.blocks * (attention + mlp + size.heads)
    trainable = size.prototypes * c + attention + mlp + mlp + decoder

    c = vit.width
    block = (c + 1) * 4 * c + 2 * 2 * c + 8 * c * c + 5 * c + 2 * c  # attention, norms, MLP, layer scales
    patches = CHANNELS * vit.patch**2 * c + c
    table = (vit.table**2 + 1) * c
    others = (1 + vit.registers + 1 + 2) * c  # CLS, registers, mask token, last normalisation
    encoder = patches + others + table + vit.blocks * block
    return Parameters(trainable, encoder, (vit.blocks - vit.used) * block, table)


def count_macs(vit: ViT, size: Size, grid: tuple[int, int]) -> Macs:
    """Count for a picture of `grid` patches."""
    patches, m = grid[0] * grid[1], size.prototypes
    tokens, c = patches + 1 + vit.registers, vit.width
    layers = patches * CHANNELS * vit.patch**2 * c + vit.used * tokens * 12 * c * c
    attention = vit.used * 2 * tokens**2 * c

    c = size.width
    mlp = 2 * c * c * size.ratio
    products = 2 * patches * m * c
    extractor = m * (2 * c * c + mlp) + patches * 2 * c * c + products
    block = patches * (2 * c * c + mlp) + m * 2 * c * c + products
    return Macs(layers, attention, extractor, patches * mlp, size.blocks * block)

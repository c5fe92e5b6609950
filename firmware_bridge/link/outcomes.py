"""Which outcomes of one controller life the box has delivered, so that each comes out once and none is missed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OutcomeLedger:
    """Parts of one epoch. Everything up to `watermark` is delivered, and so is what stands in `ahead`."""

    epoch: int
    watermark: int = 0
    ahead: set[int] = field(default_factory=set)

    @classmethod
    def resumed(cls, epoch: int, last_part: int, unresolved: list[int]) -> OutcomeLedger:
        """What a journal knows: triggers up to `last_part`, all settled but `unresolved`."""
        open_parts = set(unresolved)
        watermark = min(open_parts, default=last_part + 1) - 1
        ahead = {part for part in range(watermark + 1, last_part + 1) if part not in open_parts}
        return cls(epoch, watermark, ahead)

    def delivered(self, part: int) -> bool:
        return part <= self.watermark or part in self.ahead

    def deliver(self, part: int) -> bool:
        """Mark `part`; False when it was delivered before."""
        if self.delivered(part):
            return False
        self.ahead.add(part)
        while self.watermark + 1 in self.ahead:
            self.watermark += 1
            self.ahead.discard(self.watermark)
        return True

    def missing(self, first: int, last: int) -> list[int]:
        return [part for part in range(max(first, self.watermark + 1), last + 1) if part not in self.ahead]

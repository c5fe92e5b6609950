"""What AdaCLIP says of a product: 7 normal and 5 abnormal states in 4 sentences each (section "Text" of its code)."""

from __future__ import annotations

NORMAL = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
SENTENCES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
)
COUNTS = (len(NORMAL) * len(SENTENCES), len(ABNORMAL) * len(SENTENCES))  # of normal ones, then of abnormal ones
GENERIC = "object"  # where no word is known


def describe(word: str) -> list[str]:
    """Give the normal sentences, then the abnormal ones. Hyphens and underscores become spaces."""
    plain = " ".join(word.replace("-", " ").replace("_", " ").split())
    return [
        sentence.format(state.format(plain))
        for states in (NORMAL, ABNORMAL)
        for state in states
        for sentence in SENTENCES
    ]

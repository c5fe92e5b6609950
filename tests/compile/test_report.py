from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from compile.methods.registry import METHODS
from compile.pipeline import Compiled
from compile.report import render_report

pytestmark = pytest.mark.slow


class Text(HTMLParser):
    """The words of a page, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def __str__(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_report_is_self_contained(compiled: Compiled) -> None:
    page = Text(compiled.report.read_text())
    assert page.references
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert "script" not in page.tags


def test_the_report_answers_what_people_ask(compiled: Compiled) -> None:
    text = str(Text(compiled.report.read_text()))
    found = compiled.evidence
    assert found.size.explanation in text
    assert f"version 1 · {METHODS['varad'].title}" in text
    assert "broken.png" in text
    assert "truncated PNG" in text
    assert "with 95 % confidence" in text
    assert f"{found.thresholds['float'].value:.5g}" in text
    assert "not run" in text
    assert "fitted in 24 optimiser steps" in text
    defects = found.defects_found()
    assert set(defects) == set(compiled.bundle.manifest.graphs)
    for each in defects.values():
        assert f"of {each.of} painted defects on held-out parts the threshold finds {each.found}" in text
    for node in found.renderings["int8"].float_nodes:
        assert node.node in text
    for warning in found.warnings:
        assert warning in text


def test_names_cannot_smuggle_markup(compiled: Compiled) -> None:
    compiled.evidence.warnings.append("<script>alert(1)</script>")
    try:
        page = render_report(compiled.classes)
    finally:
        compiled.evidence.warnings.pop()
    assert "script" not in Text(page).tags


def test_the_bundle_carries_the_same_report(compiled: Compiled) -> None:
    assert compiled.bundle.read("report.html") == compiled.report.read_bytes()

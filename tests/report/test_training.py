"""The page of a `train-all`."""

from __future__ import annotations

import re

import numpy as np
from html_pages import checked
from PIL import Image

from igd.report.training import CategoryRow, render_training

EVIL = "<script>alert(1)</script>"


def row(category: str, **changes: object) -> CategoryRow:
    curve = [{"branch": "local", "phase": phase, "done": done, "steps": 4,
              "metrics": {name: value / (done + 1), "lr": 0.1}}
             for phase, name, value in (("distil", "distillation", 0.9), ("em", "gsvdd", 0.5))
             for done in range(5)]
    settings = {"state": "trained", "curve": curve, "facts": {"images": 24, "seconds": 1.5},
                "strips": {"local": Image.fromarray(np.zeros((40, 90, 3), np.uint8))}, **changes}
    return CategoryRow(category=category, **settings)  # type: ignore[arg-type]


def words(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S)
                    .split())


def test_a_failed_category_comes_first_with_its_reason() -> None:
    failed = row("zip", state="failed", error=f"3 images {EVIL}", curve=(), strips={}, facts={})
    page = checked(render_training([row("cap"), row("bolt"), failed], preset="small",
                                   facts={"models": "m", "commit": None}))
    said = words(page)
    assert EVIL not in page and "2 trained, 0 finished before, 1 failed" in said
    at = [said.index(text) for text in ("zip failed: 3 images", "bolt trained", "cap trained")]
    assert at == sorted(at)


def test_curves_stand_with_first_and_last_value_and_the_strip_below() -> None:
    page = checked(render_training([row("cap", findings=["local: sigma^2 is at its bound"])],
                                   preset="small", facts={}))
    said = words(page)
    assert "local, distillation" in said and "distillation 0.9 → 0.18" in said
    assert "local, EM" in said and "gsvdd 0.5 → 0.1" in said and "lr" not in said.split()
    assert "sigma^2 is at its bound" in said
    assert page.count("<svg") == 2 and page.count('class="strip"') == 1


def test_fast_has_neither_curves_nor_strips() -> None:
    page = checked(render_training([row("cap", curve=(), strips={})], preset="fast", facts={}))
    assert "<svg" not in page and 'class="strip"' not in page and "not the networks" in page

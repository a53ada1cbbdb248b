"""What all pages share: the environment of their templates, and what they say of presets."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from igd import __version__
from igd.report import text
from igd.report.names import full_name, tail, visible
from igd.report.sizes import size_of
from igd.report.summary import is_odd

PRESETS = {
    "fast": ("Gaussian descriptors on frozen ImageNet features; not the networks of the IGD "
             "paper."),
    "small": "the networks of the IGD paper, narrow.",
    "paper": "the networks of the IGD paper at full width.",
}
_SPLIT = ("Its p-values are split-conformal: of normals like those of the calibration, at most "
          "the rate alpha is called anomalous.")
P_VALUES = {
    "fast": ("Its p-values compare with normals that were scored by models fitted without them, "
             "and carry no distribution-free guarantee."),
    "small": _SPLIT, "paper": _SPLIT,
}


def calibrated(preset: str) -> str:
    """What a preset is, and what its calibrated decisions promise; empty for one not known."""
    return f"{PRESETS[preset]} {P_VALUES[preset]}" if preset in PRESETS else ""


def environment() -> Environment:
    """Where templates are found, escaped and given their filters."""
    found = Environment(loader=PackageLoader("igd.report"), autoescape=True,
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters.update(
        visible=visible, tail=tail, full_name=full_name, count="{:,}".format,
        number="{:.4g}".format, metric=text.number, size=size_of, repr=repr)
    found.tests.update(odd=is_odd)
    found.globals.update(version=__version__)
    return found

"""Made-up products and their defects, painted with numpy.

Scenes are float (S, S, 3), 0 to 255; fields and alphas are float (S, S). A product is a function
of a generator and a size; a defect returns an alpha and the colours that show through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """A product before the camera.

    Attributes:
        image: (S, S, 3).
        region: (S, S) bool, where a defect can lie.
        part: (S, S) alpha of a part that can be missing, or None.
        beneath: (S, S, 3), what is seen where the part is missing.
    """

    image: Field
    region: NDArray[np.bool_]
    part: Field | None = None
    beneath: Field | None = None


def _weave(rng: Generator, size: int) -> Scene:
    y, x = _turned(rng, size, 2.0)
    wobble = 0.0035 * _noise(rng, size, 40) + 0.0012 * _noise(rng, size, 8)
    threads = 26 * rng.uniform(0.97, 1.03)
    u, v = (x + wobble) * threads + rng.uniform(), (y + wobble.T) * threads + rng.uniform()
    warp = np.abs(np.sin(np.pi * u)) ** 0.6
    weft = np.abs(np.sin(np.pi * v)) ** 0.6
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    height = np.where(over, warp * (0.75 + 0.25 * weft), weft * (0.6 + 0.2 * warp))
    fibre = np.where(over, _noise(rng, size, 1, stretch=(6, 1)), _noise(rng, size, 1, (1, 6)))
    value = 0.45 + 0.5 * height + 0.07 * fibre + 0.03 * _noise(rng, size, 40)
    colour = np.where(over[..., None], (196, 186, 164), (168, 160, 146))
    return Scene(value[..., None] * colour, np.ones((size, size), dtype=bool))


def _wood(rng: Generator, size: int) -> Scene:
    y, _ = _turned(rng, size, 3.0)
    bend = 0.10 * _noise(rng, size, 90) + 0.015 * _noise(rng, size, 18, stretch=(1, 5))
    rings = (y + bend) * rng.uniform(7, 9) + rng.uniform()
    saw = rings - np.floor(rings)
    grain = saw**2.5 * np.clip((1 - saw) * 9, 0, 1)
    pores = np.clip(_noise(rng, size, 1, stretch=(1, 14)) - 1.1, 0, 1)
    value = 1 - 0.26 * grain - 0.22 * pores + 0.05 * _noise(rng, size, 2, stretch=(1, 20))
    tint = 1 + 0.04 * _noise(rng, size, 100)
    colour = np.array((197, 150, 100)) * np.array((1, rng.uniform(0.97, 1.02), 1))
    shade = np.stack([value**power for power in (0.8, 1.0, 1.25)], axis=-1)
    return Scene(shade * colour * tint[..., None], np.ones((size, size), dtype=bool))


def _tile(rng: Generator, size: int) -> Scene:
    big = size * 2
    canvas = Image.new("RGB", (big, big), (186, 184, 178))
    draw = ImageDraw.Draw(canvas)
    colours = ((122, 118, 114), (214, 210, 202), (158, 134, 112), (90, 92, 96), (200, 186, 166))
    for _ in range(520):
        centre, radius = rng.uniform(-0.02, 1.02, 2) * big, big * rng.gamma(4.0, 0.0028)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = radius * rng.uniform(0.7, 1.2, 7)
        points = centre + np.stack([np.cos(angles) * reach, np.sin(angles) * reach * 0.8], axis=1)
        shade = rng.normal(0, 7)
        fill = tuple(int(c + shade) for c in colours[rng.choice(5, p=(.3, .3, .15, .1, .15))])
        draw.polygon([(float(px), float(py)) for px, py in points], fill=fill)
    image = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    grit = 2.5 * _noise(rng, size, 1) + 2 * _noise(rng, size, 60)
    return Scene(image + grit[..., None], np.ones((size, size), dtype=bool))


def _washer(rng: Generator, size: int) -> Scene:
    y, x = grid(size)
    x, y = x - rng.uniform(-0.025, 0.025), y - rng.uniform(-0.025, 0.025)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    outer, inner = 0.37 * rng.uniform(0.985, 1.015), 0.175 * rng.uniform(0.985, 1.015)
    edge = 1.2 / size
    ring = _ramp(outer - radius, edge) * _ramp(radius - inner, edge)
    turned = np.interp(radius, np.linspace(0, 0.75, 400), rng.normal(0, 1, 400))
    shine = 0.5 + 0.5 * np.cos(2 * (angle - rng.uniform(0.4, 1.2)))
    bevel = np.exp(-((outer - radius) / 0.012) ** 2) + np.exp(-((radius - inner) / 0.012) ** 2)
    metal = 128 + 68 * shine**2 + 5 * turned + 26 * bevel + 3 * _noise(rng, size, 2)
    floor = 44 + 4 * _noise(rng, size, 1) + 4 * _noise(rng, size, 30)
    shadow = _ramp(outer + 0.02 - np.hypot(x - 0.014, y - 0.018), 0.03)
    ground = (floor * (1 - 0.55 * shadow))[..., None] * np.array((0.92, 1.0, 1.12))
    image = ground * (1 - ring[..., None]) + (metal * ring)[..., None] * np.array((1, .99, .96))
    region = (radius < outer - 0.012) & (radius > inner + 0.012)
    return Scene(image, region, part=ring * _sector(rng, angle), beneath=ground)


def _board(rng: Generator, size: int) -> Scene:
    """A fixed layout under a slightly shifted and turned camera."""
    layers = [_draw_board(with_part) for with_part in (True, False)]
    alpha = Image.new("L", layers[0].size)
    ImageDraw.Draw(alpha).rectangle(_scaled((0.60, 0.62, 0.72, 0.70)), fill=255)
    shift, turn = rng.uniform(-0.012, 0.012, 2) * _BOARD_PX, rng.uniform(-1.5, 1.5)
    image, beneath, part = (
        np.asarray(layer.rotate(turn, Image.Resampling.BICUBIC, translate=tuple(shift))
                   .crop(_scaled((0.06, 0.06, 0.94, 0.94)))
                   .resize((size, size), Image.Resampling.BOX), dtype=np.float64)
        for layer in (*layers, alpha))
    wear = (2 * _noise(rng, size, 1) + 2.5 * _noise(rng, size, 40))[..., None]
    return Scene(image + wear, np.ones((size, size), dtype=bool), part / 255, beneath + wear)


_BOARD_PX = 480
_TRACE_PX = 5


@functools.cache
def _draw_board(with_part: bool) -> Image.Image:
    canvas = Image.new("RGB", (_BOARD_PX, _BOARD_PX), (22, 92, 58))
    draw = ImageDraw.Draw(canvas)
    copper, pad, black = (38, 122, 78), (206, 196, 168), (34, 35, 38)
    for i in range(9):  # traces from the chip to the right and the lower edge
        y = 0.235 + 0.036 * i
        line = [(0.5, y), (0.62 + 0.02 * i, y), (0.72 + 0.02 * i, y + 0.08), (1.0, y + 0.08)]
        draw.line([_point(p) for p in line], fill=copper, width=_TRACE_PX)
        x = 0.19 + 0.036 * i
        line = [(x, 0.55), (x, 0.66 + 0.012 * i), (x + 0.05, 0.74 + 0.012 * i), (x + 0.05, 1.0)]
        draw.line([_point(p) for p in line], fill=copper, width=_TRACE_PX)
    for i in range(9):  # pins on four sides
        a, b = 0.180 + 0.036 * i, 0.225 + 0.036 * i
        for box in ((a, .165, a + .018, .565), (.135, b, .535, b + .018)):
            draw.rectangle(_scaled(box), fill=pad)
    draw.rectangle(_scaled((0.165, 0.195, 0.505, 0.535)), fill=black)
    draw.ellipse(_scaled((0.185, 0.215, 0.215, 0.245)), fill=(70, 70, 74))
    for i in range(3):
        draw.rectangle(_scaled((.24, .33 + .045 * i, .43 - .03 * i, .345 + .045 * i)),
                       fill=(92, 93, 96))
    for row in range(2):  # chip resistors; the second of the upper row can be missing
        for column in range(3):
            x, y = 0.44 + 0.16 * column, 0.62 + 0.14 * row
            present = with_part or (row, column) != (0, 1)
            _resistor(draw, x, y, present, pad, black)
    for x, y in ((0.86, 0.14), (0.14, 0.9), (0.88, 0.9)):
        draw.ellipse(_scaled((x - .04, y - .04, x + .04, y + .04)), fill=(196, 176, 96))
        draw.ellipse(_scaled((x - .022, y - .022, x + .022, y + .022)), fill=(16, 18, 20))
    return canvas


def _resistor(draw: ImageDraw.ImageDraw, x: float, y: float, present: bool,
              pad: tuple[int, int, int], black: tuple[int, int, int]) -> None:
    for left in (x, x + 0.09):
        draw.rectangle(_scaled((left, y, left + 0.03, y + 0.08)), fill=pad)
    if present:
        draw.rectangle(_scaled((x + 0.012, y + 0.006, x + 0.108, y + 0.074)), fill=(224, 222, 216))
        draw.rectangle(_scaled((x + 0.03, y + 0.006, x + 0.09, y + 0.074)), fill=black)


def _scratch(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    size = len(scene.image)
    middle, angle = _spot(rng, scene), rng.uniform(0, 2 * np.pi)
    steps = rng.uniform(0.012, 0.02) * np.ones(rng.integers(10, 18))
    headings = angle + np.cumsum(rng.normal(0, 0.12, len(steps)))
    path = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], 1) * steps[:, None], 0)
    path += middle - path[len(path) // 2]
    big = Image.new("L", (size * 4, size * 4))
    points = [(float(px), float(py)) for px, py in path * size * 4]
    ImageDraw.Draw(big).line(points, fill=255, joint="curve",
                             width=max(6, round(size * rng.uniform(0.026, 0.045))))
    alpha = np.asarray(big.resize((size, size), Image.Resampling.BOX), np.float64) / 255
    alpha *= scene.region
    bright = scene.image[scene.region].mean() > 110
    return alpha * 0.85, scene.image * 0.45 if bright else scene.image * 0.3 + 120


def _stain(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    alpha = _blob(rng, scene, rng.uniform(0.035, 0.08), softness=0.35)
    tint = np.array(((0.62, 0.5, 0.36), (0.55, 0.55, 0.6), (0.75, 0.5, 0.4))[rng.integers(3)])
    return alpha * rng.uniform(0.75, 0.95), scene.image * tint


def _hole(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    alpha = _blob(rng, scene, rng.uniform(0.025, 0.05), softness=0.12)
    size = len(scene.image)
    return alpha, 22 + 5 * _noise(rng, size, 2)[..., None] * np.ones(3)


def _colour(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    alpha = _blob(rng, scene, rng.uniform(0.02, 0.05), softness=0.2)
    paint = ((168, 44, 40), (40, 74, 150), (206, 168, 40))[rng.integers(3)]
    return alpha * 0.8, np.array(paint, dtype=np.float64) * np.ones_like(scene.image)


def _chip(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    alpha = _blob(rng, scene, rng.uniform(0.025, 0.05), softness=0.08, corners=0.3)
    size = len(scene.image)
    rough = 1 + 0.10 * _noise(rng, size, 3)
    return alpha, rough[..., None] * (226, 222, 212) * 0.92


def _missing(rng: Generator, scene: Scene) -> tuple[Field, Field]:
    assert scene.part is not None and scene.beneath is not None
    return scene.part, scene.beneath


Painter = Callable[[Generator, int], Scene]
CATEGORIES: dict[str, tuple[Painter, tuple[str, ...]]] = {
    "weave": (_weave, ("hole", "stain", "colour")),
    "wood": (_wood, ("scratch", "hole", "stain")),
    "tile": (_tile, ("scratch", "stain", "chip")),
    "washer": (_washer, ("scratch", "stain", "missing_part")),
    "board": (_board, ("scratch", "colour", "missing_part")),
}
"""Name -> how it is painted, and its kinds of defect."""

DEFECTS: dict[str, Callable[[Generator, Scene], tuple[Field, Field]]] = {
    "scratch": _scratch, "stain": _stain, "hole": _hole, "colour": _colour, "chip": _chip,
    "missing_part": _missing,
}


def grid(size: int) -> tuple[Field, Field]:
    """y and x of pixel centres, from -0.5 to 0.5."""
    line = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(line, line, indexing="ij")
    return y, x


def _turned(rng: Generator, size: int, degrees: float) -> tuple[Field, Field]:
    y, x = grid(size)
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    return x * np.sin(angle) + y * np.cos(angle), x * np.cos(angle) - y * np.sin(angle)


def _noise(rng: Generator, size: int, cell: int, stretch: tuple[int, int] = (1, 1)) -> Field:
    """Unit normal noise with features of `cell` px at size 256, stretched along y and x."""
    step = [max(1, cell * s * size // 256) for s in stretch]
    shape = [-(-size // s) + 3 for s in step]
    coarse = rng.normal(0, 1, shape).astype(np.float32)
    full = Image.fromarray(coarse).resize((shape[1] * step[1], shape[0] * step[0]),
                                          Image.Resampling.BICUBIC)
    return np.asarray(full, dtype=np.float64)[step[0]:step[0] + size, step[1]:step[1] + size]


def _ramp(distance: Field, width: float) -> Field:
    return np.clip(distance / width + 0.5, 0, 1)


def _spot(rng: Generator, scene: Scene) -> Field:
    """A random place of the region, x and y in 0 to 1, away from the border."""
    size = len(scene.region)
    inside = scene.region.copy()
    margin = size // 8
    inside[:margin] = inside[-margin:] = inside[:, :margin] = inside[:, -margin:] = False
    rows, columns = np.nonzero(inside)
    pick = rng.integers(len(rows))
    return np.array([columns[pick] + 0.5, rows[pick] + 0.5]) / size


def _blob(rng: Generator, scene: Scene, radius: float, *, softness: float,
          corners: float = 0.15) -> Field:
    y, x = grid(len(scene.image))
    centre = _spot(rng, scene) - 0.5
    dx, dy = x - centre[0], y - centre[1]
    angle = np.arctan2(dy, dx)
    reach = np.ones_like(angle)
    for k in range(2, 7):
        reach += corners * rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) * 1.5
    inside = 1 - np.hypot(dx, dy) / (radius * np.clip(reach, 0.4, 1.8))
    alpha: Field = np.clip(inside / softness, 0, 1) * scene.region
    return alpha


def _sector(rng: Generator, angle: Field) -> Field:
    """1 in a random sector of 20 to 40 degrees, 0 elsewhere."""
    middle, half = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(10, 20))
    away = np.abs((angle - middle + np.pi) % (2 * np.pi) - np.pi)
    return _ramp(half - away, 0.03)


def _point(p: tuple[float, float]) -> tuple[float, float]:
    return p[0] * _BOARD_PX, p[1] * _BOARD_PX


def _scaled(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(v * _BOARD_PX) for v in box)
    return x0, y0, x1, y1

"""What one branch is trained on: images, or the patches of images, by number."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from igd.model.dense import Zeros
from igd.model.igd import CHUNK, IGD, Branch, patches
from igd.model.networks import Encoder, FeatureEncoder
from igd.train.images import Images
from igd.train.workers import ALONE, Workers

MEASURED_IMAGES = 64
MEASURED_PATCHES = 2048
"""BatchNorm statistics are measured on at most so many inputs, in one batch."""


class Inputs:
    """The inputs of one branch of a model.

    Input i is patch i % each of image i // each; the global branch, and a model that is the local
    branch alone, have one per image.

    Attributes:
        each: inputs per image.
        total: inputs in all.
        workers: who share the work; each holds all images.
        features_IF: what the frozen part of the encoder says of every input, after `freeze`:
            4 F bytes each, F up to 1,280 for images and 512 for patches; in memory or elsewhere.
    """

    def __init__(self, model: IGD, name: str, images_NCHW_uint8: Tensor | Images,
                 workers: Workers = ALONE, zeros: Zeros | None = None) -> None:
        """`zeros`: makes what the features are written to; by default it is on the device."""
        self.model = model
        self.name = name
        self.workers = workers
        self.images = images = Images.of(images_NCHW_uint8)
        self._zeros = zeros or partial(torch.zeros, device=images.device)
        self._grid = (patches(images.source_NCHW) if name == "local"
                      else images.source_NCHW[:, None, None])
        self.each = self._grid.shape[1] * self._grid.shape[2]
        self.total = len(images) * self.each
        self.features_IF: Tensor | None = None

    @property
    def branch(self) -> Branch:
        """The branch that is trained."""
        return self.model.branch(self.name)

    @property
    def encoder(self) -> Encoder | FeatureEncoder:
        """The branch's encoder."""
        return self.branch.encoder

    def draw(self, image_B: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
        """Numbers of up to `per_image` random inputs of each image, without repeats."""
        k = min(per_image, self.each)
        if self.each == 1:
            return image_B
        chosen_BK = torch.rand(len(image_B), self.each, generator=generator).argsort(1)[:, :k]
        return (image_B[:, None] * self.each + chosen_BK).flatten()

    def spread(self, most: int, generator: torch.Generator) -> Tensor:
        """Numbers of at most `most` inputs, drawn evenly over the images."""
        every = torch.arange(len(self.images))
        if len(every) > most:
            every = torch.randperm(len(every), generator=generator)[:most]
        per_image = max(1, min(self.each, most // len(self.images)))
        return self.draw(every, per_image, generator)

    def few(self, of: int, generator: torch.Generator) -> Tensor:
        """Which of `of` inputs BatchNorm is measured on, in one batch."""
        most = MEASURED_IMAGES if self.name == "global" else MEASURED_PATCHES
        return torch.randperm(of, generator=generator)[:most]

    def raw(self, input_P: Tensor) -> Tensor:
        """Pixels 0..255 as uint8, (P, 3, S, S)."""
        image_P, place_P = input_P // self.each, input_P % self.each
        columns = self._grid.shape[2]
        return self.images.taken_from(self._grid, image_P, place_P // columns, place_P % columns)

    def pixels(self, input_P: Tensor) -> Tensor:
        """Normalised pixels (P, 3, S, S)."""
        return self.model.normalise(self.raw(input_P))

    def seen(self, input_P: Tensor) -> Tensor:
        """What the encoder reads: features (P, F) once they are frozen, else pixels."""
        if self.features_IF is None:
            return self.pixels(input_P)
        return self.features_IF[input_P.to(self.features_IF.device)].to(self.images.device)

    def freeze(self) -> None:
        """Keeps the encoder's features: its layers below the linear one change no more."""
        encoder, workers, n = self.encoder, self.workers, len(self.images)
        features_IF = self._zeros((self.total, encoder.linear.in_features))
        at = features_IF.device
        with torch.no_grad():
            if isinstance(encoder, Encoder):
                for chunk in torch.split(workers.mine(self.total), CHUNK):
                    features_IF[chunk.to(at)] = encoder.features(self.pixels(chunk)).to(at)
                workers.fill(features_IF, self.images.device)
            else:
                features_NEF = features_IF.view(n, self.each, -1)
                for i in workers.mine(n):
                    features_NEF[i] = self.model.teacher_features(
                        self.name, self.images[i[None]]).to(at)
                workers.fill(features_NEF, self.images.device)
        self.features_IF = features_IF

"""From the terms of an image to its score: Eq. 11, and the other profiles.

`paper`: Eq. 11, local terms the mean over the patches (as Eq. 8 sums). `official`: what the
authors' code computes, the worst patch. `standardised`: the sum of the terms, each on the scale
of held-out normals; local terms the worst patch of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from igd.config import Config
from igd.errors import DivergedError, NotFittedError
from igd.model.gaussian import gsvdd

OFFICIAL_RECONSTRUCTION = {"global": 0.1, "local": 0.9}
"""Profile `official`: a branch's weight of reconstruction; the rest is GSVDD's."""


@dataclass(frozen=True)
class BranchTerms:
    """What a branch says of N inputs, float64 but for the heatmap.

    Attributes:
        unlike_N: 1 - MS-SSIM.
        mae_N: mean |x - x~| / L.
        difference_N: mean (x - x~) / L.
        distance_N: d/s.
        heatmap_NHW: Eq. 12.
    """

    unlike_N: Tensor
    mae_N: Tensor
    difference_N: Tensor
    distance_N: Tensor
    heatmap_NHW: Tensor


class Mix(nn.Module):
    """The score of one profile; the scale of `standardised` is part of the saved state."""

    scale_T2: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.profile = config.mix.profile
        self.xi = 1.0 if config.train.descriptor == "none" else config.mix.xi
        self.beta = config.mix.beta
        self.rho = config.train.rho
        self.branches = tuple(config.net.encoders)
        kinds = ("reconstruction",) if self.xi == 1 else ("reconstruction", "gsvdd_distance")
        self.scaled = tuple(f"{branch}_{kind}" for branch in self.branches for kind in kinds)
        # a row per term: mean and deviation over held-out normals
        self.register_buffer("scale_T2", torch.zeros(len(self.scaled), 2).double())

    def image_terms(self, branch: str, of: BranchTerms) -> dict[str, Tensor]:
        """One image's terms, by column name, from those of its inputs (1 or 225 patches)."""
        reconstruction_N, gsvdd_N = of.unlike_N, gsvdd(of.distance_N)
        if self.profile == "official":
            # the authors take no absolute value in the local branch
            l1_N = of.difference_N if branch == "local" else of.mae_N
            reconstruction_N = self.rho * l1_N + (1 - self.rho) * of.unlike_N
        values = {"reconstruction": reconstruction_N, "gsvdd": gsvdd_N,
                  "gsvdd_distance": of.distance_N}
        if self.profile == "official":
            worst = self._official(branch, reconstruction_N, gsvdd_N).argmax()
            terms = {name: value_N[worst] for name, value_N in values.items()}
        elif self.profile == "standardised":
            terms = {name: value_N.amax() for name, value_N in values.items()}
        else:
            terms = {name: value_N.mean() for name, value_N in values.items()}
        return {f"{branch}_{name}": value for name, value in terms.items()}

    def score(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Image scores from terms by column name, float64 (N,).

        Raises:
            NotFittedError: profile `standardised` before `standardise`.
        """
        if self.profile == "standardised":
            return self._standardised(terms)
        if self.profile == "official":
            parts = [self._official(branch, terms[f"{branch}_reconstruction"],
                                    terms[f"{branch}_gsvdd"]) for branch in self.branches]
            return torch.stack(parts).mean(0).double()
        return (self.xi * self._both(terms, "reconstruction")
                + (1 - self.xi) * self._both(terms, "gsvdd"))

    def heatmap(self, heatmaps: Mapping[str, Tensor]) -> Tensor:
        """Both branches' heatmaps of an image, mixed by beta."""
        if "global" not in heatmaps:
            return heatmaps["local"]
        return self.beta * heatmaps["global"] + (1 - self.beta) * heatmaps["local"]

    def standardise(self, terms: Mapping[str, Tensor]) -> None:
        """Sets the scale from the terms of normals that the nets were not trained on.

        Raises:
            DivergedError: a term does not vary over them.
        """
        rows = []
        for name in self.scaled:
            term_N = terms[name].double()
            if len(term_N) < 2 or not bool(term_N.std() > 0):
                raise DivergedError(f"standardise: {name} does not vary over {len(term_N)} "
                                    "held-out normals; expected different images")
            rows.append(torch.stack([term_N.mean(), term_N.std()]))
        self.scale_T2.copy_(torch.stack(rows))

    def _both(self, terms: Mapping[str, Tensor], kind: str) -> Tensor:
        """Eq. 11's mix of the branches."""
        local_N = terms[f"local_{kind}"].double()
        if "global" not in self.branches:
            return local_N
        return self.beta * terms[f"global_{kind}"].double() + (1 - self.beta) * local_N

    def _official(self, branch: str, reconstruction_N: Tensor, gsvdd_N: Tensor) -> Tensor:
        weight = 1.0 if self.xi == 1 else OFFICIAL_RECONSTRUCTION[branch]
        return weight * reconstruction_N + (1 - weight) * gsvdd_N

    def _standardised(self, terms: Mapping[str, Tensor]) -> Tensor:
        if not bool((self.scale_T2[:, 1] > 0).all()):
            raise NotFittedError("profile standardised has no scale: call standardise first")
        mean_T, deviation_T = self.scale_T2.unbind(1)
        values_TN = torch.stack([terms[name].double() for name in self.scaled])
        return ((values_TN - mean_T[:, None]) / deviation_T[:, None]).sum(0)

"""What the endpoint answers."""

from __future__ import annotations

from pydantic import BaseModel, Field


class RegionReply(BaseModel):
    """A part of the image that stands out, in source pixels (x1, y1 exclusive)."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int
    peak: float


class ScoreReply(BaseModel):
    """What a category's model says of one image."""

    category: str
    preset: str = Field(description="`fast`, `small` or `paper`: which kind of model this is.")
    model_version: str
    score: float = Field(description="Raw; higher is more anomalous.")
    terms: dict[str, float] = Field(description="The parts of the score.")
    p_value: float = Field(description="Share of calibration normals that score as high.")
    decision: str = Field(description="`normal`, `review` or `anomalous`.")
    alpha: float = Field(description="False-positive rate of the threshold.")
    threshold: float
    regions: list[RegionReply]
    width: int
    height: int
    sha256: str
    score_fingerprint: str
    heatmap: str | None = Field(None, description="PNG, base64, with ?heatmap=png.")
    heatmap_min: float | None = None
    heatmap_max: float | None = None
    milliseconds: float


class CategoriesReply(BaseModel):
    """Categories that can be scored."""

    categories: list[str]


class ErrorDetail(BaseModel):
    """One error, in the only shape errors have here."""

    code: str
    message: str
    request_id: str


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorDetail

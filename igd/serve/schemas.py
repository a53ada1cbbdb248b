"""What the endpoint answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """A reply; what it is made of has names of its own, so unknown ones are mistakes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class RegionReply(Reply):
    """A part of the image that stands out, in source pixels (x1, y1 exclusive)."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int
    peak: float


class TimingsReply(Reply):
    """Where the time went, in milliseconds."""

    decode: float
    wait: float = Field(description="For a scorer, and on the way there and back.")
    score: float
    total: float = Field(description="From when the body was there to the answer.")


class ScoreReply(Reply):
    """What a category's model says of one image."""

    category: str = Field(examples=["bottle"])
    preset: str = Field(description="`fast`, `small` or `paper`: which kind of model this is.",
                        examples=["fast"])
    model_version: str = Field(examples=["20260102T030405678-0a1b2c3d"])
    score: float = Field(description="Raw; higher is more anomalous.", examples=[41.7])
    terms: dict[str, float] = Field(description="The parts of the score.")
    p_value: float = Field(description="Share of calibration normals that score as high.",
                           examples=[0.0048])
    decision: str = Field(description="`normal`, `review` or `anomalous`.", examples=["anomalous"])
    alpha: float = Field(description="False-positive rate of the threshold.", examples=[0.01])
    threshold: float = Field(examples=[35.2])
    regions: list[RegionReply]
    region_threshold: float = Field(
        description="Heatmap values that normal images reach no higher than, but for `alpha`.")
    width: int = Field(description="Of the source, in pixels.")
    height: int
    box: list[int] = Field(description="x0, y0, x1, y1 of the source that the model saw.")
    sha256: str = Field(description="Of the bytes that were sent.")
    score_fingerprint: str
    heatmap: str | None = Field(default=None, description="Grey PNG, base64, with ?heatmap=png.")
    heatmap_min: float | None = Field(default=None, description="The value of black.")
    heatmap_max: float | None = Field(default=None, description="The value of white.")
    overlay: str | None = Field(default=None, description="The model's input with the heatmap on "
                                                          "top: PNG, base64, with "
                                                          "?heatmap=overlay.")
    timings_ms: TimingsReply


class ErrorReply(Reply):
    """The body of every reply that is not a success."""

    error: str = Field(description="For people.", examples=["truncated: the file was cut"])
    code: str = Field(description="For programs.", examples=["truncated"])
    request_id: str = Field(description="As in the header x-request-id and in the log.")


class BatchItem(Reply):
    """One image of a batch: its result, or what is wrong with it."""

    name: str = Field(description="The file name it was sent under.")
    result: ScoreReply | None = None
    error: ErrorReply | None = None


class BatchReply(Reply):
    """Images in the order they were sent."""

    results: list[BatchItem]


class CategoryReply(Reply):
    """A category, and what answers for it."""

    category: str
    state: str = Field(description="`loading`, `ready`, `stale` (the version in production cannot "
                                   "be used, the one before answers) or `failed`.")
    preset: str | None = None
    model_version: str | None = None
    model_created_at: str | None = None
    score_fingerprint: str | None = None
    threshold: float | None = None
    review_threshold: float | None = None
    alpha: float | None = None
    calibration: list[int] | None = Field(
        default=None, description="Histogram of calibration scores, lowest to highest.")
    scores_from: float | None = None
    scores_to: float | None = None


class CategoriesReply(Reply):
    """Categories that can be scored."""

    categories: list[str]
    details: list[CategoryReply]


class ReadyReply(Reply):
    """Whether there is a point in sending images here."""

    ready: bool
    draining: bool
    categories: dict[str, str] = Field(description="State by category.")

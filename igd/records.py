"""Rows, column names, Arrow schemas and reason codes: each stands here and nowhere else."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1

UNROUTED = "_unrouted"
"""The category of images that no model was chosen for; all of them are rejects."""


class Reason(StrEnum):
    """Why an image has no score."""

    EMPTY = "empty"
    NOT_IMAGE = "not_image"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    MULTI_FRAME = "multi_frame"
    UNSUPPORTED_MODE = "unsupported_mode"
    DECODER_CRASH = "decoder_crash"
    UNROUTED = "unrouted"
    UNKNOWN_CATEGORY = "unknown_category"
    NOT_REGULAR = "not_regular"
    NESTED = "nested"
    SPARSE = "sparse"
    ENCRYPTED = "encrypted"
    METHOD = "method"
    CRC = "crc"
    OVERLAP = "overlap"
    NAME_MISMATCH = "name_mismatch"
    VANISHED = "vanished"
    CHANGED = "changed"
    DENIED = "denied"


class SourceStatus(StrEnum):
    """How the listing of one source ended."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    NO_END_MARKER = "no_end_marker"
    DAMAGED = "damaged"
    ENCRYPTED = "encrypted"
    SCHEMA = "schema"
    DENIED = "denied"
    VANISHED = "vanished"


class Decision(StrEnum):
    """What is said of one scored image."""

    NORMAL = "normal"
    REVIEW = "review"
    ANOMALOUS = "anomalous"


class Status(StrEnum):
    """Whether an image has a score."""

    SCORED = "scored"
    REJECTED = "rejected"


TERMS = (
    "global_reconstruction", "local_reconstruction",
    "global_gsvdd", "local_gsvdd",
    "global_gsvdd_distance", "local_gsvdd_distance",
    "dense_distance", "pooled_distance",
)
"""Raw terms of a score, higher more anomalous; a preset leaves those it lacks null.

`*_gsvdd_distance` is d/s, the exponent of Eq. 7, which still ranks images where
1 - exp(-d/s) has reached 1.0. `dense_distance` and `pooled_distance` are the Mahalanobis
distances of preset `fast`."""

REGION = pa.struct([
    pa.field("x0", pa.int32()), pa.field("y0", pa.int32()),
    pa.field("x1", pa.int32()), pa.field("y1", pa.int32()),
    pa.field("area", pa.int64()), pa.field("peak", pa.float32()),
])
"""A box in source pixels (x1, y1 exclusive), its area in source pixels, its highest value."""

UTC = pa.timestamp("us", tz="UTC")

IDENTITY = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("source_uri", pa.string(), nullable=False),
    pa.field("source_version", pa.string(), nullable=False),
    pa.field("member", pa.string(), nullable=False),
    pa.field("ordinal", pa.int64(), nullable=False),
])
"""Which image a row is about (see `igd.data.sources.image_id`)."""

PLAN = pa.schema([
    pa.field("shard", pa.int64(), nullable=False),
    pa.field("category", pa.string(), nullable=False),
    *IDENTITY,
    pa.field("kind", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("span", pa.int64(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("method", pa.int32(), nullable=False),
    pa.field("crc", pa.int64()),
    pa.field("reject_reason", pa.string()),
    pa.field("reject_detail", pa.string()),
])
"""One member of a dump: where its bytes are (`offset`, `span`), how they are packed."""

DECODED = pa.schema([
    *PLAN,
    pa.field("bytes", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("pixels", pa.binary()),
])
"""A member after decoding: `pixels` is the model's uint8 input (size, size, 3), or null."""

SCORES = pa.schema([
    *IDENTITY,
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("generation", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reject_reason", pa.string()),
    pa.field("reject_detail", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("preset", pa.string()),
    pa.field("score", pa.float64()),
    *(pa.field(term, pa.float64()) for term in TERMS),
    pa.field("p_value", pa.float64()),
    pa.field("decision", pa.string()),
    pa.field("alpha", pa.float64()),
    pa.field("threshold", pa.float64()),
    pa.field("regions", pa.list_(REGION)),
    pa.field("model_version", pa.string()),
    pa.field("score_fingerprint", pa.string()),
    pa.field("schema_version", pa.int32(), nullable=False),
    pa.field("scored_at", UTC, nullable=False),
    pa.field("date", pa.date32(), nullable=False),
    pa.field("category", pa.string(), nullable=False),
])
"""The table `scores`, partitioned by date and category."""

HEATMAPS = pa.schema([
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("heatmap", pa.binary(), nullable=False),
    pa.field("heatmap_min", pa.float32(), nullable=False),
    pa.field("heatmap_max", pa.float32(), nullable=False),
    pa.field("date", pa.date32(), nullable=False),
    pa.field("category", pa.string(), nullable=False),
])
"""The table `heatmaps`: 8-bit PNG, 0 for `heatmap_min`, 255 for `heatmap_max`."""

SOURCES = pa.schema([
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("source_uri", pa.string(), nullable=False),
    pa.field("source_version", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("members", pa.int64(), nullable=False),
    pa.field("bytes", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("detail", pa.string()),
    pa.field("date", pa.date32(), nullable=False),
])
"""The table `sources`, partitioned by date: what was listed, and how that ended."""

CALIBRATION = pa.schema([
    pa.field("image", pa.string(), nullable=False),
    pa.field("sha256", pa.string(), nullable=False),
    *(pa.field(term, pa.float64()) for term in TERMS),
    pa.field("score", pa.float64(), nullable=False),
    pa.field("heatmap_max", pa.float64(), nullable=False),
])
"""One calibration normal: what a model that has not seen it says of it."""

PARTITION_BY = ("date", "category")

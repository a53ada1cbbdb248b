"""One image in, one answer out: a FastAPI application over a Scorer, without a cluster."""

"""Training: torch only, no files, no ray. EM for the nets."""

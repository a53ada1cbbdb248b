"""From a bundle and images to scores, decisions, regions and metrics."""

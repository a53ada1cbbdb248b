"""From bytes to arrays: dumps and archives, images, datasets, synthetic data."""

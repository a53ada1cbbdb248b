"""igd-ray: distributed anomaly scoring of images with Interpolated Gaussian Descriptors."""

__version__ = "0.1.0"

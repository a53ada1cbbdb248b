"""The models: torch only, no files, no ray.

Shapes in names: N images, C channels, H rows, W columns, D descriptor size, P patches or
grid positions.
"""

"""HTML reports, each one file without scripts or outside assets."""

"""What `containers.py` packs, compares and reads back."""

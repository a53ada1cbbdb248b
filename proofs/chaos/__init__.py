"""What `score_chaos.py` is made of: images, servers, faults by kind, and an independent checker."""

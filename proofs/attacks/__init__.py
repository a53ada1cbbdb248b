"""Abuse of an endpoint over raw sockets, and what it does to others meanwhile."""

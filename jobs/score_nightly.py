"""Scores a date's dump, and those of dates before it that were missed, on the cluster of this job.

    ray job submit --working-dir . -- python -m jobs.score_nightly jobs/score_nightly.yaml [DATE]

DATE is YYYY-MM-DD, today or yesterday (the default), in UTC. The file's keys are the long options
of `igd-ray score`, whose output and exit codes these are; a date that is published already is left
as it is.
"""

from jobs.command import run

if __name__ == "__main__":
    run("score", date="yesterday")

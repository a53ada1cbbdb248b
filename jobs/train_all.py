"""Trains a model for every category, on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python -m jobs.train_all jobs/train_all.paper.yaml

The file's keys are the long options of `igd-ray train-all`, whose output and exit codes these are.
"""

from jobs.command import run

if __name__ == "__main__":
    run("train-all")

"""What runs on a cluster: training, batch scoring, serving. The only package that imports ray."""

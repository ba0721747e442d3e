"""What runs on the cluster: Ray Data pipelines, the training loop, encoder gangs, sweeps."""

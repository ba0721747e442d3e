"""What runs on the cluster: Ray Data pipelines, Ray Train loops, DeepSpeed gangs, Ray Tune sweeps."""

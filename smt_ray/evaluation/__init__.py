"""Evaluation: reference token models, figures, and the report of a run. No ray, no deepspeed."""

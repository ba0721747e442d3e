"""What runs the pipeline many times: sweeps and scaling studies."""

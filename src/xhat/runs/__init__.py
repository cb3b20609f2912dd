"""What a run is on disk: its folder, checkpoints, weights and metrics."""

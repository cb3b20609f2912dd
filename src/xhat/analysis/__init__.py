"""What an objective is, before training: its profile, what is surprising about it, its gradients, its cost."""

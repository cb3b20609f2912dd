"""Evaluation: how good samples are, and the denoising error on a common scale."""

"""Whole, verified checkpoints."""

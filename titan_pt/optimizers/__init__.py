"""Optimizers besides AdamW, loaded by name."""

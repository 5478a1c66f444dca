"""Sampling from a model: the engine interface and the native engine."""

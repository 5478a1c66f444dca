"""Dataclasses of functions that define a model family and a kind of training, and their registries."""

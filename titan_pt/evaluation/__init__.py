"""Evaluation of models: accuracy on tasks, likelihoods, and the loss on a text."""

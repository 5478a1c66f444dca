"""What a model can do, measured: accuracy on tasks, likelihoods, and the loss on a text."""

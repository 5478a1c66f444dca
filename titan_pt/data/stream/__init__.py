"""Documents in order, as packed rows and batches."""

"""Many runs of one experiment: a grid of values, each point a run folder, and the processes that train them."""

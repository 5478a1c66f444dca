"""What is told of runs after and while they train: `tools.report` and `tools.compare`, from run folders alone."""

"""Training: a plan, a loop, and a run folder that another command can go on with."""

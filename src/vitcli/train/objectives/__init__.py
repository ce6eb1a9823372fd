"""What is learned, a file an objective."""

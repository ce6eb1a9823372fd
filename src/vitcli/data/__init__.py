"""From whatever DATA names to batches of augmented images."""

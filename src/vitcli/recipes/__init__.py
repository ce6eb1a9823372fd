"""Recipes: functions from the facts of a run to a complete configuration."""

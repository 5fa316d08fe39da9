"""Kills, breaks and poisons runs of the user's own recipe, and compares what they become with an undisturbed run."""

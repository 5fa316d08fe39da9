"""The downstream tasks, a file each."""

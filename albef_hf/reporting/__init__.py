"""What a run leaves to read and to share: log, curves, report, model card, and the folder that is published."""

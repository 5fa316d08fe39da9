"""What a run tells: its log, curves, report, model card, and what is published of it."""

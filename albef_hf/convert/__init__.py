"""Published ALBEF weights -> our models, and back."""

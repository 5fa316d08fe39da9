"""Published ALBEF weights in and out, one file a layout."""

"""Where images come from, one file a source, and what is done to examples; it knows no model."""

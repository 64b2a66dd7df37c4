"""What will fit and how long it takes, from a model's config alone: shape -> job -> memory, seconds -> advice -> table."""

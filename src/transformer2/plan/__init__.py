"""What fits and how long it takes, from a config alone: shape -> job -> memory, seconds -> advice -> table."""

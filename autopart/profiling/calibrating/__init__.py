"""Where the estimates' numbers come from, and how far off they are."""
